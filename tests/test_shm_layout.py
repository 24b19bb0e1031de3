"""Layouts: one writer a cache line, a manifest that a peer can check, arrays that only their writer writes."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_lrhc.errors import LayoutError, SharedMemoryError
from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.header import HEADER_SIZE, SegmentState, read_header, write_state
from rt_lrhc.shm.layout import BLOCK_ALIGNMENT, Block, Field, Layout, create, inspect, require_equal
from rt_lrhc.shm.segment import Segment

NAME = f"/rt_lrhc_test.{os.getpid()}"
FIELDS = (Field("count", (), "int64", "1"), Field("state", (3, 2), "float64", "m", slotted=True))
LAYOUT = Layout((Block("ours", "us", FIELDS), Block("theirs", "them", FIELDS)), {"robots": 3})

fields = st.builds(
    Field,
    name=st.text("abc", min_size=1),
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    dtype=st.sampled_from(["int64", "float64"]),
    unit=st.text(max_size=3),
    slotted=st.booleans(),
)
blocks = st.lists(st.lists(fields, min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda rows: tuple(Block(f"block{index}", f"writer{index}", tuple(row)) for index, row in enumerate(rows))
)


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = create(NAME, LAYOUT)
    write_state(segment, SegmentState.READY)
    yield segment
    segment.unlink()
    segment.close()


@given(blocks)
def test_words_are_aligned_fields_never_overlap_and_writers_never_share_cache_lines(
    rows: tuple[Block, ...],
) -> None:
    layout = Layout(rows)
    line_writer: dict[int, str] = {}
    end = 0
    for block, field, offset in layout.placed():
        assert offset % 8 == 0 and offset >= end
        end = offset + field.size
        for line in range(offset // BLOCK_ALIGNMENT, -(-end // BLOCK_ALIGNMENT)):
            assert line_writer.setdefault(line, block.writer) == block.writer
    assert end <= layout.data_size and layout.data_size % BLOCK_ALIGNMENT == 0


@given(blocks)
def test_a_manifest_brings_the_layout_over(rows: tuple[Block, ...]) -> None:
    layout = Layout(rows, {"names": ["x", "y"], "count": 2})
    copy = Layout.from_manifest(layout.manifest())
    assert copy == layout
    require_equal(layout, copy)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (replace(FIELDS[1], shape=(3, 4)), r"ours\.state"),
        (replace(FIELDS[1], dtype="int64"), r"ours\.state"),
        (replace(FIELDS[1], unit="ft"), r"ours\.state.*\[m\].*\[ft\]"),
        (replace(FIELDS[1], slotted=False), r"ours\.state"),
        (replace(FIELDS[1], name="joints"), r"ours\.state.*joints"),
        (None, r"ours\.state"),
    ],
)
def test_a_mismatch_names_the_first_field_that_differs(changed: Field | None, named: str) -> None:
    others = (FIELDS[0],) if changed is None else (FIELDS[0], changed)
    other = Layout((replace(LAYOUT.blocks[0], fields=others), LAYOUT.blocks[1]), LAYOUT.attributes)
    with pytest.raises(LayoutError, match=named):
        require_equal(LAYOUT, other)


def test_a_field_more_or_less_at_the_end_and_another_attribute_are_named() -> None:
    shorter = replace(LAYOUT, blocks=LAYOUT.blocks[:1])
    with pytest.raises(LayoutError, match=r"theirs\.count: the segment lacks it"):
        require_equal(LAYOUT, shorter)
    with pytest.raises(LayoutError, match=r"theirs\.count: this program does not know it"):
        require_equal(shorter, LAYOUT)
    with pytest.raises(LayoutError, match="'robots': this program expects 3, the segment has 4"):
        require_equal(LAYOUT, replace(LAYOUT, attributes={"robots": 4}))


def test_each_block_is_writable_by_its_writer_alone(segment: Segment) -> None:
    peer = Segment.attach(NAME)
    header, layout = inspect(peer)
    require_equal(LAYOUT, layout)
    assert header.owner_is_alive()
    ours = bind(segment, LAYOUT, writers=("us",))
    seen = bind(peer, layout)
    ours["ours"]["state"][1, 2, 1] = 4.5
    assert seen["ours"]["state"][1, 2, 1] == 4.5 and seen["ours"]["state"].shape == (2, 3, 2)
    for arrays, block in ((ours, "theirs"), (seen, "ours"), (seen, "theirs")):
        with pytest.raises(ValueError, match="read-only"):
            arrays[block]["count"][...] = 1
    peer.close()


def test_a_segment_that_is_not_ready_is_refused(segment: Segment) -> None:
    write_state(segment, SegmentState.CLOSING)
    with pytest.raises(LayoutError, match="CLOSING"):
        inspect(segment)


def test_the_owner_of_a_header_is_a_process_and_not_only_a_pid(segment: Segment) -> None:
    header = read_header(segment)
    assert header.owner_is_alive()
    assert not replace(header, owner_start_time=header.owner_start_time + 1).owner_is_alive()
    assert not replace(header, boot_id=bytes(16)).owner_is_alive()


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, HEADER_SIZE + 700), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2**14),
)
def test_a_damaged_header_or_manifest_is_a_layout_error_and_nothing_worse(
    damage: list[tuple[int, int]], size: int
) -> None:
    segment = create(NAME, LAYOUT)
    try:
        write_state(segment, SegmentState.READY)
        for offset, value in damage:
            segment.buffer[offset] = value
        if size % 3 == 0:
            os.ftruncate(segment.fd, size + 1)
        peer = Segment.attach(NAME)
        try:
            header, layout = inspect(peer)
            arrays = bind(peer, layout)
            assert np.isfinite(arrays["ours"]["state"]).all()
            assert LAYOUT.manifest() == peer.read(HEADER_SIZE, header.manifest_size)
        except SharedMemoryError:
            pass
        finally:
            peer.close()
    finally:
        segment.unlink()
        segment.close()
