"""What happens when in a time-step: sending, capturing, advancing; on the one thread that hosts the interface."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.environment.captures import Captor, Capture
from rt_lrhc.errors import ConfigurationError, EnvironmentStateError, InterfaceError, RealTimeError
from rt_lrhc.interface import RealTimeInterface, VectorInterface
from rt_lrhc.timing.clock import NS, ElasticClock, TimeSource, TimeStep, to_ns
from rt_lrhc.timing.statistics import Rows

Action = npt.NDArray[Any]
Interface = RealTimeInterface | VectorInterface

_log = logging.getLogger("rt_lrhc")


@dataclass(frozen=True)
class Durations:
    """The durations of a time-step, s, and the lateness that one absorbs, in time-steps."""

    time_step_duration: float
    start_obs_capture: float
    time_step_timeout_factor: float


@dataclass(frozen=True)
class Schedule:
    """What took effect when in an episode that was run, so that virtual time can run it again, late as it was.

    Attributes:
        action_periods: For each action since `reset()`, the default one included, the control period at which it was
            sent, counted from the reset.
        world: What the interface recorded of itself (`schedule()`), None where it keeps nothing.
    """

    action_periods: tuple[int, ...]
    world: Any = None


TRACE_COLUMNS = (
    "grid",
    "sent",
    "capture_due",
    "capture_begin",
    "capture_end",
    "end_due",
    "end",
    "inference_begin",
    "inference_end",
)
"""One row of the trace a time-step, s of CLOCK_MONOTONIC: when the step was due, its action had been sent, its capture
was due, began and ended, its end was due and reached, and the inference that led to its action began and ended."""


class Engine(ABC):
    """Drives an interface through time-steps; `execute` hands over an action, `finish` runs to the end of the step.

    Args:
        interface: The interface; nobody else calls its callbacks.
        captor: Captures and ends, of one robot or of many.
        durations: The time-step.
        default_action: What `reset()` sends: one action, or one a row.
        time: Where the present comes from.
        last_act_on_reset: Whether a reset sends the last action instead.
        wait_on_done: Whether the interface waits when the episode ends.
        prepro: Maps an action to what the interface gets.
    """

    def __init__(
        self,
        interface: Interface,
        captor: Captor,
        durations: Durations,
        default_action: Action,
        time: TimeSource,
        *,
        last_act_on_reset: bool,
        wait_on_done: bool,
        prepro: Callable[[Any], Any] | None,
        measured: bool,
    ) -> None:
        self.interface = interface
        self.captor = captor
        self.default_action = default_action
        self.trace = Rows(8192, len(TRACE_COLUMNS))
        self.callback = ""
        self.durations = durations
        self._time = time
        self._measured = measured
        self._last_act_on_reset = last_act_on_reset
        self._wait_on_done = wait_on_done
        self._prepro = prepro
        self.clock = ElasticClock(
            time_step_duration=durations.time_step_duration,
            start_obs_capture=durations.start_obs_capture,
            timeout=durations.time_step_timeout_factor * durations.time_step_duration,
            time=self._grid_source(),
        )
        self._step: TimeStep | None = None
        self._capture: Capture | None = None
        self._last_action = default_action
        self._parked = True
        self._steps = 0
        self._marks: dict[str, float] = {}
        self._warned_ns = -NS

    # What the runner calls.

    @property
    def idles(self) -> bool:
        """Whether the world goes on while no action is there: call `idle()` until one is."""
        return False

    def idle(self) -> None:
        """Let the world go on to its next grid point."""
        raise NotImplementedError

    def finish(self) -> None:
        """Run to the end of the running time-step, capturing on the way; at once where none is running."""
        if self._step is None:
            return
        step, self._step = self._step, None
        try:
            self._run(step)
        except BaseException:
            self._park(broken=True)
            raise
        if self._capture is not None and self._capture.ended:
            self._parked = True
            if self._wait_on_done:
                self._guard("wait", self.interface.wait)

    def reset(self, seed: int, options: dict[str, Any] | None) -> tuple[list[Action], dict[str, Any]]:
        """Reset the interface, send the first action and begin the first time-step."""
        self._park(broken=True)
        components, info = self.captor.reset(self._guard, seed, options)
        self._restart(options)
        action = self._last_action if self._last_act_on_reset else self.default_action
        self._begin(action, None)
        info["rt"] = self._figures(None)
        return components, info

    def hand_over(self, action: Action, inference: tuple[float, float] | None) -> Capture:
        """Take the capture of the time-step that has ended, and begin the next one with `action`.

        The rows of robots that were reset are dropped: the default (or last) action acts there.
        """
        capture, self._capture = self._capture, None
        if capture is None:
            raise EnvironmentStateError("step() was called where no time-step has run: call reset() first")
        if capture.ended:
            self._last_action = action
            return capture
        if capture.reset_rows is not None:
            action = self._with_reset_rows(action, capture.reset_rows)
        self._begin(action, inference)
        return capture

    def pause(self) -> None:
        """Make the world wait until the next action or reset."""
        self._guard("wait", self.interface.wait)
        self._park(broken=False)

    def close(self) -> None:
        """Close the interface."""
        self._guard("close", self.interface.close)

    def set_durations(self, durations: Durations) -> None:
        """Use other durations from the next time-step on."""
        self.check_durations(durations)
        self.clock.configure(
            durations.time_step_duration,
            durations.start_obs_capture,
            durations.time_step_timeout_factor * durations.time_step_duration,
        )
        self.durations = durations

    def check_durations(self, durations: Durations) -> None:  # noqa: B027 (a device keeps any)
        """Raise a ConfigurationError where the world cannot keep these durations."""

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset."""
        raise ConfigurationError("a device has no control periods, hence no schedule to replay")

    # What the kinds of engines define.

    @abstractmethod
    def _grid_source(self) -> TimeSource: ...

    @abstractmethod
    def _run(self, step: TimeStep) -> None: ...

    @abstractmethod
    def _wall_ns(self, grid_ns: int) -> int:
        """Return when a point of the grid is due, in the time source's ns."""

    def _restart(self, options: dict[str, Any] | None) -> None:
        self.clock.restart()
        self._steps = 0

    def _park(self, *, broken: bool) -> None:
        self._parked = True
        self.clock.restart()
        if broken:
            self._step = self._capture = None

    # Parts of a time-step.

    def _begin(self, action: Action, inference: tuple[float, float] | None) -> None:
        self._parked = False
        step = self.clock.begin_step()
        self._marks = {}
        self._send(action)
        if self._measured:
            self._marks = {"grid": self._wall_ns(step.start_ns) / NS, "sent": self._time.now_ns() / NS}
            if inference is not None:
                self._marks["inference_begin"], self._marks["inference_end"] = inference
        self._step = step
        if step.overrun_ns:
            durations = self.durations
            self._warn(
                "the agent was %.1f ms late, more than the %.1f ms that a time-step absorbs: the grid restarts",
                step.overrun_ns / 1e6,
                durations.time_step_timeout_factor * durations.time_step_duration * 1e3,
            )

    def _send(self, action: Action) -> None:
        self._last_action = action
        control = (
            action.copy()
            if self._prepro is None
            else self._guard("act_prepro_func", self._prepro, action.copy())
        )
        self._guard("send_control", self.interface.send_control, control)

    def _with_reset_rows(self, action: Action, rows: npt.NDArray[np.bool_]) -> Action:
        first = self._last_action if self._last_act_on_reset else self.default_action
        return np.where(rows.reshape(-1, *[1] * (action.ndim - 1)), first, action)

    def _take_capture(self, step: TimeStep) -> None:
        if self._measured:
            self._marks["capture_due"] = self._wall_ns(step.capture_ns) / NS
            self._marks["capture_begin"] = self._time.now_ns() / NS
        capture = self.captor.capture(self._guard)
        self._steps += 1
        if capture.reset_rows is not None:
            # The reset robots act on their first action from this instant, not from the agent's next one.
            self._send(self._with_reset_rows(self._last_action, capture.reset_rows))
        if self._measured:
            self._marks["capture_end"] = self._time.now_ns() / NS
        self._capture = capture

    def _end(self, step: TimeStep) -> None:
        assert self._capture is not None
        if self._measured:
            self._marks["end_due"] = self._wall_ns(step.end_ns) / NS
            self._marks["end"] = self._time.now_ns() / NS
            self.trace.add(*(self._marks.get(name, float("nan")) for name in TRACE_COLUMNS))
        capture = self._capture
        capture.info["rt"] = self._figures(step)
        if capture.reset_rows is None and not isinstance(capture.terminated, np.ndarray):
            reason = "terminated" if capture.terminated else "time_limit" if capture.truncated else ""
            capture.info["rt"]["end_reason"] = reason

    def _figures(self, step: TimeStep | None) -> dict[str, Any]:
        """Return the scalars of `info["rt"]`: grid values, then measured ones, which are 0 on virtual time."""
        marks = self._marks
        figures: dict[str, Any] = {
            "time": 0.0,
            "step": self._steps,
            "time_step_duration": 0.0,
            "lateness": 0.0,
            "overruns": self.clock.overruns,
            "observation_age": 0.0,
            "send_lateness": 0.0,
            "capture_lateness": 0.0,
            "inference": 0.0,
            "end_reason": "",
        }
        if step is None:
            return figures
        figures["time"] = (step.capture_ns - self._epoch_ns()) / NS
        figures["time_step_duration"] = (step.end_ns - step.start_ns - step.lateness_ns) / NS
        figures["lateness"] = (step.lateness_ns or step.overrun_ns) / NS
        figures["observation_age"] = (step.end_ns - step.capture_ns) / NS
        if self._measured:
            figures["send_lateness"] = marks["sent"] - marks["grid"]
            figures["capture_lateness"] = marks["capture_begin"] - marks["capture_due"]
            if "inference_begin" in marks:
                figures["inference"] = marks["inference_end"] - marks["inference_begin"]
        return figures

    def _epoch_ns(self) -> int:
        return 0

    def _warn(self, message: str, *arguments: float) -> None:
        """Log a warning with the number of overruns, at most once a second."""
        now_ns = self._time.now_ns()
        if now_ns - self._warned_ns >= NS:
            self._warned_ns = now_ns
            _log.warning(message + " (%d overruns so far)", *arguments, self.clock.overruns)

    def _guard(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a callback; an exception that is not one of ours becomes an InterfaceError that names the callback."""
        self.callback = name
        try:
            return function(*args, **kwargs)
        except RealTimeError:
            raise
        except Exception as error:
            owner = "" if name.endswith("_func") else f"{type(self.interface).__name__}."
            raise InterfaceError(f"{owner}{name} raised {type(error).__name__}: {error}") from error
        finally:
            self.callback = ""


class DeviceEngine(Engine):
    """A device: its world goes on by itself, and an action that is late is sent at once."""

    _first_ns = 0

    def _grid_source(self) -> TimeSource:
        return self._time

    def _wall_ns(self, grid_ns: int) -> int:
        return grid_ns

    def _epoch_ns(self) -> int:
        return self._first_ns

    def _restart(self, options: dict[str, Any] | None) -> None:
        super()._restart(options)
        if options is not None and "schedule" in options:
            raise ConfigurationError(
                'options["schedule"] needs a world (an interface with advance()), not a device'
            )
        self._first_ns = self._time.now_ns()

    def _run(self, step: TimeStep) -> None:
        self._time.sleep_until(step.capture_ns)
        self._take_capture(step)
        self._time.sleep_until(step.end_ns)
        self._end(step)


class WorldEngine(Engine):
    """A world with control periods: it is advanced along a grid, which the time source paces.

    The elastic clock reads the grid, not the time source: durations are whole control periods, and a late action takes
    effect at a control period.
    """

    def __init__(self, interface: Interface, *args: Any, **kwargs: Any) -> None:
        period = interface.control_period
        if period is None or not period > 0.0:
            raise ConfigurationError(
                f"{type(interface).__name__} overrides advance(), so its control_period must be positive, in s, "
                f"got {period}"
            )
        self._period_ns = to_ns(period)
        self._grid_ns = 0
        self._origin_ns = 0
        self._sent_periods: list[int] = []
        self._replay: list[int] = []
        super().__init__(interface, *args, **kwargs)
        self.check_durations(self.durations)

    def now_ns(self) -> int:
        """Return the present grid point, ns since the reset: the elastic clock's time source."""
        return self._grid_ns

    def sleep_until(self, deadline_ns: int) -> None:
        """Advance to a grid point; the elastic clock never asks for it."""
        raise NotImplementedError

    def _grid_source(self) -> TimeSource:
        return self

    def _wall_ns(self, grid_ns: int) -> int:
        return self._origin_ns + grid_ns

    @property
    def idles(self) -> bool:
        """The world goes on while the agent is late, but for pauses and ends, and on virtual time."""
        return self._measured and not self._parked

    def idle(self) -> None:
        """Advance by one control period."""
        try:
            self._advance()
        except BaseException:
            self._park(broken=True)
            raise

    def check_durations(self, durations: Durations) -> None:
        """Raise unless the durations are whole control periods."""
        for name in ("time_step_duration", "start_obs_capture"):
            value = getattr(durations, name)
            if to_ns(value) % self._period_ns:
                raise ConfigurationError(
                    f"{name} must be a multiple of the control period of {type(self.interface).__name__}, "
                    f"{self._period_ns / NS} s, got {value} s"
                )

    def schedule(self) -> Schedule:
        """Return the control periods at which the actions were sent, and what the interface recorded."""
        recorded = getattr(self.interface, "schedule", None)
        return Schedule(tuple(self._sent_periods), recorded() if recorded is not None else None)

    def _restart(self, options: dict[str, Any] | None) -> None:
        super()._restart(options)
        schedule = (options or {}).get("schedule")
        if schedule is not None and self._measured:
            raise ConfigurationError(
                'options["schedule"] replays on virtual time only; this clock is the wall\'s'
            )
        if schedule is not None and not isinstance(schedule, Schedule):
            raise ConfigurationError(f'options["schedule"] must be a Schedule, got {type(schedule).__name__}')
        self._replay = list(schedule.action_periods)[::-1] if schedule is not None else []
        self._sent_periods = []
        self._grid_ns = 0

    def _begin(self, action: Action, inference: tuple[float, float] | None) -> None:
        if self._parked:
            self._origin_ns = self._time.now_ns() - self._grid_ns
        if self._replay:
            until_ns = self._replay.pop() * self._period_ns
            while self._grid_ns < until_ns:
                self._advance()
        self._sent_periods.append(self._grid_ns // self._period_ns)
        super()._begin(action, inference)

    def _park(self, *, broken: bool) -> None:
        # World time stands still in a pause: the grid of time-steps stays where it is.
        self._parked = True
        if broken:
            self._step = self._capture = None

    def _run(self, step: TimeStep) -> None:
        captured = False
        while True:
            if not captured and self._grid_ns >= step.capture_ns:
                self._take_capture(step)
                captured = True
            if self._grid_ns >= step.end_ns:
                break
            self._advance()
        self._end(step)

    def _advance(self) -> None:
        """Run the world for one control period and wait for its end on the time source."""
        until_ns = self._grid_ns + self._period_ns
        self._guard("advance", self.interface.advance, until_ns / NS)
        self._grid_ns = until_ns
        due_ns = self._origin_ns + until_ns
        late_ns = self._time.now_ns() - due_ns
        if self._measured and late_ns > self._period_ns:
            # No burst of short periods to catch up: the whole grid slips.
            self._origin_ns += late_ns
            self.clock.overruns += 1
            self._warn(
                "a control period of %.1f ms ended %.1f ms late: the grid slips",
                self._period_ns / 1e6,
                late_ns / 1e6,
            )
        else:
            self._time.sleep_until(due_ns)
