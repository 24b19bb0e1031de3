"""The server process: makes the segment, forks the workers and watches over them, until its owner is gone.

A fresh interpreter with one thread, started by `launcher.py`; nobody imports this module for anything else. It leads a
session of its own, so that Ctrl-C in a terminal reaches its owner alone. It ends when the control socket to its owner
ends, in an orderly way or not, or when the owner's process does.
"""

import contextlib
import fcntl
import math
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rt_lrhc.cluster.children import ChildProcess
from rt_lrhc.cluster.clients import ClientDoor
from rt_lrhc.cluster.factories import Factory, FactoryName, build
from rt_lrhc.cluster.fields import ClusterShape, spec_from_json, spec_to_json
from rt_lrhc.cluster.protocol import receive_message, send_message
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.cluster.workers import WorkerSlot
from rt_lrhc.errors import ClusterError, ClusterTimeout, ControllerError, RealTimeError
from rt_lrhc.processes import TEXT_LIMIT
from rt_lrhc.shm.header import SegmentState, write_state
from rt_lrhc.shm.layout import create
from rt_lrhc.shm.namespace import Namespace, NamespaceLock
from rt_lrhc.shm.segment import Segment

STOP_GRACE = 1.0
"""Seconds that workers have to close their controllers before they are killed."""
_TURN = 1.0
_SHORTEST_TURN = 1e-3
_PROBES = 5


class _Stop(BaseException):
    """The owner is gone, or a signal told the server to end."""


