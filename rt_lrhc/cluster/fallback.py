"""Which input acts on each robot now: its plan, evaluated at the present time, or what stands in for it.

All robots at once; a plain version for one robot is in the tests, which compare the two.
"""

import math
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import BoolArray, ControllerSpec, FloatArray, IntArray
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.errors import ConfigurationError

NO_PLAN = -1
"""The age of a robot that has no plan."""

# Grid times are rounded to ns: a plan evaluated exactly at the border of two stages must not fall into the earlier one.
_GRID_TOLERANCE_NS = 1_000


@dataclass(frozen=True)
class FallbackPolicy:
    """What acts on a robot without a plan of nominal age: shift the plan, then hold, then the safe input.

    Attributes:
        shift: Longest time since stage 0 for which a plan is still evaluated, s; its horizon bounds it in any case.
        hold: How long the last input is held after that, s; then the safe input acts.

    Raises:
        ConfigurationError: If one of them is negative or not a number.
    """

    shift: float = math.inf
    hold: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (("shift", self.shift), ("hold", self.hold)):
            if not value >= 0.0:
                raise ConfigurationError(f"fallback.{name} must be a time of at least 0 s, got {value!r}")


@dataclass(frozen=True)
class FallbackRules:
    """A policy in ns, for one controller. Plans are usable before `shift_end`, the last input before `hold_end`."""

    control_period: int
    stage_duration: int
    num_stages: int
    nominal_age: int
    shift_end: float
    hold_end: float
    lower: FloatArray
    upper: FloatArray
    safe_input: FloatArray

    @classmethod
    def of(
        cls, policy: FallbackPolicy, spec: ControllerSpec, control_period_ns: int, nominal_age: int
    ) -> "FallbackRules":
        """Return the rules that a policy means for a controller."""
        stage_duration = round(spec.stage_duration * 1e9)
        shift_end = min(policy.shift * 1e9, spec.num_stages * stage_duration)
        return cls(
            control_period_ns,
            stage_duration,
            spec.num_stages,
            nominal_age,
            shift_end,
            shift_end + policy.hold * 1e9,
            np.array(spec.input_lower),
            np.array(spec.input_upper),
            np.array(spec.safe_input),
        )


@dataclass(frozen=True)
class Plans:
    """The last accepted plan of each of n robots. Times are grid times in ns.

    Attributes:
        inputs: Planned inputs, (n, N, nu).
        valid: Whether there is a plan, (n,).
        state_time: Time of the states that it was solved for, (n,).
        stage_time: Time of its stage 0, (n,).
        accepted_time: Time at which it was accepted, (n,).
    """

    inputs: FloatArray
    valid: BoolArray
    state_time: IntArray
    stage_time: IntArray
    accepted_time: IntArray

    @classmethod
    def none(cls, num_robots: int, spec: ControllerSpec) -> "Plans":
        """Return the record of robots that have no plan yet."""
        times = (np.zeros(num_robots, np.int64) for _ in range(3))
        return cls(np.zeros((num_robots, spec.num_stages, spec.nu)), np.zeros(num_robots, np.bool_), *times)


@dataclass(frozen=True)
class Choice:
    """What acts on each of n robots, updated in place.

    Attributes:
        inputs: The saturated inputs in force, (n, nu).
        age: Control periods between the plan's state and now, (n,); `NO_PLAN` without one.
        fallback: `Fallback` label, (n,) int64.
        fresh: Whether the label is `FRESH`, (n,).
    """

    inputs: FloatArray
    age: IntArray
    fallback: IntArray
    fresh: BoolArray

    @classmethod
    def safe(cls, num_robots: int, spec: ControllerSpec) -> "Choice":
        """Return the choice before any plan: the safe input."""
        return cls(
            np.tile(np.array(spec.safe_input), (num_robots, 1)),
            np.full(num_robots, NO_PLAN, np.int64),
            np.full(num_robots, Fallback.SAFE, np.int64),
            np.zeros(num_robots, np.bool_),
        )


def choose(plans: Plans, time_ns: int, rules: FallbackRules, choice: Choice, offsets: IntArray) -> None:
    """Choose the input of each robot from `time_ns` on, and its label, into `choice`.

    A plan holds each input for one stage. One of nominal age always acts, with its last input where the horizon has
    passed; one whose stage 0 still lies ahead acts with its first input.

    Args:
        plans: The accepted plans.
        time_ns: The present grid time, ns.
        rules: What stands in for a plan.
        choice: What acted until now; `HOLD` keeps its inputs.
        offsets: `np.arange(n) * N`, the first input of each robot's plan.
    """
    elapsed = time_ns - plans.stage_time
    elapsed += _GRID_TOLERANCE_NS
    np.subtract(time_ns + _GRID_TOLERANCE_NS, plans.state_time, out=choice.age)
    np.floor_divide(choice.age, rules.control_period, out=choice.age)
    np.less_equal(choice.age, rules.nominal_age, out=choice.fresh)
    np.logical_and(choice.fresh, plans.valid, out=choice.fresh)

    stage = elapsed // rules.stage_duration
    np.maximum(stage, 0, out=stage)
    np.minimum(stage, rules.num_stages - 1, out=stage)
    stage += offsets
    planned = plans.inputs.reshape(-1, plans.inputs.shape[2]).take(stage, axis=0)
    np.maximum(planned, rules.lower, out=planned)
    np.minimum(planned, rules.upper, out=planned)

    # Not `all()`, here and in the client: this is five times as fast.
    if np.count_nonzero(choice.fresh) == len(choice.fresh):
        choice.inputs[...] = planned
        choice.fallback.fill(Fallback.FRESH)
        return
    acts = choice.fresh | (plans.valid & (elapsed < rules.shift_end))
    holds = plans.valid & ~acts & (elapsed < rules.hold_end)
    safe = ~(acts | holds)
    np.copyto(choice.inputs, planned, where=acts[:, None])
    np.copyto(choice.inputs, rules.safe_input, where=safe[:, None])
    choice.fallback.fill(Fallback.SHIFT)
    choice.fallback[plans.accepted_time == time_ns] = Fallback.LATE
    choice.fallback[holds] = Fallback.HOLD
    choice.fallback[safe] = Fallback.SAFE
    choice.fallback[choice.fresh] = Fallback.FRESH
    choice.age[~plans.valid] = NO_PLAN
