import ctypes
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.timing.realtime import (
    PROCESS_TUNING,
    SWITCH_INTERVAL,
    Grant,
    Granted,
    ProcessTuning,
    RealTimeOptions,
    apply_to_thread,
    cpu_quota,
    machine,
    memory_limit,
    restore_thread,
    run_delay_ns,
    sleep_until,
    thread_state,
    usable_cores,
)

Result = TypeVar("Result")
NO_SUCH_CPU = 100_000


def on_a_thread(work: Callable[[], Result]) -> Result:
    """Do `work` on a thread of its own: what is changed about the thread ends with it."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result(timeout=60.0)


def drop_privileges_of_this_thread() -> None:
    """Give up the capabilities of this thread alone; without any, a thread may do what an ordinary user may."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"spin": -1e-6}, "spin"),
        ({"spin": 1.0}, "spin"),
        ({"spin": float("nan")}, "spin"),
        ({"affinity": ()}, "affinity"),
        ({"affinity": (0, 0)}, "affinity"),
        ({"affinity": (-1,)}, "affinity"),
        ({"affinity": ("0",)}, "affinity"),
        ({"priority": 0}, "priority"),
        ({"priority": 100}, "priority"),
    ],
)
def test_an_option_out_of_its_range_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{named} must"):
        RealTimeOptions(**options)


@pytest.mark.parametrize("spin_ns", [0, 100_000, 50_000_000])
def test_a_wait_never_ends_early_and_tells_how_late_it_ended(spin_ns: int) -> None:
    for duration_ns in (0, 1, 50_000, 1_000_000, 3_000_000):
        deadline_ns = time.monotonic_ns() + duration_ns
        lateness_ns = sleep_until(deadline_ns, spin_ns)
        assert 0 <= lateness_ns <= time.monotonic_ns() - deadline_ns


def test_a_wait_for_the_past_does_not_wait() -> None:
    an_hour_ns = 3_600_000_000_000
    assert sleep_until(time.monotonic_ns() - an_hour_ns) >= an_hour_ns


def test_a_thread_gets_the_least_timer_slack_and_can_give_it_back() -> None:
    def tune() -> None:
        before = thread_state()
        granted = apply_to_thread(RealTimeOptions())
        assert [grant.name for grant in granted.grants] == ["timer slack"]
        assert (thread_state().timer_slack_ns in (0, 1)) == (not granted.refused)
        restore_thread(before)
        assert thread_state() == before

    on_a_thread(tune)


def test_another_thread_is_not_tuned() -> None:
    before = thread_state()
    on_a_thread(
        lambda: apply_to_thread(RealTimeOptions(affinity=(min(os.sched_getaffinity(0)),), priority=1))
    )
    assert thread_state() == before


def test_what_is_reported_as_granted_is_in_force() -> None:
    cpu = max(os.sched_getaffinity(0))

    def tune() -> None:
        before = thread_state()
        granted = apply_to_thread(RealTimeOptions(affinity=(cpu,), priority=3))
        by_name = {grant.name: grant.granted for grant in granted.grants}
        state = thread_state()
        assert by_name["affinity"] == (state.affinity == (cpu,))
        assert by_name["priority"] == (state.policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO)
        assert by_name["priority"] == (state.priority == 3)
        restore_thread(before)
        assert thread_state() == before

    on_a_thread(tune)


def test_what_is_refused_changes_nothing_and_says_why() -> None:
    def tune() -> None:
        before = thread_state()
        granted = apply_to_thread(RealTimeOptions(affinity=(0, NO_SUCH_CPU)))
        assert [grant.name for grant in granted.refused] == ["affinity"]
        assert f"no CPU {NO_SUCH_CPU} here" in granted.lines()[1]
        assert thread_state().affinity == before.affinity

    on_a_thread(tune)


def test_strict_options_raise_what_was_refused_and_leave_the_thread_as_it_was() -> None:
    def tune() -> None:
        before = thread_state()
        with pytest.raises(ConfigurationError, match=f"affinity = CPU {NO_SUCH_CPU}"):
            apply_to_thread(RealTimeOptions(affinity=(NO_SUCH_CPU,), strict=True))
        assert thread_state() == before

    on_a_thread(tune)


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_RTPRIO)[0] != 0, reason="everybody gets a priority here"
)
def test_without_privilege_a_priority_is_refused_and_the_limit_named() -> None:
    def tune() -> Granted:
        drop_privileges_of_this_thread()
        return apply_to_thread(RealTimeOptions(priority=10))

    (refused,) = on_a_thread(tune).refused
    assert "SCHED_FIFO 10" in refused.asked
    assert "rtprio limit of 10 (it is 0)" in refused.reason


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 0, reason="everybody may lock memory here"
)
def test_without_privilege_memory_is_not_locked_against_a_finite_limit() -> None:
    tuning = ProcessTuning()

    def tune() -> Granted:
        drop_privileges_of_this_thread()
        return tuning.acquire(RealTimeOptions(memory_lock=True))

    try:
        (refused,) = on_a_thread(tune).refused
    finally:
        tuning.release()
    assert "memlock limit" in refused.reason
    assert locked_kib() == 0


def locked_kib() -> int:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck")
    )
    return int(line.split()[1])


