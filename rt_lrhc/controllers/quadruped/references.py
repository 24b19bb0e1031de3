"""What an agent can command of a quadruped: names, units and defaults."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import FloatArray, IntArray
from rt_lrhc.controllers.quadruped.gait import Gait
from rt_lrhc.controllers.quadruped.model import LEG_NAMES
from rt_lrhc.errors import ConfigurationError

WEIGHT_NAMES = (
    "roll",
    "pitch",
    "yaw",
    "position_x",
    "position_y",
    "position_z",
    "angular_velocity_x",
    "angular_velocity_y",
    "angular_velocity_z",
    "velocity_x",
    "velocity_y",
    "velocity_z",
)

_FIELDS: tuple[tuple[str, str], ...] = (
    ("velocity_x_in_heading", "m/s"),
    ("velocity_y_in_heading", "m/s"),
    ("yaw_rate", "rad/s"),
    ("height", "m"),
    ("roll", "rad"),
    ("pitch", "rad"),
    ("gait", "1"),
    *((f"contact_{leg}", "1") for leg in LEG_NAMES),
    ("gait_period", "s"),
    ("gait_duty", "1"),
    ("clearance", "m"),
    *((f"foothold_{leg}_{axis}_in_heading", "m") for leg in LEG_NAMES for axis in "xy"),
    *((f"log_weight_{name}", "1") for name in WEIGHT_NAMES),
)

REFERENCE_NAMES = tuple(name for name, _ in _FIELDS)
"""In this order:

- base velocity along and across the heading (m/s) and yaw rate (rad/s);
- height of the base above the ground (m), roll and pitch (rad);
- gait: a `Gait`, rounded;
- an order for each foot: above 0.5 it stands, below -0.5 it is lifted and held up, between it follows the gait;
- period (s), duty and clearance (m) of the gait: 0 for its own;
- offset of each foothold along and across the heading (m);
- natural logarithms of factors to the weights of the MPC.

Zero is neutral for all but `height` and `gait`.
"""

REFERENCE_UNITS = tuple(unit for _, unit in _FIELDS)

DEFAULT_REFERENCE: Mapping[str, float] = {
    name: {"height": 0.29, "gait": float(Gait.TROT)}.get(name, 0.0) for name in REFERENCE_NAMES
}
"""Trot on the spot."""


def reference_vector(**values: float) -> FloatArray:
    """Return a reference, (nr,): the default one with the named entries replaced.

    Raises:
        ConfigurationError: If a name is unknown.
    """
    unknown = sorted(set(values) - set(REFERENCE_NAMES))
    if unknown:
        raise ConfigurationError(f"unknown reference {unknown[0]!r}; known: {', '.join(REFERENCE_NAMES)}")
    return np.array([float(values.get(name, DEFAULT_REFERENCE[name])) for name in REFERENCE_NAMES])


@dataclass(frozen=True)
class Commands:
    """References of n robots, taken apart and kept within what makes sense.

    Attributes:
        velocity: In the heading frame, (n, 2), m/s.
        yaw_rate: (n,), rad/s.
        height: Of the base above the ground, (n,), m.
        attitude: Roll and pitch, (n, 2), rad.
        gait: (n,).
        orders: For each foot, (n, 4).
        period, duty, clearance: Of the gait, (n,); 0 for its own.
        footholds: Offsets in the heading frame, (n, 4, 2), m.
        weight_factors: (n, 12).
    """

    velocity: FloatArray
    yaw_rate: FloatArray
    height: FloatArray
    attitude: FloatArray
    gait: IntArray
    orders: FloatArray
    period: FloatArray
    duty: FloatArray
    clearance: FloatArray
    footholds: FloatArray
    weight_factors: FloatArray

    @staticmethod
    def of(references: FloatArray) -> "Commands":
        """Take references, (n, nr), apart."""
        n = len(references)
        return Commands(
            velocity=np.clip(references[:, 0:2], -3.0, 3.0),
            yaw_rate=np.clip(references[:, 2], -4.0, 4.0),
            height=np.clip(references[:, 3], 0.15, 0.36),
            attitude=np.clip(references[:, 4:6], -0.5, 0.5),
            gait=np.clip(np.rint(references[:, 6]), 0, len(Gait) - 1).astype(np.int64),
            orders=references[:, 7:11],
            period=references[:, 11],
            duty=references[:, 12],
            clearance=np.clip(references[:, 13], 0.0, 0.15),
            footholds=np.clip(references[:, 14:22], -0.15, 0.15).reshape(n, 4, 2),
            weight_factors=np.exp(np.clip(references[:, 22:34], -4.0, 4.0)),
        )
