"""Headers that cannot be trusted: whatever lies in a segment, it is refused in words or it is what it says."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_lrhc.cluster.fields import ClusterShape
from rt_lrhc.errors import SharedMemoryError
from rt_lrhc.shm.header import HEADER_SIZE, STATE_OFFSET, SegmentState, write_state
from rt_lrhc.shm.layout import _hash, create, inspect, require_equal
from rt_lrhc.shm.segment import Segment
from rt_lrhc.testing.echo import EchoController

NAME = f"/rt_lrhc_fuzz.{os.getpid()}"
SHAPE = ClusterShape(EchoController(1).spec, 3, 2, 20_000_000)
HASH_OFFSET = 16


@pytest.fixture(scope="module")
def valid() -> bytes:
    """The bytes of a segment that is in order."""
    segment = create(NAME, SHAPE.layout())
    write_state(segment, SegmentState.READY)
    content = bytes(segment.buffer)
    segment.unlink()
    segment.close()
    return content


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], bool]]:
    """Whether bytes are taken for a cluster, as a peer checks it before it maps anything; only our errors pass."""
    path = Path(tmp_path_factory.mktemp("fuzz")) / "segment"

    def accepted(content: bytes) -> bool:
        path.write_bytes(content)
        path.chmod(0o600)
        try:
            segment = Segment.from_fd(os.open(path, os.O_RDONLY))
        except SharedMemoryError:
            return False
        try:
            _, layout = inspect(segment)
            require_equal(ClusterShape.from_layout(layout).layout(), layout)
            assert segment._mapping is None, "nothing is mapped while it is checked"
            return True
        except SharedMemoryError:
            return False
        finally:
            segment.close()

    yield accepted


def test_a_segment_in_order_is_accepted(check: Callable[[bytes], bool], valid: bytes) -> None:
    assert check(valid)


@settings(max_examples=2000)
@given(noise=st.binary(max_size=2 * HEADER_SIZE))
def test_random_bytes_are_refused(check: Callable[[bytes], bool], noise: bytes) -> None:
    assert not check(noise)


@settings(max_examples=3000)
@given(flips=st.lists(st.integers(0, 8 * 2 * HEADER_SIZE - 1), min_size=1, max_size=4, unique=True))
def test_flipped_bits_in_header_and_manifest_are_refused_or_harmless(
    check: Callable[[bytes], bool], valid: bytes, flips: list[int]
) -> None:
    """Harmless are only the identity of the owner, which no offset follows from, and bytes that mean nothing."""
    content = bytearray(valid)
    for flip in flips:
        content[flip // 8] ^= 1 << flip % 8
    manifest_size = struct.unpack_from("=Q", valid, 40)[0]
    meaning = {
        *range(56),
        *range(STATE_OFFSET, STATE_OFFSET + 8),
        *range(HEADER_SIZE, HEADER_SIZE + manifest_size),
    }
    if meaning & {flip // 8 for flip in flips}:
        assert not check(bytes(content))
    else:
        assert check(bytes(content))


@settings(max_examples=2000)
@given(
    offset=st.integers(0, 11).map(lambda word: 8 * word),
    value=st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 4096, 8192, 2**32, 2**63, 2**64 - 1])),
    size=st.integers(0, 3 * HEADER_SIZE),
)
def test_random_offsets_lengths_and_truncations_are_refused(
    check: Callable[[bytes], bool], valid: bytes, offset: int, value: int, size: int
) -> None:
    content = bytearray(valid)
    if offset < 56 and struct.unpack_from("=Q", content, offset)[0] != value:
        struct.pack_into("=Q", content, offset, value)
        assert not check(bytes(content))
    if size < len(valid):
        assert not check(valid[:size])


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=2000)
@given(data=st.data())
def test_a_manifest_with_anything_in_it_and_the_right_hash_is_refused_in_words(
    check: Callable[[bytes], bool], valid: bytes, data: st.DataObject
) -> None:
    """Somebody who can write can hash: what the manifest says is checked all the same."""
    size = struct.unpack_from("=Q", valid, 40)[0]
    document = json.loads(valid[HEADER_SIZE : HEADER_SIZE + size])
    place = document
    for _ in range(data.draw(st.integers(1, 4))):
        keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (list, dict)) and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(json_values)
        break
    manifest = json.dumps(document, sort_keys=True).encode()
    content = bytearray(valid)
    if len(manifest) > len(valid) - HEADER_SIZE:
        return
    content[HEADER_SIZE : HEADER_SIZE + len(manifest)] = manifest
    struct.pack_into("=Q", content, 40, len(manifest))
    struct.pack_into("=Q", content, HASH_OFFSET, _hash(manifest))
    check(bytes(content))
