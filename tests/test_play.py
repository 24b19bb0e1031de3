"""Registered tasks run in both environments; `rt-lrhc play` and `list` say what is so; pictures can be looked at."""

import json
import math
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rt_lrhc.commands.main import main
from rt_lrhc.errors import ConfigurationError, RenderError
from rt_lrhc.interface import VectorInterface
from rt_lrhc.simulators import mini_cheetah
from rt_lrhc.simulators.pictures import RenderedView, StickView, tile
from rt_lrhc.tasks import make_config, run_summary, scripted_agent, task_names

VIRTUAL = "rt_lrhc:rt-sim-v0"
CLUSTER_TASKS = [name for name in task_names() if name != "drone"]


# Actions are in SI units; gymnasium.wrappers.RescaleAction is for who wants them in [-1, 1].
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend:UserWarning")
@pytest.mark.parametrize("name", task_names())
def test_a_registered_task_passes_the_checks_of_gymnasium(name: str) -> None:
    env = gym.make(VIRTUAL, config=make_config(name, ep_max_length=20), disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def rollout(name: str, robots: int, seed: int, steps: int = 25, **keys: Any) -> list[Any]:
    envs = gym.make_vec(VIRTUAL, num_envs=robots, config=make_config(name, observation_form="dict", **keys))
    assert isinstance(envs.unwrapped.interface, VectorInterface)  # type: ignore[attr-defined]
    agent = scripted_agent(name)
    assert agent is not None
    observation, _ = envs.reset(seed=seed)
    history = []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = envs.step(agent(observation).astype(np.float32))
        assert all(observation[key] in space for key, space in envs.observation_space.spaces.items())  # type: ignore
        terms = {key: value for key, value in info["reward_terms"].items() if not key.startswith("_")}
        np.testing.assert_allclose(sum(terms.values()), reward, atol=1e-12)
        history.append((observation, reward, terminated, truncated, info["duration"]))
    envs.close()
    return history


@pytest.mark.parametrize("name", CLUSTER_TASKS)
def test_the_same_seed_gives_the_same_episode_and_asks_the_same_of_more_robots(name: str) -> None:
    first, again, more = (
        rollout(name, 2, seed=3),
        rollout(name, 2, seed=3),
        rollout(name, 5, seed=3, steps=12),
    )
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[0][key], b[0][key]) for key in a[0]) and np.array_equal(a[1], b[1])
    asked = {"target", "twist", "gait", "reference_phase"} & set(first[0][0])
    for a, b in zip(first, more, strict=False):
        assert all(np.array_equal(a[0][key], b[0][key][:2]) for key in asked)


def test_each_transition_says_how_long_it_was_in_seconds() -> None:
    config = make_config("cart_pole", time_step_duration=0.1, start_obs_capture=0.04, ep_max_length=3)
    envs = gym.make_vec(VIRTUAL, num_envs=2, config=config)
    _, info = envs.reset(seed=0)
    assert info["duration"].tolist() == [0.0, 0.0]
    seen = []
    for step in range(7):
        if step == 4:
            envs.unwrapped.set_time_step_duration(0.14)  # type: ignore[attr-defined]
        _, _, _, truncated, info = envs.step(np.zeros((2, 1), np.float32))
        seen.append(info["duration"][0])
        # Also where an episode has just ended: it belongs to the reward of this step.
        assert truncated.all() == (step in (2, 5)) and ("final_info" in info) == truncated.all()
    np.testing.assert_allclose(seen, [0.04, 0.1, 0.1, 0.1, 0.1, 0.1, 0.14], atol=1e-9)
    envs.close()


def test_a_reset_leaves_nothing_of_the_episode_before() -> None:
    """The capture lies inside the time-step, so that some of it has run when the reset comes."""
    envs = gym.make_vec(
        VIRTUAL, num_envs=1, config=make_config("cart_pole", {"reward_time": "mean"}, start_obs_capture=0.04)
    )
    stories = []
    for _ in range(2):
        _, info = envs.reset(seed=4)
        terms = {name: value for name, value in info["reward_terms"].items() if not name.startswith("_")}
        assert set(terms) == {"distance_squared", "tilt"} and not np.any(list(terms.values()))
        stories.append([envs.step(np.zeros((1, 1), np.float32))[1] for _ in range(3)])
    np.testing.assert_array_equal(*stories)
    envs.close()


def test_a_random_agent_makes_robots_fall_and_nothing_else_happen() -> None:
    envs = gym.make_vec(VIRTUAL, num_envs=16, config=make_config("mini_cheetah_flat"))
    envs.reset(seed=1)
    envs.action_space.seed(1)
    ended = np.zeros(16, np.int64)
    for _ in range(150):
        observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert np.isfinite(reward).all() and all(np.isfinite(part).all() for part in observation)
        terms = info.get("final_info", info)["termination_terms"]
        named = np.any([value for key, value in terms.items() if not key.startswith("_")], axis=0)
        assert (named[terminated]).all()
        ended += terminated
    assert ended.any() and not truncated.any()
    envs.close()


# The commands.


