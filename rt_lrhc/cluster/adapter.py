"""From a controller of one robot to a controller of a batch."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.complaints import Complaints
from rt_lrhc.cluster.controller import (
    ControllerSpec,
    FloatArray,
    PlanBatch,
    RHController,
    SolveRequest,
    Status,
)
from rt_lrhc.errors import ControllerError


@dataclass(frozen=True)
class Plan:
    """The outcome of one solve of one robot.

    Attributes:
        inputs: Planned inputs, (N, nu).
        states: Planned states, (N + 1, nx); None where the controller predicts none.
        status: How it ended.
        iterations: Iterations.
        cost: Cost of the plan.
        residual: KKT residual, infinity norm.
    """

    inputs: FloatArray
    states: FloatArray | None = None
    status: Status = Status.SOLVED
    iterations: int = 0
    cost: float = math.nan
    residual: float = math.nan


class OneRobotController(ABC):
    """What a user writes to bring an MPC of one robot: its `spec`, and one solve."""

    spec: ControllerSpec

    @abstractmethod
    def solve_one(
        self, state: FloatArray, reference: FloatArray, input_in_force: FloatArray, act_delay: float
    ) -> FloatArray | Plan:
        """Plan from a measured state.

        Args:
            state: Measured state, (nx,).
            reference: Reference in force, (nr,).
            input_in_force: The input that acts during `act_delay`, (nu,).
            act_delay: Time from the measurement until the plan acts, s: predict the state over it where
                `spec.compensates_delay`.

        Returns:
            Planned inputs, (N, nu), or a `Plan`. Raise if there is none: the robot then runs on its fallback.
        """

    def reset(self) -> None:  # noqa: B027 (optional)
        """Forget the warm start: the robot was reset."""


class RobotByRobot(RHController):
    """A batch of one-robot controllers, solved one after the other.

    A factory in four lines:

        def make(num_robots: int, weight: float = 1.0) -> RobotByRobot:
            return RobotByRobot([MyMPC(weight) for _ in range(num_robots)])
    """

    def __init__(self, controllers: Sequence[OneRobotController]) -> None:
        """Take one controller a robot.

        Raises:
            ControllerError: If there is none, or their specs differ.
        """
        if not controllers:
            raise ControllerError("RobotByRobot needs at least one controller, got none")
        self.spec = controllers[0].spec
        if any(controller.spec != self.spec for controller in controllers):
            raise ControllerError("the controllers of a batch must have equal specs")
        self._controllers = list(controllers)
        self._complaints = Complaints()

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        """Solve row by row. A row that raises gets `EXCEPTION`; its neighbours go on."""
        act_delay = request.act_time - request.time
        for row in np.flatnonzero(request.active).tolist():
            controller = self._controllers[row]
            begin = time.thread_time()
            try:
                if request.reset[row]:
                    controller.reset()
                plan = controller.solve_one(
                    request.states[row], request.references[row], request.inputs_in_force[row], act_delay
                )
                self._write(plan if isinstance(plan, Plan) else Plan(plan), request.states[row], plans, row)
            except Exception:
                plans.status[row] = Status.EXCEPTION
                self._complaints.exception(f"the controller of robot {row} of this worker raised")
            plans.solve_time[row] = time.thread_time() - begin

    def _write(self, plan: Plan, state: FloatArray, plans: PlanBatch, row: int) -> None:
        inputs = np.asarray(plan.inputs, np.float64)
        if inputs.shape != plans.inputs.shape[1:]:
            raise ControllerError(
                f"solve_one must return inputs of shape (N, nu) = {plans.inputs.shape[1:]}, got {inputs.shape}"
            )
        plans.inputs[row] = inputs
        # Without a prediction the state is held: a plan's states must be finite.
        plans.states[row] = state if plan.states is None else plan.states
        plans.iterations[row] = plan.iterations
        plans.cost[row] = plan.cost
        plans.residual[row] = plan.residual
        plans.status[row] = plan.status
