"""The terms of the mini cheetah's tasks: what robots do, see, get for it, and what happens to them."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from rt_lrhc.interfaces.cluster import BoolArray, FloatArray
from rt_lrhc.simulators.mini_cheetah import MiniCheetahs
from rt_lrhc.tasks.context import TaskContext
from rt_lrhc.tasks.draws import Draw

LEGS = ("fr", "fl", "hr", "hl")

TWIST_NAMES = ("velocity_x", "velocity_y", "yaw_rate")

HOME_JOINTS = np.array((0.0, -0.785, 1.597) * 4)
"""Default posture, rad."""

MASS = 8.912
"""kg."""

WEIGHT = MASS * 9.81
"""N."""

TOUCHING = 5.0
"""A foot with a larger vertical force on it touches the ground, N."""

CAPSIZE = 0.5
"""A robot has capsized where the cosine of its tilt is smaller (60 degrees)."""

LOWEST = 0.12
"""A robot lies where its base is lower, m."""

SLOWEST = 0.2
"""The cost of transport of a slower robot is that at this speed, m/s."""


# What robots do, (N, ...), for the terms below.


def base_turn(context: TaskContext) -> FloatArray:
    """Rotation from base to world, (N, 3, 3)."""
    w, x, y, z = np.moveaxis(context.states[:, 3:7], -1, 0)
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def twist_in_heading(context: TaskContext) -> FloatArray:
    """Velocity along and across the heading (m/s) and yaw rate about the vertical (rad/s), (N, 3)."""
    turn = context.once(base_turn)
    heading = turn[:, :2, 0] / np.maximum(np.linalg.norm(turn[:, :2, 0], axis=1, keepdims=True), 1e-6)
    velocity = context.states[:, 19:21]
    along = (heading * velocity).sum(axis=1)
    across = heading[:, 0] * velocity[:, 1] - heading[:, 1] * velocity[:, 0]
    yaw_rate = (turn[:, 2] * context.states[:, 22:25]).sum(axis=1)
    return np.stack([along, across, yaw_rate], axis=1)


def feet(context: TaskContext) -> FloatArray:
    """Forces of the ground on the feet, in the world, (N, 4, 3), N."""
    return _finite(_robots(context).foot_forces.numpy())


def joint_power(context: TaskContext) -> FloatArray:
    """Mechanical power of the motors without recuperation, (N,), W."""
    torques = _finite(_robots(context).joint_torques.numpy())
    return np.asarray(np.maximum(torques * context.states[:, 25:37], 0.0).sum(axis=1), np.float64)


# Observations.


def gravity(context: TaskContext) -> FloatArray:
    """Direction of gravity in the base frame, (N, 3), without unit."""
    return np.asarray(-context.once(base_turn)[:, 2, :], np.float64)


def base_velocity(context: TaskContext) -> FloatArray:
    """Velocity of the base in the base frame, (N, 3), m/s."""
    return np.asarray(np.einsum("nij,ni->nj", context.once(base_turn), context.states[:, 19:22]), np.float64)


def base_angular_velocity(context: TaskContext) -> FloatArray:
    """Angular velocity in the base frame, (N, 3), rad/s."""
    return context.states[:, 22:25].copy()


def joint_positions(context: TaskContext) -> FloatArray:
    """Joint positions from the default posture, (N, 12), rad."""
    return np.asarray(context.states[:, 7:19] - HOME_JOINTS, np.float64)


def joint_velocities(context: TaskContext) -> FloatArray:
    """Joint velocities, (N, 12), rad/s."""
    return context.states[:, 25:37].copy()


def contact_forces(context: TaskContext) -> FloatArray:
    """Forces of the ground on the feet in the base frame, over the robot's weight, (N, 12), without unit."""
    forces = np.einsum("nij,nfi->nfj", context.once(base_turn), context.once(feet)) / WEIGHT
    return np.asarray(forces.reshape(context.num_robots, 12), np.float64)


# Rewards and metrics.


def velocity_tracking(context: TaskContext, width: float = 0.25) -> FloatArray:
    """exp(-(|v* - v| / width)^2) of the horizontal velocity, (N,); `width` in m/s."""
    error = context.command("twist")[:, :2] - context.once(twist_in_heading)[:, :2]
    return np.asarray(np.exp(-(error**2).sum(axis=1) / width**2), np.float64)


def yaw_tracking(context: TaskContext, width: float = 0.5) -> FloatArray:
    """exp(-((w* - w) / width)^2) of the yaw rate, (N,); `width` in rad/s."""
    error = context.command("twist")[:, 2] - context.once(twist_in_heading)[:, 2]
    return np.asarray(np.exp(-((error / width) ** 2)), np.float64)


def cost_of_transport(context: TaskContext) -> FloatArray:
    """Power over weight and speed, (N,), without unit; slower robots than `SLOWEST` count as that fast."""
    speed = np.linalg.norm(context.once(twist_in_heading)[:, :2], axis=1)
    return np.asarray(context.once(joint_power) / (WEIGHT * np.maximum(speed, SLOWEST)), np.float64)


def vertical_motion(context: TaskContext) -> FloatArray:
    """Square of the vertical velocity plus those of the roll and pitch rates, (N,), m^2/s^2 and rad^2/s^2."""
    rates = context.states[:, 22:24]
    return np.asarray(context.states[:, 21] ** 2 + 0.1 * (rates**2).sum(axis=1), np.float64)


def twist(context: TaskContext, axis: int) -> FloatArray:
    """One component of the measured twist, (N,), m/s or rad/s."""
    return context.once(twist_in_heading)[:, axis].copy()


