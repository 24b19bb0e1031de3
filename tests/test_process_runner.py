"""The interface in a process of its own: what travels, what it costs when it dies, and that nothing of it is left."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc import ConfigurationError, InterfaceError
from rt_lrhc.delays import UniformDelay
from rt_lrhc.environment.wire import pack, unpack
from rt_lrhc.errors import InterfaceLost
from rt_lrhc.tasks.cart_pole import cart_pole_config
from tests.faulty import INFOS, Camera, Curious, Informative, Misbehaving
from tests.test_environment import run_episode, same
from tests.worlds import Device, Integrator, action, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"


def make(interface: Any, id: str = VIRTUAL, **changes: Any) -> Any:
    settings = config(interface, runner="process", **changes)
    return gym.make(id, config=settings, disable_env_checker=True).unwrapped


@pytest.mark.parametrize("id", [WALL, VIRTUAL])
@pytest.mark.parametrize("callback", ["advance", "reset", "close"])
@pytest.mark.parametrize(
    "fault, said",
    [
        ("kill", "was lost: killed by SIGKILL"),
        (
            "exit",  # On a busy machine our own warning of a slipped grid may stand before them.
            r"was lost: exited with status 7; its last words were:\n"
            r"(a control period of .*\n)*these were my last words",
        ),
    ],
)
def test_the_death_of_the_process_is_an_error_that_says_how(
    fault: str, said: str, callback: str, id: str
) -> None:
    at = 1 if callback == "close" else 2
    env = make(Misbehaving, id, interface_kwargs={"callback": callback, "fault": fault, "at": at})
    env.reset(seed=0)
    if callback != "close":
        with pytest.raises(InterfaceLost, match=said):
            for _ in range(3):
                env.step(action(0.1))
            env.reset()
        with pytest.raises(InterfaceLost, match=said):
            env.reset()
    env.close()


def test_what_the_interface_puts_into_info_arrives_as_it_was() -> None:
    env = make(Informative)
    env.reset(seed=0)
    info = env.step(action(0.0))[4]
    env.close()
    del info["rt"]
    words, expected = info.pop("words"), dict(INFOS["good"])
    assert words.tolist() == expected.pop("words").tolist()
    assert same(info, expected)
    info["nested"]["array"][0, 0] = 7  # it is the agent's


def test_a_long_info_travels_beside_the_shared_memory() -> None:
    env = make(Informative, interface_kwargs={"kind": "long"})
    env.reset(seed=0)
    for _ in range(3):
        info = env.step(action(0.0))[4]
        assert np.array_equal(info["picture"], INFOS["long"]["picture"])
    env.close()


@pytest.mark.parametrize(
    "kind, said",
    [
        ("set", r"Informative: info\['outer'\]\['members'\] cannot travel.*it is a set"),
        ("key", r"info\['outer'\] has the key 3"),
        ("object", r"info\['thing'\] cannot travel.*array of object"),
    ],
)
def test_an_info_that_cannot_travel_is_an_error_that_names_the_key(kind: str, said: str) -> None:
    env = make(Informative, interface_kwargs={"kind": kind})
    env.reset(seed=0)
    with pytest.raises(InterfaceError, match=said):
        env.step(action(0.0))
    env.close()


def test_pictures_are_observed_and_rendered() -> None:
    env = gym.make(VIRTUAL, config=config(Camera, runner="process"), render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    for k in range(1, 4):
        observation = env.step(action(0.0))[0]
        assert observation[0].shape == (48, 64, 3) and (observation[0] == k).all()
        assert env.render().shape == (8, 8, 3)
    env.close()


def test_the_process_is_another_one_and_gets_its_arguments_without_pickle() -> None:
    delay = UniformDelay(0.01, 0.02)
    env = make(Curious, interface_kwargs={"pair": (1, [2.5, delay]), "kind": Integrator})
    env.reset(seed=0)
    info = env.step(action(0.0))[4]
    env.close()
    assert info["pid"] != os.getpid() and not info["torch"]
    assert (info["pair"], info["kind"]) == (repr((1, [2.5, delay])), repr(Integrator))
    with pytest.raises(ConfigurationError, match=r"interface_kwargs\['pair'\] cannot travel.*it is a set"):
        make(Curious, interface_kwargs={"pair": {1}})


def local_class() -> Any:
    class Local(Integrator):
        pass

    return Local


@pytest.mark.parametrize(
    "interface, said",
    [
        (lambda: Integrator(), "lambda.*make it a top-level class of a module"),
        (local_class(), "'local_class.<locals>.Local'.*make it a top-level class of a module"),
        ("tests.worlds:Klass", "has no 'Klass'"),
    ],
)
def test_a_class_that_another_process_cannot_find_is_told_to_move(interface: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(interface)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"interface": Device}, r"Device has no advance\(\).*cannot run on virtual time"),
        ({"start_obs_capture": 0.015}, "multiple of the control period of Integrator, 0.01 s"),
        ({"interface_kwargs": {"colour": 1}}, "Integrator cannot be built"),
        ({"runner": "sundial"}, "runner must be one of 'thread', 'process', got 'sundial'"),
    ],
)
def test_what_is_wrong_is_the_same_error_as_in_a_thread(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        gym.make(VIRTUAL, config={**config(Integrator, runner="process"), **changes})


def test_what_is_asked_of_the_interface_itself_says_where_it_is() -> None:
    env = make(Integrator)
    assert type(env.interface).__name__ == "Integrator"
    with pytest.raises(AttributeError, match=r"Integrator runs in a process of its own.*put it into info"):
        _ = env.interface.position
    env.close()


def test_the_trace_outlives_the_process() -> None:
    env = make(Integrator, WALL)
    _, info = env.reset(seed=0)
    assert "timer slack" in info["rt"]["granted"] and env.timing.granted.text == info["rt"]["granted"]
    for _ in range(4):
        info = env.step(action(0.0))[4]
    env.close()
    summary = env.timing.summary()
    assert summary.send_lateness.n == 4 and sum(summary.overruns_by_cause.values()) == summary.overruns


def test_ctrl_c_in_a_step_leaves_a_running_environment() -> None:
    env = make(Integrator, WALL, time_step_duration=0.3, start_obs_capture=0.3)
    env.reset(seed=0)
    main = threading.get_ident()
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        env.step(action(0.5))
    timer.join(timeout=5.0)
    observation, _ = env.reset(seed=0)
    assert float(observation[0][0]) == 0.0
    env.step(action(0.1))
    env.close()


def test_a_forked_child_that_closes_the_environment_does_not_end_it() -> None:
    env = make(Integrator)
    env.reset(seed=0)
    child = os.fork()
    if child == 0:
        try:
            env.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    env.step(action(0.0))
    env.close()


def test_random_delays_are_the_same_in_both_runners() -> None:
    delays = {
        "action_delay": {"kind": "uniform", "low": 0.0, "high": 0.04},
        "observation_delay": {"kind": "uniform", "low": 0.0, "high": 0.03},
    }
    episodes = [run_episode(VIRTUAL, runner=runner, **delays) for runner in ("thread", "process")]
    assert same(episodes[0], episodes[1]) and not same(episodes[0], run_episode(VIRTUAL))


SCRIPT = """
import os, sys, time
import gymnasium as gym
from tests.faulty import Curious
from tests.worlds import action, config

