"""Gaits, swings and legs: properties of what the quadruped's MPC is built from."""

from functools import cache

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_lrhc.controllers.quadruped.gait import Gait, GaitScheduler, Schedule
from rt_lrhc.controllers.quadruped.legs import KNEE_RANGE
from rt_lrhc.controllers.quadruped.model import QuadrupedModel, mini_cheetah_model
from rt_lrhc.controllers.quadruped.rotations import (
    attitude_of_matrix,
    matrix_of_attitude,
    matrix_of_quaternion,
    matrix_of_turn,
    quaternion_of_attitude,
)
from rt_lrhc.controllers.quadruped.swing import swing
from rt_lrhc.simulators.mini_cheetah import load_model

PERIOD = 0.02


@cache
def _model() -> QuadrupedModel:
    return mini_cheetah_model()


def advance(
    scheduler: GaitScheduler,
    gait: int,
    orders: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    *,
    elapsed: float = PERIOD,
    lead: float = 0.1,
) -> Schedule:
    zero = np.zeros(1)
    return scheduler.advance(
        np.array([0]),
        np.array([elapsed]),
        0.5 * PERIOD,
        np.array([gait]),
        np.array([orders]),
        zero,
        zero,
        zero,
        lead,
    )


@pytest.mark.parametrize(
    ("gait", "together"),
    [(Gait.TROT, [0, 3]), (Gait.BOUND, [0, 1]), (Gait.PACE, [0, 2]), (Gait.PRONK, [0, 1, 2, 3])],
)
def test_legs_of_a_gait_swing_together_and_all_of_them_in_turn(gait: Gait, together: list[int]) -> None:
    scheduler = GaitScheduler(1)
    swings = np.array([advance(scheduler, gait).swinging[0] for _ in range(200)])
    assert (swings[:, together] == swings[:, together[:1]]).all()
    share = swings.mean(axis=0)
    assert (share > 0.3).all() and (share < 0.55).all()
    if len(together) == 2:
        assert not swings.all(axis=1).any()


def test_a_walk_keeps_three_feet_down_and_a_stand_all_four() -> None:
    scheduler = GaitScheduler(1)
    swings = np.array([advance(scheduler, Gait.WALK).swinging[0] for _ in range(200)])
    assert (swings.sum(axis=1) <= 1).all() and swings.any(axis=0).all()
    scheduler.reset(np.array([0]))
    assert not any(advance(scheduler, Gait.STAND).swinging.any() for _ in range(50))


@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(1, 12), st.integers(0, 5), st.tuples(*[st.sampled_from([-1.0, 0.0, 1.0])] * 4)),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_is_asked_a_foot_moves_smoothly_from_lift_off_to_touchdown(
    changes: list[tuple[int, int, tuple[float, ...]]],
) -> None:
    scheduler = GaitScheduler(1)
    before = np.ones(4)
    for periods, gait, orders in changes:
        for _ in range(periods):
            schedule = advance(scheduler, gait, orders)
            now = schedule.progress[0]
            swinging = schedule.swinging[0]
            assert ((now < 1.0) == swinging).all()
            # A swing starts near its beginning, ends at its end, and in between takes no jump.
            started = schedule.started[0]
            assert (now[started] <= 0.36).all()
            goes_on = swinging & ~started
            assert (np.abs(now - before)[goes_on] < 0.25).all()
            ended = ~swinging & (before < 1.0)
            assert (before[ended] > 0.75).all()
            held = swinging & (schedule.ceiling[0] == 0.5)
            assert (schedule.progress_at(np.array([1.0]))[0][0, held] == 0.5).all()
            before = now


@settings(max_examples=40, deadline=None)
@given(gait=st.integers(0, 5), start=st.integers(0, 40))
def test_the_horizon_foretells_what_then_happens(gait: int, start: int) -> None:
    scheduler = GaitScheduler(1)
    for _ in range(start):
        advance(scheduler, gait)
    times = np.linspace(0.0, 14 * PERIOD, 15)
    schedule = advance(scheduler, gait)
    foretold = schedule.contacts(times)[0]
    progress = schedule.progress_at(times)[0]
    for k in range(15):
        # At the very moment of a change, rounding may decide either way.
        if k:
            schedule = advance(scheduler, gait)
        near = (np.abs(schedule.progress[0] - 1.0) < 1e-6) & (np.abs(progress[k] - 1.0) < 1e-6)
        agrees = foretold[k] == ~schedule.swinging[0]
        edge = (schedule.progress[0] < 0.12) | (schedule.progress[0] > 0.9) | near
        assert (agrees | edge).all()
        both = ~foretold[k] & schedule.swinging[0]
        np.testing.assert_allclose(progress[k][both], schedule.progress[0][both], atol=0.02)


