"""One POSIX shared-memory segment: created safely, checked before it is mapped, let go without harm."""

import contextlib
import errno
import mmap
import os
import stat

import posix_ipc

from rt_lrhc.errors import SharedMemoryError

DIRECTORY = "/dev/shm"
"""Where Linux keeps POSIX shared memory."""


class Segment:
    """A shared-memory object, its descriptor and its mapping.

    The mapping is made at the first use of `buffer`, so that a peer can check what `read` returns before it maps
    anything. After `close()` existing views stay valid: the memory is unmapped when the last of them is gone.

    Attributes:
        name: Name of the object, with the leading slash; empty when attached by descriptor.
        fd: The descriptor, non-inheritable; it outlives the name. -1 after `close()`.
        size: Size in bytes when it was opened.
        writable: Whether the mapping may be written.
    """

    def __init__(self, name: str, fd: int, *, writable: bool, created: bool = False) -> None:
        self.name = name
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self.writable = writable
        self._creator_pid = os.getpid() if created else None
        self._mapping: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str, size: int) -> "Segment":
        """Create the object `name`, mode 0600, with all its `size` bytes reserved and zero.

        Raises:
            SharedMemoryError: If the name is taken, or the memory is not there: without the reservation a full
                /dev/shm would be a SIGBUS at the first write instead.
        """
        try:
            fd = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0).fd
        except posix_ipc.ExistentialError:
            raise SharedMemoryError(
                f"shared memory {name!r} exists already; remove it, or use another name"
            ) from None
        except (posix_ipc.Error, OSError, ValueError) as error:
            raise SharedMemoryError(f"cannot create shared memory {name!r}: {error}") from error
        try:
            os.posix_fallocate(fd, 0, size)
            return cls(name, fd, writable=True, created=True)
        except BaseException as error:
            os.close(fd)
            posix_ipc.unlink_shared_memory(name)
            if isinstance(error, OSError):
                raise SharedMemoryError(_reservation_failed(name, size, error)) from error
            raise

    @classmethod
    def attach(cls, name: str, *, writable: bool = False) -> "Segment":
        """Open the existing object `name`, read-only unless told otherwise.

        Raises:
            SharedMemoryError: If there is none, or it is not a regular, private, non-empty object of this user.
        """
        try:
            # O_NONBLOCK: a FIFO planted under the name must not make us wait for its writer.
            fd = posix_ipc.SharedMemory(name, os.O_NONBLOCK, read_only=not writable).fd
        except posix_ipc.ExistentialError:
            raise SharedMemoryError(f"there is no shared memory {name!r}") from None
        except (posix_ipc.Error, OSError, ValueError) as error:
            raise SharedMemoryError(f"cannot open shared memory {name!r}: {error}") from error
        return cls._checked(name, fd, writable=writable)

    @classmethod
    def from_fd(cls, fd: int, *, writable: bool = False) -> "Segment":
        """Adopt a descriptor that another process handed over; it is closed with the segment, or if it is refused.

        Raises:
            SharedMemoryError: As for `attach`.
        """
        return cls._checked("", fd, writable=writable)

    @classmethod
    def _checked(cls, name: str, fd: int, *, writable: bool) -> "Segment":
        status = os.fstat(fd)
        fault = None
        if not stat.S_ISREG(status.st_mode):
            fault = f"expected a regular object, got {stat.filemode(status.st_mode)}"
        elif status.st_uid != os.geteuid():
            fault = f"expected the owner {os.geteuid()} (uid), got {status.st_uid}"
        elif stat.S_IMODE(status.st_mode) & 0o077:
            fault = f"expected mode 0600, got {stat.S_IMODE(status.st_mode):04o}"
        elif status.st_size == 0:
            fault = "it is empty, as a process leaves it that dies while creating it"
        if fault is not None:
            os.close(fd)
            raise SharedMemoryError(f"shared memory {name or f'(descriptor {fd})'!r} is refused: {fault}")
        return cls(name, fd, writable=writable)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset` without mapping; fewer where the object ends."""
        return os.pread(self.fd, size, offset)

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping of the whole object."""
        if self._mapping is None:
            if self.fd < 0:
                raise SharedMemoryError(f"shared memory {self.name!r} is closed")
            if os.fstat(self.fd).st_size < self.size:
                raise SharedMemoryError(f"shared memory {self.name!r} has shrunk since it was opened")
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if self.writable else 0)
            self._mapping = mmap.mmap(self.fd, self.size, flags=mmap.MAP_SHARED, prot=protection)
        return self._mapping

    def close(self) -> None:
        """Close the descriptor and let go of the mapping. May be called twice."""
        # Not `mmap.close()`: it raises BufferError while a view lives, and a view must never outlive its memory.
        self._mapping = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unlink(self) -> None:
        """Remove the name, in the process that created it; elsewhere, and the second time, do nothing."""
        if self._creator_pid == os.getpid():
            self._creator_pid = None
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(self.name)


def _reservation_failed(name: str, size: int, error: OSError) -> str:
    text = f"cannot reserve {size / 2**20:.1f} MiB for shared memory {name!r}: {error.strerror}"
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            free = os.statvfs(DIRECTORY)
            text += f"; {DIRECTORY} has {free.f_bavail * free.f_frsize / 2**20:.1f} MiB left"
        text += f"; enlarge {DIRECTORY} (docker run --shm-size=1g) or use fewer robots or stages"
    return text
