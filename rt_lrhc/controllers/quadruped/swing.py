"""Where a foot steps, and how it gets there."""

import numpy as np

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.controllers.quadruped.srbd import GRAVITY

STEP_LIMIT = 0.25
"""A foothold lies at most this far, in x and in y, from below its hip, m."""

_FEEDBACK = 0.06  # s; how far a step goes out against an error of the velocity


def step(
    velocity: FloatArray,
    command: FloatArray,
    turn_rate: FloatArray,
    stance_time: FloatArray,
    height: FloatArray,
) -> FloatArray:
    """Footholds relative to the place below the hip at touchdown, (n, 4, 2), m, in the world.

    Half of the way that the hip goes in a stance, more where the robot is too fast, and outwards in curves.

    Args:
        velocity: Velocity of each hip, (n, 4, 2), m/s.
        command: What it should be, (n, 4, 2), m/s.
        turn_rate: Commanded yaw rate, (n,), rad/s.
        stance_time: Length of a stance, (n, 1), s.
        height: Height of the hips above the ground, (n,), m.

    Source: Raibert (1986), Legged robots that balance; the term for curves is that of Cheetah-Software.
    """
    out = 0.5 * stance_time[..., None] * command + _FEEDBACK * (velocity - command)
    curve = (0.5 * height / GRAVITY * turn_rate)[:, None, None] * np.stack(
        [velocity[..., 1], -velocity[..., 0]], axis=-1
    )
    return np.clip(out + curve, -STEP_LIMIT, STEP_LIMIT)


def swing(
    start: FloatArray, end: FloatArray, clearance: FloatArray, progress: FloatArray, rate: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Position and velocity on the way from lift-off to touchdown: smooth, at rest at both ends.

    Horizontally one cubic; vertically one to the apex, in the middle, and one down.

    Args:
        start: Place of lift-off, (..., 3), m.
        end: Place of touchdown, (..., 3), m.
        clearance: Height of the apex above the higher of them, (...), m.
        progress: Part of the swing that has passed, (...), in [0, 1].
        rate: How fast it passes, (...), 1/s.

    Returns:
        Positions and velocities, (..., 3).
    """
    blend, slope = _cubic(progress)
    way = end - start
    rising = progress < 0.5
    half, half_slope = _cubic(np.where(rising, 2.0 * progress, 2.0 * progress - 1.0))
    apex = np.maximum(start[..., 2], end[..., 2]) + clearance
    base = np.where(rising, start[..., 2], apex)
    climb = np.where(rising, apex - start[..., 2], end[..., 2] - apex)
    position = start + blend[..., None] * way
    velocity = (slope * rate)[..., None] * way
    position[..., 2] = base + half * climb
    velocity[..., 2] = 2.0 * half_slope * rate * climb
    return position, velocity


def _cubic(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    return x * x * (3.0 - 2.0 * x), 6.0 * x * (1.0 - x)
