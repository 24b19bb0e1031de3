"""Mini cheetahs that walk on their MPCs: an agent orders twist and contacts, and more where a task lets it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.controllers.quadruped.references import DEFAULT_REFERENCE, WEIGHT_NAMES
from rt_lrhc.interfaces.cluster import FloatArray
from rt_lrhc.tasks.common import (
    action_rate,
    command,
    plan_age,
    plan_cost,
    plan_failing,
    plan_health,
    plan_status,
)
from rt_lrhc.tasks.config import TaskConfig, change, with_terms
from rt_lrhc.tasks.mini_cheetah_terms import (
    LEGS,
    TWIST_NAMES,
    WEIGHT,
    base_angular_velocity,
    base_velocity,
    capsized,
    commanded_twist,
    contact_forces,
    contact_tracking,
    cost_of_transport,
    gravity,
    height,
    joint_positions,
    joint_velocities,
    power,
    push,
    randomise_friction,
    randomise_motors,
    randomise_payload,
    reference_contacts,
    reference_phase,
    stand,
    tilt,
    twist,
    velocity_tracking,
    vertical_motion,
    yaw_tracking,
)
from rt_lrhc.tasks.terms import Action, Command, Event, Metric, Observation, Reward, Start, Termination


def follow_command(observation: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Order the twist that is asked for, and leave the feet to the gait."""
    wanted = np.asarray(observation["twist"])
    return np.concatenate([wanted, np.zeros((len(wanted), 4))], axis=1)


def follow_reference(observation: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Order the twist and the gait that are asked for, the feet lifted by 6 cm."""
    gait = np.asarray(observation["gait"])
    return np.concatenate([follow_command(observation), gait, np.full((len(gait), 1), 0.06)], axis=1)


def travel(metrics: Mapping[str, FloatArray]) -> dict[str, float]:
    """Cost of transport of a whole run, and errors of the twist (root mean square, m/s and rad/s)."""
    speed = np.hypot(metrics["measured_velocity_x"], metrics["measured_velocity_y"])
    errors = {
        f"{name}_error_rms": float(
            np.sqrt(np.mean((metrics[f"measured_{name}"] - metrics[f"commanded_{name}"]) ** 2))
        )
        for name in TWIST_NAMES
    }
    return {
        "cost_of_transport": float(metrics["power"].mean() / (WEIGHT * max(speed.mean(), 1e-3))),
        **errors,
    }


def mini_cheetah_flat() -> TaskConfig:
    """Mini cheetahs follow a commanded twist on flat ground, pushed, on robots that differ.

    The agent orders the twist of the base and, for each foot, whether it stands, is lifted or follows the gait, a trot.
    Action groups whose scale is 0 wait to be switched on: `posture`, `gait`, `footholds`, `weights`.
    """
    return TaskConfig(
        plant="rt_lrhc.simulators.mini_cheetah:MiniCheetahs",
        controller="rt_lrhc.controllers.quadruped.mini_cheetah:make_mini_cheetah",
        references=dict(DEFAULT_REFERENCE),
        observations=(
            Observation(gravity, unit="-", low=-1.0, high=1.0, noise=0.02),
            Observation(base_velocity, unit="m/s", noise=0.05),
            Observation(base_angular_velocity, 0.25, unit="rad/s", noise=0.1),
            Observation(joint_positions, unit="rad", noise=0.01),
            Observation(joint_velocities, 0.05, unit="rad/s", noise=0.5),
            Observation(command, name="twist", parameters={"name": "twist"}, unit="m/s, m/s, rad/s"),
            Observation(contact_forces, unit="weights of the robot"),
            Observation(plan_age, unit="control periods", low=-1.0),
            Observation(plan_status, unit="-", low=0.0, high=1.0),
            Observation(plan_cost, 0.1, unit="log"),
        ),
        actions=(
            Action(
                "twist",
                ("velocity_x_in_heading", "velocity_y_in_heading", "yaw_rate"),
                (-1.0, -0.5, -1.5),
                (1.5, 0.5, 1.5),
            ),
            Action("contacts", tuple(f"contact_{leg}" for leg in LEGS), -1.0, 1.0),
            Action(
                "posture",
                ("height", "roll", "pitch"),
                (0.24, -0.2, -0.2),
                (0.31, 0.2, 0.2),
                (0.29, 0.0, 0.0),
                0.0,
            ),
            Action(
                "gait",
                ("gait_period", "gait_duty", "clearance"),
                (0.3, 0.45, 0.03),
                (0.6, 0.8, 0.1),
                (0.4, 0.5, 0.06),
                0.0,
            ),
            Action(
                "footholds",
                tuple(f"foothold_{leg}_{axis}_in_heading" for leg in LEGS for axis in "xy"),
                -0.08,
                0.08,
                0.0,
                0.0,
            ),
            Action("weights", tuple(f"log_weight_{name}" for name in WEIGHT_NAMES), -1.0, 1.0, 0.0, 0.0),
        ),
        rewards=(
            Reward(velocity_tracking),
            Reward(yaw_tracking, 0.5),
            Reward(cost_of_transport, -0.05),
            Reward(vertical_motion, -0.2),
            Reward(action_rate, -0.005),
            Reward(plan_health, 0.1),
        ),
        start=Start(stand),
        terminations=(Termination(capsized), Termination(plan_failing, lasting=0.3)),
        commands=(Command("twist", (-0.4, -0.2, -0.8), (1.0, 0.2, 0.8), period=(4.0, 6.0), zero=0.1),),
        events=(
            Event(randomise_friction, parameters={"low": 0.5, "high": 1.1}),
            Event(randomise_payload, parameters={"low": -0.5, "high": 1.0, "offset": 0.03}),
            Event(randomise_motors, parameters={"spread": 0.1}),
            Event(push, period=(4.0, 8.0), parameters={"speed": 0.4}),
        ),
        metrics=(
            *(
                Metric(function, name=f"{kind}_{name}", parameters={"axis": axis})
                for kind, function in (("commanded", commanded_twist), ("measured", twist))
                for axis, name in enumerate(TWIST_NAMES)
            ),
            Metric(height),
            Metric(tilt),
            Metric(power),
        ),
        control_period=0.02,
        time_step_duration=0.02,
        episode_length=20.0,
        # The action acts in the next time-step, its plan one control period later: three time-steps cover both.
        act_buf_len=3,
        draw="rt_lrhc.tasks.mini_cheetah_picture:Picture",
        summary=travel,
        scripted=follow_command,
    )


def mini_cheetah_ref() -> TaskConfig:
    """Mini cheetahs follow a commanded twist in the rhythm of a reference gait.

    The reference is a trot from the begin of the episode on, of a period and a duty that are drawn. The agent sees its
    phase and which feet should stand, and orders period, duty and clearance of the gait besides twist and contacts.
    """
    flat = mini_cheetah_flat()
    task = with_terms(
        flat,
        observations=(
            Observation(reference_phase, unit="-", low=-1.0, high=1.0),
            Observation(reference_contacts, unit="-", low=0.0, high=1.0),
            Observation(command, name="gait", parameters={"name": "gait"}, unit="s, -"),
        ),
        rewards=Reward(contact_tracking, 0.5),
        commands=(
            Command("gait", (0.36, 0.5), (0.5, 0.6)),
            Command("twist", (-0.2, -0.1, -0.5), (0.6, 0.1, 0.5), period=(4.0, 6.0)),
        ),
        metrics=Metric(contact_tracking),
    )
    return dataclasses.replace(change(task, {"actions.gait.scale": 1.0}), scripted=follow_reference)
