"""The elastic clock and the action buffer, alone."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rt_lrhc.environment.action_buffer import ActionBuffer
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.testing.manual_time import ManualTime
from rt_lrhc.timing.clock import NS, ElasticClock, VirtualTime, WallTime

MS = 1_000_000


def test_late_step_within_elasticity_stays_on_the_grid() -> None:
    """10 ms late of 20 ms allowed: the next deadline is 40 ms, not 50 ms."""
    time = ManualTime()
    clock = ElasticClock(time_step_duration=0.02, timeout=0.02, time=time)
    clock.begin_step()
    time.advance(0.030)
    step = clock.begin_step()
    assert (step.end, step.lateness_ns, clock.overruns) == (pytest.approx(0.040), 10 * MS, 0)


def test_later_than_the_elasticity_restarts_the_grid_once() -> None:
    time = ManualTime()
    clock = ElasticClock(time_step_duration=0.02, timeout=0.02, time=time)
    clock.begin_step()
    time.advance(0.055)
    step = clock.begin_step()
    assert (step.start_ns, step.end_ns, step.overrun_ns) == (55 * MS, 75 * MS, 35 * MS)
    time.advance(0.020)
    assert clock.begin_step().overrun_ns == 0
    assert clock.overruns == 1


def test_neither_a_pause_nor_a_reset_is_an_overrun() -> None:
    time = ManualTime()
    clock = ElasticClock(time_step_duration=0.02, timeout=0.0, time=time)
    clock.begin_step()
    time.advance(5.0)
    clock.restart()
    assert (clock.begin_step().start, clock.overruns) == (5.0, 0)


def test_durations_change_from_the_next_step_on() -> None:
    time = ManualTime()
    clock = ElasticClock(time_step_duration=0.02, timeout=0.02, time=time)
    first = clock.begin_step()
    clock.configure(0.05, 0.01, 0.0)
    time.advance(0.02)
    second = clock.begin_step()
    assert (first.end, second.capture, second.end) == (0.02, 0.03, 0.07)


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"time_step_duration": 0.0, "timeout": 0.0}, "time_step_duration"),
        ({"time_step_duration": 0.02, "timeout": -1.0}, "timeout"),
        ({"time_step_duration": 0.02, "timeout": 0.0, "start_obs_capture": 0.03}, "start_obs_capture"),
    ],
)
def test_an_impossible_duration_is_an_error_that_names_it(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        ElasticClock(**arguments, time=ManualTime())


def test_virtual_time_never_goes_back() -> None:
    time = VirtualTime()
    time.sleep_until(5 * NS)
    time.sleep_until(3 * NS)
    assert time.now_ns() == 5 * NS


@pytest.mark.parametrize("spin", [0.0, 200e-6])
def test_a_sleep_never_ends_early(spin: float) -> None:
    time = WallTime(spin)
    for wait in (0, 300_000, 2 * MS):
        deadline = time.now_ns() + wait
        time.sleep_until(deadline)
        assert time.now_ns() >= deadline


class ClockAndBuffer(RuleBasedStateMachine):
    """The elastic clock against its definition, and the buffer against a list, with an array that the caller reuses."""

    LENGTH = 3

    def __init__(self) -> None:
        super().__init__()
        self.time = ManualTime()
        self.duration, self.capture, self.timeout = 20 * MS, 20 * MS, 20 * MS
        self.clock = ElasticClock(time_step_duration=0.02, timeout=0.02, time=self.time)
        self.end: int | None = None
        self.overruns = 0
        self.reused = np.zeros(2)
        self.buffer = ActionBuffer(self.LENGTH, np.zeros(2))
        self.model = [(0.0, 0.0)] * self.LENGTH

    @rule(late_us=st.integers(0, 60_000), value=st.floats(-1, 1))
    def step(self, late_us: int, value: float) -> None:
        if self.end is not None:
            self.time.advance(max(self.end - self.time.now_ns(), 0) / NS)
        self.time.advance(late_us / 1e6)
        now = self.time.now_ns()
        step = self.clock.begin_step()
        on_grid = self.end is not None and now - self.end <= self.timeout
        expected = self.end if on_grid else now
        self.overruns += self.end is not None and not on_grid
        assert (step.start_ns, step.capture_ns - step.start_ns) == (expected, self.capture)
        assert step.end_ns - step.start_ns == self.duration
        assert step.lateness_ns == now - step.start_ns
        self.end = step.end_ns
        self.reused[:] = value
        self.buffer.append(self.reused)
        self.reused[:] = np.nan
        self.model = [*self.model[1:], (value, value)]

    @rule()
    def pause(self) -> None:
        self.time.advance(1.0)
        self.clock.restart()
        self.end = None

    @rule(value=st.floats(-1, 1))
    def reset(self, value: float) -> None:
        self.pause()
        self.reused[:] = value
        self.buffer.set_default(self.reused)
        self.buffer.clear()
        self.reused[:] = np.nan
        self.model = [(value, value)] * self.LENGTH

    @rule(duration_ms=st.integers(1, 50), part=st.integers(0, 4))
    def change_durations(self, duration_ms: int, part: int) -> None:
        self.duration, self.capture = duration_ms * MS, duration_ms * MS * part // 4
        self.timeout = self.duration // 2
        self.clock.configure(self.duration / NS, self.capture / NS, self.timeout / NS)

    @invariant()
    def the_buffer_equals_the_list(self) -> None:
        listed = self.buffer.as_list()
        assert [tuple(a) for a in listed] == self.model == [tuple(a) for a in self.buffer.stacked()]
        listed[0][:] = np.nan  # a copy: what the agent does with it changes nothing

    @invariant()
    def overruns_are_counted_once(self) -> None:
        assert self.clock.overruns == self.overruns


TestClockAndBuffer = ClockAndBuffer.TestCase
TestClockAndBuffer.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_rows_of_the_buffer_restart_alone() -> None:
    buffer = ActionBuffer(2, np.zeros((2, 1)))
    for value in (1.0, 2.0, 3.0):
        buffer.append(np.full((2, 1), value))
    buffer.replace_newest(np.full((2, 1), 9.0), np.array([True, False]))
    assert buffer.stacked()[:, :, 0].T.tolist() == [[2.0, 9.0], [2.0, 3.0]]
    buffer.clear(rows=np.array([False, True]))
    assert buffer.stacked()[:, :, 0].T.tolist() == [[2.0, 9.0], [0.0, 0.0]]
