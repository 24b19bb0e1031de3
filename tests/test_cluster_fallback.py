"""The choice of the input in force, for all robots at once, against a plain version for one."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc.cluster.fallback import Choice, FallbackPolicy, FallbackRules, Plans, choose
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.testing.echo import EchoController

PERIOD = 20_000_000
NOW = 1_000 * PERIOD


@dataclass
class Robot:
    valid: bool
    inputs: list[float]
    state_age: int
    stage_age: int
    just_accepted: bool
    in_force: float


def plain(robot: Robot, rules: FallbackRules) -> tuple[float, int, Fallback]:
    """What DESIGN says, robot by robot: shift the plan, then hold, then the safe input."""
    if not robot.valid:
        return float(rules.safe_input[0]), -1, Fallback.SAFE
    age, elapsed = robot.state_age, robot.stage_age * PERIOD
    stage = min(max(math.floor(elapsed / rules.stage_duration + 1e-6), 0), rules.num_stages - 1)
    planned = min(max(robot.inputs[stage], -1.0), 1.0)
    if age <= rules.nominal_age:
        return planned, age, Fallback.FRESH
    if elapsed < rules.shift_end:
        return planned, age, Fallback.LATE if robot.just_accepted else Fallback.SHIFT
    if elapsed < rules.hold_end:
        return robot.in_force, age, Fallback.HOLD
    return float(rules.safe_input[0]), age, Fallback.SAFE


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Robot], FallbackRules]:
    stages = draw(st.integers(1, 6))
    spec = EchoController(
        1, num_stages=stages, stage_duration=draw(st.sampled_from([0.01, 0.02, 0.03, 0.05]))
    ).spec
    policy = FallbackPolicy(draw(st.sampled_from([0.0, 0.03, math.inf])), draw(st.sampled_from([0.0, 0.05])))
    rules = FallbackRules.of(policy, spec, PERIOD, draw(st.integers(0, 1)))
    delay = draw(st.integers(0, 1))
    robots = []
    for _ in range(draw(st.integers(1, 6))):
        age = draw(st.integers(0, 12))
        robots.append(
            Robot(
                draw(st.booleans()),
                draw(st.lists(st.floats(-2.0, 2.0), min_size=stages, max_size=stages)),
                age,
                age - delay,
                draw(st.booleans()),
                draw(st.floats(-1.0, 1.0)),
            )
        )
    return robots, rules


@given(situations())
def test_all_robots_at_once_get_what_each_would_get_alone(
    situation: tuple[list[Robot], FallbackRules],
) -> None:
    robots, rules = situation
    count = len(robots)
    plans = Plans(
        np.array([robot.inputs for robot in robots])[:, :, None],
        np.array([robot.valid for robot in robots]),
        np.array([NOW - robot.state_age * PERIOD for robot in robots]),
        np.array([NOW - robot.stage_age * PERIOD for robot in robots]),
        np.array([NOW if robot.just_accepted else NOW - PERIOD for robot in robots]),
    )
    choice = Choice.safe(count, EchoController(1).spec)
    choice.inputs[:, 0] = [robot.in_force for robot in robots]
    choose(plans, NOW, rules, choice, np.arange(count) * rules.num_stages)
    for row, robot in enumerate(robots):
        inputs, age, label = plain(robot, rules)
        found = (choice.inputs[row, 0], choice.age[row], Fallback(choice.fallback[row]), choice.fresh[row])
        assert found == (inputs, age, label, label is Fallback.FRESH)


@given(st.integers(1, 3_000), st.sampled_from([3, 6, 7, 30, 60, 90]))
def test_a_grid_that_is_rounded_to_ns_never_evaluates_the_stage_before(period: int, rate_hz: int) -> None:
    """Stages and control periods of 1/30 s: k periods after stage 0 it is stage k that acts."""
    spec = EchoController(1, num_stages=8, stage_duration=1.0 / rate_hz).spec
    rules = FallbackRules.of(FallbackPolicy(), spec, round(1e9 / rate_hz), 0)
    start = round(period * 1e9 / rate_hz)
    plans = Plans(
        np.arange(8.0).reshape(1, 8, 1) / 8.0, *(np.array([value]) for value in (True, start, start, start))
    )
    choice = Choice.safe(1, spec)
    for stage in range(8):
        choose(plans, round((period + stage) * 1e9 / rate_hz), rules, choice, np.zeros(1, np.int64))
        assert (choice.inputs[0, 0] * 8.0, choice.age[0]) == (stage, stage)


def test_a_policy_of_negative_times_is_refused() -> None:
    for bad in ({"shift": -1.0}, {"hold": math.nan}):
        with pytest.raises(ConfigurationError, match=f"fallback.{next(iter(bad))}"):
            FallbackPolicy(**bad)
