"""Libraries that people use take the environments as they are."""

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rt_lrhc.interfaces.drone import drone_config
from tests.worlds import Integrator, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"


def drone(id: str = VIRTUAL, form: str = "dict", **changes: Any) -> Any:
    return gym.make(id, config={**drone_config(), "observation_form": form, "act_buf_len": "auto", **changes})


@pytest.mark.filterwarnings("ignore:.*normalized Box action space", "ignore:.*unconventional shape")
@pytest.mark.parametrize("form", ["dict", "flat"])
@pytest.mark.parametrize("id", [VIRTUAL, WALL])
def test_stable_baselines3s_checker_passes(form: str, id: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = drone(id, form, action_delay={"kind": "uniform", "low": 0.0, "high": 0.02})
    checker.check_env(env)
    env.close()


@pytest.mark.parametrize("form, policy", [("dict", "MultiInputPolicy"), ("flat", "MlpPolicy")])
def test_a_short_sac_runs_on_the_drone_unchanged(form: str, policy: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = drone(form=form)
    model = sb3.SAC(
        policy,
        env,
        learning_starts=50,
        batch_size=32,
        train_freq=4,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [32]},
    )
    model.learn(200)
    assert model.num_timesteps == 200
    action, _ = model.predict(env.reset(seed=0)[0])
    assert action in env.action_space
    env.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_gymnasium_records_a_video_and_the_episodes_of_the_drone(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = gym.make(VIRTUAL, config={**drone_config(), "ep_max_length": 8}, render_mode="rgb_array")
    env = gym.wrappers.RecordEpisodeStatistics(
        gym.wrappers.RecordVideo(env, str(tmp_path / "videos"), disable_logger=True)
    )
    env.reset(seed=0)
    for _ in range(8):
        *_, truncated, info = env.step(np.zeros(2, np.float32))
    env.close()
    assert truncated and info["episode"]["l"] == 8
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 1000


class Painter(Integrator):
    """A world whose pictures take 100 ms, ten of its control periods."""

    def render(self):
        before = len(self.log)
        time.sleep(0.1)
        self.went_on = len(self.log) - before
        return super().render()


def test_the_world_goes_on_while_a_picture_is_drawn() -> None:
    env = gym.make(WALL, config=config(Painter), render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    assert env.render().shape == (8, 8, 3)
    assert env.interface.went_on > 3
    env.close()
