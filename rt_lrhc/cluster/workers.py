"""One worker as the server sees it: its rows, its doorbells, its words, and the process that is its present life."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from rt_lrhc.cluster.children import ChildProcess
from rt_lrhc.cluster.controller import ControllerSpec, RHController
from rt_lrhc.cluster.fields import SERVER, WORKER, ClientBlock, ServerBlock, WorkerBlock, block_of
from rt_lrhc.cluster.protocol import Lifecycle, send_message
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.cluster.worker import Worker, WorkerMemory
from rt_lrhc.errors import ControllerError, RealTimeError
from rt_lrhc.processes import describe_exit
from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.doorbell import Doorbell
from rt_lrhc.shm.header import process_start_time
from rt_lrhc.shm.layout import Layout
from rt_lrhc.shm.segment import Segment

Build = Callable[[int], RHController]

INCARNATION_VARIABLE = "RT_LRHC_INCARNATION"
"""In the environment of a worker: which life of its place it is, from 1. Read by the fault kit."""

_ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


class WorkerSlot:
    """The place of a worker. Memory and doorbells belong to the place, so that a new life changes nothing for a client.

    Args:
        index: Number of the worker.
        rows: Its robots.
        spec: What the controllers must be, as the probe found.
        segment: The cluster's segment.
        layout: Its layout.
        build: Builds the controllers of so many robots.
        boot_timeout: Longest time from the fork to ready, s.
        policy: When it is started again.
    """

    def __init__(
        self,
        index: int,
        rows: slice,
        spec: ControllerSpec,
        segment: Segment,
        layout: Layout,
        build: Build,
        boot_timeout: float,
        policy: RestartPolicy,
    ) -> None:
        self.index = index
        self.rows = rows
        self.go = Doorbell.create()
        self.done = Doorbell.create()
        self.ready = False
        self._fault: str | None = None
        self._failed_lives = 0
        self._next_life_at: float | None = None
        self._boot_timeout = boot_timeout
        self._boot_deadline = 0.0
        self._done_at_start = 0
        self._policy = policy
        self._child: ChildProcess | None = None
        self._spec = spec
        self._build = build
        arrays = bind(segment, layout, writers=(SERVER,))
        self._words = block_of(ServerBlock, arrays, index)
        arrays = bind(segment, layout, writers=(WORKER,))
        self._memory = WorkerMemory(
            block_of(ClientBlock, arrays, index),
            block_of(WorkerBlock, arrays, index),
            block_of(ServerBlock, arrays, index),
        )

    @property
    def child(self) -> ChildProcess:
        """The process of its present life, or of the last one; there is one once `start` was called."""
        assert self._child is not None
        return self._child

    @property
    def incarnation(self) -> int:
        """The number of its present life, from 1."""
        return int(self._words.incarnation)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the server holds for this worker, and other workers must not keep."""
        own = (self.go.fd, self.done.fd)
        return own if self._child is None else own + self._child.descriptors

    @property
    def is_due(self) -> bool:
        """Whether its next life shall begin now."""
        return self._next_life_at is not None and time.monotonic() >= self._next_life_at

    @property
    def wakes_at(self) -> float | None:
        """When the server has to look at it again, s of the monotonic clock; None for whenever."""
        if self._next_life_at is not None:
            return self._next_life_at
        return self._boot_deadline if self._words.lifecycle == Lifecycle.BOOTING else None

    def start(self, close_in_child: Iterable[int]) -> ChildProcess:
        """Fork its next life and return it."""
        keep = (self.go.fd, self.done.fd)
        if self._child is not None:
            self._child.close()
        # Asked for only now: the numbers that were closed are given out again.
        close_in_child = [fd for fd in close_in_child if fd not in keep]
        self._next_life_at = None
        self._fault = None
        self._boot_deadline = time.monotonic() + self._boot_timeout
        self._done_at_start = int(self._memory.worker.done)
        words = self._words
        words.incarnation[...] += 1
        words.restarts[...] = words.incarnation - 1
        words.lifecycle[...] = Lifecycle.BOOTING
        self.ready = False
        self._child = ChildProcess(self._live, close_in_child)
        words.pid[...] = self.child.pid
        words.start_time[...] = process_start_time(self.child.pid) or 0
        return self.child

    def take_report(self) -> str | None:
        """Read what a booting life reports; return what went wrong, or None."""
        message = self.child.next_report()
        if message is None:
            return None
        if message["type"] == "error":
            self._fault = str(message["text"])
            return self._fault
        self.ready = True
        self._words.lifecycle[...] = Lifecycle.READY
        return None

    def ended(self) -> None:
        """Write down the end of its present life, and when the next one begins, if it does."""
        self.child.read_stderr()
        self._words.last_exit[...] = self.child.exit_code() or 0
        served = int(self._memory.worker.done) != self._done_at_start
        self._failed_lives = 0 if served else self._failed_lives + 1
        wait = self._policy.wait(self._failed_lives)
        self._next_life_at = None if wait is None else time.monotonic() + wait
        self._words.lifecycle[...] = Lifecycle.QUARANTINED if wait is None else Lifecycle.DEAD
        self.ready = False

    @property
    def may_boot_again(self) -> bool:
        """Whether a life that ended while the cluster started was ended from outside, and may be tried again."""
        return (
            self._fault is None
            and self.child.exit_code() in _ENDED_FROM_OUTSIDE
            and self._next_life_at is not None
        )

    def end_overdue_boot(self) -> None:
        """Kill a life that has not become ready in time."""
        if self._words.lifecycle == Lifecycle.BOOTING and time.monotonic() >= self._boot_deadline:
            self._fault = f"did not build its controllers within {self._boot_timeout} s"
            self.child.order_kill()

    def introduction(self) -> dict[str, Any]:
        """What a client is told with the descriptors `go`, `done` and, where it is ready, `pidfd`."""
        return self._about("worker")

    def announcement(self) -> dict[str, Any]:
        """What a client is told, with the descriptor `pidfd`, when a later life is ready."""
        return self._about("worker_ready")

    def _about(self, kind: str) -> dict[str, Any]:
        return {
            "type": kind,
            "worker": self.index,
            "incarnation": self.incarnation,
            "pid": self.child.pid,
        }

    def obituary(self) -> dict[str, Any] | None:
        """What a client is told about the end of the present life; None while it lives."""
        if self._words.lifecycle not in (Lifecycle.DEAD, Lifecycle.QUARANTINED):
            return None
        how = describe_exit(int(self._words.last_exit))
        return {
            "type": "worker_ended",
            "worker": self.index,
            "incarnation": self.incarnation,
            "pid": self.child.pid,
            "how": how if self._fault is None else f"{how}: {self._fault.strip().splitlines()[-1]}",
            "stderr": self.child.stderr_tail,
            "quarantined": bool(self._words.lifecycle == Lifecycle.QUARANTINED),
        }

    def stop(self) -> None:
        """Ask it to end; `close` waits for that."""
        self._words.lifecycle[...] = Lifecycle.STOPPING
        self.go.ring()

    def close(self, deadline: float) -> None:
        """Wait for its end until `deadline`, s of the monotonic clock, then kill it; close what belongs to it."""
        if self._child is not None:
            self._child.wait(deadline - time.monotonic())
            self._child.read_stderr()
            self._child.close()
        self.go.close()
        self.done.close()

    def _live(self, report: socket.socket) -> None:
        """Be the worker (in the child)."""
        os.environ[INCARNATION_VARIABLE] = str(self.incarnation)
        try:
            controller = self._build(self.rows.stop - self.rows.start)
            if controller.spec != self._spec:
                raise ControllerError(
                    "the controllers of a worker must have the spec that the probe of one robot had, expected "
                    f"{self._spec}, got {controller.spec}"
                )
        except RealTimeError as error:
            send_message(report, {"type": "error", "text": str(error)})
            return
        worker = Worker(controller, self._memory, self.go, self.done, self.incarnation)
        send_message(report, {"type": "ready"})
        report.close()
        worker.run()
