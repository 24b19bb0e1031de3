"""Time sources and the elastic clock. Arithmetic in integer nanoseconds; no threads."""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.timing import realtime

NS = 1_000_000_000


def to_ns(seconds: float) -> int:
    """Return `seconds` as the nearest whole number of nanoseconds."""
    return round(seconds * NS)


class TimeSource(Protocol):
    """Where the time comes from. Injected, so that tests and virtual time need no sleep."""

    def now_ns(self) -> int:
        """Return the present time, ns."""

    def sleep_until(self, deadline_ns: int) -> None:
        """Return at `deadline_ns` or, where that has passed, at once; never early."""


class WallTime:
    """CLOCK_MONOTONIC, with absolute sleeps.

    Args:
        spin: The last `spin` seconds before a deadline are spent spinning instead of sleeping. 0 sleeps only.

    Attributes:
        rehearse: Called once where the spinning begins, so that the code that is due after it is in the caches.
    """

    def __init__(self, spin: float = 0.0) -> None:
        self._spin_ns = to_ns(spin)
        self.rehearse: Callable[[], object] | None = None

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC, ns."""
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        """Sleep until `deadline_ns`, and spin for the last part where that was asked for."""
        realtime.sleep_until(deadline_ns, self._spin_ns, self.rehearse)


class VirtualTime:
    """A time that stands still but for `sleep_until`, which jumps to the deadline.

    Args:
        start_ns: The first value of `now_ns()`.
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the deadline slept to last, ns."""
        return self._now_ns

    def sleep_until(self, deadline_ns: int) -> None:
        """Jump to `deadline_ns`, or stay where it has passed."""
        self._now_ns = max(self._now_ns, deadline_ns)


class TimeStep(NamedTuple):
    """One elastic time-step on the grid.

    Attributes:
        start_ns: Its place on the grid, ns; the time at which its action is due.
        capture_ns: When its observation is due, ns.
        end_ns: Its end, where the next one starts, ns.
        lateness_ns: How long after `start_ns` it was begun, ns; 0 where it restarted the grid.
        overrun_ns: How late the caller was, ns, where that was too late and restarted the grid; else 0.
    """

    start_ns: int
    capture_ns: int
    end_ns: int
    lateness_ns: int
    overrun_ns: int

    @property
    def start(self) -> float:
        """Its place on the grid, s."""
        return self.start_ns / NS

    @property
    def capture(self) -> float:
        """When its observation is due, s."""
        return self.capture_ns / NS

    @property
    def end(self) -> float:
        """Its end, s."""
        return self.end_ns / NS


class ElasticClock:
    """The grid of time-steps: `start + n * duration`, without drift.

    A caller who is late by at most `timeout` leaves the grid as it is, so that the next time-step is shorter by as
    much. One who is later restarts the grid at the present: one overrun. After `restart()` (a reset, a pause) the
    next time-step begins at the present, and nobody was late.

    Args:
        time_step_duration: Nominal time-step, s, positive.
        timeout: Lateness that the next time-step absorbs, s, not negative.
        start_obs_capture: Start of a time-step to the start of the capture in it, in [0, duration] s; None: its end.
        time: Where the present comes from.

    Raises:
        ConfigurationError: If a duration is out of its range.
    """

    def __init__(
        self,
        *,
        time_step_duration: float,
        timeout: float,
        start_obs_capture: float | None = None,
        time: TimeSource,
    ) -> None:
        if not 0.0 <= timeout < float("inf"):
            raise ConfigurationError(f"timeout must be at least 0 s and finite, got {timeout}")
        self._time = time
        self._end_ns: int | None = None
        self.overruns = 0
        self.configure(
            time_step_duration,
            time_step_duration if start_obs_capture is None else start_obs_capture,
            timeout,
        )

    def configure(self, time_step_duration: float, start_obs_capture: float, timeout: float) -> None:
        """Change the durations, all in s, from the next time-step on."""
        if not 0.0 < time_step_duration < float("inf"):
            raise ConfigurationError(f"time_step_duration must be positive, in s, got {time_step_duration}")
        if not 0.0 <= start_obs_capture <= time_step_duration:
            raise ConfigurationError(
                f"start_obs_capture must lie in [0, {time_step_duration}] s (one time-step), got {start_obs_capture} s"
            )
        self._duration_ns = to_ns(time_step_duration)
        self._capture_ns = to_ns(start_obs_capture)
        self._timeout_ns = to_ns(timeout)

    def restart(self) -> None:
        """Forget the grid: the next time-step begins at the present, and nobody was late."""
        self._end_ns = None

    def begin_step(self) -> TimeStep:
        """Begin the next time-step at the present and return its place on the grid."""
        now_ns = self._time.now_ns()
        start_ns = now_ns if self._end_ns is None else self._end_ns
        lateness_ns = max(now_ns - start_ns, 0)
        overrun_ns = 0
        if lateness_ns > self._timeout_ns:
            start_ns, overrun_ns, lateness_ns = now_ns, lateness_ns, 0
            self.overruns += 1
        self._end_ns = start_ns + self._duration_ns
        return TimeStep(start_ns, start_ns + self._capture_ns, self._end_ns, lateness_ns, overrun_ns)
