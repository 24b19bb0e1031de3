import math

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_lrhc.errors import ConfigurationError, EnvironmentStateError, RenderError
from rt_lrhc.simulators import cart_pole
from rt_lrhc.simulators.cart_pole import CartPoles
from rt_lrhc.simulators.mujoco_batch import MujocoBatchPlant
from rt_lrhc.simulators.plant import simulation_steps

M, m, length, g = cart_pole.CART_MASS, cart_pole.POLE_MASS, cart_pole.POLE_LENGTH, cart_pole.GRAVITY


def random_states(num: int, seed: int) -> torch.Tensor:
    scale = torch.tensor([2.0, math.pi, 4.0, 8.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return scale * (2.0 * torch.rand(num, 4, generator=generator, dtype=torch.float64) - 1.0)


def random_forces(num: int, seed: int, limit: float = cart_pole.FORCE_LIMIT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return limit * (2.0 * torch.rand(num, 1, generator=generator, dtype=torch.float64) - 1.0)


def energy(states: torch.Tensor) -> torch.Tensor:
    _, angle, velocity, rate = states.T
    tip_x, tip_z = velocity - length * angle.cos() * rate, -length * angle.sin() * rate
    return M * velocity**2 / 2 + m * (tip_x**2 + tip_z**2) / 2 + m * g * length * angle.cos()


def test_mujoco_accelerations_satisfy_lagranges_equations() -> None:
    """The implicit form is checked, not the solved one, so that a slip in solving it would show too."""
    model = cart_pole.load_model()
    data = mujoco.MjData(model)
    states, forces = random_states(200, 1), random_forces(200, 2)
    for (x, angle, velocity, rate), (force,) in zip(states.tolist(), forces.tolist(), strict=True):
        data.qpos[:], data.qvel[:], data.ctrl[:] = (x, angle), (velocity, rate), force
        mujoco.mj_forward(model, data)
        dv, domega = data.qacc
        sin, cos = math.sin(angle), math.cos(angle)
        assert (M + m) * dv - m * length * cos * domega + m * length * sin * rate**2 == pytest.approx(
            force, abs=1e-6
        )
        assert length * domega - cos * dv - g * sin == pytest.approx(0.0, abs=1e-6)
        d = M + m * sin**2
        assert dv == pytest.approx((force + m * g * sin * cos - m * length * sin * rate**2) / d, abs=1e-6)
        torque = force * cos + (M + m) * g * sin - m * length * sin * cos * rate**2
        assert domega == pytest.approx(torque / (length * d), abs=1e-6)
        tip = data.geom("tip").xpos
        assert (tip[0], tip[2]) == pytest.approx((x - length * sin, length * cos), abs=1e-12)


def test_free_motion_keeps_its_energy_and_momentum() -> None:
    plant = CartPoles(16)
    start = random_states(16, 3)
    plant.reset(start)
    momentum = (M + m) * start[:, 2] - m * length * start[:, 1].cos() * start[:, 3]
    for _ in range(100):
        plant.step(torch.zeros(16, 1), 0.1)
        now = plant.state
        torch.testing.assert_close(energy(now), energy(start), rtol=0.0, atol=1e-6)
        torch.testing.assert_close(
            (M + m) * now[:, 2] - m * length * now[:, 1].cos() * now[:, 3], momentum, rtol=0.0, atol=1e-6
        )


def test_a_force_adds_exactly_its_work() -> None:
    """A constant force: what the energy gains is the force times the way of the cart."""
    plant = CartPoles(16)
    start, forces = random_states(16, 4), random_forces(16, 5)
    plant.reset(start)
    plant.step(forces, 0.5)
    end = plant.state
    torch.testing.assert_close(
        energy(end) - energy(start), forces[:, 0] * (end[:, 0] - start[:, 0]), rtol=1e-7, atol=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num=st.integers(2, 12), threads=st.integers(1, 3), robot=st.data())
def test_a_row_is_bitwise_the_same_alone_among_others_and_on_any_threads(
    seed: int, num: int, threads: int, robot: st.DataObject
) -> None:
    row = robot.draw(st.integers(0, num - 1))
    many, alone = CartPoles(num, threads=threads), CartPoles(1)
    start = random_states(num, seed)
    many.reset(start)
    alone.reset(start[row : row + 1])
    others = torch.ones(num, dtype=torch.bool)
    others[row] = False
    for period in range(5):
        if period == 2:
            many.reset(random_states(num, seed + 1), others)
            many.push(torch.ones(num, 2), others)
        forces = random_forces(num, seed + period)
        many.step(forces, 0.02)
        alone.step(forces[row : row + 1], 0.02)
    assert torch.equal(many.state[row], alone.state[0])


def test_a_reset_forgets_what_was_before() -> None:
    """A used plant and a new one, put at the same states, move bitwise alike."""
    used, new = CartPoles(4), CartPoles(4)
    used.reset(random_states(4, 6))
    used.step(random_forces(4, 7), 0.3)
    for plant in (used, new):
        plant.reset(random_states(4, 8))
    assert torch.equal(used.state, random_states(4, 8))
    for plant in (used, new):
        plant.step(random_forces(4, 9), 0.1)
    assert torch.equal(used.state, new.state)


def test_two_short_steps_are_one_long_step() -> None:
    once, twice = CartPoles(4), CartPoles(4)
    forces = random_forces(4, 10)
    for plant in (once, twice):
        plant.reset(random_states(4, 11))
    once.step(forces, 0.04)
    twice.step(forces, 0.03)
    twice.step(forces, 0.01)
    assert torch.equal(once.state, twice.state)


def test_a_push_adds_to_the_velocities_of_the_chosen_rows_alone() -> None:
    plant = CartPoles(3)
    start = random_states(3, 12)
    plant.reset(start)
    plant.push(torch.tensor([[1.0, -2.0]] * 3), torch.tensor([False, True, False]))
    start[1, 2:] += torch.tensor([1.0, -2.0])
    assert torch.equal(plant.state, start)


def test_the_state_is_a_copy() -> None:
    plant = CartPoles(2)
    before = plant.state
    plant.step(torch.full((2, 1), 10.0), 0.02)
    assert torch.equal(before, torch.zeros(2, 4))
    plant.state.fill_(7.0)
    assert not bool((plant.state == 7.0).any())


def test_forces_saturate_at_the_limit_of_the_actuator() -> None:
    plants = CartPoles(2), CartPoles(2)
    plants[0].step(torch.tensor([[500.0], [-500.0]]), 0.02)
    plants[1].step(torch.tensor([[80.0], [-80.0]]), 0.02)
    assert torch.equal(plants[0].state, plants[1].state)
    assert plants[0].input_upper.tolist() == [cart_pole.FORCE_LIMIT]
    assert plants[0].input_lower.tolist() == [-cart_pole.FORCE_LIMIT]


CHAIN = """<mujoco><option timestep="0.001"/><worldbody>
  <body name="base"><freejoint name="base"/><geom size="0.1"/>
    <body name="leg"><joint name="knee" axis="0 1 0"/><geom size="0.1" pos="0 0 1"/>
      <body name="toe"><joint name="ankle" axis="0 1 0"/><geom size="0.1" pos="0 0 2"/></body></body></body>
</worldbody><actuator><motor name="ankle" joint="ankle" ctrllimited="true" ctrlrange="-1 1"/>
  <motor name="knee" joint="knee" ctrllimited="true" ctrlrange="-2 2"/></actuator></mujoco>"""


def test_joints_and_actuators_are_mapped_by_name_not_by_their_order() -> None:
    model = mujoco.MjModel.from_xml_string(CHAIN)
    names = ["ankle_angle", "knee_angle", *(f"base_{i}" for i in range(7))]
    velocities = ["ankle_rate", "knee_rate", *(f"base_rate_{i}" for i in range(6))]
    plant = MujocoBatchPlant(
        model,
        2,
        joint_names=("ankle", "knee", "base"),
        actuator_names=("knee", "ankle"),
        state_names=names + velocities,
    )
    assert plant.velocity_names == tuple(velocities)
    assert plant.input_upper.tolist() == [2.0, 1.0]
    state = torch.zeros(2, 17, dtype=torch.float64)
    state[:, :6] = torch.tensor([0.1, 0.2, 1.0, 2.0, 3.0, 1.0])
    state[:, 9:] = torch.arange(8) / 10.0
    plant.reset(state)
    plant.step(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 0.001)
    data = mujoco.MjData(model)
    for row, control in enumerate(((0.0, 2.0), (1.0, 0.0))):  # the model's order: ankle, knee
        mujoco.mj_resetData(model, data)
        data.qpos[:] = [1, 2, 3, 1, 0, 0, 0, state[row, 1], state[row, 0]]
        data.qvel[:] = [*state[row, 11:], state[row, 10], state[row, 9]]
        data.ctrl[:] = control
        mujoco.mj_step(model, data)
        expected = [data.qpos[8], data.qpos[7], *data.qpos[:7], data.qvel[7], data.qvel[6], *data.qvel[:6]]
        assert plant.state[row].tolist() == expected


@pytest.mark.parametrize("duration", [0.0, -0.02, 0.003, math.nan, math.inf, 1e-7])
def test_a_duration_between_simulation_timesteps_is_an_error_that_names_it(duration: float) -> None:
    with pytest.raises(ConfigurationError, match=r"duration .* 0\.002 s"):
        CartPoles(1).step(torch.zeros(1, 1), duration)


@given(steps=st.integers(1, 5000), timestep=st.sampled_from([0.0005, 0.001, 0.002, 0.004, 0.005]))
def test_every_whole_number_of_timesteps_is_recognised(steps: int, timestep: float) -> None:
    assert simulation_steps(steps * timestep, timestep) == steps
    assert simulation_steps(round(steps * timestep, 6), timestep) == steps


def test_wrong_arguments_are_errors_that_name_them() -> None:
    plant = CartPoles(2)
    nan_row = torch.tensor([[0.0], [math.nan]])
    mask = torch.tensor([True, False])
    for call, message in (
        (lambda: plant.step(torch.zeros(2), 0.02), r"inputs .*\(2, 1\) \(cart_force\), got \(2,\)"),
        (lambda: plant.step(nan_row, 0.02), r"inputs must be finite, got \[nan\] for robot 1"),
        (lambda: plant.reset(torch.zeros(3, 4)), r"state .*\(2, 4\).*got \(3, 4\)"),
        (lambda: plant.reset(nan_row.expand(2, 4)), "state must be finite.*robot 1"),
        (lambda: plant.reset(torch.zeros(2, 4), torch.tensor([0, 1])), "mask must be a bool tensor"),
        (lambda: plant.push(torch.zeros(2, 1)), r"velocity .*\(2, 2\) \(cart_velocity, pole_velocity\)"),
        (lambda: CartPoles(0), "num_robots must be at least 1, got 0"),
        (lambda: CartPoles(1, threads=0), "threads must be at least 1, got 0"),
        (lambda: CartPoles(1, simulation_timestep=0.0), "simulation_timestep must be positive"),
        (lambda: _plant(joint_names=("card", "pole")), "no joint 'card'; it has 'cart', 'pole'"),
        (lambda: _plant(actuator_names=("motor",)), "no actuator 'motor'; it has 'cart_force'"),
        (lambda: _plant(state_names=("x",)), "2 positions and 2 velocities.*got 1 names"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            call()
    plant.reset(nan_row.expand(2, 4), mask)  # a row outside the mask is not read
    assert torch.equal(plant.state, torch.zeros(2, 4))


def _plant(**changes: tuple[str, ...]) -> MujocoBatchPlant:
    names = {"joint_names": ("cart", "pole"), "actuator_names": ("cart_force",)}
    names["state_names"] = cart_pole.STATE_NAMES
    return MujocoBatchPlant(cart_pole.load_model(), 1, **(names | changes))


def test_a_closed_plant_says_so_and_closes_twice() -> None:
    plant = CartPoles(1)
    plant.close()
    plant.close()
    with pytest.raises(EnvironmentStateError, match="CartPoles is closed"):
        plant.step(torch.zeros(1, 1), 0.02)
    with pytest.raises(EnvironmentStateError, match="CartPoles is closed"):
        _ = plant.state


def test_the_picture_shows_cart_pole_and_reference_where_they_are() -> None:
    half = 2.0  # m shown on either side of the middle of a cell
    states, references = np.zeros((2, 4)), np.array([0.7, 0.7])
    states[1] = (-0.5, math.pi / 2, 0.0, 0.0)
    picture = cart_pole.draw(states, references)
    assert picture.dtype == np.uint8 and picture.shape == (240, 480, 3)

    def colour(robot: int, x: float, z: float) -> tuple[int, ...]:
        pixel = round(120 + x / half * 120), round(120 - z / half * 120)
        return tuple(int(c) for c in picture[pixel[1], 240 * robot + pixel[0]])

    background, pole, green = colour(0, -1.0, 1.0), colour(0, 0.0, 0.8), colour(0, 0.7, 0.05)
    assert colour(0, 0.0, 0.4) == pole != background
    assert green[1] == max(green) and green != background  # RGB order: the reference is green
    assert pole[0] == max(pole)
    assert colour(1, -0.5 - 0.8, 0.0) == pole  # a quarter turn takes the tip to the left
    assert colour(1, 0.0, 0.8) == background


def test_the_picture_is_a_grid_of_at_most_sixteen_and_survives_odd_states() -> None:
    assert cart_pole.draw(np.zeros((1, 4)), np.zeros((1, 2))).shape == (240, 240, 3)
    assert cart_pole.draw(torch.zeros(5, 4), torch.zeros(5, 1)).shape == (480, 720, 3)
    assert cart_pole.draw(np.zeros((300, 4)), np.zeros(300)).shape == (960, 960, 3)
    odd = np.array([[1e12, 1e9, 0, 0], [math.nan, 0, 0, 0], [-7.3, 0, math.inf, 0]])
    cart_pole.draw(odd, np.array([math.nan, 0.0, -1e300]))
    for states, references in (
        (np.zeros(4), np.zeros(1)),
        (np.zeros((2, 4)), np.zeros(3)),
        (np.zeros((0, 4)), []),
    ):
        with pytest.raises(RenderError, match="must have shape"):
            cart_pole.draw(states, references)
