"""A worker: hosts a batch of controllers, answers one request after the other, vouches for every plan it publishes."""

import gc
import math
import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from rt_lrhc.cluster.complaints import Complaints
from rt_lrhc.cluster.controller import (
    BoolArray,
    ControllerSpec,
    FloatArray,
    IntArray,
    PlanBatch,
    RHController,
    SolveRequest,
    Status,
)
from rt_lrhc.cluster.fields import NO_DEADLINE, PROFILE_WINDOW, ClientBlock, ServerBlock, WorkerBlock
from rt_lrhc.cluster.protocol import Lifecycle
from rt_lrhc.shm.doorbell import Doorbell

BOUND_TOLERANCE = 1e-6
"""By how much an input may exceed a bound: times the range of the input, or the bound where the range is infinite."""
_IDLE_TIMEOUT = 1.0

# Plain integers: an array takes five times as long over a member of an IntEnum (3 us against 0.6).
_NONE, _SOLVED, _ITERATION_LIMIT = map(int, (Status.NONE, Status.SOLVED, Status.ITERATION_LIMIT))
_EXCEPTION, _NONFINITE_INPUT, _INACTIVE = map(
    int, (Status.EXCEPTION, Status.NONFINITE_INPUT, Status.INACTIVE)
)
_LAST_STATUS = max(map(int, Status))


@dataclass(frozen=True)
class WorkerMemory:
    """One worker's part of the segment: its own block is writable, the others are not."""

    client: ClientBlock
    worker: WorkerBlock
    server: ServerBlock


@runtime_checkable
class FaultPoints(Protocol):
    """What a controller has that wants to know where its worker is: the fault kit's (`rt_lrhc/testing/faults.py`)."""

    def reach(self, point: str) -> None:
        """Be told that the worker is at `point`: `"before_done"` or `"after_done"`."""


class PlanCheck:
    """Finds the rows whose plan must not be used, whatever their controller says."""

    def __init__(self, spec: ControllerSpec) -> None:
        lower, upper = np.array(spec.input_lower), np.array(spec.input_upper)
        with np.errstate(invalid="ignore"):
            scale = upper - lower
        for bound, sign in ((lower, -1.0), (upper, 1.0)):
            slack = np.where(np.isfinite(scale), scale, np.where(np.isfinite(bound), np.abs(bound), 0.0))
            bound += sign * BOUND_TOLERANCE * slack
        self._lower, self._upper = lower, upper

    def label(self, plans: PlanBatch, rows: BoolArray) -> None:
        """Correct the status of those of `rows`, (B,), whose plan is not finite or out of bounds."""
        # Nearly always all is well, which one pass over the batch tells (a NaN fails every comparison).
        inputs, states = plans.inputs, plans.states
        if (inputs >= self._lower).all() and (inputs <= self._upper).all() and np.isfinite(states).all():
            return
        finite = np.isfinite(inputs).all(axis=(1, 2)) & np.isfinite(states).all(axis=(1, 2))
        with np.errstate(invalid="ignore"):
            inside = ((inputs >= self._lower) & (inputs <= self._upper)).all(axis=(1, 2))
        plans.status[rows & finite & ~inside] = Status.OUT_OF_BOUNDS
        plans.status[rows & ~finite] = Status.NONFINITE_PLAN


