"""A forked child of the server: it dies with its parent, reports over a socket, and its last words are kept."""

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from rt_lrhc.cluster.protocol import close_descriptors, receive_message, seqpacket_pair
from rt_lrhc.processes import describe_exit

STDERR_KEPT = 4096
"""Bytes of stderr that are kept of each child."""
_PIPE_ATOMIC = 4096
_PR_SET_PDEATHSIG = 1

Job = Callable[[socket.socket], None]


class ChildProcess:
    """A direct child, made by `fork` from a process of one thread.

    Attributes:
        pid: Its process id.
        pidfd: Readable once it has ended.
        report: Our end of the socket on which it reports, non-blocking.
        stderr: Our end of its stderr, non-blocking. Both are -1 or closed after `close()`.
    """

    def __init__(self, job: Job, close_in_child: Iterable[int]) -> None:
        """Fork a child that runs `job(report)` and exits.

        Args:
            job: What it does; its socket is the child's end of `report`.
            close_in_child: Descriptors of the parent that it must not keep: locks, control sockets, other children's.
        """
        self.report, theirs = seqpacket_pair()
        self.stderr, their_stderr = os.pipe2(os.O_CLOEXEC)
        self._tail = b""
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(
                job, theirs, their_stderr, parent, [*close_in_child, self.report.fileno(), self.stderr]
            )
        theirs.close()
        os.close(their_stderr)
        self.pidfd = os.pidfd_open(self.pid)
        self.report.setblocking(False)
        os.set_blocking(self.stderr, False)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The parent's descriptors of this child, which the next child must close."""
        return tuple(fd for fd in (self.report.fileno(), self.stderr, self.pidfd) if fd >= 0)

    def next_report(self) -> dict[str, Any] | None:
        """Return the next message that it sent, or None. Never blocks."""
        try:
            received = receive_message(self.report)
        except BlockingIOError:
            return None
        return None if received is None else received[0]

    def read_stderr(self) -> bool:
        """Take what it wrote to stderr, keep the end, pass it on; return False when no more can come."""
        while True:
            try:
                text = os.read(self.stderr, _PIPE_ATOMIC)
            except BlockingIOError:
                return True
            if not text:
                return False
            self._tail = (self._tail + text)[-STDERR_KEPT:]
            _pass_on(text)

    @property
    def stderr_tail(self) -> str:
        """The last of what it wrote to stderr."""
        return self._tail.decode(errors="replace")

    def exit_code(self) -> int | None:
        """Return how it ended (exit status, or minus the signal), or None while it lives. Reaps it."""
        if self._code is None:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                self._code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        return self._code

    def exit_words(self) -> str:
        """Say how it ended, with its last words where it left any."""
        code = self.exit_code()
        words = "still runs" if code is None else describe_exit(code)
        tail = self.stderr_tail.strip()
        return f"{words}; its last words were:\n{tail}" if tail else words

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` s for its end, and return whether it has ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll(max(0.0, timeout) * 1000.0)
        return self.exit_code() is not None

    def kill(self) -> None:
        """Kill it with SIGKILL, which nothing can hold up, and reap it."""
        self.order_kill()
        if self.exit_code() is None:
            self.wait(5.0)

    def order_kill(self) -> None:
        """Send SIGKILL, without waiting for the end."""
        if self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it lives, and close what belongs to it. May be called twice."""
        if self.pidfd < 0:
            return
        self.kill()
        self.report.close()
        close_descriptors((self.stderr, self.pidfd))
        self.stderr = self.pidfd = -1


def _run_child(job: Job, report: socket.socket, stderr: int, parent: int, unwanted: list[int]) -> NoReturn:
    """Be the child: never returns into the parent's code, whatever happens."""
    code = 1
    try:
        _die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(stderr, 2)
        close_descriptors([*unwanted, stderr])
        faulthandler.enable()
        job(report)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however that comes about."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def _pass_on(text: bytes) -> None:
    """Write to our own stderr, unless nobody reads it: a full pipe must not hold up the supervision."""
    poll = select.poll()
    with contextlib.suppress(OSError):
        poll.register(2, select.POLLOUT)
        if poll.poll(0) and text:
            os.write(2, text)
