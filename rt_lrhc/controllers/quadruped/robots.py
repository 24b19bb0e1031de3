"""Where robots are, and where the inputs in force will have taken them when the next plan acts."""

from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import BoolArray, FloatArray
from rt_lrhc.controllers.quadruped.model import QuadrupedModel
from rt_lrhc.controllers.quadruped.qp_daqp import Pyramid
from rt_lrhc.controllers.quadruped.rotations import matrix_of_quaternion, matrix_of_turn
from rt_lrhc.controllers.quadruped.srbd import GRAVITY


@dataclass(frozen=True)
class Robots:
    """States of n robots: base in the world, joints and feet.

    Attributes:
        turn: From body to world, (n, 3, 3).
        base: Position of the base, (n, 3).
        velocity: Of the base in the world, (n, 3).
        angular_velocity: In the world, (n, 3).
        joints, rates: (n, 4, 3).
        feet: In the world, (n, 4, 3).
    """

    turn: FloatArray
    base: FloatArray
    velocity: FloatArray
    angular_velocity: FloatArray
    joints: FloatArray
    rates: FloatArray
    feet: FloatArray


def unpack(model: QuadrupedModel, states: FloatArray) -> Robots:
    """Take states, (n, 37), apart."""
    turn = matrix_of_quaternion(states[:, 3:7])
    joints = states[:, 7:19].reshape(-1, 4, 3)
    base = states[:, 0:3]
    feet = base[:, None] + (model.legs.feet(joints) + model.legs.hips) @ turn.transpose(0, 2, 1)
    return Robots(
        turn=turn,
        base=base,
        velocity=states[:, 19:22],
        angular_velocity=(turn @ states[:, 22:25, None])[..., 0],
        joints=joints,
        rates=states[:, 25:37].reshape(-1, 4, 3),
        feet=feet,
    )


def predict(
    model: QuadrupedModel,
    robots: Robots,
    inputs: FloatArray,
    standing: BoolArray,
    duration: float,
    pyramid: Pyramid,
) -> Robots:
    """Where robots are later, as one rigid body on the feet that stand.

    Args:
        model: The robots' model.
        robots: Where they are now.
        inputs: Inputs in force, (n, 36).
        standing: Feet that stand, (n, 4).
        duration: How much later, s; short.
        pyramid: Limits of the forces of the ground: beyond, feet slip.
    """
    targets = inputs.reshape(-1, 4, 3, 3)
    # The law's mean over the duration is close to its value at the joints' positions in the middle.
    torques = (
        targets[..., 2]
        + model.kp * (targets[..., 0] - robots.joints - 0.5 * duration * robots.rates)
        + model.kd * (targets[..., 1] - robots.rates)
    )
    turn_back = robots.turn.transpose(0, 2, 1)
    forces = model.legs.forces(robots.joints, torques) @ turn_back
    forces = np.where(standing[..., None], forces, 0.0)
    vertical = np.clip(forces[..., 2:], 0.0, pyramid.force_limit)
    bound = pyramid.friction * vertical
    forces = np.concatenate([np.clip(forces[..., :2], -bound, bound), vertical], axis=-1)
    arm = (robots.turn @ model.centre)[:, None]
    lever = robots.feet - robots.base[:, None] - arm
    acceleration = forces.sum(axis=1) / model.mass
    acceleration[:, 2] -= GRAVITY
    turned = (turn_back @ np.cross(lever, forces).sum(axis=1)[..., None])[..., 0]
    angular = (robots.turn @ np.linalg.solve(model.inertia, turned[..., None]))[..., 0]
    arm = arm[:, 0]
    centre = robots.base + arm
    centre_velocity = robots.velocity + np.cross(robots.angular_velocity, arm)
    centre = centre + duration * centre_velocity + 0.5 * duration**2 * acceleration
    centre_velocity = centre_velocity + duration * acceleration
    turn = matrix_of_turn(duration * robots.angular_velocity + 0.5 * duration**2 * angular) @ robots.turn
    angular_velocity = robots.angular_velocity + duration * angular
    arm = turn @ model.centre
    base = centre - arm
    relative = (robots.feet - base[:, None]) @ turn - model.legs.hips
    swung = robots.joints + 0.5 * duration * (robots.rates + targets[..., 1])
    joints = np.where(standing[..., None], model.legs.joints(relative), swung)
    feet = base[:, None] + (model.legs.feet(joints) + model.legs.hips) @ turn.transpose(0, 2, 1)
    return Robots(
        turn=turn,
        base=base,
        velocity=centre_velocity - np.cross(angular_velocity, arm),
        angular_velocity=angular_velocity,
        joints=joints,
        rates=np.where(standing[..., None], robots.rates, targets[..., 1]),
        feet=feet,
    )
