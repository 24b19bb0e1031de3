"""The mini cheetah as it is simulated: its numbers, its motors, and what can be changed for each robot."""

import itertools
from importlib import resources

import mujoco
import numpy as np
import pytest
import torch

from rt_lrhc.controllers.quadruped.model import mini_cheetah_model
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.simulators import mini_cheetah
from rt_lrhc.simulators.mini_cheetah import HOME_JOINTS, INPUT_NAMES, JOINT_NAMES, STATE_NAMES, MiniCheetahs

WEIGHT = 8.912 * 9.81


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mini_cheetah.load_model()


@pytest.fixture(scope="module")
def parts() -> mujoco.MjModel:
    """The robot with its rotors as bodies of their own."""
    return mujoco.MjModel.from_xml_string(_text().replace('fusestatic="true"', 'fusestatic="false"'))


def home_inputs(num_robots: int) -> torch.Tensor:
    inputs = torch.zeros(num_robots, 36, dtype=torch.float64)
    inputs[:, 0::3] = torch.tensor(HOME_JOINTS, dtype=torch.float64)
    return inputs


def test_masses_and_inertias_are_the_published_ones(model: mujoco.MjModel, parts: mujoco.MjModel) -> None:
    assert model.body_mass.sum() == pytest.approx(3.3 + 4 * (0.54 + 0.634 + 0.064) + 12 * 0.055)
    assert model.body_mass.sum() == pytest.approx(8.912)
    np.testing.assert_allclose(parts.body("base").inertia, [0.011253, 0.036203, 0.042673])
    for leg, (front, left) in {"fr": (1, -1), "fl": (1, 1), "hr": (-1, -1), "hl": (-1, 1)}.items():
        hip, thigh, shank = (parts.body(f"{leg}_{part}") for part in ("hip", "thigh", "shank"))
        assert (hip.mass[0], thigh.mass[0], shank.mass[0]) == (0.54, 0.634, 0.064)
        np.testing.assert_allclose(hip.ipos, [0.0, left * 0.036, 0.0], atol=1e-12)
        np.testing.assert_allclose(thigh.ipos, [0.0, left * 0.016, -0.02], atol=1e-12)
        np.testing.assert_allclose(shank.ipos, [0.0, 0.0, -0.061], atol=1e-12)
        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, hip.iquat)
        tensor = axes.reshape(3, 3) @ np.diag(hip.inertia) @ axes.reshape(3, 3).T
        xy, yz = 58.0 * left, 0.95 * left
        expected = 1e-6 * np.array([[381.0, xy, 0.45], [xy, 560.0, yz], [0.45, yz, 444.0]])
        np.testing.assert_allclose(tensor, expected, atol=1e-12)
        np.testing.assert_allclose(sorted(thigh.inertia), 1e-6 * np.array([408, 1983, 2103]))
        np.testing.assert_allclose(sorted(shank.inertia), 1e-6 * np.array([6, 245, 248]))
        for joint, carrier, spin, position in (
            ("haa", "base", 0, [front * 0.125, left * 0.049, 0.0]),
            ("hfe", f"{leg}_hip", 1, [0.0, left * 0.04, 0.0]),
            ("kfe", f"{leg}_thigh", 1, [0.0, 0.0, 0.0]),
        ):
            rotor = parts.body(f"{leg}_{joint}_rotor")
            assert parts.body(rotor.parentid[0]).name == carrier
            assert rotor.mass[0] == 0.055
            np.testing.assert_allclose(rotor.pos, position, atol=1e-12)
            about = np.zeros(9)
            mujoco.mju_quat2Mat(about, rotor.iquat)
            inertia = (about.reshape(3, 3) ** 2) @ rotor.inertia
            np.testing.assert_allclose(inertia, np.where(np.arange(3) == spin, 63e-6, 33e-6), atol=1e-12)


def test_geometry_limits_and_friction_are_the_published_ones(model: mujoco.MjModel) -> None:
    np.testing.assert_allclose(2 * model.geom("trunk").size, [0.38, 0.098, 0.10])
    for leg, (front, left) in {"fr": (1, -1), "fl": (1, 1), "hr": (-1, -1), "hl": (-1, 1)}.items():
        np.testing.assert_allclose(model.body(f"{leg}_hip").pos, [front * 0.19, left * 0.049, 0.0])
        np.testing.assert_allclose(model.body(f"{leg}_thigh").pos, [0.0, left * 0.062, 0.0])
        np.testing.assert_allclose(model.body(f"{leg}_shank").pos, [0.0, left * 0.004, -0.209])
        np.testing.assert_allclose(model.geom(f"{leg}_foot").pos, [0.0, 0.0, -0.195])
        assert model.geom(f"{leg}_foot").size[0] == 0.02
        for joint, axis, limit, armature in (
            ("haa", [1, 0, 0], 1.5, 63e-6 * 6**2),
            ("hfe", [0, -1, 0], 2.6, 63e-6 * 6**2),
            ("kfe", [0, -1, 0], 2.7, 63e-6 * 9.33**2),
        ):
            hinge = model.joint(f"{leg}_{joint}")
            np.testing.assert_array_equal(hinge.axis, axis)
            np.testing.assert_array_equal(hinge.range, [-limit, limit])
            assert hinge.armature[0] == pytest.approx(armature, rel=1e-3)
            assert (hinge.damping[0], hinge.frictionloss[0]) == (0.01, 0.2)
    assert tuple(model.joint(i).name for i in range(1, 13)) == JOINT_NAMES


