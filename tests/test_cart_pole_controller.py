"""The cart-pole's MPC in closed loop with a plant of its own: equations of motion in numpy, finely integrated."""

import math
from typing import Any

import numpy as np
import pytest

from rt_lrhc.cluster.controller import FloatArray, SolveRequest, Status
from rt_lrhc.controllers.cart_pole import CartPoleModel, make_cart_pole, make_cart_pole_problem
from rt_lrhc.controllers.ocp import build_functions
from rt_lrhc.errors import ConfigurationError
from tests.test_rti import make_plans

PERIOD = 0.02
MODEL = CartPoleModel()


def derivative(states: FloatArray, forces: FloatArray) -> FloatArray:
    cart, pole = MODEL.accelerations(states[:, 1], states[:, 3], forces, np.cos, np.sin)
    return np.stack((states[:, 2], states[:, 3], cart, pole), axis=1)


def simulate(states: FloatArray, forces: FloatArray, duration: float, substeps: int = 4) -> FloatArray:
    h = duration / substeps
    for _ in range(substeps):
        k1 = derivative(states, forces)
        k2 = derivative(states + h / 2 * k1, forces)
        k3 = derivative(states + h / 2 * k2, forces)
        k4 = derivative(states + h * k3, forces)
        states = states + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return states


def tilt(states: FloatArray) -> FloatArray:
    """Angle from upright, rad, whatever the number of turns."""
    return np.abs(np.mod(states[:, 1] + np.pi, 2 * np.pi) - np.pi)


def drive(
    states: FloatArray,
    periods: int,
    *,
    delay: int,
    kicks: dict[int, FloatArray] | None = None,
    targets: dict[int, FloatArray] | None = None,
    **kwargs: Any,
) -> tuple[FloatArray, FloatArray, list[list[int]]]:
    """Return states, (periods + 1, B, 4), forces and statuses; an input acts `delay` periods after its state."""
    rows = len(states)
    controller = make_cart_pole(rows, **{"compile": "off", "cold_starts_per_solve": rows, **kwargs})
    plans = make_plans(controller, rows)
    references = np.zeros((rows, 1))
    in_force, planned = np.zeros(rows), np.zeros(rows)
    path, forces, statuses = [states], [], []
    for k in range(periods):
        references = (targets or {}).get(k, references)
        states = path[-1] + (kicks or {}).get(k, 0.0)
        request = SolveRequest(
            states=np.ascontiguousarray(states),
            references=references,
            inputs_in_force=planned[:, None].copy(),
            active=np.ones(rows, dtype=np.bool_),
            reset=np.full(rows, k == 0),
            time=k * PERIOD,
            act_time=(k + delay) * PERIOD,
            deadline=math.inf,
        )
        in_force = planned
        controller.solve(request, plans)
        usable = (plans.status == Status.SOLVED) | (plans.status == Status.ITERATION_LIMIT)
        planned = np.where(usable, plans.inputs[:, 0, 0], planned)
        if delay == 0:
            in_force = planned
        forces.append(in_force)
        statuses.append(plans.status.tolist())
        path.append(simulate(states, in_force, PERIOD))
    return np.array(path), np.array(forces), statuses


def test_energy_is_conserved_and_the_tip_lies_where_the_docstring_says() -> None:
    """Momenta and energy of a point mass at (x - l sin, l cos): what the equations of motion were derived from."""
    states = np.random.default_rng(0).normal(size=(20, 4)) * [1.0, 3.0, 1.0, 3.0]

    def energy(s: FloatArray) -> FloatArray:
        tip_x = s[:, 2] - MODEL.pole_length * np.cos(s[:, 1]) * s[:, 3]
        tip_z = -MODEL.pole_length * np.sin(s[:, 1]) * s[:, 3]
        kinetic = MODEL.cart_mass * s[:, 2] ** 2 + MODEL.pole_mass * (tip_x**2 + tip_z**2)
        return kinetic / 2 + MODEL.pole_mass * MODEL.gravity * MODEL.pole_length * np.cos(s[:, 1])

    def momentum(s: FloatArray) -> FloatArray:
        tip_x = s[:, 2] - MODEL.pole_length * np.cos(s[:, 1]) * s[:, 3]
        return MODEL.cart_mass * s[:, 2] + MODEL.pole_mass * tip_x

    forces = np.full(20, 3.0)
    after = simulate(states, forces, 0.5, substeps=500)
    np.testing.assert_allclose(momentum(after) - momentum(states), 3.0 * 0.5, atol=1e-6)
    np.testing.assert_allclose(energy(after) - energy(states), 3.0 * (after[:, 0] - states[:, 0]), atol=1e-6)


