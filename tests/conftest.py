"""What every test is held to: it leaves nothing behind, and it does the same on every run."""

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# A property is checked on the same examples on every run, whatever the load: a failure is a failure of the change at
# hand. HYPOTHESIS_PROFILE=explore looks for new examples.
settings.register_profile(
    "fixed", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

MARK = f"RT_LRHC_TEST_RUN={uuid.uuid4().hex}"
"""In the environment of this run, and so of every process that it starts, also of those that nobody is a parent of."""

GRACE = 5.0
"""Seconds that what was told to end gets to end; waited only while something is left."""

TOLERATED = (
    "/dev/urandom",
    "/dev/nvidia",
    "/dev/dri/",
    "/proc/",
    "/sys/",
    f"{sys.prefix}/",
    f"{sys.base_prefix}/",
)
"""What libraries open at their first use and keep: random numbers, drivers, the system's state, their own files."""

_PR_GET_TIMERSLACK = 30
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Belongings:
    """What this process has that outlives a test if nobody cleans up."""

    segments: frozenset[str]
    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[str, str]]
    settings: tuple[tuple[str, float], ...]

    @classmethod
    def now(cls) -> "Belongings":
        return cls(
            segments=frozenset(name for name in os.listdir("/dev/shm") if name.startswith("rt_lrhc.")),
            processes=_children(),
            threads=frozenset(threading.enumerate()),
            descriptors=_descriptors(),
            settings=(
                ("switch interval", sys.getswitchinterval()),
                ("garbage collector frozen", float(gc.get_freeze_count() > 0)),
                ("timer slack of the main thread", float(_libc.prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0))),
            ),
        )

    def added_since(self, before: "Belongings") -> list[str]:
        """Return what has come since `before` and is still there, in words."""
        return [
            *(f"/dev/shm/{name}" for name in sorted(self.segments - before.segments) if not _of_others(name)),
            *(f"process {_describe(pid)}" for pid in sorted(self.processes - before.processes)),
            *(f"thread {thread.name!r}" for thread in self.threads - before.threads),
            *(
                f"file descriptor {fd} -> {target}"
                for fd, target in sorted(self.descriptors - before.descriptors)
            ),
            *(
                f"{name} is {after:g}, it was {value:g}"
                for (name, value), (_, after) in zip(before.settings, self.settings, strict=True)
                if after != value
            ),
        ]


def _children() -> frozenset[int]:
    # The kernel's list of children costs microseconds; psutil goes through every process of the machine.
    try:
        tasks = [
            Path(f"/proc/self/task/{task}/children").read_text() for task in os.listdir("/proc/self/task")
        ]
    except OSError:  # a thread that ended meanwhile, or a kernel without the list
        tasks = ["unknown"]
    if not any(tasks):
        return frozenset()
    return frozenset(child.pid for child in psutil.Process().children(recursive=True))


def _descriptors() -> frozenset[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            target = os.readlink(f"/proc/self/fd/{fd}")
            if not target.startswith(TOLERATED):
                found.add((fd, target))
    return frozenset(found)


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} ({process.status()}): {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"{pid} (gone by now)"


def _of_others(segment: str) -> bool:
    """Whether a segment belongs to a live process that this test run did not start."""
    from rt_lrhc.errors import SharedMemoryError
    from rt_lrhc.shm.header import read_header
    from rt_lrhc.shm.segment import Segment

    try:
        attached = Segment.attach(f"/{segment}")
    except SharedMemoryError:
        return False
    try:
        owner = read_header(attached).owner_pid
    except SharedMemoryError:
        return False
    finally:
        attached.close()
    return psutil.pid_exists(owner) and owner != os.getpid() and owner not in _processes_of_this_run()


def _processes_of_this_run() -> frozenset[int]:
    """Every other process that bears the mark of this run, orphans and all."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if MARK.encode() in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return frozenset(found - {os.getpid()})


def _left_since(before: Belongings) -> list[str]:
    """Return what is left after the time of grace, in words."""
    left = Belongings.now().added_since(before)
    give_up = time.monotonic() + GRACE
    while left and time.monotonic() < give_up:
        gc.collect()
        time.sleep(0.02)
        left = Belongings.now().added_since(before)
    return left


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test after which there is more than before. What fixtures of wider scope hold was there before."""
    before = Belongings.now()
    yield
    if left := _left_since(before):
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind_by_the_whole_run() -> Iterator[None]:
    """Fail the run if a segment or a process, also one without a parent, outlives the last test; end the processes."""
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    before = Belongings.now()
    yield
    left = _left_since(before)
    orphans = _processes_of_this_run()
    give_up = time.monotonic() + GRACE
    while orphans and time.monotonic() < give_up:
        time.sleep(0.02)
        orphans = _processes_of_this_run()
    left.extend(f"process {_describe(pid)}" for pid in sorted(orphans))
    for pid in orphans:
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).kill()
    if left:
        pytest.fail("the run left behind:\n  " + "\n  ".join(left), pytrace=False)
