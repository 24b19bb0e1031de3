"""The mini cheetah on its own MPC, in closed loop. Variants run side by side, as rows of one plant."""

from functools import cache

import numpy as np
import pytest
import torch

from rt_lrhc.cluster.controller import Status
from rt_lrhc.controllers.quadruped.gait import Gait
from rt_lrhc.controllers.quadruped.model import mini_cheetah_model
from rt_lrhc.controllers.quadruped.references import REFERENCE_NAMES, reference_vector
from rt_lrhc.controllers.quadruped.robots import unpack
from tests.quadruped_helpers import PERIOD, Walkers

TWISTS = {
    "stand": reference_vector(gait=Gait.STAND),
    "trot": reference_vector(),
    "slow": reference_vector(velocity_x_in_heading=0.5),
    "fast": reference_vector(velocity_x_in_heading=1.0),
    "back": reference_vector(velocity_x_in_heading=-0.5),
    "aside": reference_vector(velocity_y_in_heading=0.3),
    "left": reference_vector(yaw_rate=1.0),
    "right": reference_vector(yaw_rate=-1.0),
}
GAITS = (Gait.BOUND, Gait.PRONK, Gait.PACE, Gait.WALK)


@cache
def _walk(pipelined: bool, compensated: bool) -> Walkers:
    rows = [*TWISTS.values(), *(reference_vector(gait=gait, velocity_x_in_heading=0.2) for gait in GAITS)]
    return Walkers(rows, pipelined=pipelined, compensated=compensated).run(20.0 if compensated else 10.0)


def _row(name: str) -> int:
    return list(TWISTS).index(name)


def test_it_stands_for_ten_seconds_at_the_height_and_attitude_it_is_told() -> None:
    walk, row = _walk(True, True), _row("stand")
    assert np.abs(walk.heights(1.0, 10.0)[:, row] - 0.29).max() < 0.01
    assert walk.tilt(1.0, 10.0)[row] < 0.03
    assert np.abs(walk.attitudes(1.0, 10.0)[:, row, 2]).max() < 0.02
    drift = np.abs(np.array(walk.states)[:500, row, :2]).max()
    assert drift < 0.02


def test_it_trots_at_the_commanded_speed_and_turns_at_the_commanded_rate() -> None:
    walk = _walk(True, True)
    twists = walk.twists(2.0)
    assert twists[_row("slow"), 0] == pytest.approx(0.5, rel=0.1)
    assert twists[_row("fast"), 0] == pytest.approx(1.0, rel=0.2)
    assert twists[_row("back"), 0] == pytest.approx(-0.5, rel=0.1)
    assert twists[_row("aside"), 1] == pytest.approx(0.3, rel=0.2)
    assert twists[_row("left"), 2] == pytest.approx(1.0, rel=0.2)
    assert twists[_row("right"), 2] == pytest.approx(-1.0, rel=0.2)
    rows = [_row(name) for name in TWISTS if name != "stand"]
    assert walk.tilt(1.0)[rows].max() < 0.1
    assert np.abs(walk.heights(1.0)[:, rows] - 0.29).max() < 0.02
    assert np.abs(twists[_row("trot")]).max() < 0.02
    assert (np.array(walk.statuses) == Status.SOLVED).all()


@pytest.mark.parametrize("gait", GAITS)
def test_every_other_gait_goes_on_for_five_seconds(gait: Gait) -> None:
    walk, row = _walk(True, True), len(TWISTS) + GAITS.index(gait)
    assert walk.tilt(0.0, 5.0)[row] < 0.4
    assert walk.tilt(1.5, 5.0)[row] < 0.2
    assert 0.24 < walk.heights(0.5, 5.0)[:, row].min() < walk.heights(0.5, 5.0)[:, row].max() < 0.34
    assert walk.twists(1.0, 5.0)[row, 0] == pytest.approx(0.2, abs=0.05)


def test_feet_swing_clear_of_the_ground_and_stand_still_in_between() -> None:
    walk, row = _walk(True, True), _row("slow")
    feet = unpack(mini_cheetah_model(), np.array(walk.states)[200:400, row]).feet
    assert (feet[..., 2].max(axis=0) > 0.06).all()
    standing = feet[..., 2] < 0.022
    speed = np.linalg.norm(np.diff(feet[..., :2], axis=0), axis=2) / PERIOD
    both = standing[1:] & standing[:-1]
    assert 0.35 < standing.mean() < 0.65
    assert np.median(speed[both]) < 0.05


def test_a_period_of_delay_costs_less_with_compensation_than_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("slow", "fast", "left")
    rows = [_row(name) for name in names]
    tilts = {}
    for label, walk in (
        ("no delay", _walk(False, False)),
        ("compensated", _walk(True, True)),
        ("uncompensated", _walk(True, False)),
    ):
        twists = walk.twists(2.0, 10.0)
        tilts[label] = np.sqrt((walk.attitudes(2.0, 10.0)[:, rows, :2] ** 2).mean(axis=(0, 2)))
        height = np.sqrt(((walk.heights(2.0, 10.0)[:, rows] - 0.29) ** 2).mean(axis=0))
        assert twists[_row("slow"), 0] == pytest.approx(0.5, rel=0.1)
        with capsys.disabled():
            errors = ", ".join(
                f"{name} tilt {tilt:.4f} rad, height {1e3 * error:.1f} mm"
                for name, tilt, error in zip(names, tilts[label], height, strict=True)
            )
            print(f"\n{label}: rms {errors}", end="")
    assert tilts["compensated"].mean() < tilts["uncompensated"].mean()


