"""Tutorial 03: your own MPC in the cluster.

Pucks slide on rails under a force. Each has an MPC, written for one puck (`puck_mpc.py`, beside this file); the cluster
runs them in worker processes, and an agent commands where the pucks shall go. Run it: `python tutorials/03_own_mpc.py`.
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import rt_lrhc
from rt_lrhc.interfaces.cluster import ClusterTask
from rt_lrhc.randomness import stream
from rt_lrhc.simulators.plant import Plant, simulation_steps


class Pucks(Plant):
    """The plant: all pucks at once, torch tensors in and out."""

    state_names, velocity_names, input_names = ("position", "velocity"), ("velocity",), ("force",)
    simulation_timestep = 0.005
    input_lower, input_upper = torch.tensor([-3.0]), torch.tensor([3.0])

    def __init__(self, num_robots):
        self.num_robots = num_robots
        self._x = torch.zeros(num_robots, 2, dtype=torch.float64)

    @property
    def state(self):
        return self._x.clone()

    def reset(self, state, mask=None):
        rows = slice(None) if mask is None else mask
        self._x[rows] = state[rows]

    def step(self, inputs, duration):
        for _ in range(simulation_steps(duration, self.simulation_timestep)):
            self._x[:, 1] += inputs[:, 0] * self.simulation_timestep
            self._x[:, 0] += self._x[:, 1] * self.simulation_timestep

    def push(self, velocity, mask=None):
        self._x[:, 1:] += velocity if mask is None else velocity * mask[:, None]

    def close(self):
        pass


class PuckTask(ClusterTask):
    """The task: what the agent sees, commands and gets for it."""

    controller = f"{Path(__file__).with_name('puck_mpc.py')}:make_mpc"  # or "package.module:make_mpc"
    controller_kwargs, control_period = {}, 0.05
    reference_names, observation_names = ("position",), ("state", "target")
    observation_space = gym.spaces.Tuple([gym.spaces.Box(-100, 100, (2,)), gym.spaces.Box(-2, 2, (1,))])
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    default_action = np.zeros(1, dtype=np.float32)

    def __init__(self, num_robots):
        self.plant = Pucks(num_robots)
        self.targets = np.zeros((num_robots, 1))

    def begin(self, root, episodes, rows, options):
        for robot in np.flatnonzero(rows):
            self.targets[robot] = stream(root, "target", robot=robot, episode=episodes[robot]).uniform(-2, 2)
        return np.zeros((len(rows), 2))

    def references(self, actions):
        return actions.astype(float)

    def observe(self, states, plan_ages):
        return [states, self.targets]

    def judge(self, states):
        return -np.abs(states[:, 0] - self.targets[:, 0]), np.abs(states[:, 0]) > 50.0


if __name__ == "__main__":
    config = rt_lrhc.DEFAULT_CONFIG_DICT.copy() | {
        "interface": "rt_lrhc.interfaces.cluster:ClusterInterface",
        "interface_kwargs": {"task": PuckTask},
        "time_step_duration": 0.1,
        "start_obs_capture": 0.1,
        "act_buf_len": 2,
    }
    for id, name in (("rt_lrhc:rt-sim-v0", "virtual time"), ("rt_lrhc:rt-v0", "wall clock")):
        env = gym.make_vec(id, num_envs=4, config=config)
        observation, _ = env.reset(seed=0)
        for _ in range(40):
            observation, reward, *_, info = env.step(observation[1])
        report = env.unwrapped.interface.client.report()
        env.close()
        solve = 1e3 * np.concatenate(report.solve_wall_times) / 4
        print(f"{name:12}: distances from the targets {np.abs(reward).round(3)} m after 4 s")
        print(f"{'':12}  solve p50 {np.median(solve):.2f} ms a puck, {report.misses.sum()} deadlines missed")
