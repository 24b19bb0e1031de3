"""The real-time iteration: derivatives, delay compensation, warm and cold starts, and rows that do not meet."""

import hashlib
import math
import subprocess
import sys
from typing import Any

import casadi as ca
import numpy as np
import pytest

from rt_lrhc.cluster.controller import BoolArray, FloatArray, PlanBatch, SolveRequest, Status
from rt_lrhc.controllers.cart_pole import make_cart_pole, make_cart_pole_problem
from rt_lrhc.controllers.nlp import FATROP_OPTIONS, NlpSolver
from rt_lrhc.controllers.ocp import OptimalControlProblem, build_functions
from rt_lrhc.controllers.qp import split_trajectory
from rt_lrhc.controllers.rti import RtiController, RtiOptions
from rt_lrhc.controllers.sqp import Sqp
from rt_lrhc.errors import ConfigurationError

PERIOD = 0.02


def make_plans(controller: RtiController, num_robots: int) -> PlanBatch:
    spec = controller.spec
    return PlanBatch(
        inputs=np.full((num_robots, spec.num_stages, spec.nu), 777.0),
        states=np.full((num_robots, spec.num_stages + 1, spec.nx), 777.0),
        status=np.zeros(num_robots, dtype=np.int64),
        iterations=np.zeros(num_robots, dtype=np.int64),
        cost=np.full(num_robots, np.nan),
        residual=np.full(num_robots, np.nan),
        solve_time=np.full(num_robots, np.nan),
    )


def request(
    states: FloatArray,
    time: float = 0.0,
    *,
    act_time: float | None = None,
    references: FloatArray | None = None,
    inputs: FloatArray | None = None,
    active: BoolArray | None = None,
    reset: BoolArray | None = None,
) -> SolveRequest:
    rows = len(states)
    return SolveRequest(
        states=states,
        references=np.zeros((rows, 1)) if references is None else references,
        inputs_in_force=np.zeros((rows, 1)) if inputs is None else inputs,
        active=np.ones(rows, dtype=np.bool_) if active is None else active,
        reset=np.zeros(rows, dtype=np.bool_) if reset is None else reset,
        time=time,
        act_time=time if act_time is None else act_time,
        deadline=math.inf,
    )


def cart_poles(num_robots: int, **kwargs: Any) -> RtiController:
    return make_cart_pole(num_robots, **{"compile": "off", "cold_starts_per_solve": num_robots, **kwargs})


def some_states(num_robots: int, seed: int = 0) -> FloatArray:
    random = np.random.default_rng(seed)
    return random.normal(size=(num_robots, 4)) * [0.5, 1.0, 1.0, 2.0]


def toy_problem(**changes: Any) -> OptimalControlProblem:
    """Nonlinear in everything: products of state and input in dynamics and residuals, and of the reference too."""
    x, u, p = ca.SX.sym("x", 2), ca.SX.sym("u", 2), ca.SX.sym("p")
    values: dict[str, Any] = {
        "states": x,
        "inputs": u,
        "references": p,
        "dynamics": ca.vertcat(x[1] * ca.cos(u[1]) + p, ca.sin(x[0]) * u[0] - 0.3 * x[1] ** 2),
        "stage_residual": ca.vertcat(x[0] - p, x[1] * u[0], u, ca.exp(0.3 * x[0]) * u[1]),
        "stage_weights": (2.0, 0.5, 0.1, 0.2, 0.4),
        "terminal_residual": ca.vertcat(ca.sin(x[0]) - p, x[1] ** 2),
        "terminal_weights": (3.0, 1.0),
        "state_names": ("a", "b"),
        "input_names": ("c", "d"),
        "reference_names": ("e",),
        "state_units": ("m", "m/s"),
        "input_units": ("N", "rad"),
        "reference_units": ("m",),
        "input_lower": (-2.0, -1.0),
        "input_upper": (4.0, 1.5),
        "safe_input": (0.5, 0.0),
        "num_stages": 3,
        "stage_duration": 0.1,
        "state_lower": (-math.inf, -0.5),
        "integration_steps": 2,
    }
    return OptimalControlProblem(**{**values, **changes})


