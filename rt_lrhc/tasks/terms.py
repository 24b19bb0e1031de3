"""The terms that a task is made of: named functions with a scale, as checked records."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rt_lrhc.config import check_choice, check_number
from rt_lrhc.errors import ConfigurationError, unknown_key

Numbers = float | tuple[float, ...]
Noise = Literal["gaussian", "uniform"]


@dataclass(frozen=True)
class Term:
    """A function of the task's context, under a name, times a scale.

    Attributes:
        function: Called as `function(context, **parameters)`; a top-level function, which processes can be sent.
        scale: What its value is multiplied by; 0 removes the term.
        name: Its name in observations, `info` and settings; that of the function if empty.
        parameters: More keyword arguments.
    """

    function: Callable[..., Any]
    scale: float = 1.0
    name: str = field(default="", kw_only=True)
    parameters: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    _given = 1
    """Positional arguments that the function gets from us."""

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not callable(self.function):
            raise ConfigurationError(f"{kind}: function must be a function, got {self.function!r}")
        if not self.name:
            object.__setattr__(self, "name", getattr(self.function, "__name__", ""))
        _check_name(kind, self.name)
        _check_finite(f"{kind} {self.name!r}: scale", self.scale)
        signature = inspect.signature(self.function)
        known = list(signature.parameters)[self._given :]
        for key in self.parameters:
            if key not in known:
                raise ConfigurationError(unknown_key(f"parameter of {kind} {self.name!r}", key, known))
        try:
            signature.bind(*[None] * self._given, **self.parameters)
        except TypeError as error:
            raise ConfigurationError(
                f"{kind} {self.name!r}: its function{signature} is called with {self._given} argument(s) "
                f"and parameters {dict(self.parameters)}: {error}"
            ) from error

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's value, without the scale."""
        return self.function(*arguments, **self.parameters)


@dataclass(frozen=True)
class Observation(Term):
    """`function(context) -> (N, d)`: a part of the observation.

    What the agent gets is `scale * (value a delay ago + noise)`, within the scaled bounds, as float32.

    Attributes:
        unit: Unit of the value before it is scaled; for people.
        low: Lower bound of the value, a number or (d,).
        high: Upper bound.
        noise: Standard deviation of Gaussian or half width of uniform noise, in the value's unit: a number or (d,).
        noise_kind: `"gaussian"` or `"uniform"`.
        delay: Age of the value, s: a number, or (shortest, longest), drawn for each robot and episode; in whole control
            periods, rounded.
    """

    unit: str = field(default="", kw_only=True)
    low: Numbers = field(default=-math.inf, kw_only=True)
    high: Numbers = field(default=math.inf, kw_only=True)
    noise: Numbers = field(default=0.0, kw_only=True)
    noise_kind: Noise = field(default="gaussian", kw_only=True)
    delay: float | tuple[float, float] = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"Observation {self.name!r}"
        check_choice(f"{where}: noise_kind", self.noise_kind, get_args(Noise))
        if any(value < 0.0 for value in _numbers(f"{where}: noise", self.noise)):
            raise ConfigurationError(f"{where}: noise must be at least 0, got {self.noise}")
        _check_bounds(where, self.low, self.high)
        interval(f"{where}: delay", self.delay, least=0.0)

    @property
    def noisy(self) -> bool:
        """Whether there is noise."""
        return any(value > 0.0 for value in _numbers("noise", self.noise))


@dataclass(frozen=True)
class Reward(Term):
    """`function(context) -> (N,)`: a part of the reward, which is the sum of the scaled terms."""


@dataclass(frozen=True)
class Metric(Term):
    """`function(context) -> (N,)`: a figure for people, in `info["metrics"]`; agents do not see it."""


@dataclass(frozen=True)
class Termination(Term):
    """`function(context) -> (N,) bool`: ends a robot's episode where it is true; scale 0 removes it.

    Attributes:
        lasting: How long it must have been true, without interruption, s.
    """

    lasting: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(f"Termination {self.name!r}: lasting", self.lasting)
        if self.lasting < 0.0:
            raise ConfigurationError(
                f"Termination {self.name!r}: lasting must be at least 0 s, got {self.lasting}"
            )


@dataclass(frozen=True)
class Event(Term):
    """`function(context, draw, scale) -> None`: changes the plant or a command of the robots `draw.rows`, (k,).

    Attributes:
        period: Time between two of them for one robot, s: a number, or (shortest, longest), drawn anew each time; None
            for once at the begin of each episode, before the initial state is drawn.
    """

    period: float | tuple[float, float] | None = field(default=None, kw_only=True)

    _given = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period is not None:
            low, _ = interval(f"Event {self.name!r}: period", self.period, least=0.0)
            if low == 0.0:
                raise ConfigurationError(
                    f"Event {self.name!r}: period must be longer than 0 s, got {self.period}"
                )


@dataclass(frozen=True)
class Start(Term):
    """`function(context, draw, scale) -> (k, nx)`: the initial states of the robots `draw.rows`."""

    _given = 3


