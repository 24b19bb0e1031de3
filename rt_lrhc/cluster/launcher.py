"""The owner's handle of a control cluster: starts the server process, connects to it, ends it."""

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from dataclasses import asdict
from types import TracebackType
from typing import Any

import rt_lrhc.errors
from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.connection import Connection
from rt_lrhc.cluster.factories import FactoryName
from rt_lrhc.cluster.protocol import receive_message, send_message, seqpacket_pair
from rt_lrhc.errors import ClusterError, ClusterTimeout, EnvironmentStateError, SharedMemoryError
from rt_lrhc.processes import describe_exit
from rt_lrhc.shm import namespace as namespaces

STOP_LIMIT = 2.0
"""Seconds that a server has to end before it is killed."""

_BOOT_MARGIN = 2.0
_REPLACE_BACKOFF = 0.1
_REPLACE_BACKOFF_LIMIT = 10.0
_INSIDE = "RT_LRHC_INSIDE_CLUSTER"
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from rt_lrhc.cluster.server import main; main(int(sys.argv[1]))"
)
# One solver a core: BLAS reads these once, when it is loaded.
_SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ServerProcess:
    """A server process and the control socket whose end ends it.

    Attributes:
        namespace: The namespace, known once the server holds it.
    """

    def __init__(self) -> None:
        self.namespace: str | None = None
        self._owner_pid = os.getpid()
        self._control, theirs = seqpacket_pair()
        # From here on an interruption, at whatever line, closes the socket with this object, and so ends the server.
        with theirs:
            arguments = [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), json.dumps(sys.path)]
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_SINGLE_THREADED, _INSIDE: "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether it was ended by SIGKILL, which comes from outside; for one that seems to have ended just now."""
        _wait_for_end(self._process, 1.0)
        return self._process.poll() == -signal.SIGKILL

    def interrupt(self) -> None:
        """Tell it to end, without waiting: also a `boot()` that waits in another thread then fails."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def boot(self, request: dict[str, Any], timeout: float) -> None:
        """Send the boot request and wait until the cluster is ready.

        Raises:
            RealTimeError: What went wrong in the server, as the subclass that it was there.
            ClusterTimeout: If it does not answer in `timeout` s.
        """
        send_message(self._control, request)
        deadline = time.monotonic() + timeout
        while True:
            self._control.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                received = receive_message(self._control)
            except TimeoutError:
                raise ClusterTimeout(
                    f"the cluster server (process {self.pid}) was not ready after {timeout:.1f} s and did not say why: "
                    f"importing {request['factory']['module']!r} may hang; raise boot_timeout if it is slow"
                ) from None
            if received is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1.0)
                code = self._process.poll()
                how = "closed its control socket" if code is None else describe_exit(code)
                raise ClusterError(f"the cluster server {how} while it started; see its messages above")
            if self._handle(received[0]):
                return

    def _handle(self, message: dict[str, Any]) -> bool:
        """Take one message of a booting server; return whether the cluster is ready."""
        kind = message["type"]
        if kind == "namespace":
            self.namespace = message["namespace"]
        elif kind == "warning":
            warnings.warn(message["text"], RuntimeWarning, stacklevel=5)
        elif kind == "error":
            error = getattr(rt_lrhc.errors, message["error"], ClusterError)
            raise error(message["text"])
        return bool(kind == "ready")

    def stop(self) -> None:
        """End the server, orderly if it can, and remove what it could not. May be called twice; bounded."""
        if os.getpid() != self._owner_pid:  # a forked child has no say
            self._control.close()
            return
        if self._control.fileno() >= 0:
            # Also where a forked child of ours still holds the socket, which `close` alone would leave open.
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        try:
            _wait_for_end(self._process, STOP_LIMIT)
        finally:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)  # the workers die with it
                self._process.wait(STOP_LIMIT)
            if self._process.returncode != 0 and self.namespace is not None:
                with contextlib.suppress(SharedMemoryError):
                    namespaces.clean(self.namespace)
            self._control.close()


class Replacement(threading.Thread):
    """Makes, beside the control loop, a server in the place of one that has died, and a connection to it.

    Attributes:
        process: The new server; None while there is none.
        connection: Our connection to it; None if it could not be started.
        error: Why not.
    """

    def __init__(self, dead: ServerProcess, request: dict[str, Any], timeout: float) -> None:
        super().__init__(name="cluster server replacement", daemon=True)
        self._dead = dead
        self._request = request
        self._timeout = timeout
        self._cancelled = False
        self.process: ServerProcess | None = None
        self.connection: Connection | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Remove what the dead one left, start another, connect."""
        process: ServerProcess | None = None
        try:
            self._dead.stop()
            self.process = process = ServerProcess()
            if self._cancelled:
                raise ClusterError("the replacement was cancelled")
            process.boot(self._request, self._timeout)
            if process.namespace is None:
                raise ClusterError("the new server did not tell its namespace")
            self.connection = Connection(process.namespace)
        except Exception as error:
            self.error = error
            if process is not None:
                process.stop()

    def cancel(self) -> None:
        """End it, and what it has made; bounded."""
        self._cancelled = True
        if self.process is not None:
            self.process.interrupt()
        self.join(2.0 * STOP_LIMIT + 1.0)
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.stop()