def test_motors_follow_the_low_level_law_within_their_torque_and_voltage(model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    draws = np.random.default_rng(0)
    gears = np.tile([6.0, 6.0, 9.33], 4)
    for _ in range(200):
        mujoco.mj_resetData(model, data)
        data.qpos[7:] = HOME_JOINTS
        data.qvel[6:] = draws.uniform(-45.0, 45.0, 12)
        target = draws.uniform([-1.5, -30.0, -20.0], [1.5, 30.0, 20.0], (12, 3))
        data.ctrl[:] = target.ravel()
        mujoco.mj_forward(model, data)
        joints, rates = data.qpos[7:], data.qvel[6:]
        asked = 20.0 * (target[:, 0] - joints) + 0.5 * (target[:, 1] - rates) + target[:, 2]
        # ActuatorModel.h of Cheetah-Software: KT = 0.05, R = 0.173 Ohm, 24 V, 3 N m.
        back_emf = rates * gears * 2.0 * 0.05
        volts = np.clip(asked / gears / (1.5 * 0.05) * 0.173 + back_emf, -24.0, 24.0)
        motor = np.clip(1.5 * 0.05 * (volts - back_emf) / 0.173, -3.0, 3.0)
        np.testing.assert_allclose(data.actuator_force, motor * gears, atol=1e-4)


def test_the_controllers_model_is_read_from_the_same_file(model: mujoco.MjModel) -> None:
    known = mini_cheetah_model()
    assert known.mass == pytest.approx(8.912)
    assert known.joint_names == JOINT_NAMES
    # The composite inertia of the whole robot, from its mass matrix with locked joints.
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    c = known.centre
    about_base = known.inertia + known.mass * (c @ c * np.eye(3) - np.outer(c, c))
    np.testing.assert_allclose(full[3:6, 3:6], about_base, rtol=1e-9, atol=1e-12)


def test_it_rests_on_four_feet_that_sense_its_weight() -> None:
    plant = MiniCheetahs(2)
    plant.set_payload([0.0, 1.5])
    plant.reset(plant.home_state())
    for _ in range(40):
        plant.step(home_inputs(2), 0.02)
    forces = plant.foot_forces
    assert forces.shape == (2, 4, 3)
    assert (forces[..., 2] > 5.0).all()
    np.testing.assert_allclose(forces[..., 2].sum(dim=1), [WEIGHT, WEIGHT + 1.5 * 9.81], rtol=0.01)
    plant.apply_wrench(
        "base", torch.tensor([[0.0, 0.0, -20.0, 0.0, 0.0, 0.0]] * 2), torch.tensor([True, False])
    )
    for _ in range(40):
        plant.step(home_inputs(2), 0.02)
    np.testing.assert_allclose(plant.foot_forces[0, :, 2].sum(), WEIGHT + 20.0, rtol=0.02)
    lifted = plant.home_state(height=0.6)
    plant.reset(lifted, torch.tensor([True, False]))
    assert (plant.foot_forces[0] == 0.0).all()
    assert (plant.foot_forces[1, :, 2] > 5.0).all()


def test_a_payload_is_a_point_mass_at_its_place(model: mujoco.MjModel) -> None:
    plant = MiniCheetahs(2)
    plant.set_payload(2.0, (0.1, 0.02, 0.06), torch.tensor([False, True]))
    plant.set_payload(1.0, (0.1, 0.0, 0.0), torch.tensor([False, True]))  # in place of the former
    loaded, _ = plant.physics(1)
    point = '<body pos="0.1 0 0"><inertial pos="0 0 0" mass="1" diaginertia="1e-12 1e-12 1e-12"/></body>'
    joint = '<freejoint name="base"/>'
    compiled = mujoco.MjModel.from_xml_string(_text().replace(joint, joint + point))
    matrices = []
    for candidate in (loaded, compiled):
        data = mujoco.MjData(candidate)
        mujoco.mj_resetDataKeyframe(candidate, data, 0)
        mujoco.mj_forward(candidate, data)
        matrix = np.zeros((18, 18))
        mujoco.mj_fullM(candidate, data, matrix)
        matrices.append(matrix)
    np.testing.assert_allclose(matrices[0], matrices[1], atol=1e-9)
    np.testing.assert_array_equal(plant.physics(0)[0].body_mass, model.body_mass)
    with pytest.raises(ConfigurationError, match="mass must be above"):
        plant.set_payload(-4.0)


def _text() -> str:
    return resources.files("rt_lrhc.simulators").joinpath("mini_cheetah.xml").read_text(encoding="utf-8")


def test_gains_strength_and_friction_are_each_robots_own() -> None:
    plant = MiniCheetahs(4)
    only = torch.tensor([False, True, False, False])
    plant.set_gains(kp=60.0, mask=only)
    plant.set_gains(strength=0.5, mask=torch.tensor([False, False, True, False]))
    plant.reset(plant.home_state())
    inputs = home_inputs(4)
    inputs[:, 2::3] += 1.0
    # Before anything has moved: what the motors deliver in the first integration step.
    inputs[:, 0::3] += 0.1
    plant.step(inputs, 0.002)
    delivered = plant.joint_torques[:, 0]
    np.testing.assert_allclose(delivered, [20 * 0.1 + 1, 60 * 0.1 + 1, 0.5 * (20 * 0.1 + 1), 20 * 0.1 + 1])
    inputs[:, 2::3] = 17.0
    plant.reset(plant.home_state())
    plant.step(inputs, 0.002)
    np.testing.assert_allclose(plant.joint_torques[:, 0], [18.0, 18.0, 9.0, 18.0])

    plant.set_gains(kp=80.0, kd=2.0, strength=1.0)
    plant.set_friction([0.8, 0.8, 0.2, 0.2])
    plant.reset(plant.home_state())
    for _ in range(20):
        plant.step(home_inputs(4), 0.02)
    side = torch.tensor([[0.0, 25.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64).expand(4, 6)
    before = plant.state[:, 1]
    plant.apply_wrench("base", side)
    for _ in range(25):
        plant.step(home_inputs(4), 0.02)
    moved = plant.state[:, 1] - before
    assert (moved[2:] > 1.8 * moved[:2]).all()


def test_inputs_come_late_by_the_declared_delay_and_start_from_the_posture() -> None:
    prompt, late = MiniCheetahs(2), MiniCheetahs(2, input_delay=0.006)
    inputs = home_inputs(2)
    inputs[:, 2::3] = 2.0
    for plant in (prompt, late):
        plant.reset(plant.home_state(height=1.0))
    torques = {}
    for plant in (prompt, late):
        trace = []
        for _ in range(6):
            plant.step(inputs, 0.002)
            trace.append(plant.joint_torques[0, 2].item())
        torques[plant] = np.array(trace)
    assert torques[prompt][0] == pytest.approx(2.0)
    np.testing.assert_allclose(torques[late][:3], 0.0, atol=0.05)
    assert torques[late][3] == pytest.approx(2.0, abs=0.05)
    with pytest.raises(ConfigurationError, match="input_delay must be a whole number"):
        MiniCheetahs(1, input_delay=0.003)


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_a_restored_robot_goes_on_bitwise_as_before_and_alone(delay: float) -> None:
    plant = MiniCheetahs(3, input_delay=delay)
    plant.reset(plant.home_state())
    draws = torch.Generator().manual_seed(0)
    commands = [
        home_inputs(3) + 0.3 * torch.randn(3, 36, generator=draws, dtype=torch.float64) for _ in range(10)
    ]
    for command in commands[:5]:
        plant.step(command, 0.02)
    saved = plant.save()
    for command in commands[5:]:
        plant.step(command, 0.02)
    reached = plant.state
    plant.restore(saved, torch.tensor([True, False, True]))
    for command in commands[5:]:
        plant.step(command, 0.02)
    assert torch.equal(plant.state[[0, 2]], reached[[0, 2]])
    assert not torch.equal(plant.state[1], reached[1])
    with pytest.raises(ConfigurationError, match="saved must have shape"):
        plant.restore(saved[:2])


def test_threads_and_neighbours_do_not_change_a_trajectory() -> None:
    results = []
    for size, threads in ((1, 1), (5, 1), (5, 2)):
        plant = MiniCheetahs(size, threads=threads)
        plant.reset(plant.home_state())
        for _ in range(20):
            plant.step(home_inputs(size), 0.02)
        results.append(plant.state[0])
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(results))


def test_names_say_what_is_where() -> None:
    plant = MiniCheetahs(1)
    assert len(STATE_NAMES) == 37 and plant.velocity_names == STATE_NAMES[19:]
    assert INPUT_NAMES[:3] == ("fr_haa_position", "fr_haa_velocity", "fr_haa_torque")
    state = plant.home_state(height=1.0)
    # Turned a quarter to the left, moving along the world's x and rolling about its own x axis.
    state[0, 3:7] = torch.tensor([0.5**0.5, 0.0, 0.0, 0.5**0.5])
    state[0, STATE_NAMES.index("base_velocity_x_in_world")] = 1.0
    state[0, STATE_NAMES.index("base_angular_velocity_x_in_base")] = 0.5
    plant.reset(state)
    plant.step(home_inputs(1), 0.002)
    after = plant.state[0] - state[0]
    assert after[0].item() == pytest.approx(0.002, rel=0.1)
    # A roll about its x axis, which points along the world's y, tips its z axis towards the world's x.
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, plant.state[0, 3:7].numpy())
    assert matrix.reshape(3, 3)[0, 2] == pytest.approx(0.001, rel=0.1)
    assert abs(matrix.reshape(3, 3)[1, 2]) < 2e-4
