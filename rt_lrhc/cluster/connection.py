"""A client's connection to a cluster: the memory, the doorbells, the pidfds, and the news from the server."""

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from rt_lrhc.cluster.fields import CLIENT, ClientBlock, ClusterShape, ServerBlock, WorkerBlock, block_of
from rt_lrhc.cluster.protocol import close_descriptors, peer_credentials, receive_message
from rt_lrhc.errors import ClusterError, ClusterTimeout, LayoutError, NamespaceBusy
from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.doorbell import Doorbell
from rt_lrhc.shm.layout import inspect, require_equal
from rt_lrhc.shm.namespace import Namespace
from rt_lrhc.shm.segment import Segment

News = tuple[dict[str, Any], list[int]]
"""A message and the descriptors that came with it."""


@dataclass
class WorkerLink:
    """What a client holds of one worker.

    Attributes:
        index: Number of the worker.
        rows: Its robots.
        incarnation: Its present life, or the last one.
        pid: The process of that life.
        pidfd: Readable once that process has ended; -1 when that has been noticed, and before it is ready.
        go: Rung by the client.
        done: Rung by the worker.
        request: The client's block, which the client writes.
        answer: The worker's block.
        server: The server's block.
    """

    index: int
    rows: slice
    incarnation: int
    pid: int
    pidfd: int
    go: Doorbell
    done: Doorbell
    request: ClientBlock
    answer: WorkerBlock
    server: ServerBlock

    def end_life(self) -> None:
        """Note that its process has ended."""
        close_descriptors([self.pidfd] if self.pidfd >= 0 else [])
        self.pidfd = -1

    def begin_life(self, incarnation: int, pid: int, pidfd: int) -> None:
        """Note its next life, whose pidfd is then the link's."""
        self.end_life()
        self.incarnation, self.pid, self.pidfd = incarnation, pid, pidfd


class Connection:
    """Connects to a cluster as its one client, and checks what it is given.

    Attributes:
        namespace: The cluster's namespace.
        shape: Its controllers' spec, its robots and its workers.
        workers: One link a worker.
        control: The socket to the server; at its end the server is gone.
        lost: Whether the server is gone.
    """

    def __init__(self, namespace: str, timeout: float = 5.0) -> None:
        """Connect.

        Raises:
            ClusterError: If no cluster runs under this namespace, or it belongs to another user.
            NamespaceBusy: If another client drives it; it names the pid.
            LayoutError: If this program and the cluster do not mean the same by their fields.
            ClusterTimeout: If the server does not answer in `timeout` s.
        """
        self.namespace = namespace
        self.lost = False
        self.workers: list[WorkerLink] = []
        self._early_news: list[News] = []
        self._segment: Segment | None = None
        self._pid = os.getpid()
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connect(timeout)
            self.shape = self._receive_cluster(time.monotonic() + timeout)
            self.control.setblocking(False)
        except BaseException:
            self.close()
            raise

    def _connect(self, timeout: float) -> None:
        path = Namespace(self.namespace).socket_path
        self.control.settimeout(timeout)
        try:
            self.control.connect(str(path))
        except TimeoutError:
            raise ClusterTimeout(
                f"the cluster {self.namespace!r} did not let us in within {timeout} s"
            ) from None
        except OSError as error:
            raise ClusterError(
                f"no cluster runs under the namespace {self.namespace!r} ({path}: {error.strerror}); start a "
                "ControlClusterServer with this namespace first"
            ) from error
        uid = peer_credentials(self.control)[1]
        if uid != os.geteuid():
            raise ClusterError(
                f"the cluster {self.namespace!r} belongs to uid {uid}, this process is {os.geteuid()}"
            )

    def _receive_cluster(self, deadline: float) -> ClusterShape:
        shape: ClusterShape | None = None
        arrays: dict[str, dict[str, Any]] = {}
        while True:
            message, descriptors = self._receive(deadline)
            if message["type"] == "busy":
                raise NamespaceBusy(
                    f"the cluster {self.namespace!r} is driven by process {message['pid']}; one client at a time"
                )
            if message["type"] == "segment" and len(descriptors) == 1:
                self._segment = Segment.from_fd(descriptors[0], writable=True)
                _, layout = inspect(self._segment)
                shape = ClusterShape.from_layout(layout)
                require_equal(shape.layout(), layout)
                arrays = bind(self._segment, layout, writers=(CLIENT,))
            elif message["type"] == "worker" and len(descriptors) in (2, 3) and shape is not None:
                self._link(message, descriptors, shape, arrays)
            elif (
                message["type"] == "welcome" and shape is not None and len(self.workers) == shape.num_workers
            ):
                return shape
            elif message["type"] in ("worker_ended", "worker_ready"):
                self._early_news.append((message, descriptors))
            else:
                close_descriptors(descriptors)
                raise LayoutError(
                    f"the cluster {self.namespace!r} speaks another protocol: {message['type']!r}"
                )

    def _link(
        self,
        message: dict[str, Any],
        descriptors: list[int],
        shape: ClusterShape,
        arrays: dict[str, dict[str, Any]],
    ) -> None:
        index = int(message["worker"])
        go, done, pidfd = (*descriptors, -1)[:3]
        self.workers.append(
            WorkerLink(
                index,
                shape.rows[index],
                int(message["incarnation"]),
                int(message["pid"]),
                pidfd,
                Doorbell(go),
                Doorbell(done),
                block_of(ClientBlock, arrays, index),
                block_of(WorkerBlock, arrays, index),
                block_of(ServerBlock, arrays, index),
            )
        )

    def _receive(self, deadline: float) -> tuple[dict[str, Any], list[int]]:
        self.control.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            received = receive_message(self.control)
        except TimeoutError:
            raise ClusterTimeout(f"the server of cluster {self.namespace!r} does not answer") from None
        if received is None:
            raise ClusterError(f"the server of cluster {self.namespace!r} ended while we connected")
        return received

    def news(self) -> "list[News]":
        """Return the messages that came from the server since the last call, with their descriptors; never blocks.

        The descriptors are the caller's to close.
        """
        messages, self._early_news = self._early_news, []
        while not self.lost:
            try:
                received = receive_message(self.control)
            except BlockingIOError:
                break
            if received is None:
                self.lost = True
            else:
                messages.append(received)
        return messages

    def close(self) -> None:
        """Let go of everything; the server then takes another client. May be called twice."""
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)
        self.control.close()
        for worker in self.workers:
            worker.go.close()
            worker.done.close()
            worker.end_life()
        for _, descriptors in self._early_news:
            close_descriptors(descriptors)
        self._early_news.clear()
        self.workers.clear()  # with them go the views, which keep the memory mapped
        if self._segment is not None:
            self._segment.close()
