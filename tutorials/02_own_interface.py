"""Tutorial 02: an interface of your own.

A lift is commanded by its speed. Commands reach it after 30 ms, and its height sensor answers 20 ms late. The same
class runs on the wall clock (as a real lift would) and on virtual time (for training). Run it:
`python tutorials/02_own_interface.py`.
"""

from collections import deque

import gymnasium as gym
import numpy as np

import rt_lrhc
from rt_lrhc.randomness import stream

COMMAND_DELAY, SENSOR_DELAY = 3, 2  # in control periods


class Lift(rt_lrhc.RealTimeInterface):
    """Height (m) and target (m) are observed; the speed (m/s) is commanded."""

    control_period = 0.01  # the world's own time step; `advance` is called once for each

    def get_observation_space(self):
        return gym.spaces.Tuple(
            [gym.spaces.Box(-1.0, 11.0, (1,), np.float32), gym.spaces.Box(0.0, 10.0, (1,), np.float32)]
        )

    def get_action_space(self):
        return gym.spaces.Box(-4.0, 4.0, (1,), np.float32)

    def get_default_action(self):
        return np.zeros(1, dtype=np.float32)

    def reset(self, seed=None, options=None):
        self.time, self.height = 0.0, 0.0
        self.target = stream(seed, "target").uniform(1.0, 10.0)
        self.speed = 0.0
        self.commands = deque([0.0] * COMMAND_DELAY)  # on their way to the lift
        self.heights = deque([0.0] * (SENSOR_DELAY + 1), maxlen=SENSOR_DELAY + 1)  # on their way back
        return self._observe(), {}

    def send_control(self, control):
        self.speed = float(control[0])

    def advance(self, until):
        self.commands.append(self.speed)
        self.height = float(np.clip(self.height + self.commands.popleft() * (until - self.time), 0.0, 10.0))
        self.heights.append(self.height)
        self.time = until

    def get_obs_rew_terminated_info(self):
        error = abs(self.height - self.target)
        return self._observe(), -error, error < 0.005, {"height": self.height}

    def _observe(self):
        return [np.array([self.heights[0]]), np.array([self.target])]


config = rt_lrhc.DEFAULT_CONFIG_DICT.copy()
config |= {"interface": Lift, "time_step_duration": 0.05, "start_obs_capture": 0.05, "ep_max_length": 200}
config |= {
    "act_buf_len": 3
}  # covers the total delay: (30 + 20 + 50) ms in steps of 50 ms, rounded up, and one more


def agent(observation, aware):
    """Command a speed towards the target; an aware agent adds what its last actions have yet to do."""
    height, target, *actions = (float(part[0]) for part in observation)
    if aware:
        height += sum(actions[-2:]) * 0.05
    return np.clip(np.array([14.0 * (target - height)], dtype=np.float32), -4.0, 4.0)


def episode(env, seed, aware):
    observation, _ = env.reset(seed=seed)
    for step in range(1, 201):
        observation, _, terminated, truncated, info = env.step(agent(observation, aware))
        if terminated or truncated:
            return step, terminated, info
    raise AssertionError("an episode is truncated at 200 steps")


for aware in (True, False):
    env = gym.make("rt_lrhc:rt-sim-v0", config=config)
    arrivals = [episode(env, seed, aware)[:2] for seed in range(50)]
    env.close()
    steps = [step for step, arrived in arrivals if arrived]
    name = "aware of the delay" if aware else "unaware"
    print(
        f"virtual time, agent {name:18}: {len(steps)}/50 arrived, mean {np.mean(steps) if steps else np.nan:.0f} steps"
    )

env = gym.make("rt_lrhc:rt-v0", config=config)
step, arrived, info = episode(env, 3, aware=True)
summary = env.unwrapped.timing.summary()
env.close()
print(f"wall clock: {'arrived' if arrived else 'late'} after {step} steps at {info['height']:.3f} m")
print(f"  time-step p50 / p99 / max {summary.step.format()}, {summary.overruns} overruns")
