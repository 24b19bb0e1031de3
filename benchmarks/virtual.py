"""How many time-steps a second virtual time makes, beside plain Gymnasium with the same world.

Two worlds, inline (no background work to overlap): a trivial one, which does nothing, so that all that is left is the
environment's own; and the drone, with its delayed radio. "Plain" is a `gymnasium.Env` that calls the same interface's
methods without a clock, a buffer or a check: the floor. Targets: 50,000 and 10,000 time-steps a second. CPU time is
measured: inline, nothing waits, so that it is wall time on a machine of one's own, and neighbours do not count.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import FloatArray, Report, interleaved
from rt_lrhc import DEFAULT_CONFIG_DICT, RealTimeInterface
from rt_lrhc.interfaces.drone import DroneInterface, drone_config

_STEP = 0.02
_SIZE = 2


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        rounds: How often each case runs.
        seconds: Length of a run, s.
        json: File for the figures; the samples go to .npz beside it.
    """

    rounds: int = 5
    seconds: float = 0.5
    json: Path | None = None


class Trivial(RealTimeInterface):
    """A world of one control period a time-step, in which nothing happens."""

    control_period = _STEP

    def __init__(self) -> None:
        self._observation = np.zeros(_SIZE, dtype=np.float32)

    def get_observation_space(self) -> Any:
        return gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1.0, 1.0, (_SIZE,), np.float32)])

    def get_action_space(self) -> gymnasium.spaces.Box:
        return gymnasium.spaces.Box(-1.0, 1.0, (_SIZE,), np.float32)

    def get_default_action(self) -> npt.NDArray[Any]:
        return np.zeros(_SIZE, dtype=np.float32)

    def send_control(self, control: npt.NDArray[Any]) -> None:
        pass

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        return [self._observation], {}

    def advance(self, until: float) -> None:
        pass

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], float, bool, dict[str, Any]]:
        return [self._observation], 0.0, False, {}


class Plain(gymnasium.Env[Any, npt.NDArray[Any]]):
    """An interface as an ordinary environment: act, let the world run, look."""

    def __init__(self, interface: Any, time_step_duration: float) -> None:
        self._interface = interface
        self._period = interface.control_period
        self._periods = round(time_step_duration / self._period)
        self._now = 0
        self.observation_space = interface.get_observation_space()
        self.action_space = interface.get_action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._now = 0
        observation, info = self._interface.reset(seed=seed, options=options)
        return tuple(observation), info

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._interface.send_control(action)
        for _ in range(self._periods):
            self._now += 1
            self._interface.advance(self._now * self._period)
        observation, reward, terminated, info = self._interface.get_obs_rew_terminated_info()
        return tuple(observation), reward, terminated, False, info


def trivial_config() -> dict[str, Any]:
    return {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": Trivial,
        "time_step_duration": _STEP,
        "start_obs_capture": _STEP,
        "act_buf_len": 2,
    }


def real_time(make_config: Callable[[], dict[str, Any]]) -> Any:
    config = {**make_config(), "overlap": "off"}
    return gymnasium.make("rt_lrhc:rt-sim-v0", config=config, disable_env_checker=True).unwrapped


def plain(make_interface: Callable[[], Any], make_config: Callable[[], dict[str, Any]]) -> Any:
    return Plain(make_interface(), make_config()["time_step_duration"])


def rate(make: Callable[[], Any], seconds: float) -> FloatArray:
    """Return the CPU time of a time-step, (1,), s: the mean over a run; episodes are reset as they end."""
    env = make()
    action = env.action_space.high * 0.3
    env.reset(seed=0)
    for _ in range(200):
        if any(env.step(action)[2:4]):
            env.reset()
    count, begin = 0, time.process_time()
    while time.process_time() - begin < seconds:
        for _ in range(100):
            if any(env.step(action)[2:4]):
                env.reset()
        count += 100
    duration = (time.process_time() - begin) / count
    env.close()
    return np.array([duration])


CASES: dict[str, Callable[[], Any]] = {
    "trivial, plain Gymnasium": partial(plain, Trivial, trivial_config),
    "trivial, rt_lrhc": partial(real_time, trivial_config),
    "drone, plain Gymnasium": partial(plain, DroneInterface, drone_config),
    "drone, rt_lrhc": partial(real_time, drone_config),
}

TARGETS = {"trivial, rt_lrhc": 50_000.0, "drone, rt_lrhc": 10_000.0}


def main(options: Options) -> None:
    report = Report()
    report.header()
    samples = interleaved(
        {name: partial(rate, make, options.seconds) for name, make in CASES.items()}, options.rounds
    )
    for name, durations in samples.items():
        steps = 1.0 / float(np.median(durations))
        report.samples[name] = durations
        report.values[name] = steps
        target = TARGETS.get(name)
        verdict = ""
        if target is not None:
            verdict = f", at least {target:,.0f}: {'reached' if steps >= target else 'NOT reached'}"
        print(f"{name:28} {steps:10,.0f} time-steps/s ({1e6 / steps:6.1f} us){verdict}")
    report.save(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
