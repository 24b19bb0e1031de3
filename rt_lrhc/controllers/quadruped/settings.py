"""Settings of a quadruped's MPC, and what its peers must know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from rt_lrhc.cluster.controller import ControllerSpec
from rt_lrhc.controllers.quadruped.model import QuadrupedModel
from rt_lrhc.controllers.quadruped.references import REFERENCE_NAMES, REFERENCE_UNITS
from rt_lrhc.errors import ConfigurationError


@dataclass(frozen=True)
class QuadrupedSettings:
    """Settings of the MPC.

    Attributes:
        control_period: Time between two inputs, and length of a stage of the plan, s.
        num_stages: Stages of the plan.
        qp_stages: Stages of the QP. The first lasts a control period.
        qp_stage_duration: Length of the others, s.
        friction: Friction coefficient that the forces respect.
        force_limit: Largest vertical force on a foot, N.
        weights: Weights of the squared errors of roll, pitch, yaw, position, angular velocity and velocity.
        regularisation: Weight of the squared deviation from an even share of the weight, 1/N^2.
        clearance: Height to which a swinging foot is lifted, m.
        lift_lead: Time from the order to lift a foot that stands to its lift-off, s: the body leans over the others.
        fall_tilt: Cosine of the tilt from which on a robot counts as fallen.
        fall_height: Height of the base above the ground below which a robot counts as fallen, m.
    """

    control_period: float = 0.02
    num_stages: int = 10
    qp_stages: int = 10
    qp_stage_duration: float = 0.03
    friction: float = 0.5
    force_limit: float = 120.0
    weights: tuple[float, ...] = (2.0, 2.0, 10.0, 10.0, 10.0, 80.0, 0.02, 0.02, 0.3, 1.0, 1.0, 0.5)
    regularisation: float = 1e-5
    clearance: float = 0.06
    lift_lead: float = 0.15
    fall_tilt: float = 0.5
    fall_height: float = 0.12

    def __post_init__(self) -> None:
        for name in ("control_period", "qp_stage_duration", "friction", "force_limit", "regularisation"):
            if not getattr(self, name) > 0.0:
                raise ConfigurationError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("num_stages", "qp_stages"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.weights) != 12 or min(self.weights) < 0.0:
            raise ConfigurationError(f"weights must be 12 numbers, at least 0, got {self.weights}")

    @staticmethod
    def of(settings: Mapping[str, Any]) -> "QuadrupedSettings":
        """Return settings with some fields changed.

        Raises:
            ConfigurationError: If one is unknown or out of range.
        """
        known = [field.name for field in fields(QuadrupedSettings)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigurationError(f"unknown setting {unknown[0]!r}; known: {', '.join(known)}")
        values = dict(settings)
        if "weights" in values:
            values["weights"] = tuple(values["weights"])
        return QuadrupedSettings(**values)


def make_spec(model: QuadrupedModel, settings: QuadrupedSettings) -> ControllerSpec:
    """Names, units and limits of the controller of `model`."""
    joints = model.joint_names
    limits = np.tile(
        np.stack([model.position_limits, model.velocity_limits, model.torque_limits], axis=1).ravel(), 4
    )
    safe = np.zeros((12, 3))
    safe[:, 0] = model.home.ravel()
    return ControllerSpec(
        state_names=(
            *(f"base_position_{axis}_in_world" for axis in "xyz"),
            *(f"base_quaternion_wxyz_{part}" for part in "wxyz"),
            *(f"{joint}_position" for joint in joints),
            *(f"base_velocity_{axis}_in_world" for axis in "xyz"),
            *(f"base_angular_velocity_{axis}_in_base" for axis in "xyz"),
            *(f"{joint}_velocity" for joint in joints),
        ),
        input_names=tuple(f"{j}_{q}" for j in joints for q in ("position", "velocity", "torque")),
        reference_names=REFERENCE_NAMES,
        state_units=(
            *("m",) * 3,
            *("1",) * 4,
            *("rad",) * 12,
            *("m/s",) * 3,
            *("rad/s",) * 3,
            *("rad/s",) * 12,
        ),
        input_units=("rad", "rad/s", "N m") * 12,
        reference_units=REFERENCE_UNITS,
        num_stages=settings.num_stages,
        stage_duration=settings.control_period,
        input_lower=tuple((-limits).tolist()),
        input_upper=tuple(limits.tolist()),
        safe_input=tuple(safe.ravel().tolist()),
        backend="daqp",
    )
