"""Delays of messages and solves: declared, or drawn from a distribution; in seconds, for each robot, seeded.

A delay is what the configuration says: None, a number of seconds, a dictionary such as
`{"kind": "uniform", "low": 0.02, "high": 0.05}`, or one of the distributions below.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import ConfigurationError, unknown_key
from rt_lrhc.randomness import stream
from rt_lrhc.timing.clock import NS, to_ns

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_BLOCK = 256
"""Draws made at once for a robot: one call of numpy's generator costs as much as some hundred draws."""

_SLACK = 1e-6
"""Part of a time-step below which two times are the same: the rounding of seconds that were given as decimals."""


class Delay(ABC):
    """A distribution of delays, s, with an upper bound: what an action buffer has to cover."""

    @property
    @abstractmethod
    def bound(self) -> float:
        """No delay is longer, s."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, count: int) -> FloatArray:
        """Return `count` delays, (count,) float64, s."""


@dataclass(frozen=True)
class ConstantDelay(Delay):
    """Always the same.

    Attributes:
        duration: The delay, s.
    """

    duration: float

    def __post_init__(self) -> None:
        _check("duration", self.duration)

    @property
    def bound(self) -> float:
        """The delay itself."""
        return float(self.duration)

    def draw(self, generator: np.random.Generator, count: int) -> FloatArray:
        """Return the delay `count` times."""
        return np.full(count, float(self.duration))


@dataclass(frozen=True)
class UniformDelay(Delay):
    """Uniform in [low, high).

    Attributes:
        low: Shortest delay, s.
        high: Longest delay, s.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check("low", self.low)
        _check("high", self.high)
        if self.high < self.low:
            raise ConfigurationError(
                f"a uniform delay needs low <= high, got low={self.low} s, high={self.high} s"
            )

    @property
    def bound(self) -> float:
        """The longest."""
        return float(self.high)

    def draw(self, generator: np.random.Generator, count: int) -> FloatArray:
        """Draw `count` delays."""
        return generator.uniform(self.low, self.high, count)


@dataclass(frozen=True)
class LogNormalDelay(Delay):
    """Log-normal, clipped: what links and shared computers look like, a body and a tail.

    Attributes:
        median: Half of the delays are longer, s, positive.
        sigma: Standard deviation of the logarithm; 0.5 puts 2 % of the delays beyond 2.8 medians.
        high: Longer ones become this, s, at least `median`.
    """

    median: float
    sigma: float
    high: float

    def __post_init__(self) -> None:
        _check("median", self.median)
        _check("sigma", self.sigma, unit="")
        _check("high", self.high)
        if not 0.0 < self.median <= self.high:
            raise ConfigurationError(
                f"a log-normal delay needs 0 < median <= high, got median={self.median} s, high={self.high} s"
            )

    @property
    def bound(self) -> float:
        """Where it is clipped."""
        return float(self.high)

    def draw(self, generator: np.random.Generator, count: int) -> FloatArray:
        """Draw `count` delays."""
        return np.minimum(generator.lognormal(math.log(self.median), self.sigma, count), self.high)


