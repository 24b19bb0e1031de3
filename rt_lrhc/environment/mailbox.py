"""One letter each way at a time, through shared memory: how the environment and the interface's process talk.

Body first, then number and size, then the bell: the eventfd orders memory, and every word has one writer. A letter that
is too long for the memory follows the ring through a socket.
"""

import itertools
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from rt_lrhc.errors import InterfaceTimeout, SharedMemoryError
from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.doorbell import Doorbell
from rt_lrhc.shm.header import SegmentState, write_state
from rt_lrhc.shm.layout import Block, Field, Layout, create, inspect, require_equal
from rt_lrhc.shm.segment import Segment

_STREAM_LIMIT = 30.0
"""Longest wait for the other side to take, or to give, a long letter, s."""

_counter = itertools.count()


def _layout(request_size: int, reply_size: int) -> Layout:
    def block(name: str, writer: str, size: int) -> Block:
        return Block(
            name,
            writer,
            (
                Field("number", (), "int64", "letters"),
                Field("size", (), "int64", "B"),
                Field("body", (-(-size // 8),), "int64", "8 B"),
            ),
        )

    return Layout((block("request", "environment", request_size), block("reply", "interface", reply_size)))


@dataclass(frozen=True)
class MailboxEnd:
    """What one side needs of a mailbox; the descriptors can be handed to another process.

    Attributes:
        segment: Descriptor of the shared memory, which has no name any more.
        rings: Eventfd that this side rings.
        hears: Eventfd that the other side rings.
        stream: Socket for what is too long.
        sizes: Bytes of the longest request and reply that fit the memory.
        is_environment: Whether this side writes requests.
    """

    segment: int
    rings: int
    hears: int
    stream: int
    sizes: tuple[int, int]
    is_environment: bool

    @property
    def descriptors(self) -> tuple[int, int, int, int]:
        """All descriptors, in the order of the fields."""
        return (self.segment, self.rings, self.hears, self.stream)


def open_mailbox(request_size: int, reply_size: int) -> tuple[MailboxEnd, MailboxEnd]:
    """Create the memory, bells and sockets and return the environment's end and the interface's.

    Raises:
        SharedMemoryError: If the memory is not there.
    """
    layout = _layout(request_size, reply_size)
    name = f"/rt_lrhc.{os.geteuid()}.env-{os.getpid()}-{next(_counter)}"
    segment = create(name, layout)
    try:
        write_state(segment, SegmentState.READY)
    finally:
        # Descriptors alone hold it from here on: whoever dies, nothing is left behind.
        segment.unlink()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    request_bell, reply_bell = Doorbell.create().fd, Doorbell.create().fd
    sizes = (request_size, reply_size)
    memory = os.dup(segment.fd)
    segment.close()
    return (
        MailboxEnd(memory, request_bell, reply_bell, ours.detach(), sizes, True),
        MailboxEnd(os.dup(memory), os.dup(reply_bell), os.dup(request_bell), theirs.detach(), sizes, False),
    )


class Mailbox:
    """One side of a mailbox; it owns the descriptors of its end.

    Args:
        end: This side.
        alarm: A descriptor that is readable once the other side is gone; -1 for none.

    Raises:
        SharedMemoryError: If the memory is not what this program expects.
    """

    def __init__(self, end: MailboxEnd, alarm: int = -1) -> None:
        layout = _layout(*end.sizes)
        self._segment = Segment.from_fd(end.segment, writable=True)
        require_equal(layout, inspect(self._segment)[1])
        arrays = bind(self._segment, layout, ("environment" if end.is_environment else "interface",))
        self._out, self._in = arrays["request"], arrays["reply"]
        if not end.is_environment:
            self._out, self._in = self._in, self._out
        self._out_body = self._out["body"].data.cast("B")
        self._in_body = self._in["body"].data.cast("B")
        self._rings, self._hears = Doorbell(end.rings), Doorbell(end.hears)
        self._stream = socket.socket(fileno=end.stream)
        self._stream.settimeout(_STREAM_LIMIT)
        self._alarm = alarm
        self._poll = select.poll()
        self._poll.register(end.hears, select.POLLIN)
        if alarm >= 0:
            self._poll.register(alarm, select.POLLIN)

    def send(self, number: int, body: bytes) -> None:
        """Send letter `number`. The one before must have been taken: the other side has answered it, or asked it.

        Raises:
            InterfaceTimeout: If the other side does not take a long letter.
        """
        size = len(body)
        fits = size <= len(self._out_body)
        if fits:
            self._out_body[:size] = body
        self._out["size"][...] = size
        self._out["number"][...] = number
        self._rings.ring()
        if not fits:
            try:
                self._stream.sendall(body)
            except TimeoutError as error:
                raise InterfaceTimeout(
                    f"a letter of {size} B was not taken within {_STREAM_LIMIT} s"
                ) from error
            except OSError as error:
                raise SharedMemoryError(f"the other process is gone: {error}") from error

    def receive(self, timeout: float) -> tuple[int, bytearray] | None:
        """Return the next letter and its number, or None where none comes within `timeout` s or the alarm rings."""
        if not self._hears.drain():
            if timeout <= 0.0 or not self._ring_within(timeout):
                return None
            self._hears.drain()
        size, number = int(self._in["size"]), int(self._in["number"])
        if size <= len(self._in_body):
            return number, bytearray(self._in_body[:size])
        body = bytearray(size)
        self._read_stream(memoryview(body))
        return number, body

    def wake(self) -> None:
        """Make this side's `receive` return, whatever it returns."""
        os.eventfd_write(self._hears.fd, 1)

    def _ring_within(self, timeout: float) -> bool:
        ready = [fd for fd, _ in self._poll.poll(timeout * 1e3)]
        return self._hears.fd in ready

    def _read_stream(self, into: memoryview) -> None:
        give_up = time.monotonic() + _STREAM_LIMIT
        while into:
            count = self._stream.recv_into(into)
            if count == 0 or time.monotonic() > give_up:
                raise SharedMemoryError("a long letter from the other process ended half-way")
            into = into[count:]

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        self._out_body.release()
        self._in_body.release()
        self._out = self._in = {}
        self._segment.close()
        self._rings.close()
        self._hears.close()
        self._stream.close()


def capacity(*arrays: Any) -> int:
    """Return room, in bytes, for arrays, each given as (shape, dtype), and for the text beside them."""
    sizes: list[int] = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in arrays]
    return 64 * 1024 + sum(-(-size // 8) * 8 + 64 for size in sizes)
