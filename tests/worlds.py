"""Small worlds and devices for the tests: they log what is asked of them."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rt_lrhc import DEFAULT_CONFIG_DICT, RealTimeInterface, VectorInterface
from rt_lrhc.randomness import stream


class Log(list[Any]):
    """What was asked of a world: a list, and a file where another process shall read it."""

    def __init__(self, file: str | None = None) -> None:
        super().__init__()
        self.file = file

    def append(self, event: tuple[str, Any]) -> None:
        super().append(event)
        if self.file is not None:
            with open(self.file, "a") as file:
                file.write(json.dumps(event) + "\n")

    @staticmethod
    def read(file: Any) -> list[tuple[str, Any]]:
        return [tuple(json.loads(line)) for line in Path(file).read_text().splitlines()]


class Device(RealTimeInterface):
    """A device whose observation is the action in force."""

    def __init__(self, terminate_at: int = 10**9, dimension: int = 1, log_file: str | None = None) -> None:
        self.log = Log(log_file)
        self.in_force = np.zeros(dimension, dtype=np.float32)
        self.captures = 0
        self.terminate_at = terminate_at
        self.dimension = dimension
        self.closed = 0

    def get_observation_space(self):
        return gym.spaces.Tuple([gym.spaces.Box(-1.0, 1.0, (self.dimension,), np.float32)])

    def get_action_space(self):
        return gym.spaces.Box(-1.0, 1.0, (self.dimension,), np.float32)

    def get_default_action(self):
        return np.zeros(self.dimension, dtype=np.float32)

    def send_control(self, control):
        self.log.append(("send", float(control[0])))
        self.in_force = control

    def reset(self, seed=None, options=None):
        self.log.append(("reset", None))
        self.captures = 0
        return [np.zeros(self.dimension, dtype=np.float32)], {}

    def get_obs_rew_terminated_info(self):
        self.captures += 1
        self.log.append(("capture", float(self.in_force[0])))
        return [self.in_force], float(self.captures), self.captures >= self.terminate_at, {}

    def wait(self):
        self.log.append(("wait", None))

    def close(self):
        self.closed += 1
        if self.log.file is not None:
            self.log.append(("close", None))


class Integrator(Device):
    """A world: the position integrates the action, plus seeded noise."""

    control_period = 0.01

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.position = 0.0
        self.time = 0.0

    def get_observation_space(self):
        return gym.spaces.Tuple([gym.spaces.Box(-100.0, 100.0, (1,), np.float32)])

    def reset(self, seed=None, options=None):
        super().reset(seed, options)
        self.noise = stream(seed, "noise")
        self.position, self.time = 0.0, 0.0
        return [np.array([self.position])], {}

    def advance(self, until):
        assert abs(until - self.time - self.control_period) < 1e-9
        self.log.append(("advance", round(until, 6)))
        self.position += (float(self.in_force[0]) + 0.1 * self.noise.normal()) * (until - self.time)
        self.time = until

    def get_obs_rew_terminated_info(self):
        _, reward, terminated, info = super().get_obs_rew_terminated_info()
        return [np.array([self.position])], reward, terminated, {"time": self.time, **info}

    def render(self):
        return np.full((8, 8, 3), int(abs(self.position) * 10) % 256, dtype=np.uint8)


class Rows(VectorInterface):
    """N integrators; robot n ends its episode when its position exceeds `limit`."""

    control_period = 0.01

    def __init__(self, num_envs: int, limit: float = 1e9) -> None:
        self.num_envs = num_envs
        self.limit = limit
        self.in_force = np.zeros((num_envs, 1), dtype=np.float32)
        self.sent: list[np.ndarray] = []
        self.position = np.zeros(num_envs)
        self.time = 0.0
        self.resets = np.zeros(num_envs, dtype=int)

    def get_observation_space(self):
        return gym.spaces.Tuple([gym.spaces.Box(-100.0, 100.0, (1,), np.float32)])

    def get_action_space(self):
        return gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def get_default_action(self):
        return np.zeros(1, dtype=np.float32)

    def send_control(self, control):
        self.sent.append(control)
        self.in_force = control

    def _observe(self):
        return [self.position[:, None].copy()], {"position": self.position.copy()}

    def reset(self, seed=None, options=None):
        self.position[:] = 0.0
        self.time = 0.0
        self.resets[:] = 0
        return self._observe()

    def reset_rows(self, mask):
        self.position[mask] = 0.0
        self.resets[mask] += 1
        return self._observe()

    def get_obs_rew_terminated_info(self):
        observations, info = self._observe()
        return observations, self.position.copy(), self.position > self.limit, info

    def advance(self, until):
        self.position += self.in_force[:, 0] * (until - self.time)
        self.time = until


def config(interface: Any, **changes: Any) -> dict[str, Any]:
    """A short configuration for tests: 20 ms time-steps, captured at their end."""
    return {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": interface,
        "time_step_duration": 0.02,
        "start_obs_capture": 0.02,
        "ep_max_length": 1000,
        **changes,
    }


def action(value: float, dimension: int = 1) -> np.ndarray:
    return np.full(dimension, value, dtype=np.float32)
