"""Plant and controller agree by names, whatever the order; what the controller does not have keeps its home value."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rt_lrhc import ConfigurationError
from rt_lrhc.interfaces.cluster import ClusterInterface, ClusterTask
from rt_lrhc.simulators.plant import Plant


class Joints(Plant):
    """States that stay where they were put, and the inputs that came."""

    state_names, velocity_names, input_names = ("x1", "lid", "x0"), (), ("u1", "lid", "u0")
    simulation_timestep = 0.02
    input_lower, input_upper = torch.full((3,), -1.0), torch.full((3,), 1.0)

    def __init__(self, num_robots: int) -> None:
        self.num_robots = num_robots
        self._state = torch.zeros(num_robots, 3, dtype=torch.float64)
        self.inputs: list[Any] = []

    @property
    def state(self) -> torch.Tensor:
        return self._state.clone()

    def reset(self, state: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        self._state[...] = state

    def step(self, inputs: torch.Tensor, duration: float) -> None:
        self.inputs.append(inputs.numpy().copy())

    def push(self, velocity: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class JointTask(ClusterTask):
    """Commands both references; the lid belongs to the robot, not to its controller."""

    controller = "rt_lrhc.testing.echo:EchoController"
    controller_kwargs: Mapping[str, Any] = MappingProxyType({"num_inputs": 2})
    control_period = 0.02
    reference_names, observation_names = ("r0", "r1"), ("state",)
    observation_space = gym.spaces.Tuple([gym.spaces.Box(-1, 1, (3,))])
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    default_action = np.array([0.5, -0.25])

    def __init__(self, num_robots: int, home: Mapping[str, float]) -> None:
        self.plant = Joints(num_robots)
        self.home_inputs = home

    def begin(self, root: int, episodes: Any, rows: Any, options: Any) -> Any:
        return np.tile([0.125, 0.9, -0.25], (self.plant.num_robots, 1))

    def references(self, actions: Any) -> Any:
        return np.asarray(actions, np.float64)

    def observe(self, states: Any, plan_ages: Any) -> Any:
        return [states.astype(np.float32)]

    def judge(self, states: Any) -> Any:
        return np.zeros(len(states)), np.zeros(len(states), np.bool_)


def test_states_and_inputs_are_mapped_by_name_and_a_joint_without_controller_keeps_its_home_value() -> None:
    interface = ClusterInterface(JointTask, 3, task_kwargs={"home": {"lid": 0.75}}, workers=1)
    interface.clock = "virtual"
    try:
        interface.reset(seed=0)
        interface.advance(0.02)
        # u0 = r0 - x0 = 0.5 + 0.25, u1 = r1 - x1 = -0.25 - 0.125, in the plant's order (u1, lid, u0)
        np.testing.assert_allclose(interface.task.plant.inputs[-1], np.tile([-0.375, 0.75, 0.75], (3, 1)))
    finally:
        interface.close()


@pytest.mark.parametrize(
    ("home", "said"), [({}, "no input named lid"), ({"lid": 0.0, "hatch": 1.0}, "no input 'hatch'")]
)
def test_an_input_that_nobody_commands_or_that_is_not_there_is_named(
    home: dict[str, float], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ClusterInterface(JointTask, 1, task_kwargs={"home": home}, workers=1)
