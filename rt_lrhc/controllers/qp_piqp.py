"""PIQP, through CasADi's conic interface: the QP solver for where HPIPM does not work.

Source: Schwan, Jiang, Kuhn and Jones (2023), PIQP: a proximal interior-point quadratic programming solver, CDC.
"""

import math
from typing import Any

import casadi as ca
import numpy as np

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.controllers.evaluation import Evaluation
from rt_lrhc.controllers.qp import QpSolver, QpStatus, StageQp


class PiqpSolver(QpSolver):
    """PIQP on one `StageQp`, which is written out as one sparse QP.

    Its variables are (dv_k, dx_{k+1}) for each stage k and then all slacks; its rows are the dynamics and then the
    softened state bounds, lower and upper. CasADi does not tell PIQP's iterations: they stay 0.
    """

    name = "piqp"

    def __init__(self, qp: StageQp, *, tolerance: float, max_iterations: int) -> None:
        super().__init__(qp, tolerance)
        assemble, defects = _build_functions(qp)
        hessian, rows = assemble.sparsity_out(0), assemble.sparsity_out(2)
        options = {"eps_abs": tolerance, "eps_rel": 0.0, "max_iter": max_iterations}
        conic = ca.conic(
            "piqp",
            "piqp",
            {"h": hessian, "a": rows},
            {"print_time": False, "error_on_fail": False, "piqp": options},
        )
        data = (qp.A, qp.B, qp.b, qp.Q, qp.S, qp.R, qp.q, qp.r, qp.lower, qp.upper)
        program = [np.zeros(assemble.nnz_out(i)) for i in range(assemble.n_out())]
        z, value = np.zeros(conic.nnz_out(0)), np.zeros(1)
        row_multipliers, variable_multipliers = np.zeros(conic.nnz_out(2)), np.zeros(conic.nnz_out(3))
        unused = [np.zeros(conic.nnz_in(i)) for i in range(len(program), conic.n_in())]
        gradient, row_values = np.zeros(z.size), np.zeros(row_multipliers.size)
        self._assemble = Evaluation(assemble, data, program, sparse=True)
        self._conic = Evaluation(
            conic, [*program, *unused], [z, value, row_multipliers, variable_multipliers], sparse=True
        )
        self._defects = Evaluation(
            defects, [*data, z, row_multipliers, variable_multipliers], [gradient, row_values]
        )
        self._solution, self._value, self._gradient = z, value, gradient
        _, _, _, row_lower, row_upper, lower, upper = program
        self._conditions = (
            (row_values, row_lower, row_upper, row_multipliers),
            (z, lower, upper, variable_multipliers),
        )
        self._row_multipliers, self._variable_multipliers = row_multipliers, variable_multipliers

    def solve(self) -> QpStatus:  # noqa: D102 (inherited)
        self._assemble.run()
        self._conic.run()
        self._defects.run()
        self._unpack()
        self.objective = float(self._value[0])
        defects = [np.abs(self._gradient), *(_defect(*condition) for condition in self._conditions)]
        self.residual = float(np.concatenate(defects).max())
        return self._judge(bool(self._conic.stats()["success"]))

    def _unpack(self) -> None:
        qp = self.qp
        n, nx, nu, nb = qp.num_stages, qp.nx, qp.nu, qp.nb
        size = n * (nu + nx)
        stages = self._solution[:size].reshape(n, nu + nx)
        qp.dv[:], qp.dx[1:] = stages[:, :nu], stages[:, nu:]
        slacks = self._solution[size:].reshape(2, n, nb)
        qp.slack_lower[1:], qp.slack_upper[1:] = slacks
        qp.equality_multipliers[:] = self._row_multipliers[: n * nx].reshape(n, nx)
        inputs = self._variable_multipliers[:size].reshape(n, nu + nx)[:, :nu]
        qp.lower_multipliers[:n, :nu], qp.upper_multipliers[:n, :nu] = (
            np.maximum(-inputs, 0.0),
            np.maximum(inputs, 0.0),
        )
        row = n * nx
        for multipliers, present, sign in (
            (qp.lower_multipliers, qp.has_lower, -1.0),
            (qp.upper_multipliers, qp.has_upper, 1.0),
        ):
            for k, i in _bound_rows(n, present):
                multipliers[k, nu + i] = sign * self._row_multipliers[row]
                row += 1


