"""Segments: created whole, checked before they are mapped, let go without harm."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rt_lrhc.errors import SharedMemoryError
from rt_lrhc.shm.header import HEADER_SIZE, SegmentState, write_state
from rt_lrhc.shm.layout import Block, Field, Layout, create, inspect
from rt_lrhc.shm.segment import Segment

NAME = f"/rt_lrhc_test.{os.getpid()}"
PATH = Path("/dev/shm", NAME[1:])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    left = os.path.lexists(PATH)
    if left:
        PATH.rmdir() if PATH.is_dir() and not PATH.is_symlink() else PATH.unlink()
    assert not left


def test_a_peer_sees_what_the_creator_wrote_and_only_the_owner_may_open_it() -> None:
    ours = Segment.create(NAME, 8192)
    ours.buffer[100:105] = b"hello"
    theirs = Segment.attach(NAME)
    assert theirs.size == 8192 and theirs.buffer[100:105] == b"hello" and theirs.read(100, 5) == b"hello"
    assert PATH.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TypeError):
        theirs.buffer[0] = 1
    theirs.close()
    ours.unlink()
    ours.close()


def test_a_name_is_taken_once() -> None:
    ours = Segment.create(NAME, 4096)
    with pytest.raises(SharedMemoryError, match="exists already"):
        Segment.create(NAME, 4096)
    assert ours.size == PATH.stat().st_size
    ours.unlink()
    ours.close()


def test_a_full_memory_is_an_error_that_says_so_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryError, match=r"cannot reserve 3\.0 MiB .* left; enlarge /dev/shm"):
        Segment.create(NAME, 3 * 2**20)


def test_views_outlive_close_and_unlink_is_idempotent() -> None:
    ours = Segment.create(NAME, 4096)
    view = np.frombuffer(ours.buffer, np.int64, 4)
    view[0] = 7
    ours.unlink()
    ours.unlink()
    ours.close()
    ours.close()
    assert view[0] == 7 and not PATH.exists()
    with pytest.raises(SharedMemoryError, match="closed"):
        _ = ours.buffer


def test_a_forked_child_cannot_remove_the_parents_segment() -> None:
    ours = Segment.create(NAME, 4096)
    child = os.fork()
    if child == 0:
        ours.unlink()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and PATH.exists()
    ours.unlink()
    ours.close()


def _truncated() -> None:
    segment = create(NAME, Layout((Block("b", "w", (Field("x", (4096,), "int64", "1"),)),)))
    write_state(segment, SegmentState.READY)
    segment.close()
    os.truncate(PATH, HEADER_SIZE + 10)


def _file(content: bytes, mode: int = 0o600) -> Callable[[], None]:
    def make() -> None:
        PATH.write_bytes(content)
        PATH.chmod(mode)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_file(b""), "empty"),
        (_file(b"x"), "truncated"),
        (_file(os.urandom(20_000)), "not a segment"),
        (_file(bytes(20_000), 0o644), "mode 0600"),
        (_truncated, "truncated"),
        (lambda: PATH.mkdir(mode=0o700), "regular"),
        (lambda: os.mkfifo(PATH, 0o600), "regular"),
        (lambda: PATH.symlink_to("/etc/hostname"), "cannot open"),
    ],
    ids=["empty", "one byte", "random", "open to others", "truncated", "directory", "fifo", "link"],
)
def test_what_is_not_a_whole_segment_of_ours_is_refused_in_words(
    make: Callable[[], None], message: str
) -> None:
    make()
    signal.alarm(10)  # a FIFO must not make us wait
    try:
        with pytest.raises(SharedMemoryError, match=message):
            segment = Segment.attach(NAME)
            try:
                inspect(segment)
            finally:
                segment.close()
    finally:
        signal.alarm(0)
        PATH.rmdir() if PATH.is_dir() and not PATH.is_symlink() else PATH.unlink()


def test_a_missing_segment_is_named() -> None:
    with pytest.raises(SharedMemoryError, match=NAME):
        Segment.attach(NAME)