class Worker:
    """Answers the client's requests until the server says stop.

    Args:
        controller: The controllers of this worker's robots.
        memory: What it shares with client and server.
        go: Rung by the client (a request) and by the server (stop).
        done: Rung once for each answer.
        incarnation: The life that this process is; requests for another are ignored.
    """

    def __init__(
        self, controller: RHController, memory: WorkerMemory, go: Doorbell, done: Doorbell, incarnation: int
    ) -> None:
        self._controller = controller
        self._memory = memory
        self._go = go
        self._done = done
        self._incarnation = incarnation
        self._check = PlanCheck(controller.spec)
        self._complaints = Complaints()
        self._points = controller if isinstance(controller, FaultPoints) else None
        # The epoch of each row's last solve; none yet, so that the first one counts as reset.
        self._solved_epoch: IntArray = np.full(memory.client.active.shape[1], -1, np.int64)
        # Views made once: a controller may keep pointers into both slots.
        self._plans = [
            PlanBatch(
                memory.worker.inputs[slot],
                memory.worker.states[slot],
                memory.worker.status[slot],
                memory.worker.iterations[slot],
                memory.worker.cost[slot],
                memory.worker.residual[slot],
                memory.worker.solve_time[slot],
            )
            for slot in (0, 1)
        ]
        if memory.worker.done:
            self._restore(int(memory.worker.done) & 1)

    def _restore(self, slot: int) -> None:
        """Let the controller start from the last whole answer of an earlier life."""
        plans, worker = self._plans[slot], self._memory.worker
        usable = (plans.status == _SOLVED) | (plans.status == _ITERATION_LIMIT)
        # The check again: whatever killed that life may have written here.
        checked = PlanBatch(plans.inputs, plans.states, plans.status.copy(), *_figures(plans))
        self._check.label(checked, usable)
        usable &= checked.status == plans.status
        if not np.count_nonzero(usable):
            return
        try:
            taken = self._controller.restore(plans, usable, int(worker.stage_time[slot]) * 1e-9) & usable
        except Exception:
            self._complaints.exception("a controller raised in restore(); its robots start cold")
            return
        self._solved_epoch[taken] = worker.reset_epoch[slot][taken]

    def run(self) -> None:
        """Answer requests until the server's word is `STOPPING`, then close the controller."""
        gc.collect()
        gc.freeze()
        while self._memory.server.lifecycle != Lifecycle.STOPPING:
            # Looks also when nothing was rung: a ring that got lost costs no more than that time.
            self._go.wait(_IDLE_TIMEOUT)
            self._go.drain()
            self._answer()
        self._controller.close()

    def _answer(self) -> None:
        """Answer the present request, if it is new and for this life."""
        client, worker = self._memory.client, self._memory.worker
        request = int(client.request)
        if request == worker.done or client.incarnation != self._incarnation:
            return
        slot = request & 1
        begin, cpu = time.monotonic_ns(), time.thread_time_ns()
        worker.begun[...] = request
        self._solve(slot)
        worker.incarnation[slot] = self._incarnation
        worker.period[slot] = client.period
        worker.state_time[slot] = client.time
        compensates = self._controller.spec.compensates_delay
        worker.stage_time[slot] = client.act_time if compensates else client.time
        worker.begin[slot] = begin
        worker.thread_cpu[slot] = cpu = time.thread_time_ns() - cpu
        worker.end[slot] = end = time.monotonic_ns()
        self._profile(slot, begin - int(client.asked), end - begin, cpu)
        if self._points is not None:
            self._points.reach("before_done")
        worker.done[...] = request
        self._done.ring()
        if self._points is not None:
            self._points.reach("after_done")

    def _profile(self, slot: int, wake: int, wall: int, cpu: int) -> None:
        """Write down one answer for readers; times in ns."""
        worker, plans = self._memory.worker, self._plans[slot]
        count = int(worker.answered)
        entry = count % PROFILE_WINDOW
        worker.profile_wake[entry] = wake
        worker.profile_wall[entry] = wall
        worker.profile_cpu[entry] = cpu
        worker.profile_solve[entry] = plans.solve_time
        worker.profile_iterations[entry] = plans.iterations
        worker.profile_cost[entry] = plans.cost
        worker.profile_residual[entry] = plans.residual
        status = plans.status
        usable = np.count_nonzero(status == _SOLVED)
        if usable < len(status):
            excused = np.count_nonzero((status == _ITERATION_LIMIT) | (status == _INACTIVE))
            worker.failures[...] += len(status) - usable - excused
        worker.answered[...] = count + 1

    def _solve(self, slot: int) -> None:
        """Solve one slot's request into its plans, each row with a status that holds."""
        client, plans = self._memory.client, self._plans[slot]
        states, references = client.states[slot], client.references[slot]
        in_force, epoch = client.inputs_in_force[slot], client.reset_epoch[slot]
        driven = client.active[slot] != 0
        finite = _finite_rows(states, references, in_force)
        active = driven & finite
        request = SolveRequest(
            states=states,
            references=references,
            inputs_in_force=in_force,
            active=active,
            reset=epoch != self._solved_epoch,
            time=int(client.time) * 1e-9,
            act_time=int(client.act_time) * 1e-9,
            deadline=math.inf if client.deadline == NO_DEADLINE else int(client.deadline) * 1e-9,
        )
        # A row that its controller forgets must not pass for what it was two requests ago.
        plans.status.fill(_NONE)
        plans.iterations.fill(0)
        for figures in (plans.cost, plans.residual, plans.solve_time):
            figures.fill(math.nan)
        if np.count_nonzero(active):
            try:
                self._controller.solve(request, plans)
                self._solved_epoch[active] = epoch[active]
                self._vouch(plans, active)
            except Exception:
                plans.status.fill(_EXCEPTION)
                self._complaints.exception("a controller raised; its robots run on their fallback")
        if np.count_nonzero(active) < len(active):
            plans.status[~finite] = _NONFINITE_INPUT
            plans.status[~driven] = _INACTIVE
        self._memory.worker.reset_epoch[slot] = epoch

    def _vouch(self, plans: PlanBatch, active: BoolArray) -> None:
        status = plans.status
        unknown = (status < 0) | (status > _LAST_STATUS)
        if np.count_nonzero(unknown):
            self._complaints.message(
                f"a controller wrote the status {status[unknown][0]}, which is none of Status"
            )
            status[unknown] = _EXCEPTION
        usable = (status == _SOLVED) | (status == _ITERATION_LIMIT)
        self._check.label(plans, active & usable)


def _figures(plans: PlanBatch) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    return plans.iterations, plans.cost, plans.residual, plans.solve_time


def _finite_rows(*arrays: FloatArray) -> BoolArray:
    """Return which rows are finite in all of `arrays`, (B,)."""
    rows: BoolArray = np.ones(len(arrays[0]), np.bool_)
    for array in arrays:
        np.logical_and(rows, np.isfinite(array).all(axis=1), out=rows)
    return rows
