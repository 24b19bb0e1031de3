"""What an environment and the demonstration make of processes that somebody kills: they go on, and say so."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest

from rt_lrhc import ClusterError
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.tasks.cart_pole import cart_pole_config

pytestmark = pytest.mark.timeout(120)

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"


def cart_poles(id: str, num_envs: int = 4, **kwargs: Any) -> Any:
    config = cart_pole_config(workers=2)
    config["ep_max_length"] = 1000
    config["interface_kwargs"].update(kwargs)
    return gym.make_vec(id, num_envs=num_envs, config=config)


def processes_of_a_cluster(owner: psutil.Process) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The servers that a process has started, and their workers."""
    servers = [child for child in owner.children() if any("cluster.server" in arg for arg in child.cmdline())]
    return servers, [worker for server in servers for worker in server.children()]


@pytest.mark.parametrize("victim", ["worker", "server"])
def test_on_the_wall_clock_the_robots_get_their_controllers_back(victim: str) -> None:
    env = cart_poles(WALL)
    observation, info = env.reset(seed=0)
    assert not info["plan_interrupted"].any()
    interface = env.unwrapped.interface
    os.kill(interface.client.worker_pids[0] if victim == "worker" else interface.server.pid, signal.SIGKILL)
    interrupted = False
    for _ in range(100):
        observation, *_, info = env.step(observation[1])
        interrupted |= bool(
            info["plan_interrupted"].all() if victim == "server" else info["plan_interrupted"][0]
        )
        if interrupted and info["plan_fresh"].all():
            break
    assert interrupted and info["plan_fresh"].all()
    report = interface.client.report()
    assert report.fallback_periods[Fallback.LATE :].any(), "the robots ran on their fallback meanwhile"
    assert report.deaths.sum() == (1 if victim == "worker" else 2) and report.server_deaths == (
        victim == "server"
    )
    env.close()


def test_on_virtual_time_a_death_is_told_and_a_reset_makes_the_next_episode_repeatable() -> None:
    env = cart_poles(VIRTUAL)

    def episode() -> tuple[list[Any], Any]:
        observation, info = env.reset(seed=3)
        states = []
        for _ in range(5):
            observation, *_, info = env.step(observation[1])
            states.append(observation[0])
        return states, info

    undisturbed, info = episode()
    assert not info["plan_interrupted"].any()
    os.kill(env.unwrapped.interface.client.worker_pids[0], signal.SIGKILL)
    observation, *_, info = env.step(np.zeros((4, 1), np.float32))
    assert info["plan_interrupted"].tolist() == [True, True, False, False]
    after_a_worker, info = episode()
    assert not info["plan_interrupted"].any()
    os.kill(env.unwrapped.interface.server.pid, signal.SIGKILL)
    after_a_server, _ = episode()
    np.testing.assert_array_equal(after_a_worker, undisturbed)
    np.testing.assert_array_equal(after_a_server, undisturbed)
    env.close()


def test_strict_does_not_go_on_with_an_episode_that_cannot_be_repeated() -> None:
    env = cart_poles(VIRTUAL, strict=True)
    env.reset(seed=0)
    env.step(np.zeros((4, 1), np.float32))
    os.kill(env.unwrapped.interface.client.worker_pids[1], signal.SIGKILL)
    with pytest.raises(ClusterError, match=r"robots \[2, 3\].*cannot be repeated"):
        for _ in range(3):
            env.step(np.zeros((4, 1), np.float32))
    env.close()


def test_a_hung_worker_costs_virtual_time_the_hang_limit_once() -> None:
    env = cart_poles(VIRTUAL, hang_limit=0.3)
    env.reset(seed=0)
    os.kill(env.unwrapped.interface.client.worker_pids[0], signal.SIGSTOP)
    began = time.monotonic()
    *_, info = env.step(np.zeros((4, 1), np.float32))
    assert time.monotonic() - began >= 0.3
    assert info["plan_interrupted"].tolist() == [True, True, False, False] and info["plan_fresh"][2:].all()
    report = env.unwrapped.interface.client.report()
    assert report.hangs.tolist() == [1, 0]
    env.close()


def test_the_demonstration_survives_a_storm_of_kills(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = [
        "--seconds",
        "3",
        "--robots",
        "4",
        "--workers",
        "2",
        "--out",
        str(tmp_path),
        "--json",
        str(figures),
    ]
    log = (tmp_path / "log").open("w+")
    demo = subprocess.Popen([sys.executable, "-m", "rt_lrhc", "demo", *options], stdout=log, stderr=log)
    owner, draw = psutil.Process(demo.pid), random.Random(0)
    kills, give_up = 0, time.monotonic() + 100.0
    try:
        while demo.poll() is None and time.monotonic() < give_up:
            time.sleep(draw.uniform(0.1, 0.8))
            if kills == 10:
                continue
            try:
                servers, workers = processes_of_a_cluster(owner)
                victims = servers if not workers or draw.random() < 0.25 else workers
                if victims:
                    draw.choice(victims).kill()
                    kills += 1
            except psutil.NoSuchProcess:
                continue
        log.seek(0)
        assert demo.poll() == 0, log.read()[-4000:]
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait(10.0)
        log.close()
    told = json.loads(figures.read_text())
    assert kills >= 5 and told["worker_deaths"] >= 2 and told["worker_respawns"] >= 1
    assert told["robot_periods"] > sum(told[f"fallback_{name}"] for name in ("fresh",)) > 0


def test_fifty_random_kills_in_a_run_at_50_hz_hang_nothing_and_leave_nothing(tmp_path: Path) -> None:
    """The short form of `make campaign`, which also judges how punctual all that is."""
    script = Path(__file__).parent.parent / "benchmarks" / "faults.py"
    figures = tmp_path / "figures.json"
    options = [
        "--kills",
        "50",
        "--stops",
        "2",
        "--async-kills",
        "0",
        "--quiet",
        "0.3",
        "--json",
        str(figures),
    ]
    run = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=110, check=False
    )
    assert figures.exists(), run.stderr
    told = json.loads(figures.read_text())
    assert told["faults"] == 52 == told["worker deaths told"] == told["respawns told"]
    assert told["hangs of the client"] == told["failed restarts"] == told["leftovers"] == 0
