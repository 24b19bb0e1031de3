"""Namespaces: one live owner each, and the dead leave nothing that stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rt_lrhc.errors import ConfigurationError, NamespaceBusy, SharedMemoryError
from rt_lrhc.shm.layout import Block, Field, Layout, create
from rt_lrhc.shm.namespace import Namespace, NamespaceLock, clean, leftovers, run_directory

LAYOUT = Layout((Block("b", "w", (Field("x", (), "int64", "1"),)),))

HOLDER = """
import sys, time
from rt_lrhc.shm.layout import Block, Field, Layout, create
from rt_lrhc.shm.namespace import Namespace, NamespaceLock
lock = NamespaceLock.acquire(Namespace(sys.argv[1]))
segment = create(lock.namespace.segment_name, Layout((Block("b", "w", (Field("x", (), "int64", "1"),)),)))
lock.namespace.socket_path.touch()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "rt_lrhc"


@pytest.fixture
def name() -> str:
    return f"test-{os.getpid()}-0"


def _hold(name: str) -> "subprocess.Popen[bytes]":
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, name], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    return holder


def _end(holder: "subprocess.Popen[bytes]") -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert holder.stdout is not None
    holder.stdout.close()


def test_a_second_owner_is_refused_and_told_the_pid(run_dir: Path, name: str) -> None:
    holder = _hold(name)
    try:
        with pytest.raises(NamespaceBusy, match=f"held by process {holder.pid}"):
            NamespaceLock.acquire(Namespace(name), patience=0.0)
        assert not leftovers() and not clean(name)
    finally:
        _end(holder)
        clean(name)


def test_what_a_killed_owner_left_is_listed_and_removed_and_its_lock_is_free(
    run_dir: Path, name: str
) -> None:
    _end(_hold(name))
    namespace = Namespace(name)
    expected = [Path("/dev/shm", namespace.segment_name[1:]), namespace.socket_path]
    assert [item.path for item in leftovers() if item.namespace == name] == expected
    lock = NamespaceLock.acquire(namespace)
    assert [item.path for item in lock.remove_leftovers()] == expected
    assert not any(path.exists() for path in expected) and namespace.lock_path.exists()
    lock.release()
    lock.release()


def test_an_owner_that_locks_elsewhere_is_not_robbed(
    run_dir: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = _hold(name)
    try:
        (tmp_path / "other").mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "other"))
        lock = NamespaceLock.acquire(Namespace(name))
        with pytest.raises(NamespaceBusy, match=f"held by process {holder.pid}, whose run directory"):
            lock.remove_leftovers()
        lock.release()
        assert not leftovers() and not clean(name)
        free = NamespaceLock.acquire_free(name[:-1])
        assert free.namespace.name == f"{name[:-1]}1"
        free.release()
    finally:
        _end(holder)
        clean(name)


def test_free_names_are_unique_among_the_living_and_used_again(run_dir: Path) -> None:
    first, second = NamespaceLock.acquire_free(), NamespaceLock.acquire_free()
    assert first.namespace != second.namespace
    first.release()
    third = NamespaceLock.acquire_free()
    assert third.namespace == first.namespace
    second.release()
    third.release()


def test_a_run_directory_that_others_could_change_is_refused(run_dir: Path, tmp_path: Path) -> None:
    assert run_directory() == run_dir and run_dir.stat().st_mode & 0o777 == 0o700
    run_dir.chmod(0o755)
    with pytest.raises(SharedMemoryError, match="mode 0700"):
        run_directory()
    run_dir.rmdir()
    (tmp_path / "real").mkdir(mode=0o700)
    run_dir.symlink_to(tmp_path / "real")
    with pytest.raises(SharedMemoryError, match="must be a directory"):
        run_directory()


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "x" * 49, "ä"])
def test_a_name_that_could_leave_its_place_is_refused(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        Namespace(bad)


def test_a_leftover_that_cannot_be_removed_is_named(run_dir: Path, name: str) -> None:
    path = Path("/dev/shm", Namespace(name).segment_name[1:])
    path.mkdir()
    try:
        lock = NamespaceLock.acquire(Namespace(name))
        with pytest.raises(SharedMemoryError, match=str(path)):
            lock.remove_leftovers()
        lock.release()
    finally:
        path.rmdir()


def test_clean_spares_the_segments_of_the_living(run_dir: Path, name: str) -> None:
    lock = NamespaceLock.acquire(Namespace(name))
    segment = create(lock.namespace.segment_name, LAYOUT)
    assert not clean()
    assert segment.size == Path("/dev/shm", lock.namespace.segment_name[1:]).stat().st_size
    segment.unlink()
    segment.close()
    lock.release()
