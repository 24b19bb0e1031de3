"""What is asked of the operating system for the sake of time, and what it granted.

Two kinds. Of the *thread* that keeps the clock: timer slack, affinity, priority (`apply_to_thread`). Of the whole
*process*: the garbage collector, the interpreter's switch interval, memory lock (`PROCESS_TUNING`); these are counted
and undone by the last user. Beside them: waiting until an instant, and a record of the machine for a report's head.
"""

import ctypes
import gc
import math
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rt_lrhc.errors import ConfigurationError

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second."""

SPIN = 200e-6
"""A good value of `RealTimeOptions.spin`, s: longer than nearly every wake-up of a sleeping thread is late."""

SWITCH_INTERVAL = 0.5e-3
"""Interpreter's switch interval while the wall clock runs, s: how long a thread in pure Python may keep the clock's
thread waiting for the interpreter lock."""

_MAX_SPIN = 10e-3
_PR_SET_TIMERSLACK = 29
_PR_GET_TIMERSLACK = 30
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
_CAP_IPC_LOCK = 14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mlockall.argtypes = [ctypes.c_int]


@dataclass(frozen=True)
class RealTimeOptions:
    """What a user may ask for beyond the defaults, which need no privilege.

    Attributes:
        spin: The last part of each wait that is spent spinning instead of sleeping, s, in [0, 0.01]; `SPIN` is a good
            value. Makes the thread punctual to microseconds and costs that much CPU time at each wait.
        affinity: CPUs that the clock's thread may run on; None leaves them alone. Children that it starts inherit them.
        priority: Real-time priority (SCHED_FIFO) of the clock's thread, in [1, 99]; None leaves the ordinary one.
            Children that it starts do not inherit it.
        memory_lock: Keep the process's memory out of swap.
        strict: Whether anything refused is an error.

    Raises:
        ConfigurationError: If a value is out of its range.
    """

    spin: float = 0.0
    affinity: tuple[int, ...] | None = None
    priority: int | None = None
    memory_lock: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.spin <= _MAX_SPIN:
            raise ConfigurationError(f"spin must lie in [0, {_MAX_SPIN}] s, got {self.spin} s")
        if self.affinity is not None:
            object.__setattr__(self, "affinity", _checked_affinity(self.affinity))
        if self.priority is not None and not 1 <= self.priority <= 99:
            raise ConfigurationError(
                f"priority must lie in [1, 99] (SCHED_FIFO) or be None, got {self.priority}"
            )

    @property
    def spin_ns(self) -> int:
        """`spin` in ns."""
        return round(self.spin * NANOSECONDS)


def _checked_affinity(affinity: tuple[int, ...]) -> tuple[int, ...]:
    cpus = tuple(affinity)
    if not cpus or any(not isinstance(cpu, int) or cpu < 0 for cpu in cpus) or len(set(cpus)) < len(cpus):
        raise ConfigurationError(
            f"affinity must name different CPUs by their numbers from 0, e.g. (0, 1), or be None; got {affinity}"
        )
    return cpus


@dataclass(frozen=True)
class Grant:
    """One thing asked of the operating system.

    Attributes:
        name: What it is about, e.g. `"timer slack"`.
        asked: What was asked for, with its unit.
        granted: Whether the operating system confirmed it when it was read back.
        got: What is in force now.
        reason: Why it was refused and what would help; empty if it was granted.
    """

    name: str
    asked: str
    granted: bool
    got: str
    reason: str = ""


@dataclass(frozen=True)
class Granted:
    """What was asked of the operating system, and its answers."""

    grants: tuple[Grant, ...] = ()

    def __add__(self, other: "Granted") -> "Granted":
        """Return both records as one."""
        return Granted(self.grants + other.grants)

    @property
    def refused(self) -> tuple[Grant, ...]:
        """What was refused."""
        return tuple(grant for grant in self.grants if not grant.granted)

    def lines(self) -> tuple[str, ...]:
        """Return one line for people about each thing asked."""
        return tuple(
            f"{grant.name}: {grant.got}"
            if grant.granted
            else f"{grant.name}: asked for {grant.asked}, refused ({grant.reason}); it is {grant.got}"
            for grant in self.grants
        )

    @property
    def text(self) -> str:
        """All lines in one."""
        return "; ".join(self.lines())

    def check(self) -> None:
        """Raise if anything was refused.

        Raises:
            ConfigurationError: Names what was refused and why.
        """
        if self.refused:
            raise ConfigurationError(
                "strict real-time options, but the operating system refused "
                + "; ".join(f"{grant.name} = {grant.asked} ({grant.reason})" for grant in self.refused)
                + ". Grant it, or ask with strict=False"
            )


@dataclass(frozen=True)
class ThreadState:
    """How the operating system treats a thread: what `apply_to_thread` changes."""

    timer_slack_ns: int
    affinity: tuple[int, ...]
    policy: int
    priority: int


def thread_state() -> ThreadState:
    """Return how the calling thread is treated, to hand to `restore_thread` later."""
    return ThreadState(
        timer_slack_ns=_libc.prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0),
        affinity=tuple(sorted(os.sched_getaffinity(0))),
        policy=os.sched_getscheduler(0),
        priority=os.sched_getparam(0).sched_priority,
    )


def restore_thread(state: ThreadState) -> None:
    """Treat the calling thread again as in `state`, taken on the same thread before `apply_to_thread`."""
    now = thread_state()
    if (now.policy, now.priority) != (state.policy, state.priority):
        os.sched_setscheduler(0, state.policy, os.sched_param(state.priority))
    if now.affinity != state.affinity:
        os.sched_setaffinity(0, state.affinity)
    # Last: a thread that leaves SCHED_FIFO gets the default slack from the kernel.
    if state.timer_slack_ns > 0:
        _libc.prctl(_PR_SET_TIMERSLACK, state.timer_slack_ns, 0, 0, 0)


def apply_to_thread(options: RealTimeOptions) -> Granted:
    """Make the calling thread as punctual as was asked: timer slack of 1 ns always, affinity and priority on demand.

    What is refused changes nothing. `spin` is the waiting code's business and `memory_lock` that of `PROCESS_TUNING`.

    Raises:
        ConfigurationError: With `options.strict`, if anything was refused; the thread is then as it was before.
    """
    before = thread_state()
    # Timer slack first: a thread under SCHED_FIFO has none, and ignores a request for some.
    grants = [_ask_timer_slack()]
    if options.affinity is not None:
        grants.append(_ask_affinity(options.affinity))
    if options.priority is not None:
        grants.append(_ask_priority(options.priority))
    granted = Granted(tuple(grants))
    if options.strict and granted.refused:
        restore_thread(before)
        granted.check()
    return granted


def _ask_timer_slack() -> Grant:
    refused = _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0) != 0
    error = os.strerror(ctypes.get_errno()) if refused else "it was accepted and had no effect"
    slack_ns = _libc.prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    granted = slack_ns in (0, 1)
    got = f"{slack_ns} ns" if slack_ns >= 0 else "unknown"
    return Grant("timer slack", "1 ns", granted, got, "" if granted else error)


def _ask_affinity(affinity: tuple[int, ...]) -> Grant:
    usable = os.sched_getaffinity(0)
    asked = f"CPU {', '.join(map(str, affinity))}"
    reason = ""
    if missing := sorted(set(affinity) - _allowed_cpus()):
        reason = f"no CPU {', '.join(map(str, missing))} here; allowed: {', '.join(map(str, sorted(_allowed_cpus())))}"
    else:
        try:
            os.sched_setaffinity(0, affinity)
        except OSError as error:
            reason = str(error.strerror)
        usable = os.sched_getaffinity(0)
        if not reason and usable != set(affinity):
            reason = "it was accepted and had no effect"
    return Grant("affinity", asked, not reason, f"CPU {', '.join(map(str, sorted(usable)))}", reason)


def _allowed_cpus() -> set[int]:
    """CPUs that the process as a whole may use: those of its first thread."""
    return set(os.sched_getaffinity(os.getpid())) | set(os.sched_getaffinity(0))


def _ask_priority(priority: int) -> Grant:
    reason = ""
    try:
        # Children do not inherit it: a worker at the clock's priority could keep the clock from running.
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        limit, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
        reason = (
            f"{error.strerror}; it takes CAP_SYS_NICE or an rtprio limit of {priority} (it is {limit}), "
            "see /etc/security/limits.conf"
        )
    policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    got = os.sched_getparam(0).sched_priority
    if not reason and (policy != os.SCHED_FIFO or got != priority):
        reason = "it was accepted and had no effect"
    return Grant("priority", f"SCHED_FIFO {priority}", not reason, _policy_text(policy, got), reason)


def _policy_text(policy: int, priority: int) -> str:
    names = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
    name = names.get(policy, f"policy {policy}")
    return f"{name} {priority}" if priority else name


class ProcessTuning:
    """What the whole process is put into while wall-clock environments run, counted by its users.

    The first `acquire` collects and freezes garbage (0.1 s with torch loaded, which would otherwise come in the middle
    of a time-step), shortens the switch interval and, if asked, locks memory; the last `release` undoes it. What the
    program changed by itself in the meantime stays as it is. Thread-safe.
    """

    def __init__(self) -> None:
        # Reentrant: a garbage collection in `acquire` may close another environment, which releases.
        self._lock = threading.RLock()
        # All below is written under the lock.
        self._users = 0
        self._switch_intervals: tuple[float, float] | None = None  # before, and as it was set
        self._unfreeze = False
        self._memory_locked = False

    @property
    def users(self) -> int:
        """Number of acquisitions that have not been released."""
        return self._users

    def acquire(self, options: RealTimeOptions) -> Granted:
        """Tune the process, or join those who did. Call before the clock starts, and `release` once for each call.

        Raises:
            ConfigurationError: With `options.strict`, if anything was refused; nothing is then acquired.
        """
        with self._lock:
            granted = Granted((self._ask_memory_lock(),) if options.memory_lock else ())
            try:
                if options.strict:
                    granted.check()
                if self._users == 0:
                    self._tune()
                self._users += 1
            except BaseException:  # a Ctrl-C during the collection must not leave half of it behind
                if self._users == 0:
                    self._restore()
                raise
            return granted + Granted(
                (
                    Grant("switch interval", _ms(SWITCH_INTERVAL), True, _ms(sys.getswitchinterval())),
                    Grant("garbage collector", "freeze", True, f"{gc.get_freeze_count()} objects frozen"),
                )
            )

    def release(self) -> None:
        """Give up one acquisition; the last one restores what was before."""
        with self._lock:
            if self._users == 0:
                raise RuntimeError("ProcessTuning.release() without a matching acquire()")
            self._users -= 1
            if self._users == 0:
                self._restore()

    def _tune(self) -> None:
        before = sys.getswitchinterval()
        if before > SWITCH_INTERVAL:
            sys.setswitchinterval(SWITCH_INTERVAL)
            self._switch_intervals = (before, sys.getswitchinterval())
        # A program that froze objects itself keeps them frozen: unfreeze knows no difference.
        self._unfreeze = gc.get_freeze_count() == 0
        gc.collect()
        gc.freeze()

    def _restore(self) -> None:
        if self._switch_intervals is not None:
            before, tuned = self._switch_intervals
            if sys.getswitchinterval() == tuned:
                # The interpreter cuts off what is less than a microsecond.
                sys.setswitchinterval(before + 0.5e-6)
            self._switch_intervals = None
        if self._unfreeze:
            gc.unfreeze()
            self._unfreeze = False
        if self._memory_locked:
            _libc.munlockall()
            self._memory_locked = False

    def _ask_memory_lock(self) -> Grant:
        reason = _reason_against_memory_lock()
        # Pages are locked as they are touched: locking all that is mapped would make torch's gigabytes resident.
        if not reason and _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
            reason = os.strerror(ctypes.get_errno())
        if not reason:
            self._memory_locked = True
        return Grant(
            "memory lock",
            "all memory",
            not reason,
            "on, as it is touched" if self._memory_locked else "off",
            reason,
        )


PROCESS_TUNING = ProcessTuning()
"""The tuning of this process: one for all environments, since what it tunes exists once."""


def _reason_against_memory_lock() -> str:
    """A finite limit must not be locked against: once it is reached, the next allocation anywhere fails."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or _has_capability(_CAP_IPC_LOCK):
        return ""
    return (
        f"it takes CAP_IPC_LOCK or an unlimited memlock limit (it is {limit // 1024} KiB), "
        "see /etc/security/limits.conf"
    )


