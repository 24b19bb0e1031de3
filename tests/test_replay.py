"""Recorded episodes: saved, loaded, run again under virtual time, and compared value by value."""

import json
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rt_lrhc import ConfigurationError, EnvironmentStateError
from rt_lrhc.commands.main import main
from rt_lrhc.environment.recording import Recording
from rt_lrhc.environment.replay import replay
from rt_lrhc.tasks.cart_pole import cart_pole_config
from tests.worlds import Device, Integrator, Rows, action, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"
NAMES = {Integrator: "tests.worlds:Integrator", Rows: "tests.worlds:Rows", Device: "tests.worlds:Device"}


def halve(control: np.ndarray) -> np.ndarray:
    return control / 2


def make(interface: Any, id: str, **changes: Any) -> Any:
    return gym.make(id, config=config(interface, **changes), disable_env_checker=True).unwrapped


def record(id: str, late_at: int | None = None, **changes: Any) -> Recording:
    """An episode in which much happens: delays, a pause, parameters that change, an earlier episode."""
    env = make(
        NAMES[Integrator],
        id,
        act_buf_len=2,
        action_delay={"kind": "uniform", "low": 0.0, "high": 0.03},
        observation_delay=0.01,
        act_prepro_func=halve,
        obs_prepro_func=len,
        **changes,
    )
    env.start_recording()
    env.reset(seed=1)
    env.step(action(0.3))
    env.set_default_action(action(0.2))
    env.reset()
    for k in range(12):
        if k == late_at:
            time.sleep(0.07)
        if k == 5:
            env.set_time_step_duration(0.03, 2.0)
            env.set_start_obs_capture(0.03)
        if k == 7:
            env.wait()
        env.step(action(np.sin(k)))
    recording: Recording = env.recording()
    env.close()
    return recording


@pytest.mark.parametrize("id, late_at", [(VIRTUAL, None), (WALL, None), (WALL, 8)])
@pytest.mark.parametrize("form", ["tuple", "dict", "flat"])
def test_an_episode_is_the_same_from_its_file(
    id: str, late_at: int | None, form: str, tmp_path: Path
) -> None:
    recording = record(id, late_at, observation_form=form)
    if late_at is not None:
        assert recording.schedule != record(VIRTUAL, observation_form=form).schedule
    recording.save(tmp_path / "episode.npz")
    loaded = Recording.load(tmp_path / "episode.npz")
    assert len(loaded.actions) == 12 and np.array_equal(loaded.actions, recording.actions)
    assert replay(loaded) is None


def test_many_robots_are_the_same_from_their_file_ends_and_all(tmp_path: Path) -> None:
    env = gym.make_vec(
        WALL,
        num_envs=3,
        config=config(NAMES[Rows], interface_kwargs={"limit": np.float64(0.05)}, action_delay=0.015),
    ).unwrapped
    env.start_recording()
    env.reset(seed=2)
    for k in range(10):
        env.step(np.array([[1.0], [np.sin(k)], [0.3]], np.float32))
    recording = env.recording()
    env.close()
    assert recording.outcomes["terminated"].any() and recording.outcomes["final_0"].any()
    recording.save(tmp_path / "rows.npz")
    assert replay(Recording.load(tmp_path / "rows.npz")) is None


def test_a_cluster_episode_is_the_same_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = cart_pole_config(workers=2)
    settings["interface_kwargs"]["solve_delay"] = {"kind": "uniform", "low": 0.0, "high": 0.05}
    env = gym.make_vec(WALL, num_envs=2, config=settings).unwrapped
    env.start_recording()
    observation, _ = env.reset(seed=4)
    for step in range(6):
        if step == 3:
            time.sleep(0.13)
        observation, *_ = env.step(observation[1])
    env.recording().save(tmp_path / "cluster.npz")
    env.close()
    assert main(["replay", str(tmp_path / "cluster.npz")]) == 0
    printed = capsys.readouterr().out
    assert "6 time-steps, 2 robots, rt_lrhc.interfaces.cluster:ClusterInterface" in printed
    assert "the same, value by value" in printed


def test_the_first_difference_is_named_and_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = record(VIRTUAL)
    observations = [leaf.copy() for leaf in recording.observations]
    observations[0][4, 0] += 1.0
    observations[1][6, 0] += 1.0
    outcomes = {**recording.outcomes, "reward": recording.outcomes["reward"] + 1.0}
    difference = replay(replace(recording, observations=tuple(observations)))
    assert difference is not None and (difference.step, difference.what) == (4, "observation_0")
    assert difference.recorded == pytest.approx(difference.replayed + 1.0)
    replace(recording, outcomes=outcomes).save(tmp_path / "changed.npz")
    assert main(["replay", str(tmp_path / "changed.npz")]) == 1
    reward = recording.outcomes["reward"][0]
    assert f"first difference: time-step 1: reward was {reward + 1.0}, is {reward}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "interface, changes, said",
    [
        (
            NAMES[Integrator],
            {"act_prepro_func": lambda control: control},
            "act_prepro_func = .*define it at the top",
        ),
        (
            NAMES[Integrator],
            {"interface_kwargs": {"terminate_at": Fraction(99)}},
            "terminate_at = .*cannot be written",
        ),
    ],
)
def test_what_cannot_be_written_is_named(interface: Any, changes: dict[str, Any], said: str) -> None:
    env = make(interface, VIRTUAL, **changes)
    env.start_recording()
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=said):
        env.recording()
    env.close()


def test_a_device_has_nothing_to_replay() -> None:
    env = make(NAMES[Device], WALL)
    env.start_recording()
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="no schedule to replay"):
        env.recording()
    env.close()


def test_a_recording_needs_its_beginning() -> None:
    env = make(Integrator, VIRTUAL)
    env.reset(seed=0)
    with pytest.raises(EnvironmentStateError, match=r"start_recording\(\) before the reset"):
        env.recording()
    env.start_recording()
    with pytest.raises(EnvironmentStateError, match=r"needs a reset\(\)"):
        env.recording()
    env.close()


@pytest.mark.parametrize("content", [b"", b"no archive", "other", "format"])
def test_a_file_that_is_no_recording_is_named(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.npz"
    if content == "other":
        np.savez(path, values=[1.0])
    elif content == "format":
        np.savez(path, about=np.array(json.dumps({"format": 99})))
    else:
        path.write_bytes(content)
    assert main(["replay", str(path)]) == 1
    assert str(path) in capsys.readouterr().err