def test_derivatives_agree_with_finite_differences() -> None:
    ocp = toy_problem()
    functions = build_functions(ocp)
    random = np.random.default_rng(0)
    x, u, p = random.normal(size=(2, 3)), random.normal(size=(2, 3)), 0.3
    x_next = random.normal(size=(2, 3))
    a, b, defect, q2, s2, r2, q, r, lower, upper, cost = (
        np.array(v) for v in functions.stages(x, u, p, x_next)
    )
    scale, step = np.array(ocp.input_scale), 1e-6
    residual = ca.Function("residual", [ocp.states, ocp.inputs, ocp.references], [ocp.stage_residual])
    for k in range(3):
        two, inputs = slice(2 * k, 2 * k + 2), np.diag(scale) * step
        point = x[:, k], u[:, k], p

        def end(x: FloatArray, u: FloatArray, p: float) -> FloatArray:
            return np.array(functions.step(x, u, p, ocp.stage_duration)).ravel()

        def difference(function: Any, point: Any = point, inputs: FloatArray = inputs) -> FloatArray:
            x, u, p = point
            changes = [(np.eye(2)[i] * step, np.zeros(2)) for i in range(2)] + [
                (np.zeros(2), row) for row in inputs
            ]
            return np.column_stack(
                [(function(x + i, u + j, p) - function(x - i, u - j, p)) / (2 * step) for i, j in changes]
            )

        jacobian = difference(end)
        np.testing.assert_allclose(a[:, two], jacobian[:, :2], atol=1e-8)
        np.testing.assert_allclose(b[:, two], jacobian[:, 2:], atol=1e-8)
        np.testing.assert_allclose(defect[:, k], end(*point) - x_next[:, k], atol=1e-12)
        slope = difference(lambda *at: np.array([float(functions.stage_cost(*at))]))[0]
        np.testing.assert_allclose(np.concatenate((q[:, k], r[:, k])), slope, atol=1e-8)
        of_residual = difference(lambda *at: np.array(residual(*at)).ravel())
        hessian = of_residual.T @ np.diag(np.array(ocp.stage_weights) * ocp.stage_duration) @ of_residual
        expected = np.block([[q2[:, two], s2[:, two].T], [s2[:, two], r2[:, two]]])
        np.testing.assert_allclose(hessian, expected, atol=1e-7)
        np.testing.assert_allclose(lower[:, k], [*((-2.0, -1.0) - u[:, k]) / scale, -0.5 - x[1, k]])
        assert upper[2, k] > 1e8, "an absent bound is far away"
        assert cost[0, k] == pytest.approx(float(functions.stage_cost(*point)))


def test_rollout_and_shooting_agree_on_states_and_cost() -> None:
    """Steps chained by hand give the rollout's states, and the sum of costs and bound penalties its cost."""
    ocp = toy_problem(state_lower=(-math.inf, 0.8), state_bound_penalty=7.0)
    functions = build_functions(ocp)
    x, inputs, cost = np.array([0.1, 0.3]), np.array([[1.0, -2.0, 0.5], [0.2, 0.1, -0.4]]), 0.0
    states = []
    for k in range(3):
        cost += float(functions.stage_cost(x, inputs[:, k], 0.3))
        x = np.array(functions.step(x, inputs[:, k], 0.3, 0.1)).ravel()
        excess = max(0.0, 0.8 - x[1])
        assert excess > 0.1
        cost += 7.0 * (excess + excess**2 / 2.0)
        states.append(x)
    rolled, total = functions.rollout([0.1, 0.3], inputs, 0.3)
    np.testing.assert_allclose(np.array(rolled), np.array(states).T, atol=1e-13)
    assert float(total) == pytest.approx(cost + float(functions.terminal_cost(x, 0.3)), rel=1e-12)


def converged(
    ocp: OptimalControlProblem, state: FloatArray, guess: PlanBatch, row: int, reference: FloatArray
) -> tuple[float, float]:
    """Return the first input and the cost of fatrop's solution, from a plan as its guess."""
    trajectory = np.concatenate((guess.inputs[row].ravel(), guess.states[row].ravel()))
    nlp = NlpSolver(ocp, build_functions(ocp), "fatrop", FATROP_OPTIONS)
    assert nlp.solve(state, reference, trajectory)
    inputs, _ = split_trajectory(trajectory, ocp.num_stages, len(ocp.state_names), len(ocp.input_names))
    return float(inputs[0, 0]), nlp.cost


