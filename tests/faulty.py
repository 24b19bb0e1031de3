"""Interfaces that misbehave in one callback, once: they raise, hang, or return what they should not."""

import os
import signal
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np

from tests.worlds import Integrator, Rows

HANG = 30.0
"""How long a callback hangs, s: far longer than any test waits."""


class Misbehaving(Integrator):
    """Does `fault` in the `at`th call of `callback`.

    The position is handed out in one array that is reused for ever: a copy is the environment's business.
    """

    def __init__(self, callback: str, fault: str, at: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.callback, self.fault, self.at = callback, fault, at
        self.calls = 0
        self.reused = np.zeros(1, dtype=np.float32)

    def fails_now(self, callback: str) -> bool:
        self.calls += callback == self.callback
        return callback == self.callback and self.calls == self.at

    def reset(self, seed=None, options=None):
        fails = self.fails_now("reset")
        if fails:
            act(self.fault)
        _, info = super().reset(seed, options)
        self.reused[:] = self.position
        return spoilt([self.reused], self.fault) if fails else [self.reused], info

    def send_control(self, control):
        if self.fails_now("send_control"):
            act(self.fault)
        super().send_control(control)

    def advance(self, until):
        if self.fails_now("advance"):
            act(self.fault)
        super().advance(until)

    def wait(self):
        if self.fails_now("wait"):
            act(self.fault)

    def get_obs_rew_terminated_info(self):
        fails = self.fails_now("get_obs_rew_terminated_info")
        if fails:
            act(self.fault)
        _, reward, terminated, info = super().get_obs_rew_terminated_info()
        self.reused[:] = self.position
        values = [self.reused], reward, terminated, info
        return spoilt_capture(values, self.fault) if fails else values

    def close(self):
        if self.fails_now("close"):
            act(self.fault)
        super().close()


class MisbehavingRows(Rows):
    """Does `fault` in the first call of `reset_rows`."""

    def __init__(self, num_envs: int, fault: str) -> None:
        super().__init__(num_envs, limit=0.025)
        self.fault = fault

    def reset_rows(self, mask):
        act(self.fault)
        observations, info = super().reset_rows(mask)
        return spoilt(observations, self.fault), info


def act(fault: str) -> None:
    """Do what is no return value."""
    if fault == "raise":
        raise ValueError("the plug was pulled")
    if fault == "hang":
        time.sleep(HANG)
    if fault == "exit":
        print("these were my last words", file=sys.stderr, flush=True)
        os._exit(7)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def spoilt(components: list[Any], fault: str) -> list[Any]:
    (first,) = components
    if fault == "shape":
        return [np.zeros((*first.shape, 2))]
    if fault == "dtype":
        return [np.full(first.shape, "text")]
    if fault == "nan":
        return [np.where(np.arange(first.size).reshape(first.shape) == first.size - 1, np.nan, first)]
    if fault == "count":
        return [first, first]
    return components


def spoilt_capture(values: Any, fault: str) -> Any:
    components, reward, terminated, info = values
    spoils = {
        "nothing": None,
        "reward": (components, None, terminated, info),
        "nan reward": (components, float("nan"), terminated, info),
        "terminated": (components, reward, "no", info),
        "info": (components, reward, terminated, None),
        "rt": (components, reward, terminated, {"rt": 1}),
    }
    return spoils.get(fault, (spoilt(components, fault), reward, terminated, info))


class Informative(Integrator):
    """Its info holds what `info` makes of it."""

    def __init__(self, kind: str = "good") -> None:
        super().__init__()
        self.kind = kind

    def get_obs_rew_terminated_info(self):
        observation, reward, terminated, _ = super().get_obs_rew_terminated_info()
        return observation, reward, terminated, INFOS[self.kind]


INFOS: dict[str, dict[str, Any]] = {
    "good": {
        "number": 1,
        "real": 0.1 + 0.2,
        "nothing": None,
        "truth": np.bool_(True),
        "scalar": np.float32(0.1),
        "text": "grüß dich",
        "pair": (1, "two"),
        "nested": {"array": np.arange(6, dtype=np.int16).reshape(2, 3), "list": [1.5, {"deep": np.zeros(0)}]},
        "words": np.array(["a", "bc"]),
    },
    "long": {"picture": np.arange(3_000_000, dtype=np.uint8)},
    "set": {"outer": {"members": {1, 2}}},
    "key": {"outer": {3: 1.0}},
    "object": {"thing": np.array([object()])},
}


class Camera(Integrator):
    """Its observation is a picture."""

    def get_observation_space(self):
        return gym.spaces.Tuple([gym.spaces.Box(0, 255, (48, 64, 3), np.uint8)])

    def reset(self, seed=None, options=None):
        super().reset(seed, options)
        return [self.picture()], {}

    def get_obs_rew_terminated_info(self):
        _, reward, terminated, info = super().get_obs_rew_terminated_info()
        return [self.picture()], reward, terminated, info

    def picture(self):
        return np.full((48, 64, 3), self.captures, dtype=np.uint8)


class Curious(Integrator):
    """Tells about its process in its info."""

    def __init__(self, pair: Any = None, kind: Any = None, child: bool = False) -> None:
        import subprocess

        super().__init__()
        self.facts = {
            "pair": repr(pair),
            "kind": repr(kind),
            "pid": os.getpid(),
            "torch": "torch" in sys.modules,
        }
        if child:
            self.facts["child"] = subprocess.Popen(["sleep", "60"]).pid

    def get_obs_rew_terminated_info(self):
        observation, reward, terminated, info = super().get_obs_rew_terminated_info()
        return observation, reward, terminated, {**info, **self.facts}
