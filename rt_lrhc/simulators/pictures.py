"""Pictures of MuJoCo robots on machines without a display: rendered by OpenGL in software, or drawn as sticks.

OpenGL runs in a process of its own (`picture_process.py`): a broken driver then costs a picture and not the program,
and the backend can be chosen whatever has been imported here. On Debian and Ubuntu it needs `libegl1 libgl1-mesa-dri`
(EGL) or `libosmesa6` (OSMesa).
"""

import contextlib
import math
import os
import select
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO

import cv2
import mujoco
import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import ConfigurationError, RenderError
from rt_lrhc.simulators.picture_process import HEADER, READY, REQUEST

Picture = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

PACKAGES = "libegl1 libgl1-mesa-dri, or libosmesa6"
"""Debian packages that bring OpenGL in software."""

_PROGRAM = Path(__file__).with_name("picture_process.py")
_START_LIMIT = 30.0  # s; importing mujoco and compiling shaders takes 1 s
_PICTURE_LIMIT = 20.0  # s
_END_LIMIT = 5.0  # s


class RenderedView:
    """Pictures of one robot at a time, rendered by MuJoCo in a process of its own.

    Args:
        mjcf: The robot's model with its world.
        camera: Name of a camera in it; empty for the free one.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.
        backend: `"egl"` or `"osmesa"`; None tries the environment variable MUJOCO_GL, or else both.

    Attributes:
        backend: The OpenGL that was found.

    Raises:
        RenderError: If no backend renders here; it says what each one said, and what to install.
    """

    def __init__(
        self, mjcf: str, *, camera: str = "", height: int = 360, width: int = 480, backend: str | None = None
    ) -> None:
        self.height, self.width = height, width
        wanted = backend or os.environ.get("MUJOCO_GL", "")
        failures = []
        for candidate in (wanted,) if wanted else ("egl", "osmesa"):
            try:
                self._process = _start(candidate, mjcf, camera, height, width)
            except RenderError as error:
                failures.append(f"{candidate}: {error}")
            else:
                self.backend = candidate
                self._finalizer = weakref.finalize(self, _end, self._process)
                return
        raise RenderError(
            f"MuJoCo cannot render here ({'; '.join(failures)}). Install OpenGL in software ({PACKAGES} on Debian), "
            "or use StickView"
        )

    def draw(self, positions: FloatArray) -> list[Picture]:
        """Return one picture for each row of `positions`, (n, nq), as MuJoCo's qpos: (height, width, 3) RGB each.

        Raises:
            RenderError: If the process has ended.
        """
        rows = np.ascontiguousarray(positions, dtype=np.float64)
        size = self.height * self.width * 3
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(REQUEST.pack(*rows.shape) + rows.tobytes())
            self._process.stdin.flush()
            pixels = _receive(self._process, size * len(rows), _PICTURE_LIMIT)
        except (OSError, ValueError) as error:
            raise RenderError(f"the process that renders has ended: {error}") from error
        frames = np.frombuffer(pixels, np.uint8).reshape(len(rows), self.height, self.width, 3)
        return [frame.copy() for frame in frames]

    def close(self) -> None:
        """End the process. Idempotent."""
        self._finalizer()


