"""Nonlinear MPC by real-time iteration, for a batch of robots with one optimal control problem."""

import math
import time
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import (
    BoolArray,
    IntArray,
    PlanBatch,
    RHController,
    SolveRequest,
    Status,
)
from rt_lrhc.controllers.evaluation import Compile
from rt_lrhc.controllers.ocp import OptimalControlProblem
from rt_lrhc.controllers.qp import QpSolverName, QpStatus, split_trajectory
from rt_lrhc.controllers.sqp import Sqp
from rt_lrhc.errors import ConfigurationError

_HYSTERESIS = 0.75
"""Periods from zero at which a periodic state is taken one turn further: so far past 0.5 that swinging does not."""


@dataclass(frozen=True)
class RtiOptions:
    """How an `RtiController` solves.

    Attributes:
        sqp_iterations: SQP steps per solve; 1 is the real-time iteration.
        delay_compensation: Predict the state from `time` to `act_time` with the input in force, and plan from there.
        cold_starts_per_solve: Robots that are initialised in one solve at most; the others wait. Counted, not timed, so
            that a run can be repeated. A cold start takes as long as 20 to 50 solves.
        cold_start_sweeps: Limit of the Gauss-Newton steps of a cold start.
        qp_solver: `"hpipm"`, `"piqp"`, or `"auto"`: HPIPM where it works.
        compile: `"on"`, `"off"`, or `"auto"`: machine code where gcc is found.
        tolerance: KKT residual of a QP; costs and inputs (in half ranges) should be scaled to suit it.
        max_qp_iterations: Interior-point iterations per QP.
        hpipm_library: Path of another `libhpipm.so`.
    """

    sqp_iterations: int = 1
    delay_compensation: bool = True
    cold_starts_per_solve: int = 2
    cold_start_sweeps: int = 15
    qp_solver: QpSolverName = "auto"
    compile: Compile = "auto"
    tolerance: float = 1e-6
    max_qp_iterations: int = 30
    hpipm_library: str | None = None

    def __post_init__(self) -> None:
        for field in ("sqp_iterations", "cold_starts_per_solve", "max_qp_iterations"):
            if getattr(self, field) < 1:
                raise ConfigurationError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.cold_start_sweeps < 0:
            raise ConfigurationError(f"cold_start_sweeps must be at least 0, got {self.cold_start_sweeps}")
        if not 0.0 < self.tolerance < 1.0:
            raise ConfigurationError(f"tolerance must lie in (0, 1), got {self.tolerance}")