def commanded_twist(context: TaskContext, axis: int) -> FloatArray:
    """One component of the twist that is asked for, (N,), m/s or rad/s."""
    return context.command("twist")[:, axis].copy()


def height(context: TaskContext) -> FloatArray:
    """Height of the base, (N,), m."""
    return context.states[:, 2].copy()


def tilt(context: TaskContext) -> FloatArray:
    """Angle between the base's vertical and the world's, (N,), rad."""
    return np.asarray(np.arccos(np.clip(context.once(base_turn)[:, 2, 2], -1.0, 1.0)), np.float64)


def power(context: TaskContext) -> FloatArray:
    """Mechanical power of the motors without recuperation, (N,), W."""
    return context.once(joint_power).copy()


# Ends.


def capsized(context: TaskContext) -> BoolArray:
    """Whether a robot is tilted by more than 60 degrees, or lies on the ground, (N,)."""
    return np.asarray((context.once(base_turn)[:, 2, 2] < CAPSIZE) | (context.states[:, 2] < LOWEST))


# Starts and events.


def stand(context: TaskContext, draw: Draw, scale: float) -> FloatArray:
    """On four feet in the default posture, in any direction, the joints off by up to 0.05 rad times `scale`."""
    states = np.zeros((len(draw.rows), 37))
    states[:, 2] = 0.302 + 0.01 * scale
    half_yaw = 0.5 * draw.uniform(-np.pi, np.pi)[:, 0]
    states[:, 3], states[:, 6] = np.cos(half_yaw), np.sin(half_yaw)
    states[:, 7:19] = HOME_JOINTS + scale * draw.uniform(-0.05, 0.05, 12)
    states[:, 19:21] = scale * draw.uniform(-0.1, 0.1, 2)
    return states


def randomise_friction(context: TaskContext, draw: Draw, scale: float, low: float, high: float) -> None:
    """Sliding friction of the feet on the ground: 0.8 + scale (f - 0.8), f uniform in [low, high]."""
    values, rows = _rows(context, draw, 0.8 + scale * (draw.uniform(low, high)[:, 0] - 0.8))
    _robots(context).set_friction(values, rows)


def randomise_payload(
    context: TaskContext, draw: Draw, scale: float, low: float, high: float, offset: float
) -> None:
    """A point mass on the base: uniform in [low, high] kg, up to `offset` m off its middle, which moves both."""
    masses, rows = _rows(context, draw, scale * draw.uniform(low, high)[:, 0])
    places, _ = _rows(context, draw, draw.uniform(-offset, offset, 3))
    _robots(context).set_payload(masses, places, rows)


def randomise_motors(context: TaskContext, draw: Draw, scale: float, spread: float) -> None:
    """Strength of each motor: uniform in 1 +- scale spread."""
    values, rows = _rows(context, draw, 1.0 + scale * draw.uniform(-spread, spread, 12))
    _robots(context).set_gains(strength=values, mask=rows)


def push(context: TaskContext, draw: Draw, scale: float, speed: float) -> None:
    """Change the velocity of the base by up to scale times `speed` m/s, in any horizontal direction."""
    angle = draw.uniform(0.0, 2.0 * np.pi)[:, 0]
    size = scale * speed * draw.uniform(0.0, 1.0)[:, 0]
    change = np.zeros((len(draw.rows), 18))
    change[:, 0], change[:, 1] = size * np.cos(angle), size * np.sin(angle)
    values, rows = _rows(context, draw, change)
    context.plant.push(torch.from_numpy(values), rows)


def _finite(values: npt.NDArray[Any]) -> FloatArray:
    """What a simulation that has diverged reads is not finite; its robot is ended, and no term shall meet it."""
    return np.asarray(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), np.float64)


def _robots(context: TaskContext) -> MiniCheetahs:
    return cast(MiniCheetahs, context.plant)


def _rows(context: TaskContext, draw: Draw, values: FloatArray) -> tuple[FloatArray, Any]:
    """Return values of the drawn robots among those of all, (N, ...), and which robots they are, as a tensor."""
    spread = np.zeros((context.num_robots, *values.shape[1:]))
    spread[draw.rows] = values
    chosen = np.zeros(context.num_robots, dtype=np.bool_)
    chosen[draw.rows] = True
    return spread, torch.from_numpy(chosen)


# The reference gait of `mini_cheetah_ref`.

REFERENCE_OFFSETS = np.array((0.0, 0.5, 0.5, 0.0))
"""Of the legs' phases: diagonal legs together, a trot."""


def leg_phases(context: TaskContext) -> FloatArray:
    """Phase of each leg in the reference gait, (N, 4), in [0, 1): stance first, then swing."""
    return np.asarray(
        (context.time[:, None] / context.command("gait")[:, :1] + REFERENCE_OFFSETS) % 1.0, np.float64
    )


def reference_phase(context: TaskContext) -> FloatArray:
    """Sine and cosine of the phase of the first leg, (N, 2)."""
    angle = 2.0 * np.pi * context.once(leg_phases)[:, 0]
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def reference_contacts(context: TaskContext) -> FloatArray:
    """Which feet stand in the reference gait, (N, 4), 0 or 1."""
    return (context.once(leg_phases) < context.command("gait")[:, 1:]).astype(np.float64)


def contact_tracking(context: TaskContext) -> FloatArray:
    """Part of the feet that touch the ground where the reference gait says so, and do not where not, (N,)."""
    touching = context.once(feet)[..., 2] > TOUCHING
    return np.asarray((touching == (reference_contacts(context) > 0.5)).mean(axis=1), np.float64)
