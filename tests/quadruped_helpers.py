"""A plant of mini cheetahs and their controller in one process, without a cluster: as the cluster would run them."""

import numpy as np
import numpy.typing as npt
import torch

from rt_lrhc.cluster.controller import (
    BoolArray,
    ControllerSpec,
    FloatArray,
    IntArray,
    PlanBatch,
    SolveRequest,
    Status,
)
from rt_lrhc.controllers.quadruped.mini_cheetah import make_mini_cheetah
from rt_lrhc.controllers.quadruped.rotations import attitude_of_matrix, matrix_of_quaternion
from rt_lrhc.simulators.mini_cheetah import MiniCheetahs

PERIOD = 0.02


def make_plans(num_robots: int, spec: ControllerSpec) -> PlanBatch:
    """Empty plans."""
    nan = np.full((3, num_robots), np.nan)
    return PlanBatch(
        inputs=np.zeros((num_robots, spec.num_stages, spec.nu)),
        states=np.zeros((num_robots, spec.num_stages + 1, spec.nx)),
        status=np.zeros(num_robots, dtype=np.int64),
        iterations=np.zeros(num_robots, dtype=np.int64),
        cost=nan[0],
        residual=nan[1],
        solve_time=nan[2],
    )


class Walkers:
    """Mini cheetahs, one for each row of references, in the default posture at first.

    Args:
        references: (N, nr); may be changed between steps.
        pipelined: Whether plans act one period after their state (else at once).
        compensated: Whether the controller is told so.
        settings: Settings of the controller.
    """

    def __init__(
        self,
        references: npt.ArrayLike,
        *,
        pipelined: bool = True,
        compensated: bool = True,
        plant: MiniCheetahs | None = None,
        **settings: object,
    ) -> None:
        self.references = np.array(references, dtype=np.float64)
        self.size = len(self.references)
        self.plant = plant or MiniCheetahs(self.size)
        self.controller = make_mini_cheetah(self.size, **settings)
        self.plans = make_plans(self.size, self.controller.spec)
        self.safe: FloatArray = np.tile(self.controller.spec.safe_input, (self.size, 1))
        self.inputs = self.safe.copy()
        self.pipelined, self.ahead = pipelined, PERIOD if pipelined and compensated else 0.0
        self.states: list[FloatArray] = []
        self.statuses: list[IntArray] = []
        self.periods = 0
        self.plant.reset(self.plant.home_state())
        self._new = np.ones(self.size, dtype=np.bool_)

    def restart(self, rows: BoolArray) -> None:
        """Put robots back into the default posture."""
        self.plant.reset(self.plant.home_state(), torch.from_numpy(rows))
        self.inputs[rows] = self.safe[rows]
        self._new = self._new | rows

    def request(self, state: FloatArray) -> SolveRequest:
        """What would be asked of the controller at `state` now."""
        now = self.periods * PERIOD
        return SolveRequest(
            states=state,
            references=self.references,
            inputs_in_force=self.inputs,
            active=np.ones(self.size, dtype=np.bool_),
            reset=self._new,
            time=now,
            act_time=now + self.ahead,
            deadline=np.inf,
        )

    def step(self) -> None:
        """Run one control period."""
        state = self.plant.state.numpy()
        self.plans.status[:] = Status.NONE
        self.controller.solve(self.request(state), self.plans)
        self._new = np.zeros(self.size, dtype=np.bool_)
        usable = np.isin(self.plans.status, (Status.SOLVED, Status.ITERATION_LIMIT))
        planned = np.where(usable[:, None], self.plans.inputs[:, 0], self.safe)
        acting = self.inputs if self.pipelined else planned
        self.plant.step(torch.from_numpy(acting), PERIOD)
        self.inputs = planned
        self.periods += 1
        self.states.append(state)
        self.statuses.append(self.plans.status.copy())

    def run(self, duration: float) -> "Walkers":
        """Run for `duration`, s."""
        for _ in range(round(duration / PERIOD)):
            self.step()
        return self

    def attitudes(self, begin: float = 0.0, end: float | None = None) -> FloatArray:
        """Roll, pitch and yaw (unwrapped), (periods, N, 3), rad."""
        attitude = attitude_of_matrix(matrix_of_quaternion(self._window(begin, end)[..., 3:7]))
        attitude[..., 2] = np.unwrap(attitude[..., 2], axis=0)
        return attitude

    def heights(self, begin: float = 0.0, end: float | None = None) -> FloatArray:
        """Heights of the bases, (periods, N), m."""
        return self._window(begin, end)[..., 2]

    def twists(self, begin: float = 0.0, end: float | None = None) -> FloatArray:
        """Mean velocity along and across the heading, and mean yaw rate, (N, 3)."""
        window, yaw = self._window(begin, end), self.attitudes(begin, end)[..., 2]
        cos, sin = np.cos(yaw), np.sin(yaw)
        along = cos * window[..., 19] + sin * window[..., 20]
        across = cos * window[..., 20] - sin * window[..., 19]
        rate = (yaw[-1] - yaw[0]) / ((len(yaw) - 1) * PERIOD)
        return np.stack([along.mean(axis=0), across.mean(axis=0), rate], axis=1)

    def tilt(self, begin: float = 0.0, end: float | None = None) -> FloatArray:
        """Largest angle between the body's and the world's z axes, (N,), rad."""
        up = matrix_of_quaternion(self._window(begin, end)[..., 3:7])[..., 2, 2]
        tilt: FloatArray = np.arccos(np.clip(up, -1.0, 1.0)).max(axis=0)
        return tilt

    def _window(self, begin: float, end: float | None) -> FloatArray:
        stop = None if end is None else round(end / PERIOD)
        return np.array(self.states[round(begin / PERIOD) : stop])