def test_it_recovers_from_pushes_in_four_directions_and_carries_a_fifth_more_mass() -> None:
    pushes = [(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)]
    speeds = [0.0] * 4 + [0.5] * 4
    walk = Walkers([reference_vector(velocity_x_in_heading=speed) for speed in [*speeds, 0.5, 1.0]])
    mass = walk.controller.mpc.mass
    payload = np.array([0.0] * 8 + [0.2 * mass] * 2)
    walk.plant.set_payload(payload, (0.0, 0.0, 0.05))
    walk.run(2.0)
    velocity = torch.zeros(walk.size, 18, dtype=torch.float64)
    velocity[:8, :2] = torch.tensor(pushes * 2)
    walk.plant.push(velocity)
    walk.run(3.0)
    assert walk.tilt().max() < 0.3
    twists = walk.twists(4.0)
    assert np.abs(twists[:8, 0] - speeds).max() < 0.05
    assert np.abs(twists[:8, 1:]).max() < 0.05
    assert twists[8:, 0] == pytest.approx([0.5, 1.0], rel=0.1)
    assert walk.heights(2.0)[:, 8:].min() > 0.25


def test_a_foot_that_is_ordered_up_stays_up_and_the_robot_on_the_other_three() -> None:
    legs = ("fr", "fl", "hr", "hl")
    walk = Walkers([reference_vector(gait=Gait.STAND)] * 4).run(0.5)
    walk.references = np.array(
        [reference_vector(gait=Gait.STAND, **{f"contact_{leg}": -1.0}) for leg in legs]
    )
    walk.run(2.0)
    assert walk.tilt().max() < 0.15
    forces = walk.plant.foot_forces[..., 2].numpy()
    assert (forces.diagonal() == 0.0).all()
    assert (forces.sum(axis=1) > 60.0).all()
    feet = unpack(mini_cheetah_model(), walk.states[-1]).feet
    assert (feet[..., 2].diagonal() > 0.05).all()
    walk.references = np.array([reference_vector(gait=Gait.STAND)] * 4)
    walk.run(1.0)
    assert (walk.plant.foot_forces[..., 2].numpy() > 1.0).sum() >= 14
    assert walk.tilt(3.0).max() < 0.1


def _random_walk(seconds: float, size: int, seed: int) -> tuple[Walkers, int]:
    draws = np.random.default_rng(seed)
    walk, falls = Walkers([reference_vector()] * size), 0
    low = {"velocity_x_in_heading": -0.6, "velocity_y_in_heading": -0.4, "yaw_rate": -1.5, "height": 0.2}
    high = {"velocity_x_in_heading": 1.2, "velocity_y_in_heading": 0.4, "yaw_rate": 1.5, "height": 0.33}
    for name in REFERENCE_NAMES:
        if name in ("roll", "pitch") or name.startswith("log_weight"):
            low[name], high[name] = -0.3, 0.3
        elif name.startswith(("contact", "foothold")):
            scale = 1.0 if name.startswith("contact") else 0.1
            low[name], high[name] = -scale, scale
    low |= {"gait": -1.0, "gait_period": 0.0, "gait_duty": 0.0, "clearance": 0.0}
    high |= {"gait": 6.0, "gait_period": 0.8, "gait_duty": 1.0, "clearance": 0.2}
    lower = np.array([low[name] for name in REFERENCE_NAMES])
    upper = np.array([high[name] for name in REFERENCE_NAMES])
    for period in range(round(seconds / PERIOD)):
        if period % 25 == 0:
            walk.references = draws.uniform(lower, upper, (size, len(lower)))
        walk.step()
        fallen = walk.plans.status == Status.DIVERGED
        if fallen.any():
            falls += int(fallen.sum())
            walk.restart(fallen)
    return walk, falls


def test_a_minute_of_random_references_on_sixteen_robots_ends_in_no_more_than_falls() -> None:
    walk, falls = _random_walk(60.0, 16, seed=0)
    states, statuses = np.array(walk.states), np.array(walk.statuses)
    assert np.isfinite(states).all()
    assert falls > 0
    assert set(np.unique(statuses)) <= {Status.SOLVED, Status.DIVERGED, Status.INFEASIBLE}
    fallen = statuses == Status.DIVERGED
    up = 1.0 - 2.0 * (states[..., 4] ** 2 + states[..., 5] ** 2)
    # A fall is a fall: tilted or low, and nothing else is.
    assert ((up < 0.5) | (states[..., 2] < 0.16))[fallen].all()
    assert (up > 0.45)[~fallen].all()


def test_equal_seeds_give_equal_episodes_and_neighbours_do_not_matter() -> None:
    first, again = (np.array(_random_walk(3.0, 4, seed=1)[0].states) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    rows = np.array(list(TWISTS.values()))
    together = np.array(Walkers(rows).run(1.0).states)
    for row in (0, 1, 3):
        alone = np.array(Walkers(rows[row : row + 1]).run(1.0).states)[:, 0]
        np.testing.assert_array_equal(alone, together[:, row])