@dataclass(frozen=True)
class Command:
    """What is asked of each robot: a vector drawn anew from time to time.

    Attributes:
        name: Its name in the context.
        low: Lower bounds, (d,).
        high: Upper bounds, (d,).
        period: Time between two draws, s: a number, or (shortest, longest); infinite keeps the first.
        zero: Probability that a draw is 0 altogether: stand still.
        scale: Multiplies what is drawn.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    period: float | tuple[float, float] = math.inf
    zero: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_name("Command", self.name)
        where = f"Command {self.name!r}"
        for key in ("low", "high"):
            object.__setattr__(self, key, tuple(_numbers(f"{where}: {key}", getattr(self, key))))
        if (
            len(self.low) != len(self.high)
            or not self.low
            or not all(map(math.isfinite, self.low + self.high))
        ):
            raise ConfigurationError(
                f"{where}: low and high must be finite and of one length, got {self.low} and {self.high}"
            )
        _check_bounds(where, self.low, self.high)
        low, _ = interval(f"{where}: period", self.period, least=0.0)
        if low == 0.0:
            raise ConfigurationError(f"{where}: period must be longer than 0 s, got {self.period}")
        check_number(f"{where}: zero", self.zero)
        if not 0.0 <= self.zero <= 1.0:
            raise ConfigurationError(f"{where}: zero must be a probability, got {self.zero}")
        _check_finite(f"{where}: scale", self.scale)


@dataclass(frozen=True)
class Action:
    """A group of the agent's actions, which become references of the controllers.

    Attributes:
        name: Its name.
        references: Names of the controllers' references that it commands, k of them.
        low: Lower bounds of the references, a number or (k,).
        high: Upper bounds of the references.
        default: What is commanded at first, a number or (k,).
        scale: Reference over action: the agent's bounds are those of the references over the scale. 0 removes the
            group, and its references keep the task's defaults.
    """

    name: str
    references: tuple[str, ...]
    low: Numbers
    high: Numbers
    default: Numbers = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_name("Action", self.name)
        where = f"Action {self.name!r}"
        if not self.references or isinstance(self.references, str):
            raise ConfigurationError(f"{where}: references must be a tuple of names, got {self.references!r}")
        for key in ("low", "high", "default"):
            values = _numbers(f"{where}: {key}", getattr(self, key), len(self.references))
            if not all(map(math.isfinite, values)):
                raise ConfigurationError(f"{where}: {key} must be finite, got {values}")
            object.__setattr__(self, key, tuple(values))
        _check_bounds(where, self.low, self.high)
        _check_bounds(f"{where} (low, default)", self.low, self.default)
        _check_bounds(f"{where} (default, high)", self.default, self.high)
        _check_finite(f"{where}: scale", self.scale)
        if self.scale < 0.0:
            raise ConfigurationError(f"{where}: scale must be at least 0, got {self.scale}")


def interval(name: str, value: float | tuple[float, float], *, least: float) -> tuple[float, float]:
    """Return a number, or a pair (shortest, longest), as a pair.

    Raises:
        ConfigurationError: If it is neither, or out of order, or less than `least`.
    """
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ConfigurationError(f"{name} must be a number or (shortest, longest), in s, got {value!r}")
    low, high = pair
    check_number(name, low)
    check_number(name, high)
    if not least <= low <= high:
        raise ConfigurationError(f"{name} must be in order and at least {least} s, got {value!r}")
    return float(low), float(high)


def _numbers(name: str, value: Any, count: int | None = None) -> list[float]:
    values = (
        list(value)
        if isinstance(value, (tuple, list)) or hasattr(value, "tolist")
        else [value] * (count or 1)
    )
    for entry in values:
        check_number(name, float(entry) if hasattr(entry, "dtype") else entry)
    if count is not None and len(values) != count:
        raise ConfigurationError(f"{name} must be a number or {count} of them, got {value!r}")
    return [float(entry) for entry in values]


def _check_bounds(where: str, low: Any, high: Any) -> None:
    lower, upper = _numbers(f"{where}: low", low), _numbers(f"{where}: high", high)
    count = max(len(lower), len(upper))
    if {len(lower), len(upper)} - {1, count}:
        raise ConfigurationError(f"{where}: low and high must have one length, got {low} and {high}")
    pairs = zip(
        lower * (count // len(lower)), upper * (count // len(upper)), strict=True
    )  # one number stands for all
    if not all(a <= b for a, b in pairs):
        raise ConfigurationError(f"{where}: low must not exceed high, got {low} and {high}")


def _check_finite(name: str, value: object) -> None:
    check_number(name, value)
    if not math.isfinite(float(value)):  # type: ignore[arg-type]  # check_number has looked at it
        raise ConfigurationError(f"{name} must be finite, got {value}")


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not name or "." in name:
        raise ConfigurationError(
            f"{kind}: a name must be text without dots, got {name!r}; give name=... where the function has none"
        )
