"""The line between the environment and the interface's process for all that is not part of a time-step."""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

from rt_lrhc.environment.wire import pack, unpack
from rt_lrhc.errors import InterfaceError, RealTimeError

_LENGTH = struct.Struct("=Q")
_SEND_LIMIT = 30.0
"""Longest wait for the other side to take a message, s."""

POLL = 1.0
"""Longest single wait, s; longer ones are loops of it, so that none is unbounded and Ctrl-C is heard."""


class LineClosed(Exception):
    """The other side is gone."""


class Line:
    """Messages, and descriptors, over one connected socket.

    Args:
        channel: The socket, from here on the line's.
        alarm: A descriptor that is readable once the other side is gone; -1 for none.
    """

    def __init__(self, channel: socket.socket, alarm: int = -1) -> None:
        self._socket = channel
        self._socket.settimeout(_SEND_LIMIT)
        self._alarm = alarm

    @property
    def fd(self) -> int:
        """The socket's descriptor; -1 after `close()`."""
        return self._socket.fileno()

    def send(
        self, message: dict[str, Any], error: type[RealTimeError] = InterfaceError, *, names: bool = False
    ) -> None:
        """Send one message.

        Raises:
            RealTimeError: If it cannot travel (`rt_lrhc.environment.wire.pack`).
            LineClosed: If the other side is gone, or does not read.
        """
        body = pack(message, "", error, names=names)
        try:
            self._socket.sendall(_LENGTH.pack(len(body)))
            self._socket.sendall(body)
        except OSError as lost:
            raise LineClosed(str(lost)) from lost

    def receive(self, timeout: float, *, names: bool = False) -> dict[str, Any] | None:
        """Return the next message, or None where none begins within `timeout` s.

        Raises:
            LineClosed: If the other side is gone.
        """
        deadline = time.monotonic() + timeout
        while not self._is_readable(min(POLL, max(deadline - time.monotonic(), 0.0))):
            if time.monotonic() >= deadline:
                return None
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        message: dict[str, Any] = unpack(self._read(length), names=names)
        return message

    def send_descriptors(self, descriptors: Iterable[int]) -> None:
        """Send open descriptors; the other side gets copies."""
        try:
            socket.send_fds(self._socket, [b"\0"], list(descriptors))
        except OSError as lost:
            raise LineClosed(str(lost)) from lost

    def receive_descriptors(self, count: int) -> list[int]:
        """Return `count` descriptors that were sent, now the caller's."""
        try:
            _, descriptors, _, _ = socket.recv_fds(self._socket, 1, count)
        except OSError as lost:
            raise LineClosed(str(lost)) from lost
        if len(descriptors) != count:
            raise LineClosed(f"{len(descriptors)} of {count} descriptors came")
        return descriptors

    def _is_readable(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if self._alarm >= 0:
            poll.register(self._alarm, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(timeout * 1e3)}
        if self.fd in ready:
            return True
        if self._alarm in ready:
            raise LineClosed("the other process has ended")
        return False

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        try:
            while rest:
                count = self._socket.recv_into(rest)
                if count == 0:
                    raise LineClosed("the other process has closed the line")
                rest = rest[count:]
        except OSError as lost:
            raise LineClosed(str(lost)) from lost
        return data

    def close(self) -> None:
        """Close the socket, also for copies of it in forked children. May be called twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