@pytest.mark.parametrize("qp_solver", ["hpipm", "piqp"])
def test_converged_iterations_agree_with_fatrop(qp_solver: str) -> None:
    """First inputs to 1e-3 N and costs to 1e-6 of those of a solver of the whole NLP, hanging poles included.

    From two of the states there are several swing-ups, and fatrop leaves our guess for a dearer one.
    """
    columns = [
        [0.0, 1.0, -0.5, 0.0, 0.0, 0.0, 0.2, 0.5, -0.3],
        [np.pi, -0.1, 2.0, 0.5, 0.05, 2.5, 3.0, 0.3, -0.6],
        [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 1.0],
        [0.0, 0.0, -3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0],
    ]
    states = np.array(columns).T.copy()
    references = np.array([[0.0], [-1.0], [0.0], [0.0], [0.0], [0.0], [0.0], [0.5], [0.0]])
    controller = cart_poles(9, qp_solver=qp_solver, sqp_iterations=60)
    plans = make_plans(controller, 9)
    controller.solve(request(states, references=references), plans)
    assert (plans.status == Status.SOLVED).all()
    for row in range(9):
        first, cost = converged(controller.ocp, states[row], plans, row, references[row])
        assert plans.cost[row] <= cost * (1 + 1e-6)
        if row < 7:
            assert plans.inputs[row, 0, 0] == pytest.approx(first, abs=1e-3)
            assert plans.cost[row] == pytest.approx(cost, rel=1e-6)


def test_hpipm_and_piqp_give_the_same_plans() -> None:
    states = some_states(6)
    results = []
    for qp_solver in ("hpipm", "piqp"):
        controller = cart_poles(6, qp_solver=qp_solver, tolerance=1e-8)
        plans = make_plans(controller, 6)
        for k in range(3):
            controller.solve(request(states, k * PERIOD), plans)
        assert controller.spec.backend == f"{qp_solver}, interpreted"
        results.append(plans.inputs.copy())
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


@pytest.mark.parametrize("delay", [0.02, 0.05])
def test_stage_0_is_the_state_that_the_integrator_reaches_under_the_input_in_force(delay: float) -> None:
    controller = cart_poles(3)
    states, inputs = some_states(3), np.array([[20.0], [-70.0], [0.0]])
    plans = make_plans(controller, 3)
    controller.solve(request(states, 1.0, act_time=1.0 + delay, inputs=inputs), plans)
    step = build_functions(controller.ocp).step
    steps = 1 if delay < 0.04 else 2
    for row in range(3):
        coarse, fine = states[row], states[row]
        for _ in range(steps):
            coarse = np.array(step(coarse, inputs[row], 0.0, (1.0 + delay - 1.0) / steps)).ravel()
        for _ in range(50):
            fine = np.array(step(fine, inputs[row], 0.0, delay / 50)).ravel()
        np.testing.assert_array_equal(plans.states[row, 0], coarse)
        np.testing.assert_allclose(coarse, fine, atol=2e-3)


def test_without_compensation_stage_0_is_the_measured_state() -> None:
    controller = cart_poles(2, delay_compensation=False)
    assert not controller.spec.compensates_delay
    states, plans = some_states(2), make_plans(controller, 2)
    controller.solve(request(states, 1.0, act_time=1.02, inputs=np.full((2, 1), 50.0)), plans)
    np.testing.assert_array_equal(plans.states[:, 0], states)


