"""Mini cheetahs on the whole path: worker processes, shared memory, pipelined on virtual time."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces

from rt_lrhc.cluster.controller import Status
from rt_lrhc.config import DEFAULT_CONFIG_DICT
from rt_lrhc.controllers.quadruped.references import REFERENCE_NAMES, reference_vector
from rt_lrhc.interfaces.cluster import BoolArray, ClusterTask, FloatArray, IntArray
from rt_lrhc.simulators.mini_cheetah import MiniCheetahs
from tests.quadruped_helpers import Walkers


class TwistTask(ClusterTask):
    """Twist in, state out."""

    controller = "rt_lrhc.controllers.quadruped.mini_cheetah:make_mini_cheetah"
    reference_names = REFERENCE_NAMES
    observation_names = ("state",)
    control_period = 0.02

    def __init__(self, num_robots: int) -> None:
        self.robots = self.plant = MiniCheetahs(num_robots)
        self.controller_kwargs: Mapping[str, Any] = {}
        self.observation_space = spaces.Tuple([spaces.Box(-np.inf, np.inf, (37,), np.float64)])
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float64)
        self.default_action = np.zeros(3)

    def begin(self, root: int, episodes: IntArray, rows: BoolArray, options: Mapping[str, Any]) -> FloatArray:
        """Stand in the default posture."""
        home: FloatArray = self.robots.home_state().numpy()
        return home

    def references(self, actions: npt.NDArray[Any]) -> FloatArray:
        """The action is the twist."""
        references = np.tile(reference_vector(), (len(actions), 1))
        references[:, :3] = actions
        return references

    def observe(self, states: FloatArray, plan_ages: IntArray) -> list[npt.NDArray[Any]]:
        """All of it."""
        return [states.copy()]

    def judge(self, states: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Fallen robots are terminated."""
        return states[:, 19], states[:, 2] < 0.15


@pytest.mark.timeout(120)
def test_robots_of_a_cluster_walk_as_they_do_in_one_process() -> None:
    twists = np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 1.0], [0.3, 0.1, 0.0]])
    env = gym.make_vec(
        "rt_lrhc:rt-sim-v0",
        num_envs=3,
        config={
            **DEFAULT_CONFIG_DICT.copy(),
            "interface": "rt_lrhc.interfaces.cluster:ClusterInterface",
            "interface_kwargs": {"task": "tests.test_mini_cheetah_cluster:TwistTask", "workers": 1},
            "time_step_duration": 0.1,
            "start_obs_capture": 0.1,
            "ep_max_length": 1000,
            "act_buf_len": 2,
        },
    )
    try:
        observation, _ = env.reset(seed=0)
        for _ in range(40):
            observation, _, terminated, _, info = env.step(twists)
            assert not terminated.any()
            assert (info["plan_status"] == Status.SOLVED).all()
        cluster = observation[0]
    finally:
        env.close()
    alone = Walkers([reference_vector()] * 3)
    alone.run(0.1)
    alone.references[:, :3] = twists
    alone.run(3.9)
    reached = alone.plant.state.numpy()
    # The cluster has solved before the first control period, this loop begins with the safe input.
    np.testing.assert_allclose(cluster[:, :3], reached[:, :3], atol=0.01)
