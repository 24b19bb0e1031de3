"""Cart-poles, their MPCs in worker processes, an agent: on both clocks, real solves throughout."""

import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rt_lrhc import ConfigurationError, ControllerError
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.tasks.cart_pole import cart_pole_config
from tests.test_environment import same

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"


def cart_poles(id: str, num_envs: int, *, ep_max_length: int = 100, **kwargs: Any) -> Any:
    config = cart_pole_config(**kwargs)
    config["ep_max_length"] = ep_max_length
    return gym.make_vec(id, num_envs=num_envs, config=config)


def agent(observation: Any) -> np.ndarray:
    return observation[1]


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_gymnasiums_checker_passes_for_a_cart_pole_on_the_cluster() -> None:
    env = gym.make(VIRTUAL, config=cart_pole_config())
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("num_envs", [1, 8])
def test_cart_poles_step_on_the_wall_clock(num_envs: int) -> None:
    env = cart_poles(WALL, num_envs)
    observation, _ = env.reset(seed=0)
    began = time.monotonic()
    for _ in range(10):
        observation, reward, _, _, info = env.step(agent(observation))
        assert observation in env.observation_space
    assert time.monotonic() - began > 0.9, "the clock waits for nobody, and hurries for nobody"
    assert np.isfinite(reward).all() and set(info["plan_fallback"]) <= {int(label) for label in Fallback}
    env.close()


def test_one_cart_pole_through_gym_make_on_the_wall_clock() -> None:
    env = gym.make(WALL, config=cart_pole_config())
    observation, info = env.reset(seed=0)
    for _ in range(5):
        observation, reward, terminated, truncated, info = env.step(observation[1])
    assert isinstance(reward, float) and isinstance(info["plan_age"], int)
    env.close()


@pytest.mark.parametrize("mode", ["pipelined", "blocking"])
def test_poles_are_swung_up_and_carts_follow_their_targets(mode: str) -> None:
    env = cart_poles(VIRTUAL, 4, mode=mode, target_period=float("inf"), kick=0.0)
    observation, _ = env.reset(seed=2)
    assert (observation[0][:, 2] < -0.9).all()
    for _ in range(60):
        observation, _, _, _, info = env.step(agent(observation))
        assert (info["plan_age"] == (mode == "pipelined")).all() and info["plan_fresh"].all()
    assert (observation[0][:, 2] > 0.99).all()
    assert np.abs(observation[0][:, 0] - observation[1][:, 0]).max() < 0.05
    env.close()


def episode(
    id: str, late_at: int | None = None, schedule: Any = None, fresh: list[int] | None = None, **kwargs: Any
) -> Any:
    env = cart_poles(id, 8, ep_max_length=5, **kwargs)
    history = [env.reset(seed=7, options=None if schedule is None else {"schedule": schedule})]
    for step in range(8):
        if step == late_at:
            time.sleep(0.13)
        history.append(env.step(agent(history[-1][0])))
    recorded = env.unwrapped.schedule()
    if fresh is not None:
        fresh.append(env.unwrapped.interface.client.report().fallback_periods[Fallback.FRESH].sum())
    env.close()
    for *_, info in history:
        for part in (info, info.get("final_info", {})):
            part.pop("rt", None)
    return history, recorded


def equal(a: Any, b: Any) -> bool:
    """Equality of two histories; rows of `final_obs` that no robot fills are None."""

    def plain(history: Any) -> Any:
        return [(*rest, {**info, "final_obs": [row for row in info.get("final_obs", ()) if row is not None]})
                for *rest, info in history]  # fmt: skip

    return same(plain(a), plain(b))


def is_equal_schedule(a: Any, b: Any) -> bool:
    return a.action_periods == b.action_periods and np.array_equal(a.world, b.world)


def test_a_wall_episode_in_which_nothing_was_late_equals_the_virtual_one() -> None:
    fresh: list[int] = []
    virtual, on_time = episode(VIRTUAL, fresh=fresh)
    again, _ = episode(VIRTUAL)
    assert equal(virtual, again), "one seed, two virtual episodes"
    assert any(step[3].any() for step in virtual[1:]), "one autoreset inside"
    assert fresh[0] >= 200
    for _ in range(5):
        wall, schedule = episode(WALL)
        if is_equal_schedule(schedule, on_time):
            break
    assert is_equal_schedule(schedule, on_time), "five episodes on the wall clock were all late"
    assert equal(wall, virtual)


