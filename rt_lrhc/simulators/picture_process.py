"""The process that renders a MuJoCo model with OpenGL: run as a file by `pictures.py`, on numpy and mujoco alone.

It reads from stdin a header (length of the MJCF, length of the camera's name, height, width), the MJCF and the name,
and answers with one byte when a first picture could be rendered. Then, for each request (number of robots and of
positions, and the positions, float64), it writes as many pictures, RGB, one after the other, until stdin ends. OpenGL
is what the environment variable MUJOCO_GL names; where it is broken it may abort the process, which is why this is one.
"""

import os
import struct
import sys
from typing import Any, BinaryIO

import numpy as np

HEADER = struct.Struct("<IIII")
REQUEST = struct.Struct("<II")
READY = b"\x01"


def main(source: BinaryIO, sink: BinaryIO) -> None:
    """Render what is asked for, until there is nothing more to read."""
    import mujoco

    text_length, camera_length, height, width = HEADER.unpack(_read(source, HEADER.size))
    text, camera = _read(source, text_length).decode(), _read(source, camera_length).decode()
    spec: Any = mujoco.MjSpec.from_string(text)
    spec.visual.global_.offheight, spec.visual.global_.offwidth = height, width
    model = spec.compile()
    data = mujoco.MjData(model)
    with mujoco.Renderer(model, height, width) as renderer:
        # Software renderers take half of their time for shadows.
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        _render(mujoco, model, data, renderer, camera)
        sink.write(READY)
        sink.flush()
        while header := source.read(REQUEST.size):
            count, positions = REQUEST.unpack(header)
            values = np.frombuffer(_read(source, 8 * count * positions), np.float64)
            for row in values.reshape(count, positions):
                data.qpos[:] = row
                sink.write(_render(mujoco, model, data, renderer, camera).tobytes())
            sink.flush()


def _render(mujoco: Any, model: Any, data: Any, renderer: Any, camera: str) -> "np.ndarray[Any, Any]":
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    renderer.update_scene(data, camera or -1)
    picture: np.ndarray[Any, Any] = renderer.render()
    return picture


def _read(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError(f"stdin ended after {len(data)} of {size} bytes")
    return data


if __name__ == "__main__":
    # What libraries print must not come between the pictures.
    pictures = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(sys.stdin.buffer, pictures)
