"""What lies where in a segment: blocks of fields, one writer a block, and the manifest that tells a peer.

A layout is plain C: 8-byte words in native byte order, blocks aligned to 128 B (two cache lines, which the hardware
fetches in pairs), so that no two writers share a line and no word is ever torn.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rt_lrhc.errors import LayoutError, SharedMemoryError
from rt_lrhc.shm.header import HEADER_SIZE, Header, SegmentState, read_header, read_state, write_header
from rt_lrhc.shm.segment import Segment

BLOCK_ALIGNMENT = 128
ARRAY_ALIGNMENT = 64
WORD_SIZE = 8
DTYPES = ("float64", "int64")
MANIFEST_LIMIT = 4 * 2**20


@dataclass(frozen=True)
class Field:
    """One named array of 8-byte words.

    Attributes:
        name: Its name in the block.
        shape: Its shape; `()` is a single word.
        dtype: "float64" or "int64".
        unit: SI unit, or what is counted.
        slotted: Whether there are two of it, of which the writer fills one while readers keep the other.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    slotted: bool = False

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape in memory: with a leading 2 where the field is slotted."""
        return (2, *self.shape) if self.slotted else self.shape

    @property
    def size(self) -> int:
        """Bytes of the field."""
        return WORD_SIZE * math.prod(self.full_shape)


@dataclass(frozen=True)
class Block:
    """Fields with one writer, on cache lines of their own."""

    name: str
    writer: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Layout:
    """The blocks of a segment, in order, and attributes that its peers need (any JSON)."""

    blocks: tuple[Block, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def placed(self) -> Iterator[tuple[Block, Field, int]]:
        """Yield each field with its block and its offset from the start of the data, in bytes."""
        offset = 0
        for block in self.blocks:
            offset = _align(offset, BLOCK_ALIGNMENT)
            for one in block.fields:
                offset = _align(offset, ARRAY_ALIGNMENT if one.size >= ARRAY_ALIGNMENT else WORD_SIZE)
                yield block, one, offset
                offset += one.size

    @property
    def data_size(self) -> int:
        """Bytes of all blocks, the last one padded to a whole block."""
        end = max((offset + one.size for _, one, offset in self.placed()), default=0)
        return _align(end, BLOCK_ALIGNMENT)

    def manifest(self) -> bytes:
        """Return the JSON text that describes this layout; equal layouts give equal bytes."""
        fields = [
            {
                "block": block.name,
                "name": one.name,
                "writer": block.writer,
                "shape": list(one.shape),
                "dtype": one.dtype,
                "unit": one.unit,
                "slots": 2 if one.slotted else 1,
                "offset": offset,
            }
            for block, one, offset in self.placed()
        ]
        document = {"attributes": dict(self.attributes), "fields": fields}
        return json.dumps(document, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_manifest(cls, manifest: bytes) -> "Layout":
        """Return the layout that a manifest describes.

        Raises:
            LayoutError: If it is not such a manifest, or its offsets are not those of this version.
        """
        try:
            document = json.loads(manifest)
            attributes, entries = document["attributes"], document["fields"]
            blocks: dict[tuple[str, str], list[Field]] = {}
            for entry in entries:
                blocks.setdefault((entry["block"], entry["writer"]), []).append(_field_from_json(entry))
            layout = cls(
                tuple(Block(name, writer, tuple(rows)) for (name, writer), rows in blocks.items()), attributes
            )
            offsets = [offset for _, _, offset in layout.placed()]
            stated = [entry["offset"] for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LayoutError(f"the manifest is damaged: {type(error).__name__}: {error}") from error
        if offsets != stated or not isinstance(attributes, dict):
            raise LayoutError("the manifest is damaged: its offsets are not those of its fields")
        return layout


def create(name: str, layout: Layout) -> Segment:
    """Create a segment with this layout, all fields zero, its state `INITIALISING`.

    Raises:
        SharedMemoryError: If the name is taken or the memory is not there.
    """
    manifest = layout.manifest()
    if len(manifest) > MANIFEST_LIMIT:
        raise SharedMemoryError(
            f"the manifest of {name!r} has {len(manifest)} B, at most {MANIFEST_LIMIT} B are allowed"
        )
    data_offset = _align(HEADER_SIZE + len(manifest), HEADER_SIZE)
    segment = Segment.create(name, data_offset + layout.data_size)
    segment.buffer[HEADER_SIZE : HEADER_SIZE + len(manifest)] = manifest
    write_header(segment, _hash(manifest), len(manifest), data_offset)
    return segment


def inspect(segment: Segment) -> tuple[Header, Layout]:
    """Check header and manifest of a segment, without mapping it, and return both.

    Raises:
        LayoutError: If they cannot be trusted, or the owner has not finished, or has begun to take it down.
    """
    header = read_header(segment)
    if header.manifest_size > MANIFEST_LIMIT:
        raise LayoutError(f"the manifest of {segment.name!r} is too long: {header.manifest_size} B")
    manifest = segment.read(HEADER_SIZE, header.manifest_size)
    if _hash(manifest) != header.layout_hash:
        raise LayoutError(
            f"the manifest of {segment.name!r} does not match the hash in the header: it is damaged"
        )
    layout = Layout.from_manifest(manifest)
    if header.data_offset + layout.data_size != header.total_size:
        raise LayoutError(
            f"the fields of {segment.name!r} need {layout.data_size} B, the header has room for "
            f"{header.total_size - header.data_offset} B"
        )
    state = read_state(segment)
    if state is not SegmentState.READY:
        raise LayoutError(f"the segment {segment.name!r} is {state.name}, not READY")
    return header, layout


def require_equal(expected: Layout, found: Layout) -> None:
    """Check that two peers mean the same.

    Raises:
        LayoutError: If they do not; it names the first field, or else the attribute, that differs.
    """
    ours, theirs = list(expected.placed()), list(found.placed())
    for (block, one, offset), (other_block, other, other_offset) in zip(ours, theirs, strict=False):
        mine, its = _describe(block, one, offset), _describe(other_block, other, other_offset)
        if mine != its:
            raise LayoutError(
                f"field {block.name}.{one.name}: this program expects {mine}, the segment has {its}"
            )
    if len(ours) != len(theirs):
        block, one, _ = max(ours, theirs, key=len)[min(len(ours), len(theirs))]
        who = "the segment lacks" if len(ours) > len(theirs) else "this program does not know"
        raise LayoutError(f"field {block.name}.{one.name}: {who} it; use one version of rt_lrhc for both")
    for key in sorted({*expected.attributes, *found.attributes}):
        mine_value, its_value = expected.attributes.get(key), found.attributes.get(key)
        if mine_value != its_value:
            raise LayoutError(
                f"attribute {key!r}: this program expects {mine_value!r}, the segment has {its_value!r}"
            )


def _describe(block: Block, one: Field, offset: int) -> str:
    slots = " x 2 slots" if one.slotted else ""
    return f"{block.name}.{one.name} {one.dtype}{list(one.shape)}{slots} [{one.unit}] of {block.writer} at {offset}"


def _field_from_json(entry: dict[str, Any]) -> Field:
    name, shape, dtype, unit, slots = (entry[key] for key in ("name", "shape", "dtype", "unit", "slots"))
    if not all(isinstance(text, str) for text in (name, unit, entry["block"], entry["writer"])):
        raise ValueError("names and units must be strings")
    if dtype not in DTYPES or slots not in (1, 2):
        raise ValueError(f"field {name!r}: dtype {dtype!r}, {slots!r} slots")
    if not all(isinstance(length, int) and 0 <= length < 2**40 for length in shape):
        raise ValueError(f"field {name!r}: shape {shape!r}")
    return Field(name, tuple(shape), dtype, unit, slots == 2)


def _hash(manifest: bytes) -> int:
    return int.from_bytes(hashlib.sha256(manifest).digest()[:8], "little")


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
