"""Factories that the tests name by this file's path; run in the cluster's own processes."""

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from rt_lrhc.cluster.adapter import OneRobotController, Plan, RobotByRobot
from rt_lrhc.cluster.controller import ControllerSpec, FloatArray, PlanBatch, RHController, SolveRequest
from rt_lrhc.testing.echo import EchoController

not_a_factory = 3


def raising(num_robots: int) -> RHController:
    raise ValueError("the answer is not 42")


def exiting(num_robots: int) -> RHController:
    raise SystemExit(5)


def dying(num_robots: int) -> RHController:
    print("these are my last words", file=sys.stderr, flush=True)
    os._exit(7)


def dying_in_a_batch(num_robots: int) -> RHController:
    if num_robots > 1:
        os.abort()
    return EchoController(num_robots)


def changing(num_robots: int) -> RHController:
    return EchoController(num_robots, num_stages=4 + num_robots)


def hanging(num_robots: int) -> RHController:
    time.sleep(3600.0)
    return EchoController(num_robots)


def returning_nothing(num_robots: int) -> Any:
    return None


class _Confessing(EchoController):
    """Writes into `iterations` how many modules of torch or of the tests it has loaded."""

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        super().solve(request, plans)
        plans.iterations[:] = sum(name.split(".")[0] in ("torch", "pytest") for name in sys.modules)
        plans.cost[:] = sum(os.environ[key] == "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"))


def confessing(num_robots: int) -> RHController:
    return _Confessing(num_robots)


class _Scribbling(EchoController):
    """Writes a status that is none."""

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        super().solve(request, plans)
        plans.status[:] = 77


def scribbling(num_robots: int) -> RHController:
    return _Scribbling(num_robots)


class OneRobot(OneRobotController):
    """Holds its reference; raises where that is negative; counts its solves since the reset in the cost."""

    def __init__(self, gain: float) -> None:
        self.spec: ControllerSpec = EchoController(1).spec
        self._gain = gain
        self._count = 0

    def reset(self) -> None:
        self._count = 0

    def solve_one(
        self, state: FloatArray, reference: FloatArray, input_in_force: FloatArray, act_delay: float
    ) -> FloatArray | Plan:
        if reference[0] < 0.0:
            raise ArithmeticError("negative reference")
        self._count += 1
        inputs = np.full((5, 1), self._gain * reference[0])
        if self._count > 1:
            return inputs
        return Plan(inputs, states=np.full((6, 1), state[0] + act_delay), cost=self._count)


def robot_by_robot(num_robots: int, gain: float = 0.5) -> RHController:
    return RobotByRobot([OneRobot(gain) for _ in range(num_robots)])


def killed_once_in_a_batch(num_robots: int, path: str) -> RHController:
    if num_robots > 1 and not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return EchoController(num_robots)
