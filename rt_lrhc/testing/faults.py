"""The fault kit: makes any controller crash, hang, lie or write nonsense, at a named point, in a chosen life.

Nothing of it runs unless a cluster is told to use it in the place of a controller:

    ClusterConfig(
        **faulty("my_package.mpc:make", [Fault("before_solve", "kill", solves=(3,), lives=(1,))], {"weight": 2.0}),
        num_robots=4, control_period=0.02,
    )

The third solve of the first life of each worker then ends with SIGKILL, and all else is as with the controller alone.
"""

import ctypes
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rt_lrhc.cluster.controller import BoolArray, PlanBatch, RHController, SolveRequest, Status
from rt_lrhc.cluster.factories import FactoryName, build
from rt_lrhc.cluster.workers import INCARNATION_VARIABLE
from rt_lrhc.errors import ConfigurationError

Point = Literal["boot", "before_solve", "mid_write", "after_solve", "before_done", "after_done"]
"""Where it happens: while the controllers are built; before their solve; when half of the rows hold nonsense; when all
plans are written, but not checked; when they are checked, but not announced; when they are announced."""

Action = Literal["kill", "stop", "exit", "segfault", "raise", "sleep", "call", "nan", "corrupt", "infeasible"]
"""What happens. To the process: SIGKILL, SIGSTOP, `_exit(3)`, a null pointer, an exception, `seconds` asleep in Python
(`sleep`) or in a C function that keeps the interpreter's lock (`call`). To the plans of the robots in question: NaN,
large random numbers, `Status.INFEASIBLE`."""

_TO_PLANS = ("nan", "corrupt", "infeasible")
_CORRUPTION = 1e6


@dataclass(frozen=True)
class Fault:
    """One fault and when it happens.

    Attributes:
        point: Where (see `Point`).
        action: What (see `Action`).
        solves: At which solves of a life, counted from 1; empty for every solve. `boot` has none.
        lives: In which lives of a worker, counted from 1; empty for every life.
        robots: Rows of the worker's batch that are concerned, where it is about plans; empty for all.
        seconds: Length of `sleep` and `call`, s.

    Raises:
        ConfigurationError: If there is no such point or action, or they do not go together.
    """

    point: Point
    action: Action
    solves: Sequence[int] = ()
    lives: Sequence[int] = ()
    robots: Sequence[int] = ()
    seconds: float = 0.05

    def __post_init__(self) -> None:
        for name, choices in (("point", get_args(Point)), ("action", get_args(Action))):
            if getattr(self, name) not in choices:
                raise ConfigurationError(
                    f"{name} of a fault must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.action in _TO_PLANS and self.point not in ("after_solve", "before_done"):
            raise ConfigurationError(
                f"{self.action!r} needs plans: its point must be 'after_solve' or 'before_done', got {self.point!r}"
            )


def faulty(
    factory: str | Callable[..., RHController],
    faults: Sequence[Fault],
    controller_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what `ClusterConfig` takes as `factory` and `controller_kwargs` to run a controller with faults.

    Args:
        factory: The controller's factory, as `ClusterConfig.factory`.
        faults: What shall happen to it.
        controller_kwargs: Its own keyword arguments.

    Raises:
        ControllerError: If another process could not find the factory.
    """
    name = FactoryName.of(factory)
    return {
        "factory": f"{__name__}:make_faulty",
        "controller_kwargs": {
            "name": dataclasses.asdict(name),
            "faults": [dataclasses.asdict(fault) for fault in faults],
            "kwargs": dict(controller_kwargs or {}),
        },
    }


def make_faulty(
    num_robots: int, name: Mapping[str, Any], faults: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]
) -> "FaultyController":
    """Build, in a worker, what `faulty` names."""
    life = int(os.environ.get(INCARNATION_VARIABLE, "0"))
    present = [
        fault for fault in (Fault(**one) for one in faults) if life and life in (fault.lives or (life,))
    ]
    for fault in present:
        if fault.point == "boot":
            _befall(fault)
    found = FactoryName(**name)
    return FaultyController(build(found, found.resolve(), num_robots, kwargs), present)


class FaultyController(RHController):
    """A controller to which faults happen.

    Args:
        controller: What solves.
        faults: What happens in this life.
    """

    def __init__(self, controller: RHController, faults: Sequence[Fault]) -> None:
        self.spec = controller.spec
        self._controller = controller
        self._faults = faults
        self._solves = 0
        self._plans: PlanBatch | None = None
        self._active: BoolArray = np.zeros(0, np.bool_)
        self._random = np.random.default_rng(0)

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        """Solve, and let happen what is due."""
        self._solves += 1
        self._plans, self._active = plans, request.active
        self.reach("before_solve")
        self._controller.solve(request, plans)
        if self._due("mid_write"):
            half = len(plans.inputs) // 2 or 1
            plans.inputs[:half] = self._random.normal(scale=_CORRUPTION, size=plans.inputs[:half].shape)
            self.reach("mid_write")
        self.reach("after_solve")

    def restore(self, plans: PlanBatch, usable: BoolArray, stage_time: float) -> BoolArray:
        """Hand over to the controller."""
        return self._controller.restore(plans, usable, stage_time)

    def close(self) -> None:
        """Hand over to the controller."""
        self._controller.close()

    def reach(self, point: str) -> None:
        """Let happen what is due at `point`; the worker calls it too, at points that a controller does not see."""
        for fault in self._due(point):
            if fault.action in _TO_PLANS:
                self._spoil(fault)
            else:
                _befall(fault)

    def _due(self, point: str) -> list[Fault]:
        return [
            fault
            for fault in self._faults
            if fault.point == point and self._solves in (fault.solves or (self._solves,))
        ]

    def _spoil(self, fault: Fault) -> None:
        assert self._plans is not None
        rows = self._active.copy()
        if fault.robots:
            rows &= np.isin(np.arange(len(rows)), fault.robots)
        inputs = self._plans.inputs
        if fault.action == "nan":
            inputs[rows] = math.nan
        elif fault.action == "corrupt":
            inputs[rows] = self._random.normal(scale=_CORRUPTION, size=inputs[rows].shape)
        else:
            self._plans.status[rows] = Status.INFEASIBLE


def _befall(fault: Fault) -> None:
    """Let a fault happen to this process."""
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "exit":
        os._exit(3)
    elif fault.action == "segfault":
        ctypes.string_at(0)
    elif fault.action == "raise":
        raise RuntimeError(f"a fault that was asked for, at {fault.point}")
    elif fault.action == "sleep":
        time.sleep(fault.seconds)
    elif fault.action == "call":
        ctypes.PyDLL(None).usleep(ctypes.c_uint(round(fault.seconds * 1e6)))