class ControlClusterServer:
    """Starts, holds and ends a cluster of controllers; a context manager.

    The server itself is a process of its own. It ends, with its workers and all that has a name, when `close()` is
    called, when this object or this process goes, or when this process is killed.

    Example:
        >>> with ControlClusterServer(config) as server, server.connect() as client:  # doctest: +SKIP
        ...     client.trigger(0, 20_000_000, states, references)
    """

    def __init__(self, config: ClusterConfig) -> None:
        """Take the configuration; `start()` does the work.

        Raises:
            ControllerError: If another process could not find the factory.
        """
        self.config = config
        self._factory = FactoryName.of(config.factory)
        self._process: ServerProcess | None = None
        self._replacement: Replacement | None = None
        self._failed_replacements = 0
        self._replace_at = 0.0
        self._finalizer: weakref.finalize[..., ControlClusterServer] | None = None
        self._clients: weakref.WeakSet[ControlClusterClient] = weakref.WeakSet()

    def start(self) -> "ControlClusterServer":
        """Start the server and its workers, and wait until all are ready. Returns itself.

        Raises:
            ControllerError: If the factory cannot be found, raises, or returns something unusable.
            NamespaceBusy: If another live server holds the namespace.
            SharedMemoryError: If the memory is not there.
            ClusterTimeout: If the cluster is not ready within `boot_timeout`.
            ClusterError: If called inside a cluster's own process, or twice.
        """
        if _INSIDE in os.environ:
            raise ClusterError(
                "a cluster server is being started inside a cluster's own process: it imported a script that starts "
                "one at its top level; put that code under `if __name__ == '__main__':`"
            )
        if self._process is not None:
            raise ClusterError("this cluster server has been started already; make another one")
        self._start()
        return self

    def _start(self) -> None:
        give_up = time.monotonic() + self.config.boot_timeout
        while True:
            process = self._hold(ServerProcess())
            try:
                process.boot(self._boot_request(), self.config.boot_timeout + _BOOT_MARGIN)
                return
            except BaseException as error:
                self.close()
                # One that somebody kills is started again; the others end as they would the next time.
                if (
                    time.monotonic() >= give_up
                    or not isinstance(error, ClusterError)
                    or not process.was_killed
                ):
                    raise

    def _hold(self, process: ServerProcess) -> ServerProcess:
        """Take a server as ours: it ends with this object."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process, self._clients)
        return process

    def _boot_request(self) -> dict[str, Any]:
        config = self.config
        return {
            "type": "boot",
            "owner_pid": os.getpid(),
            "factory": asdict(self._factory),
            "controller_kwargs": dict(config.controller_kwargs),
            "num_robots": config.num_robots,
            "num_workers": config.workers,
            "control_period_ns": config.control_period_ns,
            "namespace": config.namespace,
            "boot_timeout": config.boot_timeout,
            "restarts": asdict(config.restarts),
        }

    def replace(self, client: ControlClusterClient) -> bool:
        """Replace a server that has died, in the background; for the control loop, while `client.lost`. Never blocks.

        The first call starts another server in a thread, a later one hands it to `client`, which goes on with it. A
        server that cannot be started is tried again, each time after a longer wait.

        Returns:
            Whether `client` has just been given the new server.
        """
        if self._finalizer is None or self._process is None:
            raise EnvironmentStateError("the cluster server is not running; call start() first")
        now = time.monotonic()
        if self._replacement is None:
            if now >= self._replace_at:
                timeout = self.config.boot_timeout + _BOOT_MARGIN
                self._replacement = Replacement(self._process, self._boot_request(), timeout)
                self._replacement.start()
            return False
        if self._replacement.is_alive():
            return False
        replacement, self._replacement = self._replacement, None
        if replacement.process is None or replacement.connection is None:
            self._failed_replacements += 1
            wait = min(_REPLACE_BACKOFF * 2.0**self._failed_replacements, _REPLACE_BACKOFF_LIMIT)
            self._replace_at = now + wait
            warnings.warn(
                f"the cluster server died and could not be replaced; the next attempt is in {wait:.1f} s: "
                f"{replacement.error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._failed_replacements = 0
        self._hold(replacement.process)
        client.adopt(replacement.connection)
        return True

    def connect(self) -> ControlClusterClient:
        """Return a client of this cluster, with the settings of the configuration. It is closed with this server.

        A server that somebody has killed since its start is started again.

        Raises:
            EnvironmentStateError: Before `start()` and after `close()`.
            NamespaceBusy: If another live client drives the cluster.
        """
        give_up = time.monotonic() + self.config.boot_timeout
        while True:
            try:
                return self._connect()
            except ClusterError:
                if time.monotonic() >= give_up or self._process is None or not self._process.was_killed:
                    raise
                self.close()
                self._start()

    def _connect(self) -> ControlClusterClient:
        client = ControlClusterClient.attach(
            self.namespace,
            nominal_age=self.config.nominal_age,
            fallback=self.config.fallback,
            hang_limit=self.config.hang_limit,
            grace=math.inf,
        )
        self._clients.add(client)
        return client

    @property
    def namespace(self) -> str:
        """The name under which others may attach."""
        name = None if self._finalizer is None or self._process is None else self._process.namespace
        if name is None:
            raise EnvironmentStateError("the cluster server is not running; call start() first")
        return name

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise EnvironmentStateError("the cluster server is not running; call start() first")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.is_running

    def close(self) -> None:
        """End the cluster and its clients. May be called twice and at any moment; bounded."""
        if self._replacement is not None:
            self._replacement.cancel()
            self._replacement = None
        if self._process is not None:
            _end(self._process, self._clients)
        if self._finalizer is not None:
            # Only now: an interruption above leaves it to the end of the program.
            self._finalizer.detach()
            self._finalizer = None

    def __enter__(self) -> "ControlClusterServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(process: ServerProcess, clients: "weakref.WeakSet[ControlClusterClient]") -> None:
    """End a server and the clients that were made by its handle."""
    try:
        for client in list(clients):
            client.close()
    finally:
        process.stop()


def _wait_for_end(process: "subprocess.Popen[bytes]", timeout: float) -> None:
    """Wait up to `timeout` s for a child's end, without the sleeps of `Popen.wait`."""
    if process.poll() is not None:
        return
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(timeout * 1000.0)
    finally:
        os.close(pidfd)
