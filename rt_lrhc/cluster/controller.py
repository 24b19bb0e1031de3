"""What a controller is to the cluster: its dimensions, one batched solve, and the outcome of each row."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import ConfigurationError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Status(IntEnum):
    """Outcome of one robot's solve. Only `SOLVED` and `ITERATION_LIMIT` are usable."""

    NONE = 0
    """No plan yet."""
    SOLVED = 1
    ITERATION_LIMIT = 2
    """Stopped at the iteration limit with a plan that the controller vouches for."""
    INITIALISING = 3
    """The row waits for its cold start; the safe input acts."""
    INFEASIBLE = 4
    NONFINITE_INPUT = 5
    """The state, the reference or the input in force held NaN or infinity."""
    NONFINITE_PLAN = 6
    OUT_OF_BOUNDS = 7
    """An input of the plan lies outside the bounds that the controller declared."""
    EXCEPTION = 8
    """The controller raised."""
    DIVERGED = 9
    INACTIVE = 10
    """The robot is not driven by its controller."""
    LOST = 11
    """The worker that drove the robot has ended."""

    @property
    def usable(self) -> bool:
        """Whether a plan with this status may be applied."""
        return self in (Status.SOLVED, Status.ITERATION_LIMIT)


@dataclass(frozen=True)
class ControllerSpec:
    """Dimensions, names and limits of a controller: all that its peers need to know.

    Attributes:
        state_names: Names of the nx states, with frame and order where that matters.
        input_names: Names of the nu inputs.
        reference_names: Names of the nr references that the agent commands.
        state_units: SI unit of each state.
        input_units: SI unit of each input.
        reference_units: SI unit of each reference.
        num_stages: Horizon N: N inputs and N + 1 states.
        stage_duration: Length of a stage in s; it need not be a control period.
        input_lower: Lower bounds of the inputs, (nu,).
        input_upper: Upper bounds of the inputs, (nu,).
        safe_input: Input that is safe without any plan, (nu,), within the bounds.
        backend: The solver that was chosen, for the manifest and for people.
        compensates_delay: Whether the controller predicts the state from `SolveRequest.time` to
            `SolveRequest.act_time`, so that stage 0 of its plan lies at `act_time` (else at `time`).
    """

    state_names: tuple[str, ...]
    input_names: tuple[str, ...]
    reference_names: tuple[str, ...]
    state_units: tuple[str, ...]
    input_units: tuple[str, ...]
    reference_units: tuple[str, ...]
    num_stages: int
    stage_duration: float
    input_lower: tuple[float, ...]
    input_upper: tuple[float, ...]
    safe_input: tuple[float, ...]
    backend: str
    compensates_delay: bool = True

    def __post_init__(self) -> None:
        for field, names, values in (
            ("state_units", self.state_names, self.state_units),
            ("input_units", self.input_names, self.input_units),
            ("reference_units", self.reference_names, self.reference_units),
            ("input_lower", self.input_names, self.input_lower),
            ("input_upper", self.input_names, self.input_upper),
            ("safe_input", self.input_names, self.safe_input),
        ):
            _check_length(field, names, values)
        if self.num_stages < 1:
            raise ConfigurationError(f"num_stages must be at least 1, got {self.num_stages}")
        if not self.stage_duration > 0.0:
            raise ConfigurationError(f"stage_duration must be positive, in s, got {self.stage_duration}")
        for name, lower, safe, upper in zip(
            self.input_names, self.input_lower, self.safe_input, self.input_upper, strict=True
        ):
            if not lower <= safe <= upper:
                raise ConfigurationError(
                    f"input {name!r}: expected lower <= safe_input <= upper, got {lower}, {safe}, {upper}"
                )

    @property
    def nx(self) -> int:
        """Number of states."""
        return len(self.state_names)

    @property
    def nu(self) -> int:
        """Number of inputs."""
        return len(self.input_names)

    @property
    def nr(self) -> int:
        """Number of references."""
        return len(self.reference_names)


def _check_length(field: str, names: Sequence[str], values: Sequence[object]) -> None:
    if len(names) != len(values):
        raise ConfigurationError(
            f"{field} must have {len(names)} entries ({', '.join(names)}), got {len(values)}"
        )


@dataclass(frozen=True)
class SolveRequest:
    """What one trigger asks of a controller of B robots. The arrays are contiguous and must not be written.

    Attributes:
        states: Measured states at `time`, (B, nx).
        references: References in force, (B, nr).
        inputs_in_force: The accepted, saturated inputs that act from `time` to `act_time`, (B, nu).
        active: Rows to solve, (B,); a row that is False must be left alone.
        reset: Rows whose robot was reset since their last solve, (B,): forget the warm start.
        time: Grid time of the states, s.
        act_time: Grid time from which the plan shall act, s, not before `time`.
        deadline: Latest useful end of the solve, s of CLOCK_MONOTONIC; infinite on virtual time.
    """

    states: FloatArray
    references: FloatArray
    inputs_in_force: FloatArray
    active: BoolArray
    reset: BoolArray
    time: float
    act_time: float
    deadline: float


@dataclass(frozen=True)
class PlanBatch:
    """What a controller writes, in place: B plans and how each came about.

    Attributes:
        inputs: Planned inputs, (B, N, nu).
        states: Planned states, (B, N + 1, nx); stage 0 is the state at the stage-0 time.
        status: `Status` of each row, (B,) int64; the cluster overrides it where it finds a fault.
        iterations: Iterations of each row, (B,) int64.
        cost: Cost of each plan, (B,).
        residual: KKT residual (infinity norm) of each row's last QP or NLP, (B,).
        solve_time: Thread CPU time that each row took, s, (B,); NaN where it was not measured.
    """

    inputs: FloatArray
    states: FloatArray
    status: IntArray
    iterations: IntArray
    cost: FloatArray
    residual: FloatArray
    solve_time: FloatArray


class RHController(ABC):
    """A receding-horizon controller of a batch of robots.

    A *factory*, named as `"package.module:factory"` or `"path.py:factory"`, is called in the worker process as
    `factory(num_robots=B, **controller_kwargs)` and returns one of these.
    """

    spec: ControllerSpec

    @abstractmethod
    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        """Solve the active rows of `request` and write their plans, status and figures into `plans`.

        `plans.inputs` and `plans.states` hold what was written two requests ago; status and figures are cleared
        (`NONE`, 0, NaN), so that a row left alone has no plan. An exception marks the active rows `EXCEPTION`.
        """

    def restore(self, plans: PlanBatch, usable: BoolArray, stage_time: float) -> BoolArray:
        """Start warm: called once, before the first solve, when the process that held these robots before has died.

        Args:
            plans: The last plans that it published. Copy what you keep: the arrays are written again.
            usable: Rows whose plan is good, (B,).
            stage_time: Grid time of stage 0 of the plans, s.

        Returns:
            Rows that will start from their plan, (B,). The first request says `reset` for all others. None of them
            unless a controller does better.
        """
        return np.zeros(len(usable), np.bool_)

    def close(self) -> None:  # noqa: B027 (optional)
        """Free what the controller holds. Called once, when the worker ends in an orderly way."""
