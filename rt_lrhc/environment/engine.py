"""What happens when in a time-step: sending, capturing, advancing; on the one thread that hosts the interface."""

import logging
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rt_lrhc.config import check_durations
from rt_lrhc.delays import Delay, DelayDraws
from rt_lrhc.environment.captures import Captor, Capture
from rt_lrhc.environment.first_row import owner_name
from rt_lrhc.environment.links import ActionLink
from rt_lrhc.errors import ConfigurationError, EnvironmentStateError, InterfaceError, RealTimeError
from rt_lrhc.interface import RealTimeInterface, VectorInterface
from rt_lrhc.timing.clock import NS, ElasticClock, TimeSource, TimeStep
from rt_lrhc.timing.realtime import RunDelay
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
    "follows",
    "grid",
    "send_begin",
    "sent",
    "capture_due",
    "capture_begin",
    "capture_end",
    "end_due",
    "end",
    "inference_begin",
    "inference_end",
)
"""One row of the trace a time-step: whether it followed another one (1), or a reset or a pause (0); then, in s of
CLOCK_MONOTONIC, when it was due, its action began to be and had been
sent, its capture was due, began and ended, its end was due and reached, and the inference that led to its action began
and ended. NaN is "not measured"."""

CAUSES = ("agent", "capture", "sending", "world", "host")
"""Who made a time-step late beyond what the clock absorbs: the agent; a capture or a sending that took too long; a
world whose control period took too long; or the host, which did not run the clock's thread in time. A thread of the
agent's process that holds the interpreter lock counts as the host: the clock cannot tell."""


@dataclass(slots=True)
class _Marks:
    """What was measured in one time-step, s of CLOCK_MONOTONIC; the names of `TRACE_COLUMNS`, and who made it late."""

    follows: float = 1.0
    grid: float = nan
    send_begin: float = nan
    sent: float = nan
    capture_due: float = nan
    capture_begin: float = nan
    capture_end: float = nan
    end_due: float = nan
    end: float = nan
    inference_begin: float = nan
    inference_end: float = nan
    cause: str = ""
    queued: float = 0.0

    def row(self) -> tuple[float, ...]:
        """Return the row of the trace, in the order of `TRACE_COLUMNS`."""
        return (
            self.follows,
            self.grid,
            self.send_begin,
            self.sent,
            self.capture_due,
            self.capture_begin,
            self.capture_end,
            self.end_due,
            self.end,
            self.inference_begin,
            self.inference_end,
        )


_NOTHING = _Marks()
"""The marks of every time-step on virtual time."""


_NO_FIGURES: dict[str, Any] = {
    "time": 0.0,
    "step": 0,
    "time_step_duration": 0.0,
    "lateness": 0.0,
    "overruns": 0,
    "cause": "",
    "observation_age": 0.0,
    "action_age": 0.0,
    "send_lateness": 0.0,
    "capture_lateness": 0.0,
    "send": 0.0,
    "capture": 0.0,
    "inference": 0.0,
    "run_delay": 0.0,
    "end_reason": "",
}
"""The keys of `info["rt"]`: the same on both clocks."""


