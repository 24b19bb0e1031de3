"""The whole nonlinear programme of an optimal control problem, for CasADi's NLP solvers.

The real-time iteration needs none of this while it works: it is its recovery, and the yardstick of tests and
benchmarks.
"""

from collections.abc import Mapping
from typing import Any

import casadi as ca
import numpy as np
import numpy.typing as npt

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.controllers.evaluation import Evaluation
from rt_lrhc.controllers.ocp import OcpFunctions, OptimalControlProblem
from rt_lrhc.controllers.qp import split_trajectory

FATROP_OPTIONS: Mapping[str, Any] = {
    "structure_detection": "auto",
    "fatrop": {"print_level": 0, "max_iter": 100},
}


class NlpSolver:
    """Multiple shooting with input bounds to convergence. State bounds are left out: smooth solvers have no soft ones.

    Variables are x_0, u_0, x_1, ..., u_{N-1}, x_N, the order from which fatrop detects the stages.

    Attributes:
        iterations: Of the last solve.
        cost: Value of its solution.
    """

    iterations: int = 0
    cost: float = float("nan")

    def __init__(
        self, ocp: OptimalControlProblem, functions: OcpFunctions, plugin: str, options: Mapping[str, Any]
    ) -> None:
        """Build the solver.

        Args:
            ocp: The problem.
            functions: Its functions, `build_functions(ocp)`.
            plugin: Name of CasADi's plugin, such as `"fatrop"`.
            options: Options for CasADi, such as `FATROP_OPTIONS`.
        """
        n, nx, nu = ocp.num_stages, len(ocp.state_names), len(ocp.input_names)
        self._shape = n, nx, nu
        initial, p = ca.MX.sym("initial", nx), ca.MX.sym("p", len(ocp.reference_names))
        states = [ca.MX.sym(f"x{k}", nx) for k in range(n + 1)]
        inputs = [ca.MX.sym(f"u{k}", nu) for k in range(n)]
        cost, variables, constraints = ca.MX(0.0), [], []
        for k in range(n):
            variables += [states[k], inputs[k]]
            constraints.append(states[k + 1] - functions.step(states[k], inputs[k], p, ocp.stage_duration))
            if k == 0:
                constraints.append(states[0] - initial)
            cost += functions.stage_cost(states[k], inputs[k], p)
        variables.append(states[n])
        cost += functions.terminal_cost(states[n], p)
        equalities = ca.vertcat(*constraints)
        problem = {"x": ca.vertcat(*variables), "f": cost, "g": equalities, "p": ca.vertcat(initial, p)}
        extra: dict[str, Any] = {"print_time": False, "error_on_fail": False}
        if plugin == "fatrop":
            extra["equality"] = [True] * equalities.numel()
        solver = ca.nlpsol("nlp", plugin, problem, {**extra, **options})
        arguments = {name: np.zeros(solver.numel_in(name)) for name in solver.name_in()}
        results = {name: np.zeros(solver.numel_out(name)) for name in solver.name_out()}
        self._evaluation = Evaluation(solver, list(arguments.values()), list(results.values()))
        self._arguments, self._results = arguments, results
        self._inputs, self._states = self._positions()
        arguments["lbx"][:], arguments["ubx"][:] = -np.inf, np.inf
        arguments["lbx"][self._inputs] = ocp.input_lower
        arguments["ubx"][self._inputs] = ocp.input_upper

    def solve(
        self, state: FloatArray, reference: FloatArray, trajectory: FloatArray, *, warm: bool = False
    ) -> bool:
        """Solve from the guess in `trajectory` (see `split_trajectory`), overwrite it, and return whether it worked.

        Args:
            state: x_0, (nx,).
            reference: p, (nr,).
            trajectory: Guess and result.
            warm: Start from the multipliers of the last solve too.
        """
        arguments, results = self._arguments, self._results
        inputs, states = split_trajectory(trajectory, *self._shape)
        arguments["x0"][self._inputs], arguments["x0"][self._states] = inputs, states
        arguments["p"][: state.size], arguments["p"][state.size :] = state, reference
        for multipliers in ("lam_x", "lam_g"):
            arguments[f"{multipliers}0"][:] = results[multipliers] if warm else 0.0
        self._evaluation.run()
        stats = self._evaluation.stats()
        self.iterations, self.cost = int(stats["iter_count"]), float(results["f"][0])
        inputs[:], states[:] = results["x"][self._inputs], results["x"][self._states]
        return bool(stats["success"]) and bool(np.isfinite(results["x"]).all())

    def _positions(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return where the inputs, (N, nu), and the states, (N + 1, nx), lie among the variables."""
        n, nx, nu = self._shape
        stages = np.arange(n + 1)[:, None] * (nx + nu)
        return stages[:n] + nx + np.arange(nu), stages + np.arange(nx)
