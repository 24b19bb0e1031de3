"""A doorbell between two processes: an eventfd, which also orders memory.

Payload first, then the words that announce it, then `ring()`; on the other side `drain()`, then the words, then the
payload. Both calls take the same kernel lock, which makes this order hold on every machine, also on those that reorder
stores (aarch64). Shared words are never polled without draining the bell first.
"""

import os
import select


class Doorbell:
    """One direction of signalling. Ringing twice before the other side looks counts as once.

    Attributes:
        fd: The eventfd, non-blocking; readable while a ring is pending. -1 after `close()`.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @classmethod
    def create(cls) -> "Doorbell":
        """Make a new one."""
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def ring(self) -> None:
        """Tell the other side to look. Never blocks."""
        os.eventfd_write(self.fd, 1)

    def drain(self) -> bool:
        """Take what was rung and return whether there was anything. Never blocks."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        return True

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` s for a ring and return whether one is pending; it is left for `drain()`."""
        return bool(self._poll.poll(timeout * 1000.0))

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
