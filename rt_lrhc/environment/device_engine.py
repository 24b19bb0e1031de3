"""Time-steps of a device: its world goes on by itself."""

from typing import Any

from rt_lrhc.delays import DelayDraws
from rt_lrhc.environment.engine import Action, Durations, Engine
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.timing.clock import TimeSource, TimeStep, WallTime


class DeviceEngine(Engine):
    """A device: its world goes on by itself, and an action that is late is sent at once.

    What a device shows cannot be kept back for its robots one by one: an observation delay lets the capture of all of
    them take place that much earlier.
    """

    _first_ns = 0
    _open: TimeStep | None = None  # captured, and not yet at its end

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        delay = self._observation_delay
        self._early = None if delay is None else DelayDraws(delay, "observations", 1)
        self.on_grid(self.durations)
        if isinstance(self._time, WallTime):
            self._time.rehearse = self._rehearse

    def _grid_source(self) -> TimeSource:
        return self._time

    def _wall_ns(self, grid_ns: int) -> int:
        return grid_ns

    def _epoch_ns(self) -> int:
        return self._first_ns

    def _restart(self, options: dict[str, Any] | None) -> None:
        super()._restart(options)
        self._first_ns = self._time.now_ns()

    def _check_options(self, options: dict[str, Any] | None) -> None:
        super()._check_options(options)
        if options is not None and "schedule" in options:
            raise ConfigurationError(
                'options["schedule"] needs a world (an interface with advance()), not a device'
            )

    def on_grid(self, durations: Durations) -> Durations:
        """Raise where an observation delay would have to be captured before its time-step."""
        super().on_grid(durations)
        delay = self._observation_delay
        if delay is not None and delay.bound > durations.start_obs_capture:
            raise ConfigurationError(
                f"observation_delay is up to {delay.bound} s, but a device's observation can be captured at most "
                f"start_obs_capture = {durations.start_obs_capture} s earlier: give a shorter delay, or a world"
            )
        return durations

    def _restart_links(self, root: int, components: list[Action]) -> None:
        super()._restart_links(root, components)
        if self._early is not None:
            self._early.restart(root)

    def _run(self, step: TimeStep) -> None:
        if self._early is not None:
            step = step._replace(capture_ns=step.capture_ns - int(self._early.next_ns()[0]))
        self._sleep_until(step.capture_ns)
        self._take_capture(step)
        self._ended = self._open = step
        assert self._capture is not None
        if self._capture.ended or self._actions is not None:
            self._complete()

    def _rehearse(self) -> None:
        # The code between waking up and a callback: with a spin of 200 us in steps of 20 ms, the sending is 10 us late
        # instead of 35 in the median, the capture 8 instead of 17.
        self._end(self._ended)  # written again when it is true
        self._guard("", self._last_action.copy)

    def _complete(self) -> None:
        if self._open is not None:
            step, self._open = self._open, None
            self._sleep_until(step.end_ns)
            self._end(step)

    def _await(self, step: TimeStep) -> None:
        # An action that comes before its time waits here, so that nothing but the waking up is left to be late.
        self._complete()

    def _sleep_until(self, deadline_ns: int) -> None:
        """Sleep, and wake up to deliver what arrives meanwhile."""
        while self._actions is not None and (due_ns := self._actions.next_due_ns) is not None:
            if due_ns > deadline_ns:
                break
            self._time.sleep_until(due_ns)
            self._deliver()
        self._time.sleep_until(deadline_ns)
