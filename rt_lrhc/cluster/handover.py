"""The hand-over between the client and one worker: write a request, take the answer."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from rt_lrhc.cluster.connection import WorkerLink
from rt_lrhc.cluster.controller import FloatArray, IntArray, Status
from rt_lrhc.cluster.fallback import Choice, Plans
from rt_lrhc.cluster.fields import PROFILE_WINDOW
from rt_lrhc.cluster.report import Ledger

# Plain integers: comparing an array with a member of an IntEnum takes five times as long (3 us against 0.6).
_SOLVED, _ITERATION_LIMIT, _INACTIVE = map(int, (Status.SOLVED, Status.ITERATION_LIMIT, Status.INACTIVE))


@dataclass(frozen=True)
class ClientState:
    """What the client knows of its N robots; changed in place, never replaced, so that views of its rows stay true.

    Attributes:
        plans: The last accepted plan of each.
        choice: What acts on each.
        status: `Status` of each one's latest answer, (N,).
        active: 1 where the controller drives the robot, else 0, (N,): as words, which is how it is sent.
        epoch: Resets of each, (N,).
        robots: `np.arange(N)`.
        cost: Cost of each one's last accepted plan, (N,); NaN before the first, and where none is reported.
    """

    plans: Plans
    choice: Choice
    status: IntArray
    active: IntArray
    epoch: IntArray
    robots: IntArray
    cost: FloatArray


class WorkerView:
    """One worker as the client sees it: what it owes, and views of its rows made once, because each costs 0.1 us.

    Attributes:
        link: Its doorbells and its memory.
        alive: Whether its process lives, as far as the client has noticed.
        explained: Whether the server has said how it ended, or there was no life to end.
        silent_ns: For how long it has owed an answer while this client was running, ns.
        killed_at: When this client killed it because it was silent for too long, s of the monotonic clock; else None.
        looked_at: Whether the present `collect` looks at it.
        request: Requests issued to it.
        outstanding: Whether it owes an answer: it is busy.
        active: 1 for each of its robots that its controller drives, else 0, (B,).
    """

    def __init__(self, link: WorkerLink, state: ClientState) -> None:
        self.link = link
        self.alive = link.pidfd >= 0
        self.explained = not self.alive
        self.silent_ns = 0
        self.killed_at: float | None = None
        self.looked_at = True
        self.request = int(link.request.request)
        # An earlier client may have left a request; it keeps the worker busy, and its epochs are not accepted.
        self.outstanding = self.alive and int(link.answer.done) != self.request
        self._collected = int(link.request.collected)
        rows, plans = link.rows, state.plans
        self.active: IntArray = state.active[rows]
        self._period = int(link.request.period)
        self._epoch = state.epoch[rows]
        self._in_force = state.choice.inputs[rows]
        self._plans = Plans(*(getattr(plans, name)[rows] for name in plans.__dataclass_fields__))
        request = link.request
        self._slots: list[tuple[Any, ...]] = [
            (
                request.states[slot],
                request.references[slot],
                request.inputs_in_force[slot],
                request.active[slot],
                request.reset_epoch[slot],
            )
            for slot in (0, 1)
        ]

    def __str__(self) -> str:
        rows = self.link.rows
        return f"worker {self.link.index} (process {self.link.pid}, robots {rows.start} to {rows.stop - 1})"

    @property
    def unexplained(self) -> bool:
        """Whether it has ended, and how is not known."""
        return not self.alive and not self.explained

    def write(
        self,
        period: int,
        time_ns: int,
        act_time_ns: int,
        deadline: int,
        states: FloatArray,
        references: FloatArray,
    ) -> None:
        """Write the next request: payload, then words. The bell follows."""
        begin = time.monotonic_ns()
        self.request += 1
        to_states, to_references, to_inputs, to_active, to_epoch = self._slots[self.request & 1]
        rows, words = self.link.rows, self.link.request
        to_states[...] = states[rows]
        to_references[...] = references[rows]
        to_inputs[...] = self._in_force
        to_active[...] = self.active
        to_epoch[...] = self._epoch
        words.incarnation[...] = self.link.incarnation
        words.period[...] = self._period = period
        words.time[...] = time_ns
        words.act_time[...] = act_time_ns
        words.deadline[...] = deadline
        words.asked[...] = asked = time.monotonic_ns()
        words.profile_write[self._collected % PROFILE_WINDOW] = asked - begin
        words.request[...] = self.request
        self.outstanding = True
        self.silent_ns = 0

    def end_life(self) -> None:
        """Note that its process has ended: it owes nothing any more."""
        self.alive = self.outstanding = False
        self.killed_at = None
        self.link.end_life()

    def begin_life(self, incarnation: int, pid: int, pidfd: int) -> None:
        """Note its next life, which is asked from the next trigger on."""
        self.link.begin_life(incarnation, pid, pidfd)
        self.alive = True
        self.explained = False
        # The next request goes to the slot that does not hold the last whole answer: later lives start from that.
        self.request += (self.request ^ int(self.link.answer.done)) & 1

    def is_hung(self, hang_limit_ns: int) -> bool:
        """Whether it has been silent for too long; an answer that was not looked at is none of its fault."""
        return self.silent_ns > hang_limit_ns and int(self.link.answer.done) != self.request

    def accept(self, time_ns: int, state: ClientState, ledger: Ledger) -> None:
        """Copy what is usable of the answer out of the shared memory; it acts from `time_ns` on."""
        begin = time.monotonic_ns()
        self._take(time_ns, state, ledger)
        words, entry = self.link.request, self._collected % PROFILE_WINDOW
        words.profile_queue[entry] = begin - int(self.link.answer.end[self.request & 1])
        words.profile_read[entry] = time.monotonic_ns() - begin
        self._collected += 1
        words.collected[...] = self._collected

    def _take(self, time_ns: int, state: ClientState, ledger: Ledger) -> None:
        answer, slot, rows = self.link.answer, self.request & 1, self.link.rows
        if answer.incarnation[slot] != self.link.incarnation or answer.period[slot] != self._period:
            return
        times = (int(answer.begin[slot]), int(answer.end[slot]), int(answer.thread_cpu[slot]))
        ledger.solves[self.link.index].append((self._period, *times))
        outcome = answer.status[slot]
        current = answer.reset_epoch[slot] == self._epoch
        plans = self._plans
        if np.count_nonzero(current & (outcome == _SOLVED)) == len(current):
            taken: Any = ...
            state.status[rows] = outcome
        else:
            usable = current & ((outcome == _SOLVED) | (outcome == _ITERATION_LIMIT))
            taken = usable
            np.copyto(state.status[rows], outcome, where=current)
            failed = current & ~usable & (outcome != _INACTIVE)
            ledger.count_failures(outcome[failed], state.robots[rows][failed])
        plans.inputs[taken] = answer.inputs[slot][taken]
        plans.valid[taken] = True
        plans.state_time[taken] = answer.state_time[slot]
        plans.stage_time[taken] = answer.stage_time[slot]
        plans.accepted_time[taken] = time_ns
        state.cost[rows][taken] = answer.cost[slot][taken]