class Mine(Curious):
    pass

{guard}
    env = gym.make("rt_lrhc:rt-v0", config=config(Mine, runner="process", interface_kwargs={{"child": True}}))
    env.reset(seed=0)
    info = env.step(action(0.0))[4]
    print(info["pid"], info["child"], flush=True)
    {end}
"""


def run_script(path: Path, **parts: str) -> subprocess.Popen[str]:
    path.write_text(textwrap.dedent(SCRIPT).format(**parts))
    root = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def gone(*pids: int) -> bool:
    give_up = time.monotonic() + 20.0
    while time.monotonic() < give_up:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("end", ["time.sleep(60)", "raise SystemExit(3)", "os._exit(4)"])
def test_the_environments_end_ends_the_process_and_its_children(end: str, tmp_path: Path) -> None:
    """A class of the running script; the environment is killed, leaves without closing, or vanishes."""
    process = run_script(tmp_path / "mine.py", guard="if __name__ == '__main__':", end=end)
    try:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        if "sleep" in end:
            process.kill()
        process.wait(timeout=20.0)
        assert gone(*pids)
    finally:
        process.kill()
        process.communicate(timeout=20.0)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    process = run_script(tmp_path / "mine.py", guard="if True:", end="pass")
    _, words = process.communicate(timeout=60.0)
    assert process.returncode != 0 and "put that code under `if __name__ == '__main__':`" in words


def test_the_cart_poles_and_their_cluster_run_in_it() -> None:
    settings = {**cart_pole_config(workers=1), "runner": "process"}
    envs = gym.make_vec(VIRTUAL, num_envs=2, config=settings)
    envs.reset(seed=0)
    for _ in range(3):
        *_, info = envs.step(envs.action_space.sample() * 0.0)
    assert info["plan_fresh"].all() and info["plan_age"].tolist() == [1, 1]
    envs.close()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    values, st.sampled_from(["float32", "int8", "uint64", "bool"]), st.lists(st.integers(0, 4), max_size=3)
)
def test_what_is_unpacked_equals_what_was_packed(value: Any, dtype: str, shape: list[int]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    sent = {"value": value, "array": array, "scalar": array.reshape(-1)[:1].sum(dtype=dtype)}
    assert same(unpack(bytearray(pack(sent, ""))), sent)