@pytest.mark.parametrize("elapsed", [0.02, 0.04, 0.06])
def test_a_guess_shifted_by_the_elapsed_time_is_nearer_to_the_optimum(elapsed: float) -> None:
    """One iteration later, in the middle of a swing-up, against the same one told that no time has passed."""
    errors = {}
    for told in (elapsed, 0.0):
        controller = cart_poles(1)
        plans = make_plans(controller, 1)
        state = np.array([[0.1, 2.5, 0.0, 0.0]])
        for _ in range(60):
            controller.solve(request(state, 1.0), plans)
        step = build_functions(controller.ocp).step
        later = state[0]
        for k in range(round(elapsed / 0.02)):
            later = np.array(step(later, plans.inputs[0, k // 2], 0.0, 0.02)).ravel()
        controller.solve(request(later[None], 1.0 + told), plans)
        _, best = converged(controller.ocp, later, plans, 0, np.zeros(1))
        errors[told] = abs(plans.cost[0] - best) / best
    assert errors[elapsed] < 0.02
    assert errors[elapsed] < 0.2 * errors[0.0]


def test_rows_depend_on_nobody_else_bit_for_bit() -> None:
    """Robot 2 alone, and among neighbours that start, reset, fail and pause, gets the same plans."""
    random = np.random.default_rng(5)
    together, alone = cart_poles(5), cart_poles(1)
    plans, own = make_plans(together, 5), make_plans(alone, 1)
    for k in range(12):
        states = random.normal(size=(5, 4)) * [0.5, 1.0, 1.0, 2.0]
        inputs, references = random.uniform(-80, 80, size=(5, 1)), random.normal(size=(5, 1))
        active, reset = random.random(5) < 0.7, random.random(5) < 0.3
        states[0, 0] = math.nan if k % 3 == 0 else states[0, 0]
        active[2], reset[2] = k != 7, k == 4
        args = {"act_time": k * PERIOD + PERIOD}
        together.solve(
            request(
                states, k * PERIOD, references=references, inputs=inputs, active=active, reset=reset, **args
            ),
            plans,
        )
        row = slice(2, 3)
        alone.solve(
            request(
                states[row].copy(),
                k * PERIOD,
                references=references[row].copy(),
                inputs=inputs[row].copy(),
                active=active[row].copy(),
                reset=reset[row].copy(),
                **args,
            ),
            own,
        )
        for name in ("inputs", "states", "status", "iterations", "cost", "residual"):
            assert getattr(plans, name)[2].tobytes() == getattr(own, name)[0].tobytes(), (k, name)


FINGERPRINT = """
import sys; sys.path.insert(0, {folder!r})
from tests.test_rti import fingerprint
print(fingerprint())
"""


def fingerprint() -> str:
    controller = cart_poles(4)
    plans = make_plans(controller, 4)
    digest = hashlib.sha256()
    for k in range(5):
        controller.solve(request(some_states(4, k), k * PERIOD, act_time=k * PERIOD + PERIOD), plans)
        digest.update(plans.inputs.tobytes() + plans.states.tobytes() + plans.cost.tobytes())
    return digest.hexdigest()


def test_another_process_gets_the_same_bits(request: pytest.FixtureRequest) -> None:
    code = FINGERPRINT.format(folder=str(request.config.rootpath))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == fingerprint()


def test_numbers_that_are_none_touch_neither_neighbours_nor_later_solves() -> None:
    controller, clean = cart_poles(3), cart_poles(3)
    plans, expected = make_plans(controller, 3), make_plans(clean, 3)
    states = some_states(3)
    for field in ("states", "references", "inputs"):
        for value in (math.nan, math.inf):
            broken = {"states": states.copy(), "references": np.zeros((3, 1)), "inputs": np.zeros((3, 1))}
            broken[field][1, 0] = value
            at = broken.pop("states")
            controller.solve(request(at, reset=np.ones(3, dtype=np.bool_), **broken), plans)
            clean.solve(request(states, reset=np.ones(3, dtype=np.bool_)), expected)
            assert plans.status.tolist() == [Status.SOLVED, Status.NONFINITE_INPUT, Status.SOLVED]
            assert (plans.inputs[1] == 0.0).all()
            np.testing.assert_array_equal(plans.inputs[[0, 2]], expected.inputs[[0, 2]])
    controller.solve(request(states, reset=np.ones(3, dtype=np.bool_)), plans)
    np.testing.assert_array_equal(plans.inputs, expected.inputs)


def test_a_state_beyond_all_bounds_fails_and_recovers() -> None:
    controller = cart_poles(2)
    plans = make_plans(controller, 2)
    states = some_states(2)
    for wild in (1e300, 1e200):
        controller.solve(request(states, act_time=PERIOD), plans)
        bad = states.copy()
        bad[0] = wild
        controller.solve(request(bad, PERIOD, act_time=2 * PERIOD), plans)
        assert plans.status.tolist() == [Status.DIVERGED, Status.SOLVED]
        assert (plans.inputs[0] == 0.0).all() and np.isnan(plans.states[0]).all()
        controller.solve(request(states, 2 * PERIOD, act_time=3 * PERIOD), plans)
        assert (plans.status == Status.SOLVED).all()


@pytest.mark.parametrize(("qp_solver", "tolerance"), [("hpipm", 1e-6), ("piqp", 1e-2)])
def test_plans_keep_the_input_bounds_exactly(qp_solver: str, tolerance: float) -> None:
    random = np.random.default_rng(2)
    controller = cart_poles(40, qp_solver=qp_solver, tolerance=tolerance)
    plans = make_plans(controller, 40)
    states = random.normal(size=(40, 4)) * [2.0, 3.0, 3.0, 6.0]
    extremes = 0
    for k in range(3):
        controller.solve(request(states, k * PERIOD), plans)
        usable = plans.status == Status.SOLVED
        assert usable.sum() >= 38
        assert np.abs(plans.inputs).max() <= 80.0
        assert plans.residual[usable].max() < 10 * tolerance
        extremes += int((np.abs(plans.inputs) > 79.99).any(axis=(1, 2)).sum())
    assert extremes > 0, "no input was ever saturated: the test tests little"


def test_a_soft_position_limit_holds_and_a_robot_beyond_it_is_led_back() -> None:
    controller = cart_poles(2, position_limit=0.6, sqp_iterations=30)
    plans = make_plans(controller, 2)
    states = np.array([[0.3, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]])
    controller.solve(request(states, references=np.array([[1.0], [1.0]])), plans)
    assert (plans.status == Status.SOLVED).all()
    assert plans.states[0, :, 0].max() <= 0.6 + 1e-6
    assert plans.states[1, 0, 0] == 0.9
    assert plans.states[1, -5:, 0].max() <= 0.6 + 1e-6


def test_cold_starts_are_rationed_first_come_first_served() -> None:
    controller = cart_poles(5, cold_starts_per_solve=2)
    plans = make_plans(controller, 5)
    states = some_states(5)
    waits, solved = Status.INITIALISING, Status.SOLVED
    reset = np.zeros(5, dtype=np.bool_)
    history = []
    for k in range(5):
        reset[:] = False
        if k == 1:
            reset[[0, 4]] = (
                True  # 4 still waits since request 0, 0 has a plan and goes to the back of the queue
            )
        controller.solve(request(states, k * PERIOD, reset=reset), plans)
        history.append(plans.status.tolist())
        assert (plans.inputs[plans.status == waits] == 0.0).all()
    assert history == [
        [solved, solved, waits, waits, waits],
        [waits, solved, solved, solved, waits],
        [solved] * 5,
        [solved] * 5,
        [solved] * 5,
    ]


def test_inactive_rows_are_left_alone() -> None:
    controller = cart_poles(3)
    plans = make_plans(controller, 3)
    controller.solve(request(some_states(3), active=np.array([True, False, True])), plans)
    assert plans.status.tolist() == [Status.SOLVED, Status.NONE, Status.SOLVED]
    assert (plans.inputs[1] == 777.0).all() and np.isnan(plans.cost[1])


def test_a_plan_older_than_its_horizon_is_forgotten() -> None:
    """So is one from the future: time went back. Both equal a controller that has just been reset."""
    for then in (1.0 + 1.01, 0.5):
        used, fresh = cart_poles(1), cart_poles(1)
        plans, expected = make_plans(used, 1), make_plans(fresh, 1)
        used.solve(request(some_states(1), 1.0), plans)
        used.solve(request(some_states(1, seed=1), then), plans)
        fresh.solve(request(some_states(1, seed=1), then), expected)
        assert plans.inputs.tobytes() == expected.inputs.tobytes()


def test_whole_turns_change_neither_inputs_nor_the_meaning_of_states() -> None:
    states, turns = some_states(4), np.array([0.0, 2 * np.pi, -6 * np.pi, 20 * np.pi])
    plain, turned = cart_poles(4), cart_poles(4)
    plans, of_turned = make_plans(plain, 4), make_plans(turned, 4)
    for k in range(4):
        plain.solve(request(states, k * PERIOD, act_time=(k + 1) * PERIOD), plans)
        shifted = states.copy()
        shifted[:, 1] += turns
        turned.solve(request(shifted, k * PERIOD, act_time=(k + 1) * PERIOD), of_turned)
        np.testing.assert_allclose(of_turned.inputs, plans.inputs, atol=1e-6)
        np.testing.assert_allclose(of_turned.states[:, 0, 1] - turns, plans.states[:, 0, 1], atol=1e-9)


def test_fatrop_finds_a_start_where_the_safe_input_explodes(capfd: pytest.CaptureFixture[str]) -> None:
    """x' = x³ + u from x = 3: unheld, it is infinite after 0.06 s."""
    x, u, p = ca.SX.sym("x"), ca.SX.sym("u"), ca.SX.sym("p")
    names: dict[str, Any] = {
        "state_names": ("x",),
        "input_names": ("u",),
        "reference_names": ("target",),
        "state_units": ("m",),
        "input_units": ("m/s",),
        "reference_units": ("m",),
    }
    ocp = OptimalControlProblem(
        states=x,
        inputs=u,
        references=p,
        dynamics=x**3 + u,
        stage_residual=ca.vertcat(x - p, u),
        stage_weights=(10.0, 0.01),
        terminal_residual=x - p,
        terminal_weights=(10.0,),
        input_lower=(-100.0,),
        input_upper=(100.0,),
        safe_input=(0.0,),
        num_stages=20,
        stage_duration=0.05,
        **names,
    )
    controller = RtiController(ocp, 1, RtiOptions(compile="off"))
    plans = make_plans(controller, 1)
    controller.solve(request(np.array([[3.0]])), plans)
    assert plans.status[0] == Status.SOLVED
    assert abs(plans.states[0, -1, 0]) < 0.1
    assert plans.inputs[0, 0, 0] < -27.0
    assert capfd.readouterr() == ("", "")


def test_wrong_problems_are_refused_by_name() -> None:
    x, u = ca.SX.sym("x", 2), ca.SX.sym("u", 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dynamics": ca.SX.sym("y", 2)}, "dynamics may not depend on y"),
        ({"dynamics": ca.SX(3, 1)}, "dynamics must be a casadi.SX column of 2, got \\(3, 1\\)"),
        ({"states": x * 2}, "states must be a column of 2 SX symbols"),
        ({"inputs": ca.MX.sym("u", 2)}, "inputs must be a column of 2 SX symbols"),
        ({"terminal_residual": u}, "terminal_residual may not depend on u"),
        ({"stage_weights": (1.0,) * 4 + (-1.0,)}, "stage_weights must be finite and at least 0"),
        ({"input_lower": (-math.inf, 0.0)}, "'c': expected .* -inf"),
        ({"input_lower": (-2.0,)}, "input_lower must have 2 entries"),
        ({"state_lower": (0.0,)}, "state_lower must have 2 entries, got 1"),
        ({"state_upper": (math.inf, -0.7)}, "'b': expected bounds lower < upper, got -0.5, -0.7"),
        ({"periods": (0.0, math.inf)}, "periods must be positive"),
        ({"state_bound_penalty": math.inf}, "state_bound_penalty must be positive and finite"),
        ({"integration_steps": 0}, "integration_steps must be at least 1"),
        ({"num_stages": 0}, "num_stages must be at least 1"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            toy_problem(**changes)


def test_a_first_guess_obeys_dynamics_and_bounds() -> None:
    """However few sweeps it was given, from hanging and from anywhere."""
    problem = make_cart_pole_problem()
    sqp = Sqp(
        problem, qp_solver="auto", compile="off", tolerance=1e-6, max_qp_iterations=30, hpipm_library=None
    )
    step, costs = build_functions(problem).step, []
    for sweeps in (0, 1, 15):
        assert sqp.initialise(np.array([0.0, np.pi, 0.0, 0.0]), sweeps)
        for k in range(problem.num_stages):
            end = np.array(step(sqp.states[k], sqp.inputs[k], 0.0, problem.stage_duration)).ravel()
            np.testing.assert_allclose(sqp.states[k + 1], end, atol=1e-9)
        assert np.abs(sqp.inputs).max() <= 80.0
        sqp.step()
        costs.append(sqp.cost)
    assert costs[2] < 0.5 * costs[0]


def test_a_controller_in_a_new_process_goes_on_where_the_last_one_died() -> None:
    """Restored from what was published, the next plans are those of a controller that never died, over the top too."""
    kept, dying, successor = (cart_poles(3) for _ in range(3))
    states = np.array([[0.0, np.pi - 0.1, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0], [0.0, 6.5 * np.pi, 0.0, 1.0]])
    for period in range(5):
        time = period * PERIOD
        asked = request(states, time, act_time=time + PERIOD, reset=np.full(3, period == 0))
        expected, plans = make_plans(kept, 3), make_plans(dying, 3)
        kept.solve(asked, expected)
        (dying if period < 4 else successor).solve(asked, plans)
        assert (expected.status == Status.SOLVED).all()
        np.testing.assert_allclose(plans.inputs, expected.inputs, atol=1e-6)
        np.testing.assert_allclose(plans.states, expected.states, atol=1e-6)
        if period == 3:
            assert successor.restore(plans, np.array([True, True, True]), time + PERIOD).all()
        states = states + 0.01


def test_a_row_without_a_usable_plan_is_not_restored() -> None:
    controller = cart_poles(2)
    plans = make_plans(controller, 2)
    controller.solve(request(some_states(2)), plans)
    successor = cart_poles(2, cold_starts_per_solve=1)
    assert successor.restore(plans, np.array([False, True]), 0.0).tolist() == [False, True]
    successor.solve(request(some_states(2), PERIOD, reset=np.array([True, False])), plans)
    assert plans.status.tolist() == [Status.SOLVED, Status.SOLVED], "the budget of cold starts is one"
