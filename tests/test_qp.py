"""The QP solvers against the conditions of optimality, written out in numpy, and against each other."""

import math
from collections.abc import Callable
from pathlib import Path

import casadi as ca
import numpy as np
import pytest

from rt_lrhc.controllers.qp import (
    ABSENT_BOUND,
    QpSolver,
    QpStatus,
    StageQp,
    make_qp_solver,
    make_trial_qp,
)
from rt_lrhc.controllers.qp_hpipm import HpipmSolver
from rt_lrhc.controllers.qp_piqp import PiqpSolver
from rt_lrhc.errors import ConfigurationError

SOLVERS = pytest.mark.parametrize("make", [HpipmSolver, PiqpSolver], ids=["hpipm", "piqp"])
Make = Callable[..., QpSolver]


def random_qp(seed: int) -> StageQp:
    """A strictly convex QP with two-sided, one-sided and absent state bounds, tight enough to break some."""
    random = np.random.default_rng(seed)
    n, nx, nu = 6, 4, 2
    qp = StageQp(
        n,
        nx,
        nu,
        bounded_states=(0, 1, 3),
        has_lower=(True, False, True),
        has_upper=(True, True, False),
        penalty=3.0,
    )
    refill(qp, random)
    return qp


def refill(qp: StageQp, random: np.random.Generator) -> None:
    n, nx, nu = qp.num_stages, qp.nx, qp.nu
    qp.A[:] = np.eye(nx) + 0.3 * random.normal(size=(n, nx, nx))
    qp.B[:], qp.b[:] = random.normal(size=(n, nu, nx)), random.normal(size=(n, nx))
    for k in range(n + 1):
        root = random.normal(size=(nx + nu, nx + nu))
        hessian = root @ root.T + 0.1 * np.eye(nx + nu)
        qp.Q[k] = hessian[:nx, :nx]
        if k < n:
            qp.S[k], qp.R[k] = hessian[:nx, nx:], hessian[nx:, nx:]
    qp.q[:], qp.r[:] = random.normal(size=(n + 1, nx)), random.normal(size=(n, nu))
    qp.lower[:], qp.upper[:] = (
        -random.uniform(0.1, 1.0, qp.lower.shape),
        random.uniform(0.1, 1.0, qp.upper.shape),
    )
    qp.lower[:, nu + 1], qp.upper[:, nu + 2] = -ABSENT_BOUND, ABSENT_BOUND


def kkt_residual(qp: StageQp) -> float:
    """The largest violation of stationarity, feasibility, sign and complementarity, stage by stage."""
    n, nu = qp.num_stages, qp.nu
    bounded = list(qp.bounded_states)
    present = {"lower": np.array(qp.has_lower, dtype=bool), "upper": np.array(qp.has_upper, dtype=bool)}
    faults = [0.0]
    for k in range(n + 1):
        gradient_x = qp.Q[k].T @ qp.dx[k] + qp.q[k]
        force = qp.upper_multipliers[k] - qp.lower_multipliers[k]
        if k < n:
            a, b, s, pi = qp.A[k].T, qp.B[k].T, qp.S[k].T, qp.equality_multipliers[k]
            faults.append(np.abs(a @ qp.dx[k] + b @ qp.dv[k] + qp.b[k] - qp.dx[k + 1]).max())
            gradient_x = gradient_x + s.T @ qp.dv[k] + a.T @ pi
            gradient_v = qp.R[k].T @ qp.dv[k] + qp.r[k] + s @ qp.dx[k] + b.T @ pi + force[:nu]
            faults.append(np.abs(gradient_v).max())
            for sign, bound, multipliers in (
                (1.0, qp.lower[k, :nu], qp.lower_multipliers[k, :nu]),
                (-1.0, qp.upper[k, :nu], qp.upper_multipliers[k, :nu]),
            ):
                room = sign * (qp.dv[k] - bound)
                faults += [-room.min(), -multipliers.min(), np.abs(room * multipliers).max()]
        if k == 0:
            continue
        gradient_x = gradient_x - qp.equality_multipliers[k - 1]
        gradient_x[bounded] += force[nu:]
        faults.append(np.abs(gradient_x).max())
        for sign, side, bound, multipliers, slack in (
            (1.0, "lower", qp.lower[k, nu:], qp.lower_multipliers[k, nu:], qp.slack_lower[k]),
            (-1.0, "upper", qp.upper[k, nu:], qp.upper_multipliers[k, nu:], qp.slack_upper[k]),
        ):
            there = present[side]
            room = (sign * (qp.dx[k][bounded] - bound) + slack)[there]
            of_slack = (qp.penalty * (1.0 + slack) - multipliers)[there]
            faults += [-room.min(), -multipliers.min(), np.abs(room * multipliers[there]).max()]
            faults += [-slack.min(), -of_slack.min(), np.abs(of_slack * slack[there]).max()]
            faults.append(np.abs(multipliers[~there]).max(initial=0.0))
    return max(faults)


