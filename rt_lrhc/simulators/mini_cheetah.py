"""Mini cheetahs in MuJoCo: the robots of `mini_cheetah.xml`, their motors and the law that drives their joints."""

from importlib import resources
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
import torch

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.simulators.mujoco_batch import FloatArray, MujocoBatchPlant

LEGS = ("fr", "fl", "hr", "hl")
"""Front and hind, right and left."""

JOINT_NAMES = tuple(f"{leg}_{joint}" for leg in LEGS for joint in ("haa", "hfe", "kfe"))

STATE_NAMES = (
    *(f"base_position_{axis}_in_world" for axis in "xyz"),
    *(f"base_quaternion_wxyz_{part}" for part in "wxyz"),
    *(f"{joint}_position" for joint in JOINT_NAMES),
    *(f"base_velocity_{axis}_in_world" for axis in "xyz"),
    *(f"base_angular_velocity_{axis}_in_base" for axis in "xyz"),
    *(f"{joint}_velocity" for joint in JOINT_NAMES),
)
"""37 states: m, unit quaternion, rad, m/s, rad/s, rad/s."""

INPUT_NAMES = tuple(
    f"{joint}_{quantity}" for joint in JOINT_NAMES for quantity in ("position", "velocity", "torque")
)
"""36 inputs, joint by joint: position target (rad), velocity target (rad/s), feed-forward torque (N m)."""

HOME_JOINTS = (0.0, -0.785, 1.597) * 4
"""Default posture, rad. Source: keyframe `home` of the model."""

KP = 20.0
"""Stiffness of the low-level law, N m/rad."""
KD = 0.5
"""Damping of the low-level law, N m s/rad."""

POSITION_LIMITS = (1.5, 2.6, 2.7)
VELOCITY_LIMITS = (41.0, 41.0, 26.8)
TORQUE_LIMITS = (17.0, 17.0, 26.0)
"""Limits of the targets of haa, hfe and kfe either way, rad, rad/s, N m; the motors have limits of their own."""

_KP_COLUMN, _KD_COLUMN = 4, 6  # of `actuator_gainprm` of a MuJoCo dcmotor


