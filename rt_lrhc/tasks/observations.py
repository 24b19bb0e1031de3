"""From observation terms to what the agent gets: values of now or a delay ago, noise, scale, bounds."""

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interfaces.cluster import BoolArray, FloatArray, IntArray
from rt_lrhc.tasks.context import TaskContext
from rt_lrhc.tasks.draws import RobotStreams
from rt_lrhc.tasks.terms import Observation, interval

_FAR = float(np.finfo(np.float32).max)


class Component:
    """One term of the observation, for N robots.

    Args:
        term: The term.
        context: The robots; the term is evaluated once, to learn its width.

    Attributes:
        space: Space of one robot's component.
        longest_delay: Longest age of its value, s.

    Raises:
        ConfigurationError: If the term does not return (N, d) finite numbers, or noise or bounds do not fit them.
    """

    def __init__(self, term: Observation, context: TaskContext) -> None:
        self.term = term
        first = np.asarray(term(context), np.float64)
        if first.ndim != 2 or len(first) != context.num_robots or not np.isfinite(first).all():
            raise ConfigurationError(
                f"observation {term.name!r} must return finite numbers ({context.num_robots}, d), "
                f"got shape {first.shape}, {np.ravel(first)[:4]}"
            )
        self._width = first.shape[1]
        low, high = self._row("low", term.low), self._row("high", term.high)
        bounds = np.sort(np.clip(np.stack([low, high]) * term.scale, -_FAR, _FAR), axis=0).astype(np.float32)
        self.space = spaces.Box(bounds[0], bounds[1], dtype=np.float32)
        self._scale = term.scale
        self._noise = self._row("noise", term.noise) if term.noisy else None
        self._noise_streams = RobotStreams(context.num_robots, f"noise: {term.name}")
        # The newest value is at `_head`; as many periods as the longest delay are kept.
        shortest, longest = (
            round(bound / context.control_period) for bound in interval("delay", term.delay, least=0.0)
        )
        self._delays = (shortest, longest)
        self.longest_delay = longest * context.control_period
        self._delay = np.zeros(context.num_robots, dtype=np.int64)
        self._delay_streams = RobotStreams(context.num_robots, f"delay: {term.name}")
        self._ring = np.zeros((longest + 1, context.num_robots, self._width)) if longest else None
        self._head = 0
        self._robots = np.arange(context.num_robots)

    def _row(self, name: str, value: object) -> FloatArray:
        try:
            return np.broadcast_to(np.asarray(value, np.float64), (self._width,))
        except ValueError:
            raise ConfigurationError(
                f"observation {self.term.name!r}: {name} must be a number or {self._width} of them, got {value!r}"
            ) from None

    def begin(self, root: int, episodes: IntArray, rows: IntArray) -> None:
        """Begin episodes of the robots `rows`: draw their delays and restart their noise."""
        if self._noise is not None:
            self._noise_streams.begin(root, episodes, rows)
        if self._ring is not None:
            self._delay_streams.begin(root, episodes, rows)
            shortest, longest = self._delays
            drawn = self._delay_streams.next(rows, 1)[:, 0]
            self._delay[rows] = shortest + np.floor(drawn * (longest + 1 - shortest)).astype(np.int64)

    def follow(self, context: TaskContext, began: BoolArray) -> None:
        """Remember the value of this grid time, where there is a delay; a robot that began has always been so."""
        if self._ring is None:
            return
        value = self.term(context)
        if began.any():
            self._ring[:, began] = value[began]
        else:
            self._head = (self._head + 1) % len(self._ring)
            self._ring[self._head] = value

    def value(self, context: TaskContext) -> npt.NDArray[np.float32]:
        """Return the component, (N, d) float32."""
        if self._ring is None:
            value = self.term(context)
        else:
            value = self._ring[(self._head - self._delay) % len(self._ring), self._robots]
        if self._noise is not None:
            value = value + self._noise * self._draw(context)
        bounded: npt.NDArray[np.float32] = np.clip(
            (value * self._scale).astype(np.float32), self.space.low, self.space.high
        )
        return bounded

    def _draw(self, context: TaskContext) -> FloatArray:
        # The noise of a grid time is the same however often it is asked for.
        self._noise_streams.seek(context.periods * (2 * self._width))
        draw = self._noise_streams.of(self._robots)
        if self.term.noise_kind == "uniform":
            return draw.uniform(-1.0, 1.0, self._width)
        return draw.normal(self._width)