def test_an_order_lifts_a_foot_after_the_lead_holds_it_up_and_lets_it_down() -> None:
    scheduler = GaitScheduler(1)
    up = (-1.0, 0.0, 0.0, 0.0)
    lifted = [advance(scheduler, Gait.STAND, up, lead=0.1) for _ in range(40)]
    assert [bool(s.swinging[0, 0]) for s in lifted].index(
        True
    ) == 4  # the order itself has come after a period
    assert lifted[0].contacts(np.array([0.0, 0.05, 0.09, 0.3]))[0, :, 0].tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert lifted[-1].progress[0, 0] == 0.5
    assert not lifted[-1].contacts(np.linspace(0.0, 1.0, 20))[0, :, 0].any()
    down = [advance(scheduler, Gait.STAND) for _ in range(20)]
    assert down[0].landing[0, 0] < 0.2
    assert not down[-1].swinging.any()
    stood = [advance(scheduler, Gait.TROT, (1.0, 1.0, 1.0, 1.0)).swinging.any() for _ in range(40)]
    assert not any(stood)


def test_a_swing_is_at_rest_at_both_ends_and_clears_the_ground() -> None:
    draws = np.random.default_rng(0)
    start, end = draws.normal(size=(2, 50, 3))
    one = np.ones(50)
    for progress, place in ((0.0, start), (1.0, end)):
        position, velocity = swing(start, end, 0.1 * one, progress * one, 5.0 * one)
        np.testing.assert_allclose(position, place, atol=1e-12)
        np.testing.assert_allclose(velocity, 0.0, atol=1e-9)
    top, _ = swing(start, end, 0.1 * one, 0.5 * one, 5.0 * one)
    np.testing.assert_allclose(top[:, 2], np.maximum(start[:, 2], end[:, 2]) + 0.1)
    middle, step = draws.uniform(0.01, 0.99, 50), 1e-6
    before, _ = swing(start, end, 0.1 * one, middle - 5.0 * step, 5.0 * one)
    after, velocity = swing(start, end, 0.1 * one, middle, 5.0 * one)
    np.testing.assert_allclose((after - before) / step, velocity, atol=1e-3)


def test_kinematics_of_the_legs_are_those_of_the_simulated_robot() -> None:
    legs = _model().legs
    model = load_model()
    data = mujoco.MjData(model)
    draws = np.random.default_rng(0)
    for _ in range(100):
        joints = draws.uniform([-0.7, -1.5, 0.3], [0.7, 0.3, 2.4], (4, 3))
        rates, forces = draws.normal(size=(2, 4, 3))
        data.qpos[:] = [0, 0, 0, 1, 0, 0, 0, *joints.ravel()]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(legs.feet(joints) + legs.hips, data.site_xpos, atol=1e-12)
        np.testing.assert_allclose(legs.joints(legs.feet(joints)), joints, atol=1e-9)
        velocities, torques = legs.foot_velocities(joints, rates), legs.torques(joints, forces)
        np.testing.assert_allclose(legs.joint_rates(joints, velocities), rates, atol=1e-9)
        np.testing.assert_allclose(legs.forces(joints, torques), forces, atol=1e-9)
        for leg in range(4):
            jacobian = np.zeros((3, model.nv))
            mujoco.mj_jacSite(model, data, jacobian, None, leg)
            own = jacobian[:, 6 + 3 * leg : 9 + 3 * leg]
            np.testing.assert_allclose(own @ rates[leg], velocities[leg], atol=1e-12)
            np.testing.assert_allclose(-own.T @ forces[leg], torques[leg], atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(-1.0, 1.0)] * 3))
def test_any_foothold_gives_joints_within_reach(place: tuple[float, float, float]) -> None:
    legs = _model().legs
    joints = legs.joints(np.tile(place, (4, 1)))
    assert np.isfinite(joints).all()
    assert (joints[:, 2] >= KNEE_RANGE[0] - 1e-9).all() and (joints[:, 2] <= KNEE_RANGE[1] + 1e-9).all()
    assert np.isfinite(legs.joint_rates(joints, np.ones((4, 3)))).all()
    assert np.isfinite(legs.forces(joints, np.ones((4, 3)))).all()


def test_rotations_agree_with_each_other() -> None:
    draws = np.random.default_rng(0)
    attitude = draws.uniform([-3.0, -1.5, -3.0], [3.0, 1.5, 3.0], (100, 3))
    matrix = matrix_of_attitude(attitude)
    np.testing.assert_allclose(attitude_of_matrix(matrix), attitude, atol=1e-9)
    np.testing.assert_allclose(matrix_of_quaternion(quaternion_of_attitude(attitude)), matrix, atol=1e-12)
    about_z = np.stack([np.zeros(100), np.zeros(100), attitude[:, 2]], axis=1)
    np.testing.assert_allclose(matrix_of_turn(about_z), matrix_of_attitude(about_z), atol=1e-12)
    assert (matrix_of_turn(np.zeros((1, 3))) == np.eye(3)).all()
