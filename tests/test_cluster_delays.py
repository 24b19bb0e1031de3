"""Solves that take their declared time, actions and observations under way, on a cluster and on both clocks."""

from typing import Any

import gymnasium as gym
import pytest

from rt_lrhc import ConfigurationError
from rt_lrhc.tasks.cart_pole import cart_pole_config
from tests.test_cluster_interface import equal, is_equal_schedule

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"
ALL = {
    "action_delay": {"kind": "uniform", "low": 0.0, "high": 0.07},
    "observation_delay": {"kind": "uniform", "low": 0.0, "high": 0.05},
    "act_buf_len": "auto",
}


def cart_poles(id: str, solve_delay: Any, **changes: Any) -> Any:
    config = {**cart_pole_config(workers=2), "ep_max_length": 5, **changes}
    config["interface_kwargs"]["solve_delay"] = solve_delay
    return gym.make_vec(id, num_envs=4, config=config)


def episode(id: str, solve_delay: Any, **changes: Any) -> Any:
    env = cart_poles(id, solve_delay, **changes)
    history = [env.reset(seed=7)]
    for _ in range(7):
        history.append(env.step(history[-1][0][1]))
    recorded = env.unwrapped.schedule()
    env.close()
    for *_, info in history:
        for part in (info, info.get("final_info", {})):
            part.pop("rt", None)
    return history, recorded


@pytest.mark.parametrize("delay, ages", [(0.02, {1}), (0.03, {2, 3}), (0.05, {3, 4, 5})])
def test_a_plan_acts_from_the_first_control_period_not_before_its_delay(delay: float, ages: set[int]) -> None:
    """At 20 ms a control period: a solve of 30 ms is used at an age of 2 periods, and its worker is free again then."""
    env = cart_poles(VIRTUAL, delay, ep_max_length=100)
    observation, _ = env.reset(seed=0)
    seen = []
    for _ in range(12):
        observation, *_, info = env.step(observation[1])
        seen.extend(info["plan_age"][2:].tolist())
    env.close()
    assert set(seen) == ages


def test_wall_equals_virtual_time_with_random_delays_of_solves_actions_and_observations() -> None:
    delay = {"kind": "uniform", "low": 0.0, "high": 0.05}
    virtual, on_time = episode(VIRTUAL, delay, **ALL)
    assert len({tuple(row) for row in on_time.world}) > 1, "some plans came later than others"
    assert any(step[3].any() for step in virtual[1:]), "one autoreset inside"
    for _ in range(5):
        wall, schedule = episode(WALL, delay, **ALL)
        if is_equal_schedule(schedule, on_time):
            break
    assert is_equal_schedule(schedule, on_time), "five episodes on the wall clock were all late"
    assert equal(wall, virtual)


def test_the_buffer_covers_the_longest_solve() -> None:
    """An action just after a trigger waits for the next one: 5 control periods, 100 ms, at solves of 50 ms."""
    lengths = []
    for delay in (None, 0.05, 0.07):
        env = cart_poles(VIRTUAL, delay, act_buf_len="auto")
        lengths.append(len(env.single_observation_space.spaces) - 3)
        env.close()
    assert lengths == [2, 2, 3]


def test_a_solve_delay_is_for_pipelined_clusters_and_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="solve_delay: expected None, seconds"):
        cart_poles(VIRTUAL, "long")
    config = cart_pole_config(mode="blocking")
    config["interface_kwargs"]["solve_delay"] = 0.1
    with pytest.raises(ConfigurationError, match='solve_delay needs mode="pipelined"'):
        gym.make_vec(VIRTUAL, num_envs=1, config=config)
