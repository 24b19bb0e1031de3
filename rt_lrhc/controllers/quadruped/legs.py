"""Four legs of three joints in closed form: where a foot is, how fast, what force it bears, and back.

A leg hangs from a hip: abduction about +x, then flexion of hip and knee about -y, thigh and shank in the plane that
abduction turns, at a lateral distance from the hip's axis. All positions are in the body frame, relative to the hip.
Arrays are (..., 4, 3): legs in the order of the model, then x, y, z or haa, hfe, kfe.
"""

from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import FloatArray

KNEE_RANGE = (0.15, 2.60)
"""Knee angles that inverse kinematics returns, rad: neither stretched, where the leg is singular, nor folded."""


@dataclass(frozen=True)
class Legs:
    """Geometry of the legs.

    Attributes:
        hips: Hips in the body frame, (4, 3), m.
        lateral: Distance of the plane of the leg from the axis of abduction, positive to the left, (4,), m.
        thigh: Length of the thigh, m.
        shank: Length of the shank, to the middle of the foot, m.
    """

    hips: FloatArray
    lateral: FloatArray
    thigh: float
    shank: float

    def feet(self, joints: FloatArray) -> FloatArray:
        """Feet relative to their hips, (..., 4, 3), m, at joint positions (..., 4, 3), rad."""
        plane = self._plane(joints)
        return _turn(plane.x, self.lateral, plane.z, plane.sin, plane.cos)

    def joints(self, feet: FloatArray) -> FloatArray:
        """Joint positions, (..., 4, 3), rad, that put the feet (..., 4, 3), m, there, knees bent backwards.

        A foot out of reach is replaced by the nearest one in its direction that the knee's range allows.
        """
        x, y, z = feet[..., 0], feet[..., 1], feet[..., 2]
        height = np.sqrt(np.maximum(y * y + z * z - self.lateral**2, 1e-6))
        abduction = np.arctan2(z, y) + np.arctan2(height, self.lateral)
        cosine = (x * x + height * height - self.thigh**2 - self.shank**2) / (2.0 * self.thigh * self.shank)
        knee = np.arccos(np.clip(cosine, np.cos(KNEE_RANGE[1]), np.cos(KNEE_RANGE[0])))
        flexion = np.arctan2(x, height) - np.arctan2(
            self.shank * np.sin(knee), self.thigh + self.shank * np.cos(knee)
        )
        # atan2 of a foot above its hip would wrap the abduction by a whole turn.
        return np.stack([np.mod(abduction + np.pi, 2.0 * np.pi) - np.pi, flexion, knee], axis=-1)

    def foot_velocities(self, joints: FloatArray, rates: FloatArray) -> FloatArray:
        """Velocities of the feet in the body frame, (..., 4, 3), m/s, at joint rates (..., 4, 3), rad/s."""
        leg = self._plane(joints)
        abduction, flexion, knee = rates[..., 0], rates[..., 1], rates[..., 2]
        along = -leg.z * flexion + leg.shank_z * knee
        across = -leg.z * abduction
        up = self.lateral * abduction + leg.x * flexion + leg.shank_x * knee
        return _turn(along, across, up, leg.sin, leg.cos)

    def joint_rates(self, joints: FloatArray, velocities: FloatArray) -> FloatArray:
        """Joint rates (..., 4, 3), rad/s, that move the feet at `velocities`, (..., 4, 3), m/s, body frame."""
        leg = self._plane(joints)
        along, across, up = _turn_back(velocities, leg)
        abduction = across / -leg.z
        up = up - self.lateral * abduction
        flexion = (leg.shank_x * along - leg.shank_z * up) / leg.determinant
        knee = (-leg.x * along - leg.z * up) / leg.determinant
        return np.stack([abduction, flexion, knee], axis=-1)

    def torques(self, joints: FloatArray, forces: FloatArray) -> FloatArray:
        """Joint torques (..., 4, 3), N m, that hold the forces of the ground on the feet, (..., 4, 3), N, body frame.

        They are `-J' f`, with J the Jacobian of the feet.
        """
        leg = self._plane(joints)
        along, across, up = _turn_back(forces, leg)
        abduction = leg.z * across - self.lateral * up
        flexion = leg.z * along - leg.x * up
        knee = -leg.shank_z * along - leg.shank_x * up
        return np.stack([abduction, flexion, knee], axis=-1)

    def forces(self, joints: FloatArray, torques: FloatArray) -> FloatArray:
        """Forces of the ground on the feet, (..., 4, 3), N, body frame, that the torques (..., 4, 3), N m, hold."""
        leg = self._plane(joints)
        abduction, flexion, knee = torques[..., 0], torques[..., 1], torques[..., 2]
        along = (-leg.shank_x * flexion + leg.x * knee) / leg.determinant
        up = (leg.shank_z * flexion + leg.z * knee) / leg.determinant
        across = (abduction + self.lateral * up) / leg.z
        return _turn(along, across, up, leg.sin, leg.cos)

    def _plane(self, joints: FloatArray) -> "_Plane":
        hip, knee = joints[..., 1], joints[..., 1] + joints[..., 2]
        shank_x, shank_z = self.shank * np.sin(knee), self.shank * np.cos(knee)
        bend = np.sin(joints[..., 2])
        # A stretched knee would divide by zero.
        bend = np.where(np.abs(bend) < 0.1, np.copysign(0.1, bend), bend)
        return _Plane(
            x=self.thigh * np.sin(hip) + shank_x,
            z=np.minimum(-self.thigh * np.cos(hip) - shank_z, -0.02),
            shank_x=shank_x,
            shank_z=shank_z,
            sin=np.sin(joints[..., 0]),
            cos=np.cos(joints[..., 0]),
            determinant=self.thigh * self.shank * bend,
        )


@dataclass(frozen=True)
class _Plane:
    """A leg in its own plane: foot at (x, z), the shank's part of it, and the turn of the plane about x."""

    x: FloatArray
    z: FloatArray
    shank_x: FloatArray
    shank_z: FloatArray
    sin: FloatArray
    cos: FloatArray
    determinant: FloatArray


def _turn(x: FloatArray, y: FloatArray, z: FloatArray, sin: FloatArray, cos: FloatArray) -> FloatArray:
    return np.stack([x, y * cos - z * sin, y * sin + z * cos], axis=-1)


def _turn_back(vectors: FloatArray, leg: _Plane) -> tuple[FloatArray, FloatArray, FloatArray]:
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return x, y * leg.cos + z * leg.sin, z * leg.cos - y * leg.sin
