"""What `rt-lrhc doctor` looks at: one function a subject, each yielding findings."""

import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from rt_lrhc.errors import RealTimeError
from rt_lrhc.timing.realtime import (
    PROCESS_TUNING,
    Granted,
    RealTimeOptions,
    apply_to_thread,
    run_delay_ns,
    sleep_until,
    usable_cores,
)
from rt_lrhc.timing.statistics import DurationUnit, Samples, Summary

_SLEEPS = 100
_SLEEP_NS = 1_000_000
_SHARED_MEMORY = Path("/dev/shm")
_LITTLE_SHARED_MEMORY = 64 * 2**20
_FEW_DESCRIPTORS = 1024

Result = TypeVar("Result")


class Verdict(Enum):
    """What a finding means. The value is the word that people read."""

    FINE = "ok"
    REMARK = "note"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One thing found out about this machine.

    Attributes:
        topic: What it is about.
        text: What was found.
        verdict: What it means.
        advice: Why, or what to do about it; empty if there is nothing to say.
    """

    topic: str
    text: str
    verdict: Verdict = Verdict.FINE
    advice: str = ""

    def line(self) -> str:
        """Return it as people read it."""
        return f"{self.verdict.value:>7}  {self.topic}: {self.text}" + (
            f"; {self.advice}" if self.advice else ""
        )


def examine(*, clean: bool = False) -> Iterator[Finding]:
    """Yield the findings as they are made; it takes some seconds, most of them to import torch.

    Args:
        clean: Whether leftovers of dead clusters are removed.
    """
    for examination in (packages, cores, clock, grants, limits, shared_memory):
        yield from examination()
    yield from leftovers(clean=clean)
    for examination in (compiler, window, gpu):
        yield from examination()


def packages() -> Iterator[Finding]:
    """Yield the versions of the packages that rt_lrhc needs, and which of them are missing."""
    try:
        versions = [f"rt_lrhc {metadata.version('rt_lrhc')}"]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "rt_lrhc is not installed", Verdict.REMARK, "run `pip install .` in its folder"
        )
        return
    missing = []
    for requirement in metadata.requires("rt_lrhc") or []:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(requirement)
    yield Finding("packages", ", ".join(versions))
    if missing:
        yield Finding("packages", f"missing: {', '.join(missing)}", Verdict.PROBLEM, "pip install them")


def cores() -> Iterator[Finding]:
    """Yield how many workers can run beside the agent."""
    usable = usable_cores()
    if usable > 1:
        yield Finding("cores", f"{usable} usable, so {usable - 1} beside the agent's")
    else:
        yield Finding("cores", "1 usable", Verdict.REMARK, "inference and solves take turns on it")


def clock() -> Iterator[Finding]:
    """Yield how late a sleeping thread goes on, with the kernel's default timer slack and with 1 ns."""
    default = _on_a_thread(lambda: _sleep_lateness(precise=False))
    precise = _on_a_thread(lambda: _sleep_lateness(precise=True))
    yield Finding(
        "clock",
        f"after a sleep of 1 ms late by p50 / p99 / max {precise.format(DurationUnit.MICROSECONDS)} "
        f"(with the default timer slack {default.format(DurationUnit.MICROSECONDS)}; n {_SLEEPS})",
    )
    if run_delay_ns() is None:
        yield Finding(
            "clock",
            "the kernel does not tell how long a thread waits for a core",
            Verdict.REMARK,
            "a busy machine cannot be told from a slow one",
        )


def _sleep_lateness(*, precise: bool) -> Summary:
    if precise:
        apply_to_thread(RealTimeOptions())
    samples = Samples(_SLEEPS)
    for _ in range(_SLEEPS):
        samples.add(sleep_until(time.monotonic_ns() + _SLEEP_NS) * 1e-9)
    return samples.summary()