class RtiController(RHController):
    """Solves one QP per robot and request, at the robot's last plan shifted to now (Gauss-Newton SQP-RTI).

    Robots are solved one after another on shared memory, from their own plans alone: a result depends neither on the
    neighbours nor on the process. A robot whose solve failed, or whose plan is older than its horizon, is initialised
    again at its next turn; until then its status is `INITIALISING` and its plan holds the safe input. A QP that cannot
    be solved is `DIVERGED`, never `INFEASIBLE`: state bounds are soft, so every QP has a solution.

    In `PlanBatch`: `iterations` counts interior-point iterations of the plan's QPs (0 with PIQP, which does not tell);
    `residual` is the KKT residual of the last QP; `cost` is its value of the whole cost, exact where the SQP has
    converged. `solve_time` includes an even share of what is done for all rows at once.

    Source: Diehl, Bock and Schlöder (2005), A real-time iteration scheme for nonlinear optimization in optimal feedback
    control, SIAM J. Control Optim. 43(5); Gros et al. (2020), From linear to nonlinear MPC, Int. J. Control 93(1).
    """

    def __init__(
        self, ocp: OptimalControlProblem, num_robots: int, options: RtiOptions | None = None
    ) -> None:
        """Build a controller of `num_robots` robots.

        Raises:
            ConfigurationError: If an option is out of its range, or cannot be had here.
        """
        if num_robots < 1:
            raise ConfigurationError(f"num_robots must be at least 1, got {num_robots}")
        self.options = options = options or RtiOptions()
        self.ocp = ocp
        self.sqp = Sqp(
            ocp,
            qp_solver=options.qp_solver,
            compile=options.compile,
            tolerance=options.tolerance,
            max_qp_iterations=options.max_qp_iterations,
            hpipm_library=options.hpipm_library,
        )
        self.spec = ocp.make_spec(self.sqp.backend, compensates_delay=options.delay_compensation)
        n, nx, nu = ocp.num_stages, self.spec.nx, self.spec.nu
        self._safe_input = np.array(ocp.safe_input)
        self._trajectories = np.zeros((num_robots, n * nu + (n + 1) * nx))
        self._inputs, self._states = split_trajectory(self._trajectories, n, nx, nu)
        # Time of stage 0 of each robot's trajectory; NaN where there is none to start from.
        self._plan_time = np.full(num_robots, np.nan)
        # Number of the request since which a robot waits for its cold start; -1 where it does not.
        self._waits_since = np.full(num_robots, -1, dtype=np.int64)
        self._requests = 0
        self._initial_states = np.zeros((num_robots, nx))
        self._periodic = [(i, period) for i, period in enumerate(ocp.periods) if math.isfinite(period)]
        # Whole periods that a robot's trajectory leaves out.
        self._offsets = np.zeros((num_robots, nx))
        self._shift_indices: dict[int, tuple[IntArray, IntArray]] = {}

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:  # noqa: D102 (inherited)
        begin = time.thread_time_ns()
        self._requests += 1
        self._plan_time[request.reset] = np.nan
        rows = self._take_readable(request, plans)
        if rows.size == 0:
            return
        plan_time = request.act_time if self.options.delay_compensation else request.time
        self._shift(rows, plan_time)
        for row in rows.tolist():
            self._place(row, request, plan_time - request.time)
        rows = self._admit(rows, plans)
        end = time.thread_time_ns()
        shared = (end - begin) / max(1, rows.size)
        for row in rows.tolist():
            begin = end
            status = self._solve_row(row, request, plans)
            plans.status[row] = status
            if status.usable:
                self._plan_time[row] = plan_time
            else:
                self._plan_time[row] = np.nan
                self._write_no_plan(row, plans)
            end = time.thread_time_ns()
            plans.solve_time[row] = (end - begin + shared) * 1e-9

    def restore(self, plans: PlanBatch, usable: BoolArray, stage_time: float) -> BoolArray:
        """Take plans of an earlier process as this one's own: the next solve starts from them, shifted."""
        self._inputs[usable] = plans.inputs[usable]
        self._states[usable] = plans.states[usable]
        for i, period in self._periodic:
            # Where the plan leads tells by how many turns it was moved before it was published.
            turns = np.round(self._states[usable, -1, i] / period)
            self._states[usable, :, i] -= period * turns[:, None]
        self._plan_time[usable] = stage_time
        return usable.copy()

    def _take_readable(self, request: SolveRequest, plans: PlanBatch) -> IntArray:
        """Return the active rows that hold numbers only; the others keep their trajectories."""
        fields = (request.states, request.references, request.inputs_in_force)
        if all(np.isfinite(field).all() for field in fields):
            return np.flatnonzero(request.active)
        readable: BoolArray = np.logical_and.reduce([np.isfinite(field).all(axis=1) for field in fields])
        for row in np.flatnonzero(request.active & ~readable).tolist():
            plans.status[row] = Status.NONFINITE_INPUT
            self._write_no_plan(row, plans)
        return np.flatnonzero(request.active & readable)

    def _shift(self, rows: IntArray, plan_time: float) -> None:
        """Move each trajectory to stage 0 at `plan_time`, by linear interpolation; behind its end the last value holds.

        Trajectories that do not reach that far are forgotten.
        """
        shifts = (plan_time - self._plan_time[rows]) / self.ocp.stage_duration
        usable = (shifts >= 0.0) & (shifts <= self.ocp.num_stages)  # False for NaN
        self._plan_time[rows[~usable]] = np.nan
        rows, shifts = rows[usable], shifts[usable]
        if rows.size == 0:
            return
        # Robots are mostly shifted by the same time, one control period.
        for shift in [shifts[0]] if (shifts == shifts[0]).all() else np.unique(shifts):
            same = rows[shifts == shift]
            stages = math.floor(shift)
            here, following = self._indices_after(stages)
            values = self._trajectories[same]
            first, second = values.take(here, axis=1), values.take(following, axis=1)
            second -= first
            second *= shift - stages
            second += first
            self._trajectories[same] = second
        self._plan_time[rows] = plan_time

    def _indices_after(self, stages: int) -> tuple[IntArray, IntArray]:
        """Return where in a trajectory its values `stages` and `stages + 1` later lie."""
        if stages not in self._shift_indices:
            spec = self.spec
            layout = np.arange(self._trajectories.shape[1])
            result: list[IntArray] = []
            for ahead in (stages, stages + 1):
                parts = []
                for part in split_trajectory(layout, spec.num_stages, spec.nx, spec.nu):
                    parts.append(part[np.minimum(np.arange(len(part)) + ahead, len(part) - 1)].ravel())
                result.append(np.concatenate(parts))
            self._shift_indices[stages] = result[0], result[1]
        return self._shift_indices[stages]

    def _place(self, row: int, request: SolveRequest, delay: float) -> None:
        """Write the state of `row` at stage 0.

        Periodic states are taken as they lie nearest to the plan, or to zero where there is no plan or that is too far:
        a pole that went over the top finds its new upright, and one that hangs does not change sides for noise.
        """
        state = self._initial_states[row]
        if delay > 0.0:
            np.copyto(self.sqp.reference, request.references[row])
            self.sqp.predict(request.states[row], request.inputs_in_force[row], delay, out=state)
        else:
            np.copyto(state, request.states[row])
        for i, period in self._periodic:
            measured = state.item(i)
            if not math.isfinite(measured):  # The prediction overflowed; the QP will say so.
                continue
            planned = 0.0 if math.isnan(self._plan_time.item(row)) else self._states.item(row, 0, i)
            offset = period * round((measured - planned) / period)
            if abs(measured - offset) > _HYSTERESIS * period:
                offset = period * round(measured / period)
                self._plan_time[row] = np.nan
            state[i] = measured - offset
            self._offsets[row, i] = offset

    def _admit(self, rows: IntArray, plans: PlanBatch) -> IntArray:
        """Return the rows to solve now: all that have a trajectory, and those whose turn it is to be initialised."""
        cold = np.isnan(self._plan_time[rows])
        if not cold.any():
            return rows
        waiting = rows[cold]
        self._waits_since[waiting[self._waits_since[waiting] < 0]] = self._requests
        order = np.argsort(self._waits_since[waiting], kind="stable")
        served, delayed = np.split(waiting[order], [self.options.cold_starts_per_solve])
        for row in delayed.tolist():
            plans.status[row] = Status.INITIALISING
            self._write_no_plan(row, plans)
        return np.sort(np.concatenate((rows[~cold], served)))

    def _solve_row(self, row: int, request: SolveRequest, plans: PlanBatch) -> Status:
        sqp, options = self.sqp, self.options
        state = self._initial_states[row]
        np.copyto(sqp.reference, request.references[row])
        if math.isnan(self._plan_time[row]):
            self._waits_since[row] = -1
            if not sqp.initialise(state, options.cold_start_sweeps):
                return Status.DIVERGED
        else:
            np.copyto(sqp.trajectory, self._trajectories[row])
        np.copyto(sqp.states[0], state)
        iterations = 0
        for _ in range(options.sqp_iterations):
            outcome = sqp.step()
            iterations += sqp.qp_solver.iterations
            if outcome is QpStatus.FAILED:
                return Status.DIVERGED
        np.copyto(self._trajectories[row], sqp.trajectory)
        np.copyto(plans.inputs[row], sqp.inputs)
        np.add(sqp.states, self._offsets[row], out=plans.states[row])
        plans.iterations[row] = iterations
        plans.cost[row] = sqp.cost
        plans.residual[row] = sqp.qp_solver.residual
        return Status.SOLVED if outcome is QpStatus.SOLVED else Status.ITERATION_LIMIT

    def _write_no_plan(self, row: int, plans: PlanBatch) -> None:
        plans.inputs[row] = self._safe_input
        plans.states[row] = np.nan
        plans.iterations[row] = 0
        plans.cost[row] = plans.residual[row] = plans.solve_time[row] = np.nan