class Server:
    """The life of one cluster: boot, supervision, end.

    Args:
        control: Socket to the owner.
        request: The owner's wishes, as `launcher.py` sends them.
    """

    def __init__(self, control: socket.socket, request: dict[str, Any]) -> None:
        self._control = control
        self._owner_pid = int(request["owner_pid"])
        self._factory_name = FactoryName(**request["factory"])
        self._kwargs: dict[str, Any] = request["controller_kwargs"]
        self._num_robots = int(request["num_robots"])
        self._num_workers = int(request["num_workers"])
        self._control_period_ns = int(request["control_period_ns"])
        self._wanted_namespace: str | None = request["namespace"]
        self._boot_timeout = float(request["boot_timeout"])
        self._boot_deadline = time.monotonic() + self._boot_timeout
        self._restarts = RestartPolicy(**request["restarts"])
        self._selector = selectors.DefaultSelector()
        self._owner_pidfd = -1
        self._lock: NamespaceLock | None = None
        self._segment: Segment | None = None
        self._door: ClientDoor | None = None
        self._workers: list[WorkerSlot] = []

    def run(self) -> None:
        """Boot, then supervise until the owner is gone; whatever happens, leave nothing behind."""
        try:
            try:
                self._boot()
            except RealTimeError as error:
                self._tell_owner({"type": "error", "error": type(error).__name__, "text": str(error)})
                return
            except Exception as error:
                text = f"the cluster server failed: {error}\n{traceback.format_exc()[-TEXT_LIMIT:]}"
                self._tell_owner({"type": "error", "error": ClusterError.__name__, "text": text})
                return
            while True:
                self._supervise(_TURN)
        except _Stop:
            pass
        finally:
            self._shut_down()

    def _boot(self) -> None:
        self._watch_owner()
        if self._wanted_namespace is None:
            self._lock = NamespaceLock.acquire_free()
        else:
            self._lock = NamespaceLock.acquire(Namespace(self._wanted_namespace))
            self._lock.remove_leftovers()
        # Told before anything exists there: whoever kills this process knows what to clean.
        self._tell_owner({"type": "namespace", "namespace": self._lock.namespace.name})
        factory = self._import_factory()
        shape = ClusterShape(
            spec_from_json(self._probe(factory)), self._num_robots, self._num_workers, self._control_period_ns
        )
        layout = shape.layout()
        self._segment = create(self._lock.namespace.segment_name, layout)
        job = partial(build, self._factory_name, factory, kwargs=self._kwargs)
        self._workers = [
            WorkerSlot(
                index, rows, shape.spec, self._segment, layout, job, self._boot_timeout, self._restarts
            )
            for index, rows in enumerate(shape.rows)
        ]
        for worker in self._workers:
            self._start(worker)
        while not all(worker.ready for worker in self._workers):
            late = [str(worker.index) for worker in self._workers if not worker.ready]
            self._boot_turn(f"worker {', '.join(late)} did not build its controllers")
        self._door = ClientDoor(
            self._lock.namespace.socket_path, self._segment, self._workers, self._selector
        )
        write_state(self._segment, SegmentState.READY)
        self._tell_owner({"type": "ready"})

    def _watch_owner(self) -> None:
        # The control socket tells of an orderly end at once; the pidfd also of one whose socket a forked child keeps.
        if os.getppid() != self._owner_pid:
            raise _Stop
        self._owner_pidfd = os.pidfd_open(self._owner_pid)
        self._watch(self._owner_pidfd, self._owner_gone)
        self._control.setblocking(False)
        self._watch(self._control.fileno(), self._read_owner)

    def _read_owner(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if receive_message(self._control) is None:
                self._owner_gone()

    def _owner_gone(self) -> None:
        raise _Stop

    def _import_factory(self) -> Factory:
        with _killed_by_owner(self._control):
            factory = self._factory_name.resolve()
        if "torch" in sys.modules:
            text = (
                f"the module of controller factory {str(self._factory_name)!r} imports torch, which slows down the "
                "start and makes each worker larger: keep controllers in a module that does not"
            )
            self._tell_owner({"type": "warning", "text": text})
        return factory

    def _probe(self, factory: Factory) -> dict[str, Any]:
        """Learn the controllers' spec in a child, so that a crash while building costs nothing but the child."""
        for _ in range(_PROBES):
            spec = self._try_probe(factory)
            if spec is not None:
                return spec
        raise ControllerError(
            f"controller factory {str(self._factory_name)!r}: the process that built one controller to learn its spec "
            f"was killed by SIGKILL {_PROBES} times; memory may have run out"
        )

    def _try_probe(self, factory: Factory) -> dict[str, Any] | None:
        """Probe once; None where somebody killed the probe."""

        def job(report: socket.socket) -> None:
            try:
                spec = build(self._factory_name, factory, 1, self._kwargs).spec
                send_message(report, {"type": "spec", "spec": spec_to_json(spec)})
            except RealTimeError as error:
                send_message(report, {"type": "error", "text": str(error)})

        probe = ChildProcess(job, self._private_descriptors())
        try:
            self._watch(probe.pidfd, lambda: None)
            self._watch(probe.report.fileno(), lambda: None)
            self._watch(probe.stderr, lambda: self._read_stderr(probe))
            while True:
                has_ended = (
                    probe.exit_code() is not None
                )  # asked first: a report may come just before the end
                message = probe.next_report()
                if message is not None and message["type"] == "error":
                    raise ControllerError(message["text"])
                if message is not None:
                    spec: dict[str, Any] = message["spec"]
                    return spec
                if has_ended:
                    probe.read_stderr()
                    if probe.exit_code() == -signal.SIGKILL:
                        return None
                    raise ControllerError(
                        f"controller factory {str(self._factory_name)!r}: the process that built one controller to "
                        f"learn its spec {probe.exit_words()}"
                    )
                self._boot_turn(
                    f"controller factory {str(self._factory_name)!r} did not build one controller"
                )
        finally:
            self._unwatch(probe.pidfd, probe.report.fileno(), probe.stderr)
            probe.close()

    def _start(self, worker: WorkerSlot) -> None:
        """Give a worker its next life. The same at boot and later."""
        child = worker.start(self._private_descriptors())
        self._watch(child.pidfd, lambda: self._worker_ended(worker))
        self._watch(child.report.fileno(), lambda: self._worker_reported(worker))
        self._watch(child.stderr, lambda: self._read_stderr(child))

    def _worker_reported(self, worker: WorkerSlot) -> None:
        fault = worker.take_report()
        self._unwatch(worker.child.report.fileno())
        if fault is not None and self._door is None:
            raise ControllerError(fault)
        if worker.ready and self._door is not None:
            self._door.tell_of(worker)

    def _worker_ended(self, worker: WorkerSlot) -> None:
        child = worker.child
        self._unwatch(child.pidfd, child.report.fileno(), child.stderr)
        fault = None if worker.ready else worker.take_report()
        worker.ended()
        if self._door is not None:
            self._door.tell_of(worker)
        elif not worker.may_boot_again:
            raise ControllerError(
                fault
                or f"controller factory {str(self._factory_name)!r}: worker {worker.index}, which built its "
                f"controllers, {child.exit_words()}"
            )

    def _read_stderr(self, child: ChildProcess) -> None:
        if not child.read_stderr():
            self._unwatch(child.stderr)

    def _boot_turn(self, what: str) -> None:
        """Handle what happens next, within the boot limit."""
        left = self._boot_deadline - time.monotonic()
        if left <= 0.0:
            raise ClusterTimeout(f"{what} within boot_timeout; raise it if that is right")
        self._supervise(min(left, _TURN))

    def _supervise(self, timeout: float) -> None:
        """Start the lives that are due, end those that boot for too long, and handle what happens next."""
        for worker in self._workers:
            worker.end_overdue_boot()
            if worker.is_due:
                self._start(worker)
        if self._door is not None:
            self._door.tell()
        wakes = [worker.wakes_at for worker in self._workers]
        first = min((at for at in wakes if at is not None), default=math.inf)
        self._turn(min(timeout, max(first - time.monotonic(), _SHORTEST_TURN)))

    def _turn(self, timeout: float) -> None:
        """Wait up to `timeout` s for something to happen, and handle it."""
        for key, _ in self._selector.select(timeout):
            # An earlier callback of this turn may have put it away.
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _unwatch(self, *descriptors: int) -> None:
        for fd in descriptors:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(fd)

    def _private_descriptors(self) -> Iterator[int]:
        """What no child may keep: it would hold the lock, or keep the owner's end of a socket alive."""
        yield self._control.fileno()
        yield self._owner_pidfd
        if self._lock is not None:
            yield self._lock.fd
        if isinstance(self._selector, selectors.EpollSelector):
            yield self._selector.fileno()
        if self._door is not None:
            yield from self._door.descriptors
        for worker in self._workers:
            yield from worker.descriptors

    def _tell_owner(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            send_message(self._control, message)

    def _shut_down(self) -> None:
        """Stop the workers, in order if they can, and remove everything that has a name."""
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        if self._segment is not None:
            write_state(self._segment, SegmentState.CLOSING)
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + STOP_GRACE
        for worker in self._workers:
            worker.close(deadline)
        if self._door is not None:
            self._door.close()
        if self._segment is not None:
            self._segment.unlink()
            self._segment.close()
        if self._lock is not None:
            self._lock.release()
        self._selector.close()


@contextlib.contextmanager
def _killed_by_owner(control: socket.socket) -> Iterator[None]:
    """Let the kernel kill this process if the owner's socket ends, while it runs code that cannot look itself.

    Nothing with a name exists yet but the lock, which the kernel drops; the owner sends nothing in this time.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        with contextlib.suppress(BlockingIOError):  # it may have ended before the kernel was told
            if receive_message(control) is None:
                raise _Stop
        yield
    finally:
        fcntl.fcntl(control, fcntl.F_SETFL, flags)


def _stop_on_signal(*_: object) -> None:
    raise _Stop


def main(control_fd: int) -> None:
    """Run the server on the control socket that `launcher.py` handed over."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, _stop_on_signal)
    with socket.socket(fileno=control_fd) as control:
        control.set_inheritable(False)
        control.settimeout(10.0)
        with contextlib.suppress(_Stop, TimeoutError):
            received = receive_message(control)
            if received is not None:
                Server(control, received[0]).run()
