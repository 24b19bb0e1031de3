"""Rotations of many bodies at once: quaternions (w, x, y, z), matrices from body to world, and roll, pitch, yaw."""

import numpy as np

from rt_lrhc.cluster.controller import FloatArray


def matrix_of_quaternion(quaternion: FloatArray) -> FloatArray:
    """Matrices, (..., 3, 3), of quaternions, (..., 4), of any length but zero."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_of_attitude(attitude: FloatArray) -> FloatArray:
    """Matrices Rz(yaw) Ry(pitch) Rx(roll), (..., 3, 3), of roll, pitch and yaw, (..., 3)."""
    (sr, sp, sy), (cr, cp, cy) = np.moveaxis(np.sin(attitude), -1, 0), np.moveaxis(np.cos(attitude), -1, 0)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def attitude_of_matrix(matrix: FloatArray) -> FloatArray:
    """Roll, pitch and yaw, (..., 3), in rad, of matrices, (..., 3, 3)."""
    return np.stack(
        [
            np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]),
            -np.arcsin(np.clip(matrix[..., 2, 0], -1.0, 1.0)),
            np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]),
        ],
        axis=-1,
    )


def quaternion_of_attitude(attitude: FloatArray) -> FloatArray:
    """Unit quaternions, (..., 4), of roll, pitch and yaw, (..., 3)."""
    (sr, sp, sy), (cr, cp, cy) = (
        np.moveaxis(np.sin(0.5 * attitude), -1, 0),
        np.moveaxis(np.cos(0.5 * attitude), -1, 0),
    )
    return np.stack(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ],
        axis=-1,
    )


def matrix_of_turn(turn: FloatArray) -> FloatArray:
    """Matrices, (..., 3, 3), of rotation vectors, (..., 3), in rad."""
    angle = np.linalg.norm(turn, axis=-1, keepdims=True)
    # sin(x / 2) / x, by its series where x is small.
    ratio = np.where(angle > 1e-6, np.sin(0.5 * angle) / np.maximum(angle, 1e-6), 0.5)
    return matrix_of_quaternion(np.concatenate([np.cos(0.5 * angle), ratio * turn], axis=-1))
