"""Many robots on one clock: rows, autoreset in the same step, Gymnasium's conventions."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rt_lrhc import ConfigurationError, EnvironmentStateError, InterfaceError
from tests.test_environment import RUNNERS, same
from tests.worlds import Integrator, Rows, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"
N = 3


def make(id: str = VIRTUAL, interface: Any = Rows, **changes: Any) -> Any:
    return gym.make_vec(id, num_envs=N, config=config(interface, **changes))


def actions(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("id", [WALL, VIRTUAL])
def test_rows_are_stepped_together_and_belong_to_their_spaces(id: str, runner: str) -> None:
    env = make(id, act_buf_len=2, runner=runner)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space and env.action_space.shape == (N, 1)
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(actions(0.1, 0.2, 0.3))
        assert observation in env.observation_space
    assert np.allclose(observation[0][:, 0], [0.004, 0.008, 0.012], atol=1e-6)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert info["_position"].all() and info["rt"]["step"].tolist() == [3] * N
    env.close()
    env.close()


@pytest.mark.parametrize("form", ["tuple", "dict", "flat"])
@pytest.mark.parametrize("capture", [0.01, 0.02])
def test_an_ended_robot_is_reset_in_the_same_instant_and_its_action_dropped(
    form: str, capture: float
) -> None:
    env = make(
        act_buf_len=2, observation_form=form, start_obs_capture=capture, interface_kwargs={"limit": 0.025}
    )
    env.reset(seed=0)
    for _ in range(9):
        observation, reward, terminated, truncated, info = env.step(actions(0.1, 1.0, 0.2))
        if terminated.any():
            break
    interface = env.unwrapped.interface
    assert terminated.tolist() == [False, True, False] and interface.resets.tolist() == [0, 1, 0]
    assert reward[1] > 0.025, "the reward is the one before the reset"
    final, now = _position_and_buffer(info["final_obs"], 1, form), _position_and_buffer(observation, 1, form)
    assert final[0] > 0.025 and final[1] == pytest.approx([1.0, 1.0])
    assert now[0] == 0.0 and now[1] == [0.0, 0.0]
    assert info["_final_obs"].tolist() == [False, True, False]
    assert info["final_info"]["position"][1] > 0.025 and info["position"][1] == 0.0
    others = _position_and_buffer(observation, 0, form)
    assert others[1] == pytest.approx([0.1, 0.1])
    # The reset robot's action was inferred from the old episode: the default one acts instead, the next one counts.
    env.step(actions(0.1, 0.5, 0.2))
    assert [float(control[1, 0]) for control in interface.sent[-3:]] == [0.0, 0.0, 0.5] or [
        float(control[1, 0]) for control in interface.sent[-2:]
    ] == [0.0, 0.5]
    env.close()


def _position_and_buffer(observation: Any, row: int, form: str) -> tuple[float, list[float]]:
    if form == "flat":
        return float(observation[row][0]), [float(value) for value in observation[row][1:]]
    if form == "dict":
        return float(observation["observation_0"][row, 0]), [
            float(a) for a in observation["action_buffer"][row, :, 0]
        ]
    if observation.__class__ is tuple:
        return float(observation[0][row, 0]), [float(part[row, 0]) for part in observation[1:]]
    return float(observation[row][0][0]), [float(part[0]) for part in observation[row][1:]]


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_time_limit_counts_for_each_robot_alone(runner: str) -> None:
    env = make(ep_max_length=4, interface_kwargs={"limit": 0.025}, runner=runner)
    env.reset(seed=0)
    ends = [env.step(actions(0.0, 1.0, 0.0))[2:4] for _ in range(6)]
    assert [truncated.tolist() for _, truncated in ends][3] == [True, False, True]
    terminated_at = [k for k, (terminated, _) in enumerate(ends) if terminated[1]]
    assert terminated_at[0] < 3 and not ends[3][1][1]
    env.close()


def test_gymnasiums_wrapper_counts_the_episodes() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(make(ep_max_length=5))
    env.reset(seed=0)
    for _ in range(5):
        *_, info = env.step(actions(0.1, 0.1, 0.1))
    assert info["episode"]["l"].tolist() == [5] * N
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_configuration_of_many_serves_one(runner: str) -> None:
    many, one = make(runner=runner), gym.make(VIRTUAL, config=config(Rows, runner=runner))
    many.reset(seed=0)
    one.reset(seed=0)
    for value in (0.3, -0.2, 0.5):
        row = many.step(actions(value, value, value))
        single = one.step(np.array([value], dtype=np.float32))
        assert np.array_equal(row[0][0][0], single[0][0]) and row[1][0] == single[1]
    assert isinstance(single[4]["position"], float)
    many.close()
    one.close()


def test_torch_in_and_out() -> None:
    env = make(array_backend="torch")
    observation, _ = env.reset(seed=0)
    observation, reward, terminated, _, _ = env.step(torch.full((N, 1), 0.5))
    assert all(isinstance(value, torch.Tensor) for value in (*observation, reward, terminated))
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_wall_equals_virtual_time_with_an_autoreset_inside(runner: str) -> None:
    def episode(id: str, runner: str) -> Any:
        env = make(id, act_buf_len=2, interface_kwargs={"limit": 0.05}, runner=runner)
        history = [env.reset(seed=5)]
        history += [env.step(actions(1.0, np.sin(k), 0.3)) for k in range(12)]
        schedule = env.unwrapped.schedule()
        env.close()
        for *_, info in history:
            for dictionary in (info, info.get("final_info", {})):
                dictionary.pop("rt", None)
        return history, schedule

    virtual, on_time = episode(VIRTUAL, "thread")
    assert any(info.get("_final_obs", np.zeros(1)).any() for *_, info in virtual)
    for _ in range(5):
        wall, schedule = episode(WALL, runner)
        if schedule == on_time:
            break
    assert schedule == on_time, "five episodes on the wall clock were all late"
    assert same([step[:-1] for step in wall[1:]], [step[:-1] for step in virtual[1:]])
    for (*_, a), (*_, b) in zip(wall, virtual, strict=True):
        assert same(
            {k: v for k, v in a.items() if k != "final_obs"}, {k: v for k, v in b.items() if k != "final_obs"}
        )


def test_a_single_robots_interface_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="Integrator is an interface of a single robot"):
        make(interface=Integrator)


@pytest.mark.parametrize("num_envs", [0, 2.5, True])
def test_a_number_of_robots_that_is_none_is_refused(num_envs: Any) -> None:
    with pytest.raises(ConfigurationError, match="num_envs"):
        gym.make_vec(VIRTUAL, num_envs=num_envs, config=config(Rows))


def test_wrong_actions_rows_and_calls_are_named() -> None:
    class Short(Rows):
        def get_obs_rew_terminated_info(self):
            observations, rewards, terminated, info = super().get_obs_rew_terminated_info()
            return observations, rewards[:2], terminated, info

    env = make(interface=Short)
    with pytest.raises(EnvironmentStateError, match=r"reset\(\) has not been called"):
        env.step(actions(0, 0, 0))
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=r"shape \(3, 1\), got \(1, 1\)"):
        env.step(actions(0.0))
    with pytest.raises(
        InterfaceError, match=r"rewards must be an array \(3,\) of float64, got float64 \(2,\)"
    ):
        env.step(actions(0, 0, 0))
    env.close()
