"""`rt-lrhc top`: what another process sees of a running cluster, without disturbing it."""

import subprocess
import sys

import numpy as np
import pytest

from rt_lrhc.cluster.profile import controller_profile, worker_profiles
from rt_lrhc.cluster.protocol import Lifecycle
from tests.cluster_helpers import NAME, PERIOD, cluster, column, reader

pytestmark = pytest.mark.timeout(60)

COMMAND = [sys.executable, "-m", "rt_lrhc", "top"]


def top(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30, check=False)


def test_a_snapshot_shows_every_worker_and_the_slowest_controllers() -> None:
    with cluster(5, 2) as (_, client):
        for period in range(3):
            now = period * PERIOD
            client.set_active(np.array([True] * 4 + [False]))
            client.trigger(now, now + PERIOD, column(0, 0, 0, 0, 0), column(1, 1, 1, 1, 1))
            client.collect(now + PERIOD, wait=True)
        shown = top("--namespace", NAME, "--robots", "3")
        assert shown.returncode == 0 and not shown.stderr
        lines = shown.stdout.splitlines()
        assert lines[0].startswith(f"cluster {NAME}: 5 controllers (echo) in 2 workers, control period 20 ms")
        for worker, pid in enumerate(client.worker_pids):
            assert lines[3 + worker].split()[:6] == [
                str(worker),
                ["0-1", "2-4"][worker],
                "ready",
                str(pid),
                "1",
                "3",
            ]
        assert "and 2 more" in lines[-1] and sum("solved" in line for line in lines) >= 2
        client.trigger(3 * PERIOD, 4 * PERIOD, column(0, 0, 0, 0, 0), column(1, 1, 1, 1, 1))
        assert client.collect(4 * PERIOD, wait=True).all(), "nobody was disturbed"


def test_without_the_cluster_there_is_nothing_to_see() -> None:
    shown = top("--namespace", NAME)
    assert shown.returncode == 1 and NAME in shown.stderr and "Traceback" not in shown.stderr


def test_profiles_hold_the_last_answers_and_outlive_a_worker() -> None:
    kwargs = {"solve_time": 0.002}
    with cluster(2, kwargs=kwargs) as (server, client), reader(server) as looking:
        for period in range(300):
            now = period * PERIOD
            client.trigger(now, now + PERIOD, column(0, 0), column(1, 1))
            client.collect(now + PERIOD, wait=True)
        (profile,) = worker_profiles(looking)
        assert profile.answered == 300 and profile.wall.n == 256 and profile.lifecycle == Lifecycle.READY
        assert profile.wall.p50 >= 0.002 > profile.cpu.p50 > 0.0
        assert min(one.p50 for one in (profile.wake, profile.queue, profile.write, profile.read)) > 0.0
        controllers = controller_profile(looking)
        np.testing.assert_array_equal(controllers.iterations[2], [300.0, 300.0])
        np.testing.assert_allclose(controllers.residual, PERIOD * 1e-9)
        assert controllers.active.tolist() == [1, 1] and controllers.solve.shape == (3, 2)
