"""The fields of a segment as numpy arrays over the shared memory."""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import LayoutError
from rt_lrhc.shm.layout import WORD_SIZE, Layout
from rt_lrhc.shm.segment import Segment

Array = npt.NDArray[Any]


def bind(segment: Segment, layout: Layout, writers: Collection[str] = ()) -> dict[str, dict[str, Array]]:
    """Map a segment and return its arrays by block and field.

    Args:
        segment: A segment with this layout, checked by `inspect` where another process made it.
        layout: What lies where.
        writers: The writers that this process is; the arrays of all others are read-only here. Every word has
            exactly one writer, which makes locks unnecessary.

    Returns:
        `arrays[block][field]`, shape `Field.full_shape`. They keep the memory mapped as long as they live.

    Raises:
        LayoutError: If the mapping is not aligned to words, which would tear them.
    """
    buffer = segment.buffer
    data_offset = segment.size - layout.data_size
    arrays: dict[str, dict[str, Array]] = {}
    for block, field, offset in layout.placed():
        # frombuffer holds on to the mapping; `ndarray(buffer=mmap)` does not, and reads unmapped memory later.
        flat = np.frombuffer(buffer, field.dtype, field.size // WORD_SIZE, data_offset + offset)
        if flat.ctypes.data % WORD_SIZE:
            raise LayoutError(f"field {block.name}.{field.name} is not aligned to {WORD_SIZE} B")
        array = flat.reshape(field.full_shape)
        if array.flags.writeable and block.writer not in writers:
            array.flags.writeable = False
        arrays.setdefault(block.name, {})[field.name] = array
    return arrays