@dataclass(frozen=True)
class EmpiricalDelay(Delay):
    """Drawn from delays that were measured, each as likely as every other, independently.

    Attributes:
        samples: The measured delays, s.
    """

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray(self.samples, dtype=np.float64)
        if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or (values < 0.0).any():
            raise ConfigurationError(
                "samples of an empirical delay must be a list of finite delays of at least 0 s, at least one, "
                f"got {self.samples!r:.100}"
            )
        object.__setattr__(self, "samples", tuple(values.tolist()))

    @property
    def bound(self) -> float:
        """The longest that was measured."""
        return max(self.samples)

    def draw(self, generator: np.random.Generator, count: int) -> FloatArray:
        """Draw `count` of the samples, with replacement."""
        drawn: FloatArray = np.asarray(self.samples)[generator.integers(len(self.samples), size=count)]
        return drawn

    @classmethod
    def from_file(cls, path: str | Path, column: str | None = None) -> "EmpiricalDelay":
        """Read measured delays, s, from a .npy, .npz or .json file; NaN, "not measured", is left out.

        Args:
            path: The file: one array, or several of which `column` names one.
            column: Name of the array in a .npz file or of the list in a JSON object; None where there is only one.

        Raises:
            ConfigurationError: If the file cannot be read, or it is not clear which column is meant.
        """
        path = Path(path)
        try:
            found = _read(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read delays from {path}: {error}") from error
        if isinstance(found, Mapping):
            if column is None and len(found) == 1:
                (column,) = found
            if column not in found:
                raise ConfigurationError(
                    f"{path} holds {', '.join(sorted(found))}: name one of them as column, got {column!r}"
                )
            found = found[column]
        try:
            values = np.asarray(found, dtype=np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{path}: delays must be numbers, in s: {error}") from error
        return cls(tuple(values[~np.isnan(values)].tolist()))


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    raise ValueError("expected a .npy, .npz or .json file")


_KINDS: dict[str, type[Delay]] = {
    "constant": ConstantDelay,
    "uniform": UniformDelay,
    "lognormal": LogNormalDelay,
    "empirical": EmpiricalDelay,
}


def delay_from(name: str, value: object) -> Delay | None:
    """Return the distribution that a configuration's `value` means; None for no delay.

    Args:
        name: The configuration's key, for errors.
        value: None, a number of seconds, a `Delay`, or a dictionary with `"kind"` (`"constant"`, `"uniform"`,
            `"lognormal"`, `"empirical"`) and the fields of that distribution; an empirical one takes `"file"`, and
            `"column"`, instead of `"samples"`.

    Raises:
        ConfigurationError: If it is none of these; it names the key and the field.
    """
    if value is None or isinstance(value, Delay):
        return value
    try:
        if isinstance(value, Mapping):
            return _from_mapping(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigurationError(
                f"expected None, seconds, a distribution or a dictionary with 'kind', got {value!r:.100}"
            )
        return ConstantDelay(value) if value != 0.0 else None
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def delay_to_dict(delay: Delay | None) -> dict[str, Any] | None:
    """Return what `delay_from` makes `delay` of again, as JSON takes it."""
    if delay is None:
        return None
    for kind, distribution in _KINDS.items():
        if type(delay) is distribution:
            return {"kind": kind, **vars(delay)}
    raise ConfigurationError(
        f"{type(delay).__name__} is a distribution of your own: only {', '.join(_KINDS)} can be written to a file"
    )


def _from_mapping(value: Mapping[Any, Any]) -> Delay:
    options = dict(value)
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigurationError(unknown_key("kind of delay", kind, list(_KINDS)))
    if kind == "empirical" and "file" in options:
        unknown = [key for key in options if key not in ("file", "column")]
        if unknown:
            raise ConfigurationError(unknown_key("field of a recorded delay", unknown[0], ["file", "column"]))
        return EmpiricalDelay.from_file(options["file"], options.get("column"))
    distribution: Any = _KINDS[kind]
    known = [field.name for field in fields(distribution)]
    for key in options:
        if key not in known:
            raise ConfigurationError(unknown_key(f"field of a {kind} delay", key, known))
    missing = [name for name in known if name not in options]
    if missing:
        raise ConfigurationError(f"a {kind} delay needs {', '.join(missing)}")
    delay: Delay = distribution(**options)
    return delay


def _check(name: str, value: object, unit: str = " s") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a number, at least 0{unit} and finite, got {value!r}")


class DelayDraws:
    """The delays of N robots' messages, drawn in the order of the messages, each robot from streams of its own.

    Args:
        delay: The distribution.
        purpose: What the delays are of; part of the stream's key.
        num_robots: N.
    """

    def __init__(self, delay: Delay, purpose: str, num_robots: int) -> None:
        self.delay = delay
        self._purpose = purpose
        self._root = 0
        self._episodes = np.zeros(num_robots, dtype=np.int64)
        self._generators: list[np.random.Generator] = []
        self._blocks: IntArray = np.zeros((num_robots, _BLOCK), dtype=np.int64)
        self._used = np.full(num_robots, _BLOCK)
        self._robots = np.arange(num_robots)
        self.restart(0)

    def restart(self, root: int) -> None:
        """Begin the streams of another root: episode 0 of every robot."""
        self._root = root
        self._episodes[:] = 0
        self._generators = [self._stream(robot) for robot in range(len(self._episodes))]
        self._used[:] = _BLOCK

    def restart_rows(self, rows: BoolArray) -> None:
        """Begin the streams of the next episode of the robots in the mask, (N,)."""
        self._episodes[rows] += 1
        for robot in np.flatnonzero(rows):
            self._generators[robot] = self._stream(int(robot))
        self._used[rows] = _BLOCK

    def _stream(self, robot: int) -> np.random.Generator:
        return stream(self._root, f"delay: {self._purpose}", robot=robot, episode=int(self._episodes[robot]))

    def next_ns(self) -> IntArray:
        """Return the delay of each robot's next message, (N,) int64, ns."""
        for robot in np.flatnonzero(self._used == _BLOCK):
            self._blocks[robot] = np.rint(self.delay.draw(self._generators[robot], _BLOCK) * NS)
            self._used[robot] = 0
        delays: IntArray = self._blocks[self._robots, self._used]
        self._used += 1
        return delays


def required_buffer_length(
    time_step_duration: float, start_obs_capture: float, action_delay: float, observation_delay: float
) -> int:
    """Return how many actions an observation must hold for the decision process to be Markovian.

    An observation that is captured at c holds the state at c - `observation_delay`. It must hold every action that may
    act after that, up to the one that is handed over with it: those that are replaced, `action_delay` after the sending
    of their successors, later than the state. With time-steps of T and a capture at s, that is
    2 + ceil((action_delay + observation_delay - s) / T), and at least 1.

    Args:
        time_step_duration: T, s.
        start_obs_capture: s, in [0, T] s.
        action_delay: Longest time from the sending of an action to its effect, s.
        observation_delay: Longest time from the state that an observation holds to its capture, s.

    Source: after the appendix of Bouteiller et al. (2021), Reinforcement Learning with Random Delays, ICLR.
    """
    beyond = (action_delay + observation_delay - start_obs_capture) / time_step_duration
    return max(1, 2 + math.ceil(beyond - _SLACK))


def rounded_up(delay: float, period: float | None) -> float:
    """Return the longest delay, s, once it is rounded up to whole control periods; as it is where there are none."""
    if period is None:
        return delay
    period_ns = to_ns(period)
    return -(-to_ns(delay) // period_ns) * period_ns / NS
