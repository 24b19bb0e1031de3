"""What a quadruped's MPC must know about the robot, read from the same MJCF that is simulated."""

from dataclasses import dataclass
from importlib import resources

import mujoco
import numpy as np

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.controllers.quadruped.legs import Legs

LEG_NAMES = ("fr", "fl", "hr", "hl")
JOINTS = ("haa", "hfe", "kfe")


@dataclass(frozen=True)
class QuadrupedModel:
    """A quadruped whose joints are driven by `tau = kp (q* - q) + kd (v* - v) + tau_ff`.

    Attributes:
        joint_names: Names of the 12 joints, leg by leg.
        legs: Geometry of the legs.
        mass: Total mass, kg.
        centre: Centre of mass in the body frame, in the default posture, (3,), m.
        inertia: Inertia about it, in the body frame, in the default posture, (3, 3), kg m^2.
        home: Default posture, (4, 3), rad.
        foot_radius: m.
        kp: Stiffness of the joints, N m/rad.
        kd: Damping of the joints, N m s/rad.
        joint_inertia: Inertia that a motor sees of its rotor and of the leg below it, (3,), kg m^2.
        position_limits: Limits of the position targets either way, (3,), rad.
        velocity_limits: Limits of the velocity targets either way, (3,), rad/s.
        torque_limits: Limits of the feed-forward torques either way, (3,), N m.
    """

    joint_names: tuple[str, ...]
    legs: Legs
    mass: float
    centre: FloatArray
    inertia: FloatArray
    home: FloatArray
    foot_radius: float
    kp: float
    kd: float
    joint_inertia: FloatArray
    position_limits: FloatArray
    velocity_limits: FloatArray
    torque_limits: FloatArray


def mini_cheetah_model() -> QuadrupedModel:
    """Read the mini cheetah from the package's MJCF.

    Its software limits are those of Cheetah-Software: speeds 41, 41, 26.8 rad/s, torques 17, 17, 26 N m.
    """
    text = resources.files("rt_lrhc.simulators").joinpath("mini_cheetah.xml").read_text(encoding="utf-8")
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[:7] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    mujoco.mj_forward(model, data)
    base = model.body("base").id
    centre = data.subtree_com[base].copy()
    # Steiner's theorem over the robot's bodies, the base's subtree: all but the world.
    inertia = np.zeros((3, 3))
    for body in range(1, model.nbody):
        axes = data.ximat[body].reshape(3, 3)
        offset = data.xipos[body] - centre
        inertia += axes @ np.diag(model.body_inertia[body]) @ axes.T
        inertia += model.body_mass[body] * (offset @ offset * np.eye(3) - np.outer(offset, offset))
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    hips = np.array([model.body(f"{leg}_hip").pos for leg in LEG_NAMES])
    lateral = np.array(
        [model.body(f"{leg}_thigh").pos[1] + model.body(f"{leg}_shank").pos[1] for leg in LEG_NAMES]
    )
    gains = model.actuator_gainprm[0]
    return QuadrupedModel(
        joint_names=tuple(f"{leg}_{joint}" for leg in LEG_NAMES for joint in JOINTS),
        legs=Legs(
            hips=hips,
            lateral=lateral,
            thigh=-float(model.body("fr_shank").pos[2]),
            shank=-float(model.site("fr_foot").pos[2]),
        ),
        mass=float(model.body_subtreemass[base]),
        centre=centre,
        inertia=inertia,
        home=model.key_qpos[0, 7:].reshape(4, 3).copy(),
        foot_radius=float(model.geom("fr_foot").size[0]),
        kp=float(gains[4]),
        kd=float(gains[6]),
        joint_inertia=full.diagonal()[6:9].copy(),
        position_limits=model.jnt_range[1:4, 1].copy(),
        velocity_limits=np.array([41.0, 41.0, 26.8]),
        torque_limits=np.array([17.0, 17.0, 26.0]),
    )