def test_a_robot_that_ends_changes_nothing_of_its_neighbours_plans() -> None:
    config = cart_pole_config() | {"overlap": "off"}  # nothing runs between two calls
    env = gym.make_vec(VIRTUAL, num_envs=3, config=config)
    observation, _ = env.reset(seed=0)
    interface = env.unwrapped.interface
    for _ in range(4):
        observation, *_ = env.step(agent(observation))
    mask = np.array([True, False, False])
    before = [
        value.copy() for value in (interface.client.age, interface.client.fresh, interface.client.fallback)
    ]
    _, info = interface.reset_rows(mask)
    after = (info["plan_age"], info["plan_fresh"], info["plan_fallback"])
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old[1:], new[1:])
    assert info["plan_age"][0] == -1 and not info["plan_fresh"][0]
    env.close()


def test_a_late_episode_equals_its_replay() -> None:
    slow = {"controller_kwargs": {"sqp_iterations": 3}}
    late, schedule = episode(WALL, late_at=3, **slow)
    assert schedule.action_periods != tuple(range(0, 45, 5))
    replayed, again = episode(VIRTUAL, schedule=schedule, **slow)
    assert is_equal_schedule(again, schedule)
    assert equal(replayed, late)


def test_late_plans_replay_too() -> None:
    """A worker is stopped for some periods, so that its plans come late; the schedule brings them back as late."""
    env = cart_poles(WALL, 4, workers=2)
    observation, _ = env.reset(seed=1)
    history = []
    pid = env.unwrapped.interface.client.worker_pids[0]
    for step in range(6):
        if step == 2:
            os.kill(pid, signal.SIGSTOP)
        if step == 3:
            os.kill(pid, signal.SIGCONT)
        observation, *rest = env.step(agent(observation))
        history.append(
            (observation, *rest[:-1], {key: rest[-1][key] for key in ("plan_age", "plan_fallback")})
        )
    schedule = env.unwrapped.schedule()
    env.close()
    accepted = np.array(schedule.world)
    assert not accepted[:, 0].all() and accepted[:, 1].mean() > 0.8
    assert any((step[-1]["plan_age"][:2] > 1).any() for step in history)
    env = cart_poles(VIRTUAL, 4, workers=2)
    observation, _ = env.reset(seed=1, options={"schedule": schedule})
    for step in history:
        observation, *rest = env.step(agent(observation))
        assert same((observation, *rest[:-1]), step[:-1])
        assert same({key: rest[-1][key] for key in ("plan_age", "plan_fallback")}, step[-1])
    env.close()


def test_a_killed_worker_costs_only_its_own_robots() -> None:
    env = cart_poles(VIRTUAL, 4, workers=2)
    observation, _ = env.reset(seed=0)
    client = env.unwrapped.interface.client
    for step in range(6):
        if step == 3:
            os.kill(client.worker_pids[0], signal.SIGKILL)
        observation, *_, info = env.step(agent(observation))
        assert info["plan_fresh"][2:].all()
    assert not info["plan_fresh"][:2].any() and (info["plan_fallback"][:2] != Fallback.FRESH).all()
    report = client.report()
    (event,) = report.events
    assert "SIGKILL" in str(event) and list(event.robots) == [0, 1]
    assert report.misses[2:].sum() == 0
    env.close()


@pytest.mark.parametrize(
    "kwargs, error, said",
    [
        ({"task": "nowhere:Task"}, ConfigurationError, "nowhere"),
        ({"mode": "sideways"}, ConfigurationError, "mode must be one of 'pipelined', 'blocking'"),
        (
            {"task_kwargs": {"controller_kwargs": {"num_stagess": 3}}},
            ControllerError,
            "did you mean 'num_stages'",
        ),
        ({"task_kwargs": {"kick": -1.0}}, ConfigurationError, "kick must be at least 0"),
        ({"namespace": "nobody-is-here"}, Exception, "nobody-is-here"),
        ({"colour": "red"}, ConfigurationError, "colour"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_named(
    kwargs: dict[str, Any], error: type[Exception], said: str
) -> None:
    config = cart_pole_config()
    config["interface_kwargs"].update(kwargs)
    with pytest.raises(error, match=said):
        gym.make_vec(VIRTUAL, num_envs=2, config=config)


def test_a_running_cluster_is_attached_to_and_outlives_the_environment() -> None:
    owner = cart_poles(VIRTUAL, 2)
    server = owner.unwrapped.interface.server
    owner.unwrapped.interface.client.close()
    config = cart_pole_config()
    config["interface_kwargs"]["namespace"] = server.namespace
    env = gym.make_vec(VIRTUAL, num_envs=2, config=config)
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.zeros((2, 1), dtype=np.float32))
    assert info["plan_fresh"].all()
    env.close()
    assert server.is_running
    owner.close()