def _has_capability(number: int) -> bool:
    for line in _read("/proc/thread-self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:g} ms"


def sleep_until(deadline_ns: int, spin_ns: int = 0, rehearse: Callable[[], object] | None = None) -> int:
    """Wait until an instant of CLOCK_MONOTONIC, never less.

    Args:
        deadline_ns: The instant, ns; one in the past returns at once.
        spin_ns: The last part of the wait, spent spinning, ns.
        rehearse: Called once where that part begins, if it has not yet: what comes after the wait is faster if its code
            has just run, since the caches forget it in milliseconds.

    Returns:
        How late the caller goes on, ns, at least 0.
    """
    # time.sleep: poll and epoll round their timeouts up to a millisecond.
    slept = False
    while (remaining := deadline_ns - spin_ns - time.monotonic_ns()) > 0:
        time.sleep(remaining / NANOSECONDS)
        slept = True
    if slept and spin_ns and rehearse is not None:
        rehearse()
    while (now := time.monotonic_ns()) < deadline_ns:
        pass
    return now - deadline_ns


def run_delay_ns(thread_id: int | None = None) -> int | None:
    """Return how long a thread has been ready to run without getting a core, ns since its start.

    Args:
        thread_id: Native id of a thread of this process; None takes the calling thread.

    Returns:
        The delay, or None where the kernel does not tell.
    """
    task = "thread-self" if thread_id is None else f"self/task/{thread_id}"
    fields = _read(f"/proc/{task}/schedstat").split()
    # Kernels without the accounting show zeros, also for the time run.
    return int(fields[1]) if len(fields) == 3 and fields[0] != "0" else None


class RunDelay:
    """The run-queue delay of the thread that made this object, read cheaply: 2 us a call, the file stays open."""

    def __init__(self) -> None:
        self._last_ns = 0
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self.since_last_ns()

    def since_last_ns(self) -> int:
        """Return how long the thread was ready without getting a core since the last call, ns; 0 if unknown."""
        if self._fd < 0:
            return 0
        try:
            total_ns = int(os.pread(self._fd, 96, 0).split()[1])
        except (OSError, IndexError, ValueError):  # the thread has ended, or a kernel without the accounting
            return 0
        last_ns, self._last_ns = self._last_ns, total_ns
        return total_ns - last_ns

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Machine:
    """The machine that a measurement was made on.

    Attributes:
        cpu: The processor's model.
        cores: CPUs online.
        usable_cores: CPUs that this process may keep busy, by its affinity and its container's quota.
        cpu_quota: CPUs' worth of time that the container allows, or None for no limit.
        memory: Memory that this process may use, bytes.
        load: Load average over 1, 5 and 15 minutes.
        kernel: The kernel's release.
        preemption: The kernel's preemption model as its version names it, or "unknown".
        virtual: Whether it is a virtual machine, whose host may take its cores away.
        governor: Frequency governor of CPU 0, or None where there is none to read.
        clock_resolution: Smallest step of CLOCK_MONOTONIC, s.
        python: Python's version.
    """

    cpu: str
    cores: int
    usable_cores: int
    cpu_quota: float | None
    memory: int
    load: tuple[float, float, float]
    kernel: str
    preemption: str
    virtual: bool
    governor: str | None
    clock_resolution: float
    python: str

    def lines(self) -> tuple[str, ...]:
        """Return what people want to know about it, in two lines."""
        virtual = " (virtual machine)" if self.virtual else ""
        quota = "" if self.cpu_quota is None else f" (container's quota {self.cpu_quota:g})"
        load = " ".join(f"{value:.2f}" for value in self.load)
        governor = "" if self.governor is None else f", governor {self.governor}"
        return (
            f"{self.cpu}{virtual}, {self.usable_cores} of {self.cores} cores usable{quota}, "
            f"{self.memory / 2**30:.0f} GiB, load {load}",
            f"Linux {self.kernel} ({self.preemption}), Python {self.python}, "
            f"clock {self.clock_resolution * 1e9:.0f} ns{governor}",
        )


def machine() -> Machine:
    """Return a record of this machine, as it is now."""
    cpuinfo = _read("/proc/cpuinfo")
    return Machine(
        cpu=_cpu_model(cpuinfo),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        cpu_quota=cpu_quota(),
        memory=memory_limit(),
        load=os.getloadavg(),
        kernel=platform.release(),
        preemption=_preemption(platform.version()),
        virtual=any(line.startswith("flags") and " hypervisor" in line for line in cpuinfo.splitlines()),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        clock_resolution=time.clock_getres(time.CLOCK_MONOTONIC),
        python=platform.python_version(),
    )


def usable_cores() -> int:
    """Return how many CPUs this process may keep busy, by its affinity and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(os.getpid()))
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.machine()


def _preemption(version: str) -> str:
    words = [word for word in version.split() if word.startswith("PREEMPT")]
    return words[0] if words else "unknown"


def _cgroup_folders(controller: str, root: Path, membership: str | None) -> Iterator[Path]:
    """Yield this process's control group and those above it, whose limits hold as well.

    Args:
        controller: A controller of version 1, or "" for version 2.
        root: Where the control groups are mounted.
        membership: Text of /proc/self/cgroup; None reads it.
    """
    text = _read("/proc/self/cgroup") if membership is None else membership
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            top = root / controller
            folder = top / path.lstrip("/")
            yield from (part for part in (folder, *folder.parents) if part.is_relative_to(top))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: str | None = None) -> float | None:
    """Return the tightest limit on CPU time that a container sets for this process, in CPUs; None if there is none.

    Args:
        root: Where the control groups are mounted.
        membership: Text of /proc/self/cgroup; None reads it.
    """
    quotas = [_read(folder / "cpu.max").split() for folder in _cgroup_folders("", root, membership)]
    for folder in _cgroup_folders("cpu", root, membership):
        quotas.append(
            [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
        )
    limits = [int(quota[0]) / int(quota[1]) for quota in quotas if len(quota) == 2 and quota[0].isdigit()]
    return min(limits, default=None)


def memory_limit(root: Path = Path("/sys/fs/cgroup"), membership: str | None = None) -> int:
    """Return how much memory this process may use, by its container or by what there is, bytes.

    Args:
        root: Where the control groups are mounted.
        membership: Text of /proc/self/cgroup; None reads it.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        texts = (_read(folder / name).strip() for folder in _cgroup_folders(controller, root, membership))
        limits.extend(int(text) for text in texts if text.isdigit())
    return min(limits)


def _read(path: str | Path) -> str:
    """Return a kernel file's text, or nothing where it does not exist or may not be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