def test_the_controller_predicts_with_the_same_equations() -> None:
    step = build_functions(make_cart_pole_problem()).step
    states, forces = np.random.default_rng(1).normal(size=(10, 4)), np.linspace(-80, 80, 10)
    expected = simulate(states, forces, 0.04, substeps=1)
    for state, force, end in zip(states, forces, expected, strict=True):
        np.testing.assert_allclose(np.array(step(state, force, 0.0, 0.04)).ravel(), end, atol=1e-12)


@pytest.mark.parametrize("delay", [0, 1])
def test_hanging_poles_swing_up_and_stay_up_for_12_seeds_of_kicks(delay: int) -> None:
    """Kicks of some rad/s at 2, 4 and 6 s; 2 s after the last all stand still at the target, with and without delay."""
    start, kicks = np.zeros((12, 4)), {k: np.zeros((12, 4)) for k in (100, 200, 300)}
    for seed in range(12):
        random = np.random.default_rng(seed)
        start[seed] = [0.0, np.pi, 0.0, 0.0] + random.normal(size=4) * 0.1
        for kick in kicks.values():
            kick[seed, 2:] = random.normal(size=2) * [1.0, 2.5]
    path, forces, statuses = drive(start, 450, delay=delay, kicks=kicks)
    assert tilt(path[99]).max() < 0.05, "up within 2 s"
    assert tilt(path[-1]).max() < 0.01
    assert np.abs(path[-1][:, [0, 2, 3]]).max() < 0.05
    assert np.abs(forces).max() <= 80.0
    usable = [Status(status).usable for row in statuses for status in row]
    assert sum(usable) >= 0.999 * len(usable)


def test_the_cart_follows_its_target() -> None:
    targets = {0: np.array([[0.5], [-1.0]]), 150: np.array([[-0.5], [1.0]])}
    path, _, _ = drive(np.zeros((2, 4)), 300, delay=1, targets=targets)
    np.testing.assert_allclose(path[150, :, 0], [0.5, -1.0], atol=0.02)
    np.testing.assert_allclose(path[-1, :, 0], [-0.5, 1.0], atol=0.02)
    assert tilt(path[-1]).max() < 0.02


def test_one_period_of_delay_topples_poles_unless_it_is_compensated() -> None:
    """With the default weights; with an input weight of 2 the controller is calm enough to bear it."""
    start = np.random.default_rng(3).normal(size=(4, 4)) * 0.05
    targets = {k: np.full((4, 1), sign) for k, sign in ((0, 0.5), (100, -0.5))}
    for kwargs, falls in (
        ({}, False),
        ({"delay_compensation": False}, True),
        ({"delay_compensation": False, "input_weight": 2.0}, False),
    ):
        path, _, _ = drive(start, 200, delay=1, targets=targets, **kwargs)
        fell = (np.abs(np.stack([tilt(states) for states in path])) > 1.5).any(axis=0)
        assert fell.all() if falls else not fell.any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_wieght": 1.0}, "unknown option 'input_wieght' .* did you mean 'input_weight'"),
        ({"input_weight": 0.0}, "input_weight must be positive, got 0.0"),
        ({"input_weight": "heavy"}, "'input_weight' .* must be a number, got 'heavy'"),
        ({"state_weights": (1.0, 2.0)}, "state_weights must have 4 entries, got 2"),
        ({"state_weights": ("a",) * 4}, "'state_weights' .* must be numbers"),
        ({"pole_length": -1.0}, "pole_length .* must be positive, got -1.0"),
        ({"num_stages": 2.5}, "'num_stages' .* must be an integer, got 2.5"),
        ({"sqp_iterations": 0}, "sqp_iterations must be at least 1, got 0"),
        ({"sqp_iterations": True}, "'sqp_iterations' .* must be an integer, got True"),
        ({"delay_compensation": 1}, "'delay_compensation' .* must be True or False, got 1"),
        ({"tolerance": 2.0}, "tolerance must lie in \\(0, 1\\), got 2.0"),
        ({"qp_solver": "osqp"}, "qp_solver must be .* got 'osqp'"),
        ({"compile": "maybe"}, "compile must be .* got 'maybe'"),
        ({"position_limit": 0.0}, "position_limit must be positive, in m, got 0.0"),
        ({"hpipm_library": 3}, "'hpipm_library' .* must be a string, got 3"),
        ({"num_robots": 0}, "num_robots must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_cart_pole(**{"num_robots": 1, **kwargs})


def test_options_reach_the_problem_the_model_and_the_solver() -> None:
    controller = make_cart_pole(
        2, num_stages=10, max_force=20.0, compile="off", qp_solver="piqp", stage_duration=0.05
    )
    assert controller.spec.num_stages == 10
    assert controller.spec.stage_duration == 0.05
    assert controller.spec.input_upper == (20.0,)
    assert controller.spec.backend == "piqp, interpreted"
    assert controller.spec.state_names == ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")
