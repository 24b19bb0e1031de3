"""The server's door: one client at a time, of this user, gets the memory, the doorbells and the pidfds."""

import contextlib
import os
import selectors
import socket
from collections.abc import Sequence
from pathlib import Path

from rt_lrhc.cluster.protocol import close_descriptors, peer_credentials, receive_message, send_message
from rt_lrhc.cluster.workers import WorkerSlot
from rt_lrhc.errors import ClusterError
from rt_lrhc.shm.segment import Segment


class ClientDoor:
    """Listens on the namespace's socket and keeps the one client.

    Args:
        path: Where to listen.
        segment: The cluster's memory.
        workers: The workers to introduce.
        selector: Tells when somebody is at the door; its keys carry callbacks.
    """

    def __init__(
        self, path: Path, segment: Segment, workers: Sequence[WorkerSlot], selector: selectors.BaseSelector
    ) -> None:
        self._path = path
        self._segment = segment
        self._workers = workers
        self._selector = selector
        self._client: socket.socket | None = None
        self._untold: dict[int, WorkerSlot] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._path.chmod(0o600)
        self._listener.listen(8)
        self._listener.setblocking(False)
        selector.register(self._listener.fileno(), selectors.EVENT_READ, self._accept)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a worker must not keep."""
        sockets = (self._listener, self._client)
        return tuple(one.fileno() for one in sockets if one is not None)

    def tell_of(self, worker: WorkerSlot) -> None:
        """Tell the client that a worker has ended, or that its next life is ready."""
        self._untold[worker.index] = worker
        self.tell()

    def tell(self) -> None:
        """Tell what could not be told before: a client that does not read for long hears the newest of each worker."""
        while self._untold and self._client is not None:
            worker = next(iter(self._untold.values()))
            try:
                self._tell_state(self._client, worker)
            except BlockingIOError:
                return
            except OSError:  # it is gone, which the selector notices
                break
            del self._untold[worker.index]
        if self._client is None:
            self._untold.clear()

    def _tell_state(self, client: socket.socket, worker: WorkerSlot) -> None:
        if worker.ready:
            send_message(client, worker.announcement(), [worker.child.pidfd])
        elif (obituary := worker.obituary()) is not None:
            send_message(client, obituary)

    def close(self) -> None:
        """Part with the client and stop listening."""
        self._part()
        self._selector.unregister(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            newcomer, _ = self._listener.accept()
            self._read()  # the present client may have left in this very instant
            if peer_credentials(newcomer)[1] != os.geteuid():
                newcomer.close()
            elif self._client is not None:
                with newcomer, contextlib.suppress(OSError):
                    send_message(newcomer, {"type": "busy", "pid": peer_credentials(self._client)[0]})
            else:
                self._welcome(newcomer)

    def _welcome(self, newcomer: socket.socket) -> None:
        newcomer.setblocking(False)
        self._client = newcomer
        self._selector.register(newcomer.fileno(), selectors.EVENT_READ, self._read)
        try:
            send_message(newcomer, {"type": "segment"}, [self._segment.fd])
            for worker in self._workers:
                descriptors = [worker.go.fd, worker.done.fd]
                if worker.ready:
                    descriptors.append(worker.child.pidfd)
                send_message(newcomer, worker.introduction(), descriptors)
            for worker in self._workers:
                if not worker.ready:
                    self._tell_state(newcomer, worker)
            send_message(newcomer, {"type": "welcome"})
        except OSError:
            self._part()

    def _read(self) -> None:
        """See whether the client is still there; it has nothing to say but its end."""
        if self._client is not None:
            try:
                received = receive_message(self._client)
            except BlockingIOError:
                return
            except ClusterError:
                received = None
            if received is None:
                self._part()
            else:
                close_descriptors(received[1])

    def _part(self) -> None:
        if self._client is not None:
            self._selector.unregister(self._client.fileno())
            self._client.close()
            self._client = None