def grants() -> Iterator[Finding]:
    """Yield what the operating system would grant of the real-time options."""
    options = RealTimeOptions(affinity=tuple(sorted(os.sched_getaffinity(0))), priority=10, memory_lock=True)

    def ask() -> Granted:
        of_thread = apply_to_thread(options)
        of_process = PROCESS_TUNING.acquire(options)
        PROCESS_TUNING.release()
        return of_thread + of_process

    for grant in _on_a_thread(ask).grants:
        if grant.granted:
            yield Finding(grant.name, f"{grant.asked} granted")
        else:
            yield Finding(grant.name, f"{grant.asked} refused", Verdict.REMARK, grant.reason)


def _on_a_thread(work: Callable[[], Result]) -> Result:
    """Do `work` on a thread of its own, which takes its timer slack and priority with it when it ends."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result(timeout=60.0)


def limits() -> Iterator[Finding]:
    """Yield the limits that real time, memory lock and many workers run into."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    memory_lock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    text = ", ".join(
        (
            f"rtprio {resource.getrlimit(resource.RLIMIT_RTPRIO)[0]}",
            f"memlock {'unlimited' if memory_lock == resource.RLIM_INFINITY else f'{memory_lock // 1024} KiB'}",
            f"open files {descriptors}",
        )
    )
    if descriptors < _FEW_DESCRIPTORS:
        yield Finding("limits", text, Verdict.REMARK, f"allow {_FEW_DESCRIPTORS} open files: ulimit -n")
    else:
        yield Finding("limits", text)


def shared_memory() -> Iterator[Finding]:
    """Yield how much shared memory there is."""
    if not os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        yield Finding(
            "shared memory", f"{_SHARED_MEMORY} cannot be written", Verdict.PROBLEM, "mount a tmpfs there"
        )
        return
    usage = shutil.disk_usage(_SHARED_MEMORY)
    text = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free in {_SHARED_MEMORY}"
    if usage.free < _LITTLE_SHARED_MEMORY:
        yield Finding("shared memory", text, Verdict.REMARK, "in a container: docker run --shm-size=1g")
    else:
        yield Finding("shared memory", text)


def leftovers(*, clean: bool) -> Iterator[Finding]:
    """Yield what dead clusters left behind, or what of it was removed."""
    from rt_lrhc.shm import namespace

    try:
        found = namespace.clean() if clean else namespace.leftovers()
    except RealTimeError as error:
        yield Finding("leftovers", str(error), Verdict.PROBLEM)
        return
    names = ", ".join(f"{leftover.path} ({leftover.size} B)" for leftover in found)
    if not found:
        yield Finding("leftovers", "none")
    elif clean:
        yield Finding("leftovers", f"removed {names}")
    else:
        yield Finding("leftovers", names, Verdict.REMARK, "remove them by `rt-lrhc doctor --clean`")


def compiler() -> Iterator[Finding]:
    """Yield which C compiler there is to make controllers faster."""
    gcc = shutil.which("gcc")
    if gcc is None:
        yield Finding("compiler", "no gcc", Verdict.REMARK, "controllers run all the same, only not compiled")
        return
    try:
        answer = subprocess.run([gcc, "--version"], capture_output=True, text=True, timeout=10.0, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("compiler", f"{gcc} does not work: {error}", Verdict.REMARK)
        return
    yield Finding("compiler", answer.stdout.partition("\n")[0])


def window() -> Iterator[Finding]:
    """Yield whether a window can open here."""
    from rt_lrhc.environment.window import window_available

    probe = window_available()
    if probe.available:
        yield Finding("window", "can be opened")
    else:
        yield Finding("window", probe.reason, Verdict.REMARK, 'render_mode="rgb_array" works all the same')


def gpu() -> Iterator[Finding]:
    """Yield which GPUs torch sees, and whether it could see any."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's cannot be loaded
        yield Finding("GPU", f"torch cannot be imported: {error}", Verdict.PROBLEM, "reinstall torch")
        return
    if torch.version.cuda is None and torch.version.hip is None:
        yield Finding("GPU", f"torch {torch.__version__} is a build for the CPU")
    elif not torch.cuda.is_available():
        yield Finding("GPU", f"torch {torch.__version__} finds none")
    else:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("GPU", f"torch {torch.__version__}: {', '.join(names)}")
