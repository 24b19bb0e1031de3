"""The header of a segment, page 0: who made it, how long it is, and what it claims to hold.

Offsets and sizes in bytes, native byte order; `state` has a block of 128 B of its own at `STATE_OFFSET`.
"""

import os
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from rt_lrhc.errors import LayoutError
from rt_lrhc.shm.segment import Segment

MAGIC = b"RTLRHC\0\1"
ABI_VERSION = 1
ENDIAN_TAG = 0x01020304
HEADER_SIZE = 4096
STATE_OFFSET = 128

_STRUCT = struct.Struct("=8sIIQQQQQQQ16s")
_STATE = struct.Struct("=Q")


class SegmentState(IntEnum):
    """Where a segment is in its life. One writer: its owner."""

    INITIALISING = 0
    READY = 1
    CLOSING = 2


@dataclass(frozen=True)
class Header:
    """What page 0 says.

    Attributes:
        layout_hash: First 8 bytes of the manifest's SHA-256.
        total_size: Bytes of the whole segment.
        manifest_size: Bytes of the JSON manifest, which begins at `HEADER_SIZE`.
        data_offset: Where the fields begin.
        owner_pid: Process that made the segment.
        owner_start_time: Its start time, in clock ticks since boot: with the pid it names one process for good.
        boot_id: The kernel's boot id, 16 bytes: a pid means nothing after a reboot.
    """

    layout_hash: int
    total_size: int
    manifest_size: int
    data_offset: int
    owner_pid: int
    owner_start_time: int
    boot_id: bytes

    def owner_is_alive(self) -> bool:
        """Whether the process that made the segment still runs."""
        return self.boot_id == boot_id() and process_start_time(self.owner_pid) == self.owner_start_time


def process_start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot, or None where it is gone or a zombie."""
    try:
        # The command, in brackets, may itself hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> bytes:
    """Return the 16 bytes that name this boot of this machine."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def write_header(segment: Segment, layout_hash: int, manifest_size: int, data_offset: int) -> None:
    """Write the header of a segment that this process owns, with state `INITIALISING`."""
    write_state(segment, SegmentState.INITIALISING)
    _STRUCT.pack_into(
        segment.buffer,
        0,
        MAGIC,
        ABI_VERSION,
        ENDIAN_TAG,
        layout_hash,
        segment.size,
        HEADER_SIZE,
        manifest_size,
        data_offset,
        os.getpid(),
        process_start_time(os.getpid()) or 0,
        boot_id(),
    )


def read_header(segment: Segment) -> Header:
    """Read and check the header, without mapping the segment.

    Raises:
        LayoutError: If the segment is too short, is not ours, or claims what it cannot hold.
    """
    page = segment.read(0, HEADER_SIZE)
    where = f"shared memory {segment.name or f'(descriptor {segment.fd})'!r}"
    if len(page) < HEADER_SIZE:
        raise LayoutError(f"{where} is truncated: expected at least {HEADER_SIZE} B, got {len(page)} B")
    magic, abi, endian, layout_hash, total, manifest, manifest_size, data, pid, start, boot = (
        _STRUCT.unpack_from(page)
    )
    if magic != MAGIC:
        raise LayoutError(f"{where} is not a segment of rt_lrhc: expected the magic {MAGIC!r}, got {magic!r}")
    if endian != ENDIAN_TAG:
        raise LayoutError(f"{where} is not in this machine's byte order ({sys.byteorder}-endian)")
    if abi != ABI_VERSION:
        raise LayoutError(
            f"{where} has ABI version {abi}, this program speaks {ABI_VERSION}; use one version for both"
        )
    if total != segment.size:
        raise LayoutError(
            f"{where} is truncated or padded: its header says {total} B, it has {segment.size} B"
        )
    if manifest != HEADER_SIZE or data % 128 or not HEADER_SIZE + manifest_size <= data <= total:
        raise LayoutError(
            f"{where} has a damaged header: manifest of {manifest_size} B at {manifest}, data at {data}"
        )
    return Header(layout_hash, total, manifest_size, data, pid, start, boot)


def read_state(segment: Segment) -> SegmentState:
    """Return the state of a segment, without mapping it.

    Raises:
        LayoutError: If the word is none of them.
    """
    value = int(_STATE.unpack(segment.read(STATE_OFFSET, _STATE.size))[0])
    try:
        return SegmentState(value)
    except ValueError:
        raise LayoutError(f"shared memory {segment.name!r} has a damaged header: state {value}") from None


def write_state(segment: Segment, state: SegmentState) -> None:
    """Say where the segment is in its life; the owner alone may."""
    _STATE.pack_into(segment.buffer, STATE_OFFSET, state)
