"""Sequential quadratic programming on one optimal control problem: single steps, and a first guess from nothing."""

import math

import numpy as np

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.controllers.evaluation import Compile, Evaluation, compile_functions
from rt_lrhc.controllers.nlp import FATROP_OPTIONS, NlpSolver
from rt_lrhc.controllers.ocp import OptimalControlProblem, build_functions
from rt_lrhc.controllers.qp import QpSolverName, QpStatus, StageQp, make_qp_solver, split_trajectory

_ENOUGH_DECREASE = 1e-2
"""Relative decrease of the cost below which the search for a first guess ends: real-time iterations do the rest."""
_SHORTEST_STEP = 1.0 / 128.0


class Sqp:
    """Gauss-Newton SQP with full steps, on memory of its own that is loaded with one robot's guess at a time.

    Attributes:
        trajectory: The guess and the result, see `split_trajectory`.
        inputs, states: Views of it, (N, nu) and (N + 1, nx).
        reference: p, (nr,).
        qp: The last QP.
        qp_solver: What solved it.
        cost: Cost of the result to second order (Gauss-Newton) at the last guess, bound penalties included.
        backend: Which solver, and whether compiled, for people.
    """

    cost: float = math.nan

    def __init__(
        self,
        ocp: OptimalControlProblem,
        *,
        qp_solver: QpSolverName,
        compile: Compile,
        tolerance: float,
        max_qp_iterations: int,
        hpipm_library: str | None,
    ) -> None:
        n, nx, nu = ocp.num_stages, len(ocp.state_names), len(ocp.input_names)
        functions = build_functions(ocp)
        bounded = ocp.bounded_states
        self.qp = qp = StageQp(
            n,
            nx,
            nu,
            bounded_states=bounded,
            has_lower=tuple(math.isfinite(ocp.state_lower[i]) for i in bounded),
            has_upper=tuple(math.isfinite(ocp.state_upper[i]) for i in bounded),
            penalty=ocp.state_bound_penalty,
        )
        self.qp_solver = make_qp_solver(
            qp_solver, qp, tolerance=tolerance, max_iterations=max_qp_iterations, hpipm_library=hpipm_library
        )
        self._recovery = NlpSolver(ocp, functions, "fatrop", FATROP_OPTIONS)
        hot = (functions.stages, functions.terminal, functions.step, functions.rollout)
        (stages, terminal, step, rollout), compiled = compile_functions(hot, compile)
        self.backend = f"{self.qp_solver.name}, {'compiled' if compiled else 'interpreted'}"

        self.trajectory = np.zeros(n * nu + (n + 1) * nx)
        self.inputs, self.states = split_trajectory(self.trajectory, n, nx, nu)
        self.reference = np.zeros(len(ocp.reference_names))
        self._stage_duration = ocp.stage_duration
        self._safe_input = np.array(ocp.safe_input)
        self._lower, self._upper = np.array(ocp.input_lower), np.array(ocp.input_upper)
        # What turns a step of the QP into one of the trajectory: inputs are scaled, states are not.
        self._scale = np.ones(self.trajectory.size)
        self._scale[: n * nu] = np.tile(ocp.input_scale, n)
        self._change = np.zeros(self.trajectory.size)
        self._before = np.zeros(self.trajectory.size)
        self._stage_costs, self._terminal_cost = np.zeros(n), np.zeros(1)
        self._stages = Evaluation(
            stages,
            (self.states[:n], self.inputs, self.reference, self.states[1:]),
            (
                qp.A,
                qp.B,
                qp.b,
                qp.Q[:n],
                qp.S,
                qp.R,
                qp.q[:n],
                qp.r,
                qp.lower[:n],
                qp.upper[:n],
                self._stage_costs,
            ),
        )
        self._terminal = Evaluation(
            terminal,
            (self.states[n], self.reference),
            (qp.Q[n], qp.q[n], qp.lower[n, nu:], qp.upper[n, nu:], self._terminal_cost),
        )
        self._start, self._end, self._input, self._duration = (
            np.zeros(nx),
            np.zeros(nx),
            np.zeros(nu),
            np.zeros(1),
        )
        self._step = Evaluation(
            step, (self._start, self._input, self.reference, self._duration), (self._end,)
        )
        self._rollout_cost = np.zeros(1)
        self._rollout = Evaluation(
            rollout, (self.states[0], self.inputs, self.reference), (self.states[1:], self._rollout_cost)
        )

    def predict(self, state: FloatArray, held_input: FloatArray, duration: float, out: FloatArray) -> None:
        """Write to `out` the state `duration` seconds after `state` under `held_input`, by the plan's integrator."""
        np.copyto(self._end, state)
        np.copyto(self._input, held_input)
        steps = max(1, math.ceil(duration / self._stage_duration - 1e-9))
        self._duration[0] = duration / steps
        for _ in range(steps):
            np.copyto(self._start, self._end)
            self._step.run()
        np.copyto(out, self._end)

    def step(self) -> QpStatus:
        """Solve one QP at the guess, and take its step unless that failed."""
        status = self._solve_qp()
        if status is QpStatus.FAILED:
            return status
        np.multiply(self.qp.step, self._scale, out=self._change)
        np.add(self.trajectory, self._change, out=self.trajectory)
        # The QP keeps the bounds up to its tolerance only.
        np.maximum(self.inputs, self._lower, out=self.inputs)
        np.minimum(self.inputs, self._upper, out=self.inputs)
        if not math.isfinite(self.trajectory.dot(self.trajectory)):
            return QpStatus.FAILED
        return status

    def initialise(self, state: FloatArray, max_sweeps: int) -> bool:
        """Find a first guess that starts in `state`; return whether there is one.

        The safe input is rolled out and then improved by Gauss-Newton steps in the inputs alone, each rolled out again
        and shortened until the cost falls. So every guess obeys the dynamics and the input bounds, however early the
        search ends. Full steps in inputs and states do not do: from 150 states all over the cart-pole's state space,
        15 of them led to 141 swing-ups and this to 148. Where the safe input's rollout explodes, fatrop is asked.
        """
        np.copyto(self.inputs, self._safe_input)
        np.copyto(self.states[0], state)
        cost = self._roll_out()
        if not np.isfinite(state).all():
            return False
        if not math.isfinite(cost):
            np.copyto(self.states, state)
            return self._recovery.solve(state, self.reference, self.trajectory)
        for _ in range(max_sweeps):
            if self._solve_qp() is QpStatus.FAILED:
                break
            np.copyto(self._before, self.trajectory)
            np.multiply(self.qp.step, self._scale, out=self._change)
            improved = self._search_line(cost)
            if not improved < cost:
                np.copyto(self.trajectory, self._before)
                break
            if cost - improved < _ENOUGH_DECREASE * cost:
                break
            cost = improved
        return True

    def _search_line(self, cost: float) -> float:
        count = self.inputs.size
        inputs = self.inputs.reshape(-1)
        length = 1.0
        while length >= _SHORTEST_STEP:
            np.multiply(self._change[:count], length, out=inputs)
            np.add(inputs, self._before[:count], out=inputs)
            np.maximum(self.inputs, self._lower, out=self.inputs)
            np.minimum(self.inputs, self._upper, out=self.inputs)
            improved = self._roll_out()
            if improved < cost:
                return improved
            length /= 2.0
        return math.inf

    def _roll_out(self) -> float:
        self._rollout.run()
        return float(self._rollout_cost[0])

    def _solve_qp(self) -> QpStatus:
        self._stages.run()
        self._terminal.run()
        status = self.qp_solver.solve()
        self.cost = float(self._stage_costs.sum() + self._terminal_cost[0]) + self.qp_solver.objective
        return status