@SOLVERS
def test_a_qp_with_a_known_answer_is_solved(make: Make) -> None:
    qp, dx, dv = make_trial_qp()
    assert make(qp, tolerance=1e-8, max_iterations=50).solve() is QpStatus.SOLVED
    np.testing.assert_allclose(qp.dx, dx, atol=1e-6)
    np.testing.assert_allclose(qp.dv, dv, atol=1e-6)
    assert qp.slack_upper[3, 0] == pytest.approx(0.25, abs=1e-6)


@SOLVERS
@pytest.mark.parametrize("seed", range(5))
def test_solutions_meet_the_conditions_of_optimality(make: Make, seed: int) -> None:
    qp = random_qp(seed)
    solver = make(qp, tolerance=1e-8, max_iterations=50)
    assert solver.solve() is QpStatus.SOLVED
    assert kkt_residual(qp) < 1e-6
    assert solver.residual < 1e-6
    assert max(qp.slack_lower.max(), qp.slack_upper.max()) > 0.01, (
        "no bound was broken: the test tests little"
    )
    steps = [(qp.dx[k], qp.dv[k] if k < 6 else np.zeros(2)) for k in range(7)]
    value = sum(dx @ qp.Q[k] @ dx / 2.0 + qp.q[k] @ dx for k, (dx, _) in enumerate(steps))
    value += sum(
        dv @ qp.R[k] @ dv / 2.0 + qp.r[k] @ dv + dv @ qp.S[k].T @ dx for k, (dx, dv) in enumerate(steps[:6])
    )
    slacks = np.concatenate((qp.slack_lower[1:], qp.slack_upper[1:]))
    assert solver.objective == pytest.approx(value + qp.penalty * (slacks + slacks**2 / 2.0).sum(), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_hpipm_and_piqp_agree(seed: int) -> None:
    ours, theirs = random_qp(seed), random_qp(seed)
    for make, qp in ((HpipmSolver, ours), (PiqpSolver, theirs)):
        make(qp, tolerance=1e-8, max_iterations=50).solve()
    np.testing.assert_allclose(ours.step, theirs.step, atol=1e-6)
    np.testing.assert_allclose(ours.upper_multipliers, theirs.upper_multipliers, atol=1e-5)


@SOLVERS
def test_a_solve_leaves_no_trace_in_later_ones_bit_for_bit(make: Make) -> None:
    qp = random_qp(0)
    solver = make(qp, tolerance=1e-8, max_iterations=50)
    solver.solve()
    first = qp.step.copy()
    for seed in (1, 2):
        refill(qp, np.random.default_rng(seed))
        qp.q[2, 0] = math.nan if seed == 2 else qp.q[2, 0]
        assert solver.solve() is (QpStatus.FAILED if seed == 2 else QpStatus.SOLVED)
    refill(qp, np.random.default_rng(0))
    assert solver.solve() is QpStatus.SOLVED
    assert qp.step.tobytes() == first.tobytes()


@SOLVERS
def test_stopping_early_is_told(make: Make) -> None:
    assert make(random_qp(0), tolerance=1e-12, max_iterations=1).solve() is QpStatus.FAILED


def test_a_library_that_is_not_hpipm_is_replaced_by_piqp() -> None:
    blasfeo = str(Path(ca.__file__).with_name("libblasfeo.so"))
    for library in ("/nowhere/libhpipm.so", blasfeo):
        with pytest.warns(RuntimeWarning, match="PIQP is used"):
            solver = make_qp_solver(
                "auto", random_qp(0), tolerance=1e-6, max_iterations=30, hpipm_library=library
            )
        assert solver.name == "piqp"
        assert solver.solve() is QpStatus.SOLVED
        with pytest.raises(ConfigurationError, match="qp_solver='hpipm' does not work here"):
            make_qp_solver("hpipm", random_qp(0), tolerance=1e-6, max_iterations=30, hpipm_library=library)


def test_an_unknown_qp_solver_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"qp_solver must be .* got 'osqp'"):
        make_qp_solver("osqp", random_qp(0), tolerance=1e-6, max_iterations=30)  # type: ignore[arg-type]