class MiniCheetahs(MujocoBatchPlant):
    """N mini cheetahs on flat ground.

    State: see `STATE_NAMES`. Inputs: see `INPUT_NAMES`; each joint's motor holds, at every integration step,

        tau = strength (kp (q* - q) + kd (v* - v) + tau_ff)

    as far as its torque and, at speed, its battery's voltage allow, less friction. So a control period is one call.

    Attributes:
        kp: Stiffness of each joint, N m/rad, (N, 12): write `set_gains`.
        kd: Damping of each joint, N m s/rad, (N, 12).
    """

    def __init__(
        self,
        num_robots: int,
        *,
        simulation_timestep: float = 0.002,
        threads: int = 1,
        input_delay: float = 0.0,
    ) -> None:
        """Build N robots; `reset` them before use.

        Args:
            num_robots: N, at least 1.
            simulation_timestep: Integration step, s.
            threads: Threads that share the robots, the caller's included.
            input_delay: Time that inputs take to their motors, a whole number of integration steps, s.

        Raises:
            ConfigurationError: If a number is out of range.
        """
        lower, upper = input_limits()
        super().__init__(
            load_model(simulation_timestep=simulation_timestep, input_delay=input_delay),
            num_robots,
            joint_names=("base", *JOINT_NAMES),
            actuator_names=JOINT_NAMES,
            state_names=STATE_NAMES,
            input_names=INPUT_NAMES,
            input_lower=lower,
            input_upper=upper,
            simulation_timestep=simulation_timestep,
            threads=threads,
        )
        # Bound before the first step: what is bound later is zero until the next one.
        self._open_batch().bind("actuator_force")
        self._strength: FloatArray = np.ones((num_robots, len(JOINT_NAMES)))
        self.kp: FloatArray = np.full((num_robots, len(JOINT_NAMES)), KP)
        self.kd: FloatArray = np.full((num_robots, len(JOINT_NAMES)), KD)

    def set_gains(
        self,
        *,
        kp: npt.ArrayLike | None = None,
        kd: npt.ArrayLike | None = None,
        strength: npt.ArrayLike | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        """Change the low-level law of robots.

        Args:
            kp: Stiffness, N m/rad; a number, (N, 1) or (N, 12). None leaves it.
            kd: Damping, N m s/rad; likewise.
            strength: What a motor delivers of the torque it is asked for; likewise. Its limit scales with it.
            mask: Robots that are meant, (N,) bool; None for all.
        """
        rows = self._rows(mask)
        for own, value in ((self.kp, kp), (self.kd, kd), (self._strength, strength)):
            if value is not None:
                own[rows] = np.broadcast_to(np.asarray(value, dtype=np.float64), own.shape)[rows]
        gains = self.model_field("actuator_gainprm")
        gains[rows, :, _KP_COLUMN] = (self._strength * self.kp)[rows]
        gains[rows, :, _KD_COLUMN] = (self._strength * self.kd)[rows]
        limits = self.model_field("actuator_forcerange")
        nominal = self._open_batch().model.actuator_forcerange
        limits[rows] = nominal * self._strength[rows, :, None]

    def set_friction(self, friction: npt.ArrayLike, mask: torch.Tensor | None = None) -> None:
        """Change the sliding friction of feet, knees and trunk on the ground, a number or (N,)."""
        rows = self._rows(mask)
        field = self.model_field("geom_friction")
        values = np.broadcast_to(np.asarray(friction, dtype=np.float64), (self.num_robots,))[rows]
        # Feet, knees and trunk have priority over the ground: what they say holds.
        field[rows, 1:, 0] = values[:, None]

    def set_payload(
        self, mass: npt.ArrayLike, position: npt.ArrayLike = (0.0, 0.0, 0.0), mask: torch.Tensor | None = None
    ) -> None:
        """Fasten a point mass to the base, in place of any before.

        Args:
            mass: kg, a number or (N,); negative ones lighten the base.
            position: Where in the body frame, m, (3,) or (N, 3).
            mask: Robots that are meant, (N,) bool; None for all.

        Raises:
            ConfigurationError: If it leaves a base without mass.
        """
        rows = self._rows(mask)
        model = self._open_batch().model
        base = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "base"))
        added = np.broadcast_to(np.asarray(mass, dtype=np.float64), (self.num_robots,))[rows]
        where = np.broadcast_to(np.asarray(position, dtype=np.float64), (self.num_robots, 3))[rows]
        own, centre = model.body_mass[base], model.body_ipos[base]
        if (own + added <= 0.1 * own).any():
            raise ConfigurationError(f"mass must be above {-0.9 * own:.2f} kg, got {added.min()} kg")
        total = own + added
        offset = where - centre
        # Steiner's theorem for two bodies about their common centre of mass.
        squares = (
            np.sum(offset**2, axis=1)[:, None, None] * np.eye(3) - offset[:, :, None] * offset[:, None, :]
        )
        tensors = _tensor(model.body_iquat[base], model.body_inertia[base])
        tensors = tensors + (own * added / total)[:, None, None] * squares
        principal, axes = np.linalg.eigh(tensors)
        # eigh gives axes of either handedness; a quaternion needs a rotation.
        axes[:, :, 0] *= np.sign(np.linalg.det(axes))[:, None]
        quaternions = np.empty((len(rows), 4))
        for quaternion, matrix in zip(quaternions, axes, strict=True):
            mujoco.mju_mat2Quat(quaternion, matrix.ravel())
        self.model_field("body_mass")[rows, base] = total
        self.model_field("body_ipos")[rows, base] = centre + (added / total)[:, None] * offset
        self.model_field("body_inertia")[rows, base] = principal
        self.model_field("body_iquat")[rows, base] = quaternions
        self.update_constants(mask)

    def initial_inputs(self, states: FloatArray) -> FloatArray:
        """Hold the joints where they are."""
        inputs = super().initial_inputs(states)
        inputs[:, 0::3] = states[:, 7:19]
        return inputs

    def apply_inputs(self, inputs: FloatArray) -> FloatArray:
        """Scale the feed-forward torques by the strength of the motors."""
        inputs[:, 2::3] *= self._strength
        return inputs

    @property
    def foot_forces(self) -> torch.Tensor:
        """Forces of the ground on the feet in the last integration step, in the world, (N, 4, 3), N."""
        return torch.stack([self.sensor(f"{leg}_foot") for leg in LEGS], dim=1)

    @property
    def joint_torques(self) -> torch.Tensor:
        """Torques that the motors delivered in the last integration step, (N, 12), N m."""
        return torch.from_numpy(np.array(self._open_batch().bind("actuator_force")))

    def home_state(self, height: float = 0.302) -> torch.Tensor:
        """States of N robots at rest in the default posture, base at `height` in m, (N, 37) float64."""
        state = torch.zeros(self.num_robots, len(STATE_NAMES), dtype=torch.float64)
        state[:, 2] = height
        state[:, 3] = 1.0
        state[:, 7:19] = torch.tensor(HOME_JOINTS, dtype=torch.float64)
        return state


def _tensor(quaternion: FloatArray, principal: FloatArray) -> FloatArray:
    """Inertia in the body frame, (3, 3), of principal moments and the quaternion of their axes."""
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, quaternion)
    matrix = axes.reshape(3, 3)
    return matrix @ np.diag(principal) @ matrix.T


def input_limits() -> tuple[FloatArray, FloatArray]:
    """Return lower and upper bounds of the inputs, (36,) each."""
    upper = np.tile(np.stack([POSITION_LIMITS, VELOCITY_LIMITS, TORQUE_LIMITS], axis=1).ravel(), len(LEGS))
    return -upper, upper


def load_model(*, simulation_timestep: float = 0.002, input_delay: float = 0.0) -> mujoco.MjModel:
    """Compile a mini cheetah on flat ground from the package's MJCF.

    Args:
        simulation_timestep: Integration step, s.
        input_delay: Time that inputs take to their motors, a whole number of integration steps, s.

    Raises:
        ConfigurationError: If the delay is negative or not a whole number of integration steps.
    """
    text = resources.files("rt_lrhc.simulators").joinpath("mini_cheetah.xml").read_text(encoding="utf-8")
    spec: Any = mujoco.MjSpec.from_string(text)
    spec.option.timestep = simulation_timestep
    samples = round(input_delay / simulation_timestep) if 0.0 <= input_delay < 10.0 else -1
    if samples < 0 or abs(samples * simulation_timestep - input_delay) > 1e-9:
        raise ConfigurationError(
            f"input_delay must be a whole number of integration steps of {simulation_timestep} s, got {input_delay} s"
        )
    if samples:
        for actuator in spec.actuators:
            actuator.delay, actuator.nsample = input_delay, samples + 1
    return spec.compile()