class EngineLike(Protocol):
    """What the environments ask of an engine, or of what stands for one that lives in another process.

    The first group belongs to the runner, which calls it between two time-steps; the second may be called at any time.
    """

    durations: Durations

    def reset(self, seed: int, options: dict[str, Any] | None) -> tuple[list[Action], dict[str, Any]]:
        """Reset the interface, send the first action and begin the first time-step."""

    def hand_over(self, action: Action, inference: tuple[float, float] | None) -> Capture:
        """Take the capture of the time-step that has ended, and begin the next one with `action`."""

    def pause(self) -> None:
        """Make the world wait until the next action or reset."""

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset."""

    def set_durations(self, durations: Durations) -> None:
        """Use other durations from the next time-step on."""

    def set_ep_max_length(self, length: float) -> None:
        """Truncate episodes after another number of time-steps."""

    def set_default_action(self, action: Action) -> None:
        """Send another action at resets: one action, or one a row."""

    def measured(self) -> tuple[npt.NDArray[np.float64], dict[str, int]]:
        """Return the trace, one row a time-step, and the number of overruns by cause."""


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
        action_delay: Time from the sending of an action to its effect.
        observation_delay: Age of the state that a capture holds.
        measured: Whether the time source is the wall's, so that what is measured means something.

    Attributes:
        callback: Name of the callback that runs now; empty where none does.
        granted: What the operating system granted, in words, for the info of `reset()`.
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
        action_delay: Delay | None = None,
        observation_delay: Delay | None = None,
    ) -> None:
        self.interface = interface
        self.captor = captor
        self.default_action = default_action
        self.trace = Rows(8192, len(TRACE_COLUMNS))
        self.callback = ""
        self.granted = ""
        self.durations = durations
        self._time = time
        self._measured = measured
        self._last_act_on_reset = last_act_on_reset
        self._wait_on_done = wait_on_done
        self._prepro = prepro
        self._observation_delay = observation_delay
        count = captor.num_robots
        self._actions = (
            None
            if action_delay is None
            else ActionLink(DelayDraws(action_delay, "actions", count), count, batched=captor.batched)
        )
        self.clock = ElasticClock(
            time_step_duration=durations.time_step_duration,
            start_obs_capture=durations.start_obs_capture,
            timeout=durations.time_step_timeout_factor * durations.time_step_duration,
            time=self._grid_source(),
        )
        self._step: TimeStep | None = None
        self._ended = TimeStep(0, 0, 0, 0, 0)
        self._capture: Capture | None = None
        self._last_action = default_action
        self._first = True
        self._parked = True
        self._steps = 0
        self._marks = _Marks()
        self._run_delay: RunDelay | None = None
        self._overruns_by_cause = dict.fromkeys(CAUSES, 0)
        self._warned_ns = -NS
        # Written by the caller's thread, applied by this one between two time-steps: the running one must not notice.
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    # What the runner calls.

    @property
    def idles(self) -> bool:
        """Whether the world goes on while no action is there: call `idle()` until one is."""
        return False

    def idle(self) -> None:
        """Let the world go on to its next grid point."""
        raise NotImplementedError

    def finish(self) -> None:
        """Run to the end of the running time-step, capturing on the way; at once where none is running.

        A device's engine may leave the wait for that end to whoever begins the next one.
        """
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
        self._complete()
        self._check_options(options)
        self._park(broken=True)
        self._apply_changes()
        components, info = self.captor.reset(self._guard, seed, options)
        self._restart(options)
        self._restart_links(seed, components)
        action = self._last_action if self._last_act_on_reset else self.default_action
        self._begin(action, None)
        info["rt"] = {**self._figures(None, self._marks), "granted": self.granted}
        return components, info

    def hand_over(self, action: Action, inference: tuple[float, float] | None) -> Capture:
        """Take the capture of the time-step that has ended, and begin the next one with `action`.

        The rows of robots that were reset are dropped: the default (or last) action acts there.
        """
        capture, self._capture = self._capture, None
        if capture is None:
            raise EnvironmentStateError("step() was called where no time-step has run: call reset() first")
        step, marks = self._ended, self._marks
        self._apply_changes()
        if capture.ended:
            self._last_action = action
        else:
            if capture.reset_rows is not None:
                action = self._with_reset_rows(action, capture.reset_rows)
            self._begin(action, inference)
        # Only now: what is written down after the action was sent does not delay it.
        self._write_down(capture, step, marks)
        return capture

    def pause(self) -> None:
        """Make the world wait until the next action or reset."""
        self._complete()
        self._guard("wait", self.interface.wait)
        self._park(broken=False)

    def close(self) -> None:
        """Let the running time-step end and close the interface."""
        self._complete()
        if self._run_delay is not None:
            self._run_delay.close()
        self._guard("close", self.interface.close)

    def set_durations(self, durations: Durations) -> None:
        """Use other durations from the next time-step on."""
        durations = self.on_grid(durations)
        self._changes.put(lambda: self._configure(durations))

    def set_ep_max_length(self, length: float) -> None:
        """Truncate episodes after another number of time-steps, from the next one on."""
        self._changes.put(lambda: setattr(self.captor, "ep_max_length", length))

    def set_default_action(self, action: Action) -> None:
        """Send another action at resets, from the next time-step on: one action, or one a row."""
        self._changes.put(lambda: setattr(self, "default_action", action))

    def _configure(self, durations: Durations) -> None:
        self.clock.configure(
            durations.time_step_duration,
            durations.start_obs_capture,
            durations.time_step_timeout_factor * durations.time_step_duration,
        )
        self.durations = durations

    def _apply_changes(self) -> None:
        while not self._changes.empty():
            self._changes.get_nowait()()

    def measured(self) -> tuple[npt.NDArray[np.float64], dict[str, int]]:
        """Return the trace, one row a time-step, and the number of overruns by cause."""
        return self.trace.values(), dict(self._overruns_by_cause)

    def on_grid(self, durations: Durations) -> Durations:
        """Return the durations as the world keeps them; raise a ConfigurationError where it cannot."""
        check_durations(
            durations.time_step_duration, durations.start_obs_capture, durations.time_step_timeout_factor
        )
        return durations

    def _check_options(self, options: dict[str, Any] | None) -> None:
        """Raise a ConfigurationError for options of `reset()` that are the environment's and unusable."""
        if options is not None and not isinstance(options, dict):
            raise ConfigurationError(f"options must be a dictionary or None, got {options!r:.100}")

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset."""
        raise ConfigurationError("a device has no control periods, hence no schedule to replay")

    # What the kinds of engines define.

    @abstractmethod
    def _grid_source(self) -> TimeSource: ...

    @abstractmethod
    def _run(self, step: TimeStep) -> None: ...

    def _complete(self) -> None:  # noqa: B027 (a world's time-step has ended when `finish` returns)
        """Run to the end of a time-step that has been captured."""

    def _captured_ns(self, step: TimeStep) -> int:
        """Return where on the grid the capture that is being taken lies."""
        return step.capture_ns

    @abstractmethod
    def _wall_ns(self, grid_ns: int) -> int:
        """Return when a point of the grid is due, in the time source's ns."""

    def _now_ns(self) -> int:
        """Return the present, ns on the clock's grid."""
        return self._grid_source().now_ns()

    def _restart_links(self, root: int, components: list[Action]) -> None:
        self._first = True
        if self._actions is not None:
            self._actions.restart(root)

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
        before = self._marks
        step = self.clock.begin_step()
        marks = _Marks(follows=float(not self._parked)) if self._measured else _NOTHING
        self._parked = False
        self._await(step)
        self._marks = marks
        if self._measured:
            marks.send_begin = self._time.now_ns() / NS
        self._send(action, step)
        if self._measured:
            marks.sent = self._time.now_ns() / NS
            marks.grid = self._wall_ns(step.start_ns) / NS
            if inference is not None:
                marks.inference_begin, marks.inference_end = inference
        self._step = step
        if step.overrun_ns:
            marks.cause = self._late_because(step.overrun_ns / NS, before, marks)
            self._count_overrun(marks.cause)
            durations = self.durations
            self._warn(
                f"the time-step begins %.1f ms late (cause: {marks.cause}), more than the %.1f ms that one absorbs: "
                "the grid restarts",
                step.overrun_ns / 1e6,
                durations.time_step_timeout_factor * durations.time_step_duration * 1e3,
            )

    def _await(self, step: TimeStep) -> None:  # noqa: B027 (a world is at the grid point already)
        """Wait until the time-step begins, where its action came before that."""

    def _late_because(self, late: float, before: _Marks, marks: _Marks) -> str:
        """Say who made a time-step late: the first that was behind its own time by most of `late`, s."""
        if not self._measured:
            return "agent"  # a replay: nothing else is late on virtual time
        most = 0.5 * late
        before.queued = self._queued_ns() / NS
        if before.queued > most:
            return "host"
        if before.sent - before.send_begin > most:
            return "sending"
        if before.capture_end - before.capture_begin > most:
            return "capture"
        # The grid has restarted at the present: the time-step was due `late` ago. Without a time: not measured.
        if not marks.inference_end < marks.grid - most:
            return "agent"
        return "host"

    def _queued_ns(self) -> int:
        """Return for how long this thread has waited for a core since this was asked last, ns."""
        if self._run_delay is None:
            self._run_delay = RunDelay()
        return self._run_delay.since_last_ns()

    def _count_overrun(self, cause: str) -> None:
        self._overruns_by_cause[cause] += 1

    def _send(self, action: Action, step: TimeStep) -> None:
        """Send `action`, which acts when its delay has passed; the first one since a reset acts at once."""
        self._last_action = action
        first, self._first = self._first, False
        if self._actions is None:
            self._apply(action)
        elif first:
            self._apply(self._actions.put(action, step.start_ns))
        else:
            self._actions.send(action, self._now_ns(), step.start_ns)
            self._deliver()

    def _deliver(self) -> None:
        """Apply the actions that have arrived by now."""
        if self._actions is not None:
            arrived = self._actions.arrived(self._now_ns())
            if arrived is not None:
                self._apply(arrived)

    def _apply(self, action: Action) -> None:
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
        marks = self._marks
        if self._measured:
            marks.capture_begin = self._time.now_ns() / NS
        capture = self.captor.capture(self._guard)
        self._steps += 1
        self._age(capture, step)
        if capture.reset_rows is not None:
            # The reset robots act on their first action from this instant, not from the agent's next one.
            action = self._last_action = self._with_reset_rows(self._last_action, capture.reset_rows)
            if self._actions is not None:
                action = self._actions.put_rows(action, self._captured_ns(step), capture.reset_rows)
            self._apply(action)
        if self._measured:
            marks.capture_end = self._time.now_ns() / NS
            marks.capture_due = self._wall_ns(step.capture_ns) / NS
        self._capture = capture

    def _age(self, capture: Capture, step: TimeStep) -> None:
        """Write down when the capture is, and how old the action in force and the captured state are then."""
        now_ns = self._captured_ns(step)
        capture.time = (now_ns - self._epoch_ns()) / NS
        capture.observation_age = (step.end_ns - now_ns) / NS
        capture.action_age = (
            (now_ns - step.start_ns) / NS if self._actions is None else self._actions.age(now_ns)
        )

    def _end(self, step: TimeStep) -> None:
        self._ended = step
        if self._measured:
            self._marks.end = self._time.now_ns() / NS
            # Now: the grid may slip before the next action comes.
            self._marks.end_due = self._wall_ns(step.end_ns) / NS

    def _write_down(self, capture: Capture, step: TimeStep, marks: _Marks) -> None:
        """Put the figures of the time-step that has ended into its info and into the trace."""
        if self._measured:
            self.trace.add(*marks.row())
        figures = capture.info["rt"] = self._figures(step, marks)
        figures["time"] = capture.time
        figures["observation_age"] = capture.observation_age
        figures["action_age"] = capture.action_age
        if isinstance(capture.terminated, np.ndarray):
            ends = np.where(capture.terminated, "terminated", np.where(capture.truncated, "time_limit", ""))
            figures["end_reason"] = ends
        else:
            reason = "terminated" if capture.terminated else "time_limit" if capture.truncated else ""
            figures["end_reason"] = reason

    def _figures(self, step: TimeStep | None, marks: _Marks) -> dict[str, Any]:
        """Return the scalars of `info["rt"]`: grid values, then measured ones, which are 0 on virtual time."""
        figures = _NO_FIGURES.copy()
        figures["step"] = self._steps
        figures["overruns"] = self.clock.overruns
        figures["cause"] = marks.cause
        if step is None:
            return figures
        figures["time_step_duration"] = (step.end_ns - step.start_ns - step.lateness_ns) / NS
        figures["lateness"] = (step.lateness_ns or step.overrun_ns) / NS
        if self._measured:
            figures["send_lateness"] = marks.send_begin - marks.grid
            figures["capture_lateness"] = marks.capture_begin - marks.capture_due
            figures["send"] = marks.sent - marks.send_begin
            figures["capture"] = marks.capture_end - marks.capture_begin
            if marks.inference_end == marks.inference_end:  # not NaN
                figures["inference"] = marks.inference_end - marks.inference_begin
            figures["run_delay"] = marks.queued + self._queued_ns() / NS
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
            owner = "" if name.endswith("_func") else f"{owner_name(self.interface)}."
            raise InterfaceError(f"{owner}{name} raised {type(error).__name__}: {error}") from error
        finally:
            self.callback = ""
