"""What server, workers, owner and client agree on besides the shared memory: labels, and JSON messages on sockets."""

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from rt_lrhc.errors import ClusterError, ConfigurationError

MESSAGE_LIMIT = 128 * 1024
"""Longest message in bytes; the kernel's default socket buffer holds it."""
DESCRIPTORS_LIMIT = 8


class Lifecycle(IntEnum):
    """Where a worker is in its life. One writer: the server."""

    EMPTY = 0
    BOOTING = 1
    READY = 2
    STOPPING = 3
    DEAD = 4
    QUARANTINED = 5


class Fallback(IntEnum):
    """Where the input that acts on a robot comes from."""

    FRESH = 0
    """A plan of nominal age."""
    LATE = 1
    """A plan that has just arrived, late: applied at its true age."""
    SHIFT = 2
    """No new plan: the old one, evaluated at the present time."""
    HOLD = 3
    """The plan has run out: the last input is held."""
    SAFE = 4
    """No plan, or none for too long: the controller's safe input."""


def seqpacket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep the borders of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_message(channel: socket.socket, message: Mapping[str, Any], descriptors: Iterable[int] = ()) -> None:
    """Send one message, with file descriptors where there are any.

    Raises:
        ConfigurationError: If the message is too long.
        OSError: If the other side is gone, or does not read (`BlockingIOError`, `TimeoutError`).
    """
    text = json.dumps(message).encode()
    if len(text) > MESSAGE_LIMIT:
        raise ConfigurationError(
            f"a message of {len(text)} B is longer than the {MESSAGE_LIMIT} B allowed; "
            "put large data into a file and pass its path"
        )
    packed = array.array("i", descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if packed else []
    channel.sendmsg([text], ancillary, socket.MSG_NOSIGNAL)


def receive_message(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one message and its descriptors, which the caller then owns; None when the other side is gone.

    Waits as long as the socket's own timeout says.

    Raises:
        ClusterError: If it is not a message.
        OSError: If nothing came in time (`BlockingIOError`, `TimeoutError`).
    """
    size = socket.CMSG_SPACE(DESCRIPTORS_LIMIT * array.array("i").itemsize)
    try:
        text, ancillary, flags, _ = channel.recvmsg(MESSAGE_LIMIT, size, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not text and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("it is truncated")
        message = json.loads(text)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ValueError("it has no type")
    except ValueError as error:
        close_descriptors(descriptors)
        raise ClusterError(f"a message on the control socket cannot be read: {error}") from error
    return message, descriptors.tolist()


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close descriptors, open or not."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def peer_credentials(channel: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the process at the other end of a Unix socket."""
    pid, uid, _ = struct.unpack(
        "3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return pid, uid