def _build_functions(qp: StageQp) -> tuple[Any, Any]:
    """Return the functions that write out the QP (H, g, rows and all bounds) and that evaluate gradient and rows."""
    n, nx, nu, nb = qp.num_stages, qp.nx, qp.nu, qp.nb
    shapes = {
        "A": (nx, nx * n),
        "B": (nx, nu * n),
        "b": (nx, n),
        "Q": (nx, nx * (n + 1)),
        "S": (nu, nx * n),
        "R": (nu, nu * n),
        "q": (nx, n + 1),
        "r": (nu, n),
        "lower": (nu + nb, n + 1),
        "upper": (nu + nb, n + 1),
    }
    data = {name: ca.SX.sym(name, *shape) for name, shape in shapes.items()}

    def stage(name: str, k: int) -> Any:
        width = shapes[name][1] // (n + 1 if name in ("Q", "q", "lower", "upper") else n)
        return data[name][:, k * width : (k + 1) * width]

    slacks = 2 * n * nb
    blocks, gradients, dynamics, input_lower, input_upper = [], [], [], [], []
    free = ca.DM.inf(nx)
    for k in range(n):
        # The block of (dv_k, dx_{k+1}): dv_k meets dx_k, of the block before, below.
        blocks.append(ca.diagcat(stage("R", k), stage("Q", k + 1)))
        gradients += [stage("r", k), stage("q", k + 1)]
        before = ca.SX(nx, max(0, k - 1) * (nu + nx) + (nu if k else 0))
        row = [before, stage("A", k)] if k else [before]
        row += [stage("B", k), -ca.SX.eye(nx), ca.SX(nx, (n - 1 - k) * (nu + nx) + slacks)]
        dynamics.append(ca.horzcat(*row))
        input_lower += [stage("lower", k)[:nu], -free]
        input_upper += [stage("upper", k)[:nu], free]
    hessian = ca.diagcat(*blocks, qp.penalty * ca.SX.eye(slacks))
    for k in range(1, n):
        at, state = k * (nu + nx), k * (nu + nx) - nx
        hessian[at : at + nu, state : state + nx] = stage("S", k)
        hessian[state : state + nx, at : at + nu] = stage("S", k).T
    gradient = ca.vertcat(*gradients, qp.penalty * ca.SX.ones(slacks))

    defect = -ca.vec(data["b"])
    rows: list[Any] = [*dynamics]
    row_lower: list[Any] = [defect]
    row_upper: list[Any] = [defect]
    for side, present, sign in (("lower", qp.has_lower, 1.0), ("upper", qp.has_upper, -1.0)):
        for k, i in _bound_rows(n, present):
            bound = ca.SX(1, n * (nu + nx) + slacks)
            bound[(k - 1) * (nu + nx) + nu + qp.bounded_states[i]] = 1.0
            bound[n * (nu + nx) + (0 if side == "lower" else n * nb) + (k - 1) * nb + i] = sign
            rows.append(bound)
            row_lower.append(stage(side, k)[nu + i] if side == "lower" else -math.inf)
            row_upper.append(stage(side, k)[nu + i] if side == "upper" else math.inf)
    matrix = ca.vertcat(*rows)
    lower_bounds = ca.vertcat(*input_lower, ca.DM.zeros(slacks))
    upper_bounds = ca.vertcat(*input_upper, ca.DM.inf(slacks))

    inputs = list(data.values())
    vectors = (ca.vertcat(*row_lower), ca.vertcat(*row_upper), lower_bounds, upper_bounds)
    assemble = ca.Function(
        "assemble", inputs, [hessian, ca.densify(gradient), matrix, *(ca.densify(ca.SX(v)) for v in vectors)]
    )
    z = ca.SX.sym("z", hessian.rows())
    row_multipliers, multipliers = (
        ca.SX.sym("row_multipliers", matrix.rows()),
        ca.SX.sym("multipliers", z.numel()),
    )
    stationarity = hessian @ z + gradient + matrix.T @ row_multipliers + multipliers
    defects = ca.Function(
        "defects",
        [*inputs, z, row_multipliers, multipliers],
        [ca.densify(stationarity), ca.densify(matrix @ z)],
    )
    return assemble, defects


def _bound_rows(num_stages: int, present: tuple[bool, ...]) -> list[tuple[int, int]]:
    """Return (stage, index among the bounded states) of each row that softens a bound."""
    return [(k, i) for k in range(1, num_stages + 1) for i, is_present in enumerate(present) if is_present]


def _defect(values: FloatArray, lower: FloatArray, upper: FloatArray, multipliers: FloatArray) -> FloatArray:
    """Return by how much each bound is broken or not complementary; a multiplier is positive at the upper bound."""
    below, above = values - lower, upper - values
    distance = np.where(multipliers > 0.0, above, below)
    # The multiplier of an absent bound must vanish by itself.
    products = np.abs(multipliers) * np.where(np.isinf(distance), 1.0, np.abs(distance))
    defect: FloatArray = np.maximum(-np.minimum(below, above), products)
    return defect
