"""Who may use which name: one live owner a namespace, and what dead ones left behind.

A namespace is a segment in /dev/shm, and a lock file and a socket in the run directory. The lock (`flock`) is what
counts: the kernel drops it with its holder. Its file is never unlinked, because a file unlinked under a waiter lets two
processes hold "the" lock.
"""

import contextlib
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from rt_lrhc.errors import ConfigurationError, NamespaceBusy, SharedMemoryError
from rt_lrhc.shm.header import read_header
from rt_lrhc.shm.segment import DIRECTORY, Segment

_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")
_LOCK_PATIENCE = 0.2
"""Seconds for which a taken lock is tried again: `leftovers()` holds each lock for an instant."""


@dataclass(frozen=True)
class Namespace:
    """One name and the places that belong to it.

    Raises:
        ConfigurationError: If the name is not 1 to 48 letters, digits, `_` or `-`.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"a namespace must be 1 to 48 letters, digits, '_' or '-', got {self.name!r}"
            )

    @property
    def segment_name(self) -> str:
        """Name of the shared-memory segment, with the leading slash."""
        return f"/{_segment_prefix()}{self.name}"

    @property
    def lock_path(self) -> Path:
        """The lock file."""
        return run_directory() / f"{self.name}.lock"

    @property
    def socket_path(self) -> Path:
        """The Unix socket that clients connect to."""
        return run_directory() / f"{self.name}.sock"


@dataclass(frozen=True)
class Leftover:
    """A thing of a namespace whose owner is gone.

    Attributes:
        path: Where it lies.
        namespace: The namespace.
        size: Its size in bytes.
    """

    path: Path
    namespace: str
    size: int


class NamespaceLock:
    """The right to own a namespace, as long as this process lives and keeps it."""

    def __init__(self, namespace: Namespace, fd: int) -> None:
        self.namespace = namespace
        self.fd = fd

    @classmethod
    def acquire(cls, namespace: Namespace, patience: float = _LOCK_PATIENCE) -> "NamespaceLock":
        """Take a namespace.

        Args:
            namespace: What to take.
            patience: Seconds for which to try again while another process holds it.

        Raises:
            NamespaceBusy: If another live process holds it; it names the pid.
            SharedMemoryError: If the lock file cannot be opened.
        """
        path = namespace.lock_path
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SharedMemoryError(f"cannot open the lock {path}: {error.strerror}") from error
        give_up = time.monotonic() + patience
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= give_up:
                        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                        raise NamespaceBusy(
                            f"namespace {namespace.name!r} is held by process {holder}; "
                            "use another namespace, or end that process"
                        ) from None
                time.sleep(0.01)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(namespace, fd)

    @classmethod
    def acquire_free(cls, prefix: str = "auto") -> "NamespaceLock":
        """Take the first free one of `prefix0`, `prefix1`, ...: unique among the living, and few files in all.

        What a dead owner left there is removed.

        Raises:
            SharedMemoryError: If a lock file cannot be opened, or a leftover cannot be removed.
        """
        number = 0
        while True:
            with contextlib.suppress(NamespaceBusy):
                lock = cls.acquire(Namespace(f"{prefix}{number}"), patience=0.0)
                try:
                    lock.remove_leftovers()
                    return lock
                except BaseException:
                    lock.release()
                    raise
            number += 1

    def remove_leftovers(self) -> tuple[Leftover, ...]:
        """Remove what an earlier owner of this namespace left behind, and return what it was.

        Raises:
            NamespaceBusy: If the segment's owner lives all the same: it locks in another run directory.
            SharedMemoryError: If something cannot be removed.
        """
        found = _find(self.namespace)
        for leftover in found:
            owner = _live_owner(leftover)
            if owner is not None:
                raise NamespaceBusy(
                    f"namespace {self.namespace.name!r} is held by process {owner}, whose run directory is not "
                    f"{run_directory()} (is XDG_RUNTIME_DIR set differently?); use another namespace"
                )
            try:
                leftover.path.unlink(missing_ok=True)
            except OSError as error:
                raise SharedMemoryError(
                    f"cannot remove {leftover.path}: {error.strerror}; remove it by hand"
                ) from error
        return found

    def release(self) -> None:
        """Give the namespace back. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def run_directory() -> Path:
    """Return the directory of locks and sockets, made if need be: private to this user.

    Raises:
        SharedMemoryError: If it is a link, belongs to another user, or is open to others.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    uid = os.geteuid()
    path = Path(base, "rt_lrhc") if base and Path(base).is_dir() else Path(f"/tmp/rt_lrhc-{uid}")
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise SharedMemoryError(f"cannot make the run directory {path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or stat.S_IMODE(status.st_mode) & 0o077:
        raise SharedMemoryError(
            f"the run directory {path} must be a directory of uid {uid} with mode 0700, got "
            f"{stat.filemode(status.st_mode)} of uid {status.st_uid}; remove it or set XDG_RUNTIME_DIR"
        )
    return path


def present() -> tuple[str, ...]:
    """Return the names under which this user has segments, of the living and of the dead, sorted."""
    prefix = _segment_prefix()
    found = (path.name.removeprefix(prefix) for path in Path(DIRECTORY).glob(f"{prefix}*"))
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def leftovers() -> tuple[Leftover, ...]:
    """Return what dead owners of this user left in /dev/shm and in the run directory. Removes nothing."""
    return tuple(item for namespace in _namespaces() for item in _unheld(namespace, remove=False))


def clean(namespace: str | None = None) -> tuple[Leftover, ...]:
    """Remove the leftovers of one namespace, or of all, and return what was removed.

    Raises:
        ConfigurationError: If the namespace's name is not valid.
        SharedMemoryError: If something cannot be removed.
    """
    names = _namespaces() if namespace is None else (namespace,)
    return tuple(item for name in names for item in _unheld(name, remove=True))


def _unheld(name: str, *, remove: bool) -> tuple[Leftover, ...]:
    """What `name` has left, if nobody holds its lock or owns its segment."""
    try:
        lock = NamespaceLock.acquire(Namespace(name), patience=0.0)
    except NamespaceBusy:
        return ()
    try:
        if remove:
            return lock.remove_leftovers()
        return tuple(item for item in _find(lock.namespace) if _live_owner(item) is None)
    except NamespaceBusy:
        return ()
    finally:
        lock.release()


def _namespaces() -> tuple[str, ...]:
    """Names that something in /dev/shm or a socket in the run directory bears, sorted."""
    prefix = _segment_prefix()
    names = {path.name.removeprefix(prefix) for path in Path(DIRECTORY).glob(f"{prefix}*")}
    names |= {path.stem for path in run_directory().glob("*.sock")}
    return tuple(sorted(name for name in names if _NAME.fullmatch(name)))


def _find(namespace: Namespace) -> tuple[Leftover, ...]:
    paths = (Path(DIRECTORY) / namespace.segment_name[1:], namespace.socket_path)
    return tuple(
        Leftover(path, namespace.name, path.lstat().st_size) for path in paths if os.path.lexists(path)
    )


def _live_owner(leftover: Leftover) -> int | None:
    """The pid of the live process that owns a segment; None for anything else."""
    if leftover.path.parent != Path(DIRECTORY):
        return None
    try:
        segment = Segment.attach(f"/{leftover.path.name}")
    except SharedMemoryError:
        return None
    try:
        header = read_header(segment)
        return header.owner_pid if header.owner_is_alive() else None
    except SharedMemoryError:
        return None
    finally:
        segment.close()


def _segment_prefix() -> str:
    return f"rt_lrhc.{os.geteuid()}."