@pytest.mark.parametrize(
    "task, clock, robots",
    [("cart_pole", "wall", 2), ("drone", "wall", None), ("mini_cheetah_flat", "virtual", 2)],
)
def test_play_writes_a_video_and_figures_that_can_be_read(
    task: str, clock: str, robots: int | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    video, figures = tmp_path / "folder" / "out.mp4", tmp_path / "folder" / "out.json"
    count = [] if robots is None else ["--robots", str(robots)]
    arguments = [
        "play",
        task,
        "--clock",
        clock,
        "--seconds",
        "2",
        "--video",
        str(video),
        "--json",
        str(figures),
    ]
    assert main([*arguments, *count]) == 0
    said = capfd.readouterr().out
    read = json.loads(figures.read_text())
    assert (read["task"], read["clock"], read["robots"], read["simulated"]) == (task, clock, robots or 1, 2.0)
    capture = cv2.VideoCapture(str(video))
    shapes = []
    while (frame := capture.read())[0]:
        shapes.append(frame[1].shape)
        assert frame[1].std() > 5.0  # there is something to see
    capture.release()
    assert len(shapes) == read["frames"] > 10 and len(set(shapes)) == 1
    assert ("time-step" in read["durations"]) == (clock == "wall")
    if task != "drone":
        assert read["rewards"]["total"] == pytest.approx(
            sum(read["returns"]) / len(read["returns"]) / read["steps"]
        )
        assert sum(read["fallbacks"].values()) > 0 and read["durations"]["solve"]["n"] > 0
        for name in (
            *read["metrics"],
            *(name for name in read["rewards"] if name != "total"),
            *read["summary"],
        ):
            assert name in said


def test_play_sets_what_it_is_told_and_each_agent_acts(tmp_path: Path) -> None:
    figures = tmp_path / "out.json"
    settings = ["--set", "rewards.distance_squared=0", "--set", "start.parameters.angle=0.0"]
    returns = {}
    for agent in ("scripted", "zero", "random"):
        assert (
            main(["play", "cart_pole", "--agent", agent, "--json", str(figures), "--seconds", "3", *settings])
            == 0
        )
        read = json.loads(figures.read_text())
        assert set(read["rewards"]) == {"total", "tilt"} and read["metrics"]["tilt"]["mean"] < 0.3
        returns[agent] = read["metrics"]["distance"]["mean"]
    assert returns["scripted"] < returns["zero"] and len(set(returns.values())) == 3


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["cart_poel"], "did you mean 'cart_pole'"),
        (["cart_pole", "--set", "rewards.distance=0"], "did you mean 'distance_squared'"),
        (["cart_pole", "--set", "rewards.distance_squared"], "path=value"),
        (["drone", "--robots", "2"], "one robot"),
        (["cart_pole", "--set", "observations.target=0"], "'target', which was removed"),
    ],
)
def test_play_names_what_is_wrong(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["play", *arguments, "--seconds", "0.5"]) == 1
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--robots", "0"], ["--video", "walk.avi"]])
def test_play_refuses_options_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises((ConfigurationError, SystemExit)):
        if main(["play", "cart_pole", *arguments]):
            raise ConfigurationError


def test_list_shows_each_task_with_what_it_sees_and_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::3]] == task_names()
    assert "gravity 3" in lines[7] and lines[8].split() == ["commands", "twist", "3,", "contacts", "4"]


def test_the_cost_of_transport_is_power_over_weight_and_speed() -> None:
    ones = np.ones((10, 2))
    metrics = {
        f"{kind}_{name}": 0.0 * ones
        for kind in ("measured", "commanded")
        for name in ("velocity_y", "yaw_rate")
    }
    metrics |= {
        "measured_velocity_x": 0.5 * ones,
        "commanded_velocity_x": 0.7 * ones,
        "power": 8.912 * 9.81 * ones,
    }
    summary = run_summary("mini_cheetah_flat")
    assert summary is not None
    figures = summary(metrics)
    assert figures["cost_of_transport"] == pytest.approx(2.0)
    assert figures["velocity_x_error_rms"] == pytest.approx(0.2)


# Pictures.


def poses() -> Any:
    model = mini_cheetah.load_model()
    home = np.array(model.key_qpos)[0]
    far = home.copy()
    far[0] += 7.0
    folded = home.copy()
    folded[7:] *= 1.5
    return model, np.stack([home, far, folded])


def assert_pictures_differ_where_robots_do(pictures: list[Any]) -> None:
    same, folded = (np.abs(pictures[0].astype(int) - picture).mean() for picture in pictures[1:])
    # The camera goes with the robot: a robot far away looks alike, but for the ground, one in another posture does not.
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures)
    assert folded > 0.2 and math.isfinite(same)


def test_robots_are_drawn_as_sticks_without_opengl() -> None:
    model, positions = poses()
    pictures = StickView(model).draw(positions)
    assert_pictures_differ_where_robots_do(pictures)
    np.testing.assert_array_equal(pictures[0], StickView(model).draw(positions[:1])[0])
    assert tile(pictures).shape == (2 * pictures[0].shape[0], 2 * pictures[0].shape[1], 3)


def test_robots_are_rendered_where_opengl_works_and_else_it_says_what_to_install() -> None:
    text = Path(mini_cheetah.__file__).with_suffix(".xml").read_text()
    try:
        view = RenderedView(text, camera="beside", height=120, width=160)
    except RenderError as error:
        assert "libosmesa6" in str(error)
        pytest.skip(f"no OpenGL here: {error}")
    assert_pictures_differ_where_robots_do(view.draw(poses()[1]))
    view.close()
    view.close()
    with pytest.raises(RenderError, match="has ended"):
        view.draw(poses()[1])


def test_a_broken_opengl_costs_a_picture_and_not_the_program() -> None:
    with pytest.raises(RenderError, match=r"nonsense.*libegl1"):
        RenderedView("<mujoco/>", backend="nonsense")
