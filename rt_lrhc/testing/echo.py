"""A controller that tells what it was asked, and fails on command: for tests of everything around a solver."""

import ctypes
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence

import numpy as np

from rt_lrhc.cluster.controller import (
    BoolArray,
    ControllerSpec,
    IntArray,
    PlanBatch,
    RHController,
    SolveRequest,
    Status,
)
from rt_lrhc.errors import ConfigurationError

MARK = 100.0
"""With `marked_only`, a fault befalls only robots whose first reference is at least this."""

FAULTS = (
    "sleep",
    "raise",
    "nan",
    "out_of_bounds",
    "infeasible",
    "forget",
    "hang",
    "kill",
    "exit",
    "segfault",
)
"""What can be made to happen at a solve: rows get the fault where it concerns rows, else it befalls the process."""


class EchoController(RHController):
    """Plans `inputs[k] = clip(reference - state, -1, 1) * (1 - k / N)`: no solver, but all values can be foreseen.

    States, inputs and references are equally many. The planned states go straight to the reference. The figures echo
    the request: iterations count the row's solves since its reset, cost is the sum of its inputs in force, residual is
    `act_time - time`.

    Args:
        num_robots: Robots of the batch.
        num_inputs: Dimension of states, inputs and references.
        num_stages: Horizon.
        stage_duration: Length of a stage, s.
        compensates_delay: Whether stage 0 lies at `act_time`.
        solve_time: What each solve takes, asleep, s.
        faults: Which fault (see `FAULTS`) happens at which solves of this process, counted from 1.
        marked_only: Whether faults befall only robots that are marked, and workers that have one.

    Raises:
        ConfigurationError: If a fault is not known.
    """

    def __init__(
        self,
        num_robots: int,
        num_inputs: int = 1,
        num_stages: int = 5,
        stage_duration: float = 0.02,
        compensates_delay: bool = True,
        solve_time: float = 0.0,
        faults: Mapping[str, Sequence[int]] | None = None,
        marked_only: bool = False,
    ) -> None:
        self._faults = dict(faults or {})
        unknown = sorted(set(self._faults) - set(FAULTS))
        if unknown:
            raise ConfigurationError(f"unknown fault {unknown[0]!r}; known: {', '.join(FAULTS)}")
        self._solve_time = solve_time
        self._marked_only = marked_only
        self._solves = 0
        self._since_reset = np.zeros(num_robots, np.int64)
        self._fade = 1.0 - np.arange(num_stages) / num_stages
        self._progress = np.arange(num_stages + 1) / num_stages
        numbers = range(num_inputs)
        units = ("1",) * num_inputs
        self.spec = ControllerSpec(
            state_names=tuple(f"x{number}" for number in numbers),
            input_names=tuple(f"u{number}" for number in numbers),
            reference_names=tuple(f"r{number}" for number in numbers),
            state_units=units,
            input_units=units,
            reference_units=units,
            num_stages=num_stages,
            stage_duration=stage_duration,
            input_lower=(-1.0,) * num_inputs,
            input_upper=(1.0,) * num_inputs,
            safe_input=(0.0,) * num_inputs,
            backend="echo",
            compensates_delay=compensates_delay,
        )

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        """Write the plans of the active rows, and the faults that are due."""
        self._solves += 1
        untouched = plans.status.copy()
        if self._solve_time > 0.0:
            time.sleep(self._solve_time)
        active, states, references = request.active, request.states, request.references
        self._since_reset[request.reset] = 0
        self._since_reset[active] += 1
        first = np.clip(references - states, -1.0, 1.0)
        plans.inputs[active] = (first[:, None, :] * self._fade[:, None])[active]
        way = (references - states)[:, None, :] * self._progress[:, None]
        plans.states[active] = (states[:, None, :] + way)[active]
        plans.iterations[active] = self._since_reset[active]
        plans.cost[active] = request.inputs_in_force.sum(axis=1)[active]
        plans.residual[active] = request.act_time - request.time
        plans.status[active] = Status.SOLVED
        self._fail(active & (references[:, 0] >= MARK) if self._marked_only else active, plans, untouched)

    def _fail(self, rows: BoolArray, plans: PlanBatch, untouched: IntArray) -> None:
        """Let the faults of this solve happen to `rows`, whose status was `untouched` before it."""
        due = [fault for fault in FAULTS if self._solves in self._faults.get(fault, ())]
        if not rows.any():
            return
        for fault in due:
            if fault == "sleep":
                time.sleep(0.05)
            elif fault == "raise":
                raise RuntimeError(f"told to raise at solve {self._solves}")
            elif fault == "nan":
                plans.inputs[rows] = math.nan
            elif fault == "out_of_bounds":
                plans.inputs[rows] = 2.0
            elif fault == "infeasible":
                plans.status[rows] = Status.INFEASIBLE
            elif fault == "forget":
                plans.status[rows] = untouched[rows]
            elif fault == "hang":
                time.sleep(3600.0)
            elif fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault == "exit":
                os._exit(3)
            elif fault == "segfault":
                ctypes.string_at(0)