def _start(backend: str, mjcf: str, camera: str, height: int, width: int) -> "subprocess.Popen[bytes]":
    text, name = mjcf.encode(), camera.encode()
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            # -P: the folder of the program holds modules of ours, which must not pass for others.
            [sys.executable, "-P", str(_PROGRAM)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=os.environ
            | {"MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # so that Ctrl-C ends it through us alone
        )
        try:
            assert process.stdin is not None
            process.stdin.write(HEADER.pack(len(text), len(name), height, width) + text + name)
            if _receive(process, 1, _START_LIMIT) == READY:
                return process
        except (OSError, RenderError):
            pass
        _end(process)
        raise RenderError(_last_line(messages) or "no answer")


def _receive(process: "subprocess.Popen[bytes]", size: int, limit: float) -> bytes:
    """Read `size` bytes of the process's answer."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    give_up, parts, left = time.monotonic() + limit, [], size
    while left:
        patience = give_up - time.monotonic()
        if patience <= 0.0 or not poll.poll(math.ceil(patience * 1000.0)):
            raise RenderError(f"no picture came within {limit} s")
        part = os.read(process.stdout.fileno(), left)
        if not part:
            raise RenderError("the process that renders has ended")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # it has nothing to save
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_LIMIT)


def _last_line(messages: IO[bytes]) -> str:
    messages.seek(max(0, messages.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in messages.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


_BACKGROUND = (250, 250, 248)
_GROUND = (214, 214, 208)
_BODY = (192, 103, 42)
_LIMB = (52, 73, 94)
_EDGES = ((0, 1), (1, 3), (3, 2), (2, 0), (4, 5), (5, 7), (7, 6), (6, 4), (0, 4), (1, 5), (2, 6), (3, 7))


class StickView:
    """Pictures of one robot at a time, drawn from its geoms with OpenCV: needs no OpenGL.

    Seen from the side, a little from above and from the front, by parallel light; the ground has a tick every 0.2 m.

    Args:
        model: The robot with its world; geoms of the world itself are not drawn.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.
        span: What a picture is wide, m.
    """

    def __init__(
        self, model: mujoco.MjModel, *, height: int = 360, width: int = 480, span: float = 1.2
    ) -> None:
        if span <= 0.0:
            raise ConfigurationError(f"span must be positive, in m, got {span}")
        self.height, self.width = height, width
        self._model = model
        self._data = mujoco.MjData(model)
        self._scale = width / span
        self._geoms = [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] > 0]
        yaw, pitch = math.radians(25.0), math.radians(12.0)
        right = np.array([math.cos(yaw), math.sin(yaw), 0.0])
        away = np.array([-math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), -math.sin(pitch)])
        self._axes = np.stack([right, np.cross(right, away)])

    def draw(self, positions: FloatArray) -> list[Picture]:
        """Return one picture for each row of `positions`, (n, nq), as MuJoCo's qpos: (height, width, 3) RGB each."""
        return [self._draw(row) for row in positions]

    def _draw(self, position: FloatArray) -> Picture:
        data = self._data
        data.qpos[:] = position
        mujoco.mj_kinematics(self._model, data)
        picture = np.full((self.height, self.width, 3), _BACKGROUND, dtype=np.uint8)
        centre = np.array([data.xpos[1, 0], data.xpos[1, 1], 0.0])
        self._draw_ground(picture, centre)
        for geom in self._geoms:
            self._draw_geom(picture, geom, centre)
        return picture

    def _draw_ground(self, picture: Picture, centre: FloatArray) -> None:
        for offset in range(-4, 5):
            for axis in (0, 1):
                middle = np.floor(centre / 0.2) * 0.2
                middle[axis] += 0.2 * offset
                reach = np.zeros(3)
                reach[1 - axis] = 0.8
                self._line(picture, middle - reach, middle + reach, centre, _GROUND, 1)

    def _draw_geom(self, picture: Picture, geom: int, centre: FloatArray) -> None:
        model, data = self._model, self._data
        place, turn, size = data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3), model.geom_size[geom]
        kind = mujoco.mjtGeom(int(model.geom_type[geom]))
        if kind == mujoco.mjtGeom.mjGEOM_BOX:
            corners = [
                place + turn @ (size * np.array(signs))
                for signs in np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(
                    -1, 3
                )
            ]
            for start, end in _EDGES:
                self._line(picture, corners[start], corners[end], centre, _BODY, 2)
        elif kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER):
            half = turn[:, 2] * size[1]
            width = max(2, round(size[0] * self._scale))
            self._line(picture, place - half, place + half, centre, _LIMB, width)
        else:
            cv2.circle(
                picture,
                self._pixel(place, centre),
                round(max(2.0, size[0] * self._scale) * 16),
                _LIMB,
                cv2.FILLED,
                cv2.LINE_AA,
                shift=4,
            )

    def _line(
        self,
        picture: Picture,
        start: FloatArray,
        end: FloatArray,
        centre: FloatArray,
        colour: tuple[int, int, int],
        width: int,
    ) -> None:
        cv2.line(
            picture, self._pixel(start, centre), self._pixel(end, centre), colour, width, cv2.LINE_AA, shift=4
        )

    def _pixel(self, point: FloatArray, centre: FloatArray) -> tuple[int, int]:
        """Return the pixel of a point of the world, in 1/16 pixels."""
        across, up = self._axes @ (point - centre)
        # OpenCV's fixed point overflows far outside of the picture.
        across, up = (
            min(max(value * self._scale, -4.0 * self.width), 4.0 * self.width) for value in (across, up)
        )
        return round((self.width / 2 + across) * 16), round((0.75 * self.height - up) * 16)

    def close(self) -> None:
        """Nothing is held; for the sake of `RenderedView`."""


def tile(pictures: list[Picture]) -> Picture:
    """Return pictures of one size side by side in a grid, rows first; what is left over stays light."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    grid = np.full((rows * height, columns * width, 3), _BACKGROUND, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        grid[top : top + height, left : left + width] = picture
    return grid
