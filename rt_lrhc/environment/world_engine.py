"""Time-steps of a world: it is advanced along a grid of control periods, which the time source paces."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

from rt_lrhc.delays import DelayDraws
from rt_lrhc.environment.captures import Capture
from rt_lrhc.environment.engine import Action, Durations, Engine, Interface, Schedule
from rt_lrhc.environment.links import ObservationLink
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.timing.clock import NS, TimeSource, TimeStep, to_ns
from rt_lrhc.timing.run_lengths import RunLengths

_SHORTEST_PERIOD = 1e-6
"""Shortest control period, s."""


class WorldEngine(Engine):
    """A world with control periods: it is advanced along a grid, which the time source paces.

    The elastic clock reads the grid, not the time source: durations are whole control periods, and a late action takes
    effect at a control period.
    """

    def __init__(self, interface: Interface, *args: Any, **kwargs: Any) -> None:
        period = interface.control_period
        if not isinstance(period, (int, float)) or not _SHORTEST_PERIOD <= period < float("inf"):
            raise ConfigurationError(
                f"{type(interface).__name__} overrides advance(), so its control_period must be at least "
                f"{_SHORTEST_PERIOD} s and finite, got {period!r}"
            )
        self._period_ns = to_ns(period)
        self._grid_ns = 0
        self._origin_ns = 0
        # Control periods from each sending to the next, the first one from the reset.
        self._sent_after: RunLengths[int] = RunLengths()
        self._sent_period = 0
        self._replay: list[int] = []
        super().__init__(interface, *args, **kwargs)
        count, delay = self.captor.num_robots, self._observation_delay
        self._observations = (
            None
            if delay is None
            else ObservationLink(
                DelayDraws(delay, "observations", count), count, self._period_ns, batched=self.captor.batched
            )
        )
        self._configure(self.on_grid(self.durations))

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

    def on_grid(self, durations: Durations) -> Durations:
        """Return the durations as whole control periods; raise unless they are that already, but for rounding."""
        whole = {}
        for name in ("time_step_duration", "start_obs_capture"):
            value = getattr(durations, name)
            # A period of 1/60 s has no whole number of ns: 3/60 s is three of them all the same.
            periods = round(value * NS / self._period_ns)
            if abs(value * NS - periods * self._period_ns) > max(1.0, periods):
                raise ConfigurationError(
                    f"{name} must be a multiple of the control period of {type(self.interface).__name__}, "
                    f"{self._period_ns / NS} s, got {value} s"
                )
            whole[name] = periods * self._period_ns / NS
        return super().on_grid(replace(durations, **whole))

    def schedule(self) -> Schedule:
        """Return the control periods at which the actions were sent, and what the interface recorded."""
        recorded = getattr(self.interface, "schedule", None)
        return Schedule(tuple(accumulate(self._sent_after)), recorded() if recorded is not None else None)

    def _restart(self, options: dict[str, Any] | None) -> None:
        super()._restart(options)
        schedule = (options or {}).get("schedule")
        self._replay = list(schedule.action_periods)[::-1] if schedule is not None else []
        self._sent_after.clear()
        self._sent_period = 0
        self._grid_ns = 0

    def _check_options(self, options: dict[str, Any] | None) -> None:
        super()._check_options(options)
        schedule = (options or {}).get("schedule")
        if schedule is not None and self._measured:
            raise ConfigurationError(
                'options["schedule"] replays on virtual time only; this clock is the wall\'s'
            )
        if schedule is not None and not isinstance(schedule, Schedule):
            raise ConfigurationError(f'options["schedule"] must be a Schedule, got {type(schedule).__name__}')
        records = getattr(self.interface, "schedule", None) is not None
        if schedule is not None and records and not isinstance(schedule.world, (tuple, type(None))):
            raise ConfigurationError(
                f'options["schedule"].world must be what the interface recorded, got {schedule.world!r:.100}'
            )

    def _begin(self, action: Action, inference: tuple[float, float] | None) -> None:
        if self._parked:
            self._origin_ns = self._time.now_ns() - self._grid_ns
        if self._replay:
            until_ns = self._replay.pop() * self._period_ns
            while self._grid_ns < until_ns:
                self._advance()
        period = self._grid_ns // self._period_ns
        self._sent_after.append(period - self._sent_period)
        self._sent_period = period
        super()._begin(action, inference)

    def _park(self, *, broken: bool) -> None:
        # World time stands still in a pause: the grid of time-steps stays where it is.
        self._parked = True
        if broken:
            self._step = self._capture = None

    def _captured_ns(self, step: TimeStep) -> int:
        # An agent that was late may have begun the time-step after its capture was due.
        return self._grid_ns

    def _restart_links(self, root: int, components: list[Action]) -> None:
        super()._restart_links(root, components)
        if self._observations is not None:
            self._observations.restart(root, [part.copy() for part in components])

    def _age(self, capture: Capture, step: TimeStep) -> None:
        super()._age(capture, step)
        link = self._observations
        if link is None:
            return
        delayed, fresh, rows = link.take(self._grid_ns), capture.components, capture.reset_rows
        capture.observation_age += link.age(self._grid_ns)
        capture.components = delayed
        if rows is not None:
            # What a robot saw last is as old as ever; what it sees first is the state that it was reset to.
            capture.final_components = [part.copy() for part in delayed]
            link.restart_rows(rows, self._grid_ns, fresh)
            for mine, theirs in zip(delayed, fresh, strict=True):
                mine[rows] = theirs[rows]

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
        if self._actions is not None:
            self._deliver()
        self._guard("advance", self.interface.advance, until_ns / NS)
        self._grid_ns = until_ns
        if self._observations is not None:
            self._observations.sample(until_ns, self.captor.observe(self._guard))
        due_ns = self._origin_ns + until_ns
        late_ns = self._time.now_ns() - due_ns if self._measured else 0
        if late_ns > self._period_ns:
            # No burst of short periods to catch up: the whole grid slips.
            self._origin_ns += late_ns
            self.clock.overruns += 1
            queued_ns = self._queued_ns()
            self._marks.queued += queued_ns / NS
            self._marks.cause = "host" if queued_ns > late_ns // 2 else "world"
            self._count_overrun(self._marks.cause)
            self._warn(
                f"a control period of %.1f ms ended %.1f ms late (cause: {self._marks.cause}): the grid slips",
                self._period_ns / 1e6,
                late_ns / 1e6,
            )
        else:
            self._time.sleep_until(due_ns)
