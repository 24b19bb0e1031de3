"""Every callback made to misbehave, on both runners: an error that names callback and field, within a bounded time."""

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rt_lrhc import EnvironmentStateError, InterfaceError, InterfaceTimeout
from tests.faulty import HANG, Misbehaving, MisbehavingRows
from tests.worlds import action, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"
RUNNERS = ("thread", "process")
CALLBACKS = ("reset", "send_control", "advance", "get_obs_rew_terminated_info", "wait")
CAPTURE = "get_obs_rew_terminated_info"

RETURNS = [
    *(
        (callback, fault, said)
        for callback in ("reset", CAPTURE)
        for fault, said in (
            ("shape", r"component 0 must have shape \(1,\), got \(1, 2\)"),
            ("dtype", "component 0 is not an array of float32"),
            ("nan", r"component 0 is NaN, element \[0\]"),
            ("count", "list of 1 observation components.*got 2"),
        )
    ),
    (CAPTURE, "nothing", "must return a tuple of 4 values, got None"),
    (CAPTURE, "reward", "the reward must be a number, got None"),
    (CAPTURE, "nan reward", "the reward is NaN"),
    (CAPTURE, "terminated", "terminated must be a bool, got 'no'"),
    (CAPTURE, "info", "info as a dictionary, got NoneType"),
    (CAPTURE, "rt", "the info key 'rt' belongs to the environment"),
]


def make(callback: str, fault: str, runner: str, id: str = VIRTUAL, **changes: Any) -> Any:
    settings = config(
        Misbehaving,
        interface_kwargs={"callback": callback, "fault": fault},
        runner=runner,
        ep_max_length=3,
        wait_on_done=True,
        **changes,
    )
    return gym.make(id, config=settings, disable_env_checker=True).unwrapped


def run(env: Any, episodes: int = 3) -> None:
    for _ in range(episodes):
        env.reset(seed=0)
        for _ in range(3):
            env.step(action(0.1))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_callback_that_raises_is_named(callback: str, runner: str) -> None:
    env = make(callback, "raise", runner)
    with pytest.raises(
        InterfaceError, match=rf"Misbehaving\.{callback} raised ValueError: the plug was pulled"
    ):
        run(env)
    run(env, episodes=1)  # a reset starts afresh
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_callback_that_hangs_is_named_in_time(callback: str, runner: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.faulty.HANG", 1.0)  # of the thread, which is left behind and ends by itself
    env = make(callback, "hang", runner, id=WALL, callback_timeout=0.2)
    begin = time.monotonic()
    with pytest.raises(InterfaceTimeout, match=rf"Misbehaving\.{callback} did not return within"):
        run(env)
    env.close()
    assert time.monotonic() - begin < HANG


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("callback, fault, said", RETURNS)
def test_a_return_value_that_cannot_be_used_is_named(
    callback: str, fault: str, said: str, runner: str
) -> None:
    env = make(callback, fault, runner)
    with pytest.raises(InterfaceError, match=f"{callback}.*{said}"):
        run(env)
    with pytest.raises(EnvironmentStateError):
        env.step(action(0.0))
    run(env, episodes=1)
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_array_that_the_interface_reuses_does_not_change_what_the_agent_has(runner: str) -> None:
    env = make("none", "none", runner)
    first, _ = env.reset(seed=0)
    kept, seen = [first], [first[0].copy()]
    for _ in range(3):
        observation = env.step(action(0.5))[0]
        kept.append(observation)
        seen.append(observation[0].copy())
    env.close()
    assert len({float(value[0]) for value in seen}) == 4
    assert all(np.array_equal(a[0], b) for a, b in zip(kept, seen, strict=True))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "fault, said",
    [
        ("raise", r"MisbehavingRows\.reset_rows raised ValueError"),
        ("shape", r"reset_rows: component 0 must have shape \(3, 1\), got \(3, 1, 2\)"),
        ("dtype", "reset_rows: component 0 is not an array of float32"),
        ("nan", r"reset_rows: component 0 is NaN at robot 2, element \[0\]"),
        ("count", "reset_rows must return a list of 1 observation components"),
    ],
)
def test_a_reset_of_rows_that_fails_is_named(fault: str, said: str, runner: str) -> None:
    settings = config(MisbehavingRows, interface_kwargs={"fault": fault}, runner=runner)
    env = gym.make_vec(VIRTUAL, num_envs=3, config=settings)
    env.reset(seed=0)
    with pytest.raises(InterfaceError, match=said):
        for _ in range(5):
            env.step(np.array([[0.1], [1.0], [0.2]], dtype=np.float32))
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_close_that_raises_is_heard_once(runner: str) -> None:
    settings = config(
        Misbehaving, interface_kwargs={"callback": "close", "fault": "raise", "at": 1}, runner=runner
    )
    env = gym.make(VIRTUAL, config=settings, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    with pytest.raises(InterfaceError, match=r"Misbehaving\.close raised ValueError"):
        env.close()
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("function", ["act_prepro_func", "obs_prepro_func"])
def test_a_prepro_function_that_raises_is_named(function: str, runner: str) -> None:
    def pull(value: Any) -> Any:
        raise ValueError("the plug was pulled")

    with pytest.raises(InterfaceError, match=f"{function} raised ValueError: the plug was pulled"):
        env = make("none", "none", runner, **{function: pull})
        try:
            run(env)
        finally:
            env.close()
