"""Cart-poles: a point mass on a massless pole, hinged on a cart that a horizontal force moves. And their picture."""

import math
from importlib import resources

import cv2
import mujoco
import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import RenderError
from rt_lrhc.simulators.mujoco_batch import MujocoBatchPlant

CART_MASS = 1.0
"""M, kg."""
POLE_MASS = 0.1
"""m, kg, at the tip."""
POLE_LENGTH = 0.8
"""l, hinge to tip, m."""
GRAVITY = 9.81
"""g, m/s^2."""
FORCE_LIMIT = 80.0
"""Largest force on the cart, either way, N."""

STATE_NAMES = ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")


class CartPoles(MujocoBatchPlant):
    r"""N cart-poles in MuJoCo.

    State `(x, theta, v, omega)`: cart position (m), pole angle (rad, 0 upright, never wrapped) and their rates. The tip
    lies at `(x - l sin(theta), l cos(theta))`, x to the right, z up. Input F: force on the cart (N), to the right.

    The equations of motion, without friction, are

        (M + m) dv/dt - m l cos(theta) domega/dt + m l sin(theta) omega^2 = F
        l domega/dt - cos(theta) dv/dt - g sin(theta) = 0

    and, solved for the accelerations, with D = M + m sin(theta)^2,

        dv/dt     = (F + m g sin(theta) cos(theta) - m l sin(theta) omega^2) / D
        domega/dt = (F cos(theta) + (M + m) g sin(theta) - m l sin(theta) cos(theta) omega^2) / (l D)

    Source: Lagrange's equations for T = M v^2 / 2 + m |d tip/dt|^2 / 2, V = m g l cos(theta); acados' example
    `pendulum_on_cart` has the same convention.
    """

    def __init__(self, num_robots: int, *, simulation_timestep: float = 0.002, threads: int = 1) -> None:
        """Build N cart-poles, all upright and at rest in the middle.

        Args:
            num_robots: N, at least 1.
            simulation_timestep: Integration step (Runge-Kutta, order 4), s.
            threads: Threads that share the robots, the caller's included.

        Raises:
            ConfigurationError: If a number is not positive.
        """
        super().__init__(
            load_model(),
            num_robots,
            joint_names=("cart", "pole"),
            actuator_names=("cart_force",),
            state_names=STATE_NAMES,
            simulation_timestep=simulation_timestep,
            threads=threads,
        )


def load_model() -> mujoco.MjModel:
    """Compile a cart-pole from the package's MJCF."""
    text = resources.files("rt_lrhc.simulators").joinpath("cart_pole.xml").read_text(encoding="utf-8")
    return mujoco.MjModel.from_xml_string(text)


MAX_DRAWN = 16
"""`draw` shows at most this many robots."""

_CELL = 240
_VIEW_HALF_WIDTH = 2.0  # m; holds the cart at 1 m off the middle and its pole
_CART_HALF = (0.18, 0.08)  # m
_BACKGROUND = (250, 250, 248)
_FRAME = (214, 214, 208)
_RAIL = (150, 150, 145)
_CART = (52, 73, 94)
_POLE = (192, 103, 42)
_REFERENCE = (39, 150, 92)
_TEXT = (110, 110, 106)


def draw(states: npt.ArrayLike, references: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Draw cart-poles side by side, each in a square cell that follows its cart, with ticks every metre.

    Args:
        states: States as in `CartPoles`, (N, 4); tensors on the CPU will do.
        references: Commanded cart positions, m, (N,) or (N, nr) with the position first. Drawn as a green mark.

    Returns:
        Picture of the first `MAX_DRAWN` robots in a grid, (height, width, 3) uint8, RGB; always a new array. A robot
        whose state is not finite gets a cell that says so.

    Raises:
        RenderError: If the shapes do not fit.
    """
    rows = np.asarray(states, dtype=np.float64)
    commands = np.asarray(references, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(STATE_NAMES) or len(rows) == 0:
        raise RenderError(
            f"states must have shape (N, 4) with N at least 1 ({', '.join(STATE_NAMES)}), got {rows.shape}"
        )
    if commands.ndim not in (1, 2) or len(commands) != len(rows) or commands.size == 0:
        raise RenderError(
            f"references must have shape ({len(rows)},) or ({len(rows)}, nr), got {commands.shape}"
        )
    commands = commands.reshape(len(rows), -1)[:, 0]
    shown = min(len(rows), MAX_DRAWN)
    columns = math.ceil(math.sqrt(shown))
    picture = np.full((math.ceil(shown / columns) * _CELL, columns * _CELL, 3), _BACKGROUND, dtype=np.uint8)
    for robot in range(shown):
        top, left = (robot // columns) * _CELL, (robot % columns) * _CELL
        # OpenCV clips at the borders of what it draws on, so that a cell cannot spill into its neighbours.
        _draw_cell(
            picture[top : top + _CELL, left : left + _CELL], robot, rows[robot], float(commands[robot])
        )
    return picture


def _draw_cell(
    cell: npt.NDArray[np.uint8], robot: int, state: npt.NDArray[np.float64], command: float
) -> None:
    scale = _CELL / (2.0 * _VIEW_HALF_WIDTH)
    cv2.rectangle(cell, (0, 0), (_CELL - 1, _CELL - 1), _FRAME, 1)
    cv2.putText(cell, str(robot), (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _TEXT, 1, cv2.LINE_AA)
    if not np.isfinite(state).all():
        cv2.putText(cell, "not finite", (70, 125), cv2.FONT_HERSHEY_SIMPLEX, 0.6, _POLE, 1, cv2.LINE_AA)
        return
    position, angle = float(state[0]), float(state[1])
    centre = position - max(
        -1.0, min(1.0, position)
    )  # the view stays put until the cart is 1 m off its middle

    def pixel(x: float, z: float) -> tuple[int, int]:
        """Pixel of a point of the world, in 1/16 pixels, kept within what OpenCV's fixed point can hold."""
        across = min(max((x - centre) * scale, -_CELL), _CELL)
        return round((_CELL / 2 + across) * 16), round((_CELL / 2 - z * scale) * 16)

    def line(
        start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int], width: int
    ) -> None:
        cv2.line(cell, pixel(*start), pixel(*end), colour, width, cv2.LINE_AA, shift=4)

    line((centre - 2 * _VIEW_HALF_WIDTH, 0.0), (centre + 2 * _VIEW_HALF_WIDTH, 0.0), _RAIL, 1)
    for metre in range(math.ceil(centre - _VIEW_HALF_WIDTH), math.floor(centre + _VIEW_HALF_WIDTH) + 1):
        line((metre, -0.13), (metre, -0.18), _RAIL, 1)
        label = (pixel(metre, 0.0)[0] // 16 - 4 * len(str(metre)), pixel(0.0, -0.32)[1] // 16)
        cv2.putText(cell, str(metre), label, cv2.FONT_HERSHEY_SIMPLEX, 0.35, _TEXT, 1, cv2.LINE_AA)
    if math.isfinite(command):
        line((command, -0.12), (command, 0.12), _REFERENCE, 3)
    corners = [pixel(position + dx * _CART_HALF[0], dz * _CART_HALF[1]) for dx, dz in ((-1, 1), (1, -1))]
    cv2.rectangle(cell, corners[0], corners[1], _CART, cv2.FILLED, cv2.LINE_AA, shift=4)
    tip = (position - POLE_LENGTH * math.sin(angle), POLE_LENGTH * math.cos(angle))
    line((position, 0.0), tip, _POLE, 4)
    cv2.circle(cell, pixel(*tip), 7 * 16, _POLE, cv2.FILLED, cv2.LINE_AA, shift=4)