def test_memory_stays_locked_until_the_last_user_releases_it() -> None:
    tuning = ProcessTuning()
    granted = tuning.acquire(RealTimeOptions(memory_lock=True))
    locked = not granted.refused
    tuning.acquire(RealTimeOptions())
    tuning.release()
    assert (locked_kib() > 0) == locked
    tuning.release()
    assert locked_kib() == 0


@pytest.fixture
def switch_interval() -> Iterator[float]:
    before = sys.getswitchinterval()
    yield before
    sys.setswitchinterval(before + 0.5e-6)  # it cuts off what is less than a microsecond


def test_the_process_is_tuned_from_the_first_user_to_the_last(switch_interval: float) -> None:
    tuning = ProcessTuning()
    for _ in range(2):
        tuning.acquire(RealTimeOptions())
    tuning.release()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    assert gc.get_freeze_count() > 0
    tuning.release()
    assert sys.getswitchinterval() == switch_interval
    assert (gc.get_freeze_count(), tuning.users) == (0, 0)


def test_what_the_program_changed_meanwhile_stays(switch_interval: float) -> None:
    tuning = ProcessTuning()
    tuning.acquire(RealTimeOptions())
    sys.setswitchinterval(0.002)
    tuning.release()
    assert sys.getswitchinterval() == pytest.approx(0.002)


@pytest.mark.parametrize("microseconds", [99, 100, 499, 500, 501, 7001])
def test_the_switch_interval_is_never_made_longer_and_comes_back_exactly(
    microseconds: int, switch_interval: float
) -> None:
    sys.setswitchinterval((microseconds + 0.5) * 1e-6)
    before = sys.getswitchinterval()
    tuning = ProcessTuning()
    tuning.acquire(RealTimeOptions())
    try:
        assert sys.getswitchinterval() <= before
    finally:
        tuning.release()
    assert sys.getswitchinterval() == before


def test_what_the_program_froze_itself_stays_frozen() -> None:
    gc.freeze()
    try:
        tuning = ProcessTuning()
        tuning.acquire(RealTimeOptions())
        tuning.release()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_many_threads_may_acquire_and_release_at_once(switch_interval: float) -> None:
    tuning, start = ProcessTuning(), threading.Barrier(4)

    def use() -> None:
        start.wait(timeout=30.0)
        for _ in range(20):
            tuning.acquire(RealTimeOptions())
            assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
            tuning.release()

    with ThreadPoolExecutor(max_workers=4) as executor:
        for future in [executor.submit(use) for _ in range(4)]:
            future.result(timeout=60.0)
    assert tuning.users == 0
    assert sys.getswitchinterval() == switch_interval


def test_a_release_too_many_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without a matching acquire"):
        ProcessTuning().release()


def test_nothing_holds_the_process_tuned_now() -> None:
    assert PROCESS_TUNING.users == 0


def test_records_of_what_was_granted_add_up() -> None:
    first = Granted((Grant("timer slack", "1 ns", True, "1 ns"),))
    both = first + Granted((Grant("priority", "SCHED_FIFO 5", False, "SCHED_OTHER", "not permitted"),))
    assert both.lines() == (
        "timer slack: 1 ns",
        "priority: asked for SCHED_FIFO 5, refused (not permitted); it is SCHED_OTHER",
    )
    first.check()
    with pytest.raises(ConfigurationError, match="priority = SCHED_FIFO 5"):
        both.check()


def test_the_record_of_the_machine_is_plausible() -> None:
    here = machine()
    assert 1 <= here.usable_cores <= here.cores
    assert here.memory > 2**20
    assert 0.0 < here.clock_resolution <= 1e-3
    assert here.cpu in here.lines()[0]
    assert here.kernel in here.lines()[1]


def test_usable_cores_follow_the_affinity() -> None:
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everything)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)


def test_limits_of_a_container_are_read_in_both_versions_of_control_groups(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("cpu.max", "max 100000\n")
    write("pod/cpu.max", "250000 100000\n")
    write("pod/box/cpu.max", "max 100000\n")
    write("pod/box/memory.max", "1048576\n")
    assert cpu_quota(tmp_path, "0::/pod/box\n") == 2.5
    assert memory_limit(tmp_path, "0::/pod/box\n") == 1048576
    assert cpu_quota(tmp_path, "0::/\n") is None

    write("cpu/box/cpu.cfs_quota_us", "-1\n")
    write("cpu/box/cpu.cfs_period_us", "100000\n")
    write("memory/memory.limit_in_bytes", "2097152\n")
    version_1 = "3:cpu,cpuacct:/box\n2:memory:/box\n"
    assert cpu_quota(tmp_path, version_1) is None
    write("cpu/box/cpu.cfs_quota_us", "150000\n")
    assert cpu_quota(tmp_path, version_1) == 1.5
    assert memory_limit(tmp_path, version_1) == 2097152


def test_the_time_spent_waiting_for_a_core_only_grows() -> None:
    first, second = run_delay_ns(), run_delay_ns(threading.get_native_id())
    if first is None or second is None:
        pytest.skip("this kernel does not account for it")
    assert 0 <= first <= second
    assert run_delay_ns(2**22 + 1) is None
