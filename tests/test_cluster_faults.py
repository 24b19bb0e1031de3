"""Processes that end when nobody expects it: labelled, reported, survived by the others, and nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import Status
from rt_lrhc.cluster.fallback import FallbackPolicy
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.cluster.protocol import Fallback, Lifecycle
from rt_lrhc.cluster.reader import ClusterReader
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.errors import ClusterError, NamespaceBusy, SharedMemoryError
from rt_lrhc.shm.namespace import Namespace, clean
from rt_lrhc.testing.echo import MARK
from tests.cluster_helpers import (
    ECHO,
    NAME,
    PERIOD,
    cluster,
    column,
    eventually,
    marked_processes,
    nothing_left_of,
    reader,
    run_script,
    worker_pids,
)

pytestmark = pytest.mark.timeout(60)

NEVER = RestartPolicy(delay=3600.0)
"""A worker that served is not started again within a test."""


@pytest.mark.parametrize(
    ("fault", "how"),
    [("kill", "killed by SIGKILL"), ("exit", "exited with status 3"), ("segfault", "killed by SIGSEGV")],
)
def test_the_death_of_a_worker_costs_its_own_robots_alone(fault: str, how: str) -> None:
    kwargs = {"faults": {fault: [3]}, "marked_only": True}
    policy = FallbackPolicy(shift=0.06, hold=0.02)
    with (
        cluster(5, 2, kwargs=kwargs, fallback=policy, restarts=NEVER) as (server, client),
        reader(server) as looking,
    ):
        states, references = column(MARK - 0.5, -0.5, 0, 0, 0), column(MARK, 0, 0.1, 0.2, 0.3)
        labels = []
        for period in range(8):
            now = period * PERIOD
            client.trigger(now, now + PERIOD, states, references)
            client.collect(now + PERIOD, wait=True)
            inputs = client.inputs(now + PERIOD).ravel()
            np.testing.assert_allclose(inputs[2:], [0.1, 0.2, 0.3])
            assert client.fresh[2:].all() and (client.age[2:] == 1).all()
            assert (
                client.status == ([Status.SOLVED if period < 2 else Status.LOST] * 2 + [Status.SOLVED] * 3)
            ).all()
            assert client.fallback[0] == client.fallback[1]
            labels.append(Fallback(client.fallback[0]).name)
        assert labels == ["FRESH", "FRESH", "SHIFT", "SHIFT", "HOLD", "SAFE", "SAFE", "SAFE"]
        assert client.alive.tolist() == [False, True] and not client.lost
        report = client.report()
        (event,) = report.events
        assert (event.worker, event.incarnation, event.how, event.robots) == (0, 1, how, range(2))
        assert ("Segmentation fault" in event.stderr) == (fault == "segfault")
        assert "robots 0 to 1" in str(event) and not report.misses.any()
        assert [int(words.lifecycle) for words in looking.server] == [Lifecycle.DEAD, Lifecycle.READY]
        client.reset(np.ones(5, np.bool_))
        assert client.status.tolist() == [Status.LOST] * 2 + [Status.NONE] * 3


def test_an_answer_given_before_the_death_still_counts() -> None:
    with cluster(1, restarts=NEVER) as (server, client), reader(server) as looking:
        client.trigger(0, PERIOD, column(0), column(1))
        eventually(lambda: looking.workers[0].done == 1, "the answer")
        (pid,) = worker_pids(server)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: looking.server[0].lifecycle == Lifecycle.DEAD, "the death is seen")
        assert client.collect(PERIOD).all()
        assert client.inputs(PERIOD)[0, 0] == 1.0 and client.fresh.all() and client.status[0] == Status.LOST
        assert not client.trigger(PERIOD, 2 * PERIOD, column(0), column(1)).any()
        assert not client.collect(2 * PERIOD, wait=True).any(), "there is nobody to wait for"
    with cluster(1) as (server, client):
        client.trigger(0, PERIOD, column(0), column(1))


def test_a_client_that_comes_after_a_death_is_told() -> None:
    with cluster(2, 2, restarts=RestartPolicy(backoff=3600.0)) as (server, client):
        os.kill(worker_pids(server)[1], signal.SIGTERM)
        eventually(lambda: not (client.collect(0).any() or client.alive[1]), "the death is noticed")
        client.close()
        with server.connect() as second:
            second.collect(0)
            assert second.alive.tolist() == [True, False] and second.status.tolist() == [
                Status.NONE,
                Status.LOST,
            ]
            assert [event.how for event in second.report().events] == ["killed by SIGTERM"]


def test_the_death_of_the_server_takes_the_workers_along_and_the_client_never_waits() -> None:
    with cluster(2, 2, hang_limit=30.0) as (server, client):
        pids = worker_pids(server)
        client.trigger(0, PERIOD, column(0, 0), column(1, 1))
        client.collect(PERIOD, wait=True)
        namespace = server.namespace
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.is_running, "the server ends")
        client.trigger(PERIOD, 2 * PERIOD, column(0, 0), column(1, 1))
        eventually(lambda: client.collect(2 * PERIOD) is not None and client.lost, "the loss is noticed")
        client.collect(2 * PERIOD, wait=True)
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the workers are gone")
        client.inputs(2 * PERIOD)
        assert not client.alive.any() and (client.status == Status.LOST).all()
        assert len(client.report().events) == 2
        with pytest.raises(SharedMemoryError, match="left behind by process"):
            ClusterReader(namespace)
    assert nothing_left_of(namespace), "close() removes what the server could not"


def test_a_stopped_worker_does_not_hold_up_the_end() -> None:
    with cluster(1) as (server, _):
        (pid,) = worker_pids(server)
        namespace = server.namespace
        os.kill(pid, signal.SIGSTOP)
    assert not psutil.pid_exists(pid) and nothing_left_of(namespace)


def test_a_stopped_server_does_not_hold_up_the_end() -> None:
    with cluster(1) as (server, _):
        (pid,) = worker_pids(server)
        namespace = server.namespace
        os.kill(server.pid, signal.SIGSTOP)
    eventually(lambda: not psutil.pid_exists(pid), "the worker is gone")
    assert nothing_left_of(namespace)


def test_two_servers_of_one_namespace_the_second_is_told_the_pid_of_the_first() -> None:
    with cluster(1, namespace=NAME) as (server, client):
        second = ControlClusterServer(ClusterConfig(ECHO, 1, 0.02, namespace=NAME))
        with pytest.raises(NamespaceBusy, match=f"held by process {server.pid}"):
            second.start()
        client.trigger(0, PERIOD, column(0), column(1))
        assert client.collect(PERIOD, wait=True).all(), "the first is not disturbed"
    with cluster(1, namespace=NAME) as (server, client):
        assert server.namespace == NAME
        with pytest.raises(NamespaceBusy):
            ControlClusterClient.attach(NAME)
    with pytest.raises(ClusterError, match="no cluster runs under the namespace"):
        ControlClusterClient.attach(NAME)


def test_leftovers_of_a_killed_cluster_are_removed_by_the_next_of_that_name() -> None:
    with cluster(1, namespace=NAME) as (server, _):
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.is_running, "the server ends")
        assert not nothing_left_of(NAME)
        with cluster(1, namespace=NAME) as (_, client):
            client.trigger(0, PERIOD, column(0), column(1))
            assert client.collect(PERIOD, wait=True).all()
        assert nothing_left_of(NAME) and not clean(NAME)


def test_close_is_idempotent_and_a_forgotten_cluster_ends_too() -> None:
    config = ClusterConfig(ECHO, 1, 0.02, namespace=NAME)
    server = ControlClusterServer(config)
    server.close()
    with server:
        pid = server.pid
        client = server.connect()
    server.close()
    client.close()
    assert nothing_left_of(NAME) and not psutil.pid_exists(pid)
    server = ControlClusterServer(config).start()
    del server
    eventually(lambda: nothing_left_of(NAME), "the cluster of a collected handle ends")


def test_a_forked_child_cannot_end_the_cluster() -> None:
    with cluster(1) as (server, client):
        child = os.fork()
        if child == 0:
            try:
                client.close()
                server.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.trigger(0, PERIOD, column(0), column(1))
        assert client.collect(PERIOD, wait=True).all() and server.is_running


OWNER = """
import sys, time
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.launcher import ControlClusterServer

if __name__ == "__main__":
    import numpy as np
    config = ClusterConfig(sys.argv[2], 4, 0.02, num_workers=2, namespace=sys.argv[1])
    print("go", flush=True)
    with ControlClusterServer(config) as server, server.connect() as client:
        print("running", flush=True)
        for period in range(3000):
            client.trigger(period * 20_000_000, (period + 1) * 20_000_000, np.zeros((4, 1)), np.ones((4, 1)))
            time.sleep(0.002)
            client.collect((period + 1) * 20_000_000)
            client.inputs((period + 1) * 20_000_000)
"""


@pytest.mark.parametrize("moment", ["running", "importing", "building"])
def test_when_its_owner_is_killed_the_cluster_goes_with_it(tmp_path: Path, moment: str) -> None:
    name, mark = NAME, f"RT_LRHC_TEST={os.getpid()}-{moment}"
    started = tmp_path / "started"
    slow = f"open({str(started)!r}, 'w').close(); import time; time.sleep(60)\n"
    factories = {"running": "", "importing": slow, "building": f"def make(num_robots):\n    {slow}"}
    (tmp_path / "mpc.py").write_text(factories[moment])
    factory = ECHO if moment == "running" else f"{tmp_path / 'mpc.py'}:make"
    owner = run_script(tmp_path / "owner.py", OWNER, mark, name, factory)
    assert owner.stdout is not None and owner.stderr is not None
    assert owner.stdout.readline() == "go\n"
    if moment == "running":
        assert owner.stdout.readline() == "running\n"
        assert len(marked_processes(mark)) == 4
    else:
        eventually(started.exists, "the cluster is busy")
    owner.kill()
    owner.wait(10)
    eventually(lambda: not marked_processes(mark), "server and workers are gone")
    assert nothing_left_of(name)
    owner.stdout.close()
    owner.stderr.close()


def test_a_forked_child_that_keeps_the_owners_socket_does_not_keep_the_cluster(tmp_path: Path) -> None:
    name, mark = NAME, f"RT_LRHC_TEST={os.getpid()}-forked"
    text = "import os\n" + OWNER.replace(
        '    print("running"', '    os.fork() or time.sleep(60)\n        print("running"'
    )
    owner = run_script(tmp_path / "owner.py", text, mark, name, ECHO)
    assert owner.stdout is not None and owner.stderr is not None
    assert [owner.stdout.readline() for _ in range(2)] == ["go\n", "running\n"]
    assert len(marked_processes(mark)) == 5
    owner.kill()
    owner.wait(10)
    eventually(
        lambda: nothing_left_of(name) and len(marked_processes(mark)) == 1, "only the forked child is left"
    )
    marked_processes(mark)[0].kill()
    eventually(lambda: not marked_processes(mark), "the child is gone")
    owner.stdout.close()
    owner.stderr.close()


@pytest.mark.parametrize("after", [0.1, 0.2, 0.27, 0.35, 0.45, 0.7])
def test_an_interrupt_at_any_moment_leaves_nothing(tmp_path: Path, after: float) -> None:
    name, mark = NAME, f"RT_LRHC_TEST={os.getpid()}-{after}"
    owner = run_script(tmp_path / "owner.py", OWNER, mark, name, ECHO)
    time.sleep(after)
    owner.send_signal(signal.SIGINT)
    _, err = owner.communicate(timeout=20)
    assert owner.returncode in (1, 130, -signal.SIGINT), err
    assert "KeyboardInterrupt" in err or not err
    assert err.count("Traceback") <= 2, f"one interrupt, one complaint: {err}"
    eventually(lambda: not marked_processes(mark), "no process is left")
    assert nothing_left_of(name)


def test_an_interrupt_of_the_terminal_reaches_the_owner_alone() -> None:
    with cluster(2, 2) as (server, client):
        for pid in (server.pid, *worker_pids(server)):
            assert os.getsid(pid) == server.pid != os.getsid(0)
        for pid in worker_pids(server):
            os.kill(pid, signal.SIGINT)
        client.trigger(0, PERIOD, column(0, 0), column(1, 1))
        assert client.collect(PERIOD, wait=True).all(), "workers leave interrupts to their server"


def test_a_server_told_to_end_ends_in_order() -> None:
    with cluster(2, 2) as (server, client):
        name = server.namespace
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: not server.is_running, "the server ends")
        assert nothing_left_of(name)
        eventually(
            lambda: client.collect(0) is not None and client.lost and not client.alive.any(), "it is noticed"
        )


def test_importing_the_cluster_loads_neither_torch_nor_casadi() -> None:
    text = (
        "import sys; from rt_lrhc.cluster import launcher, reader, adapter, server; "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'casadi')))"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=30, check=False).returncode == 0


CLIENT = """
import sys, time
import numpy as np
from rt_lrhc.cluster.client import ControlClusterClient

if __name__ == "__main__":
    client = ControlClusterClient.attach(sys.argv[1])
    print("driving", flush=True)
    for period in range(100000):
        client.trigger(period * 20_000_000, (period + 1) * 20_000_000, np.zeros((4, 1)), np.ones((4, 1)))
        client.collect((period + 1) * 20_000_000)
        client.inputs((period + 1) * 20_000_000)
"""


def test_a_killed_client_leaves_a_cluster_that_another_one_drives_without_its_plans(tmp_path: Path) -> None:
    mark = f"RT_LRHC_TEST={os.getpid()}-client"
    with cluster(4, 2) as (server, first):
        first.close()
        pids = worker_pids(server)
        for _ in range(5):
            driver = run_script(tmp_path / "client.py", CLIENT, mark, server.namespace)
            assert driver.stdout is not None and driver.stderr is not None
            assert driver.stdout.readline() == "driving\n"
            driver.kill()
            driver.wait(10)
            driver.stdout.close()
            driver.stderr.close()
            with server.connect() as client:
                client.collect(0, wait=True)
                client.inputs(0)
                assert (client.fallback == Fallback.SAFE).all(), "no plan of the dead client acts"
                client.trigger(PERIOD, 2 * PERIOD, column(0, 0, 0, 0), column(0.5, 0.5, 0.5, 0.5))
                client.collect(2 * PERIOD, wait=True)
                assert (client.inputs(2 * PERIOD) == 0.5).all() and client.fresh.all()
        assert worker_pids(server) == pids, "no worker was harmed"


def test_of_servers_started_at_once_under_one_name_exactly_one_wins() -> None:
    config = ClusterConfig(ECHO, 1, 0.02, namespace=NAME)
    for _ in range(5):
        servers = [ControlClusterServer(config) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            started = [pool.submit(server.start) for server in servers]
        errors = [one.exception() for one in started]
        assert sorted(error is None for error in errors) == [False, False, True]
        winner = servers[errors.index(None)]
        for error in errors:
            assert error is None or (
                isinstance(error, NamespaceBusy) and f"process {winner.pid}" in str(error)
            )
        for server in servers:
            server.close()
    assert nothing_left_of(NAME)


def test_a_cluster_whose_names_somebody_removes_goes_on_and_heals() -> None:
    with cluster(2, 2) as (server, client):
        Path("/dev/shm", Namespace(server.namespace).segment_name[1:]).unlink()
        Namespace(server.namespace).socket_path.unlink()
        os.kill(client.worker_pids[0], signal.SIGKILL)
        eventually(
            lambda: client.collect(0) is not None and client.report().respawns[0] == 1, "the next life"
        )
        client.trigger(0, PERIOD, column(0, 0), column(1, 1))
        assert client.collect(PERIOD, wait=True).all()


@pytest.mark.parametrize("after", [0.05, 0.3, 0.6])
def test_two_interrupts_in_a_row_leave_nothing(tmp_path: Path, after: float) -> None:
    mark = f"RT_LRHC_TEST={os.getpid()}-twice-{after}"
    owner = run_script(tmp_path / "owner.py", OWNER, mark, NAME, ECHO)
    time.sleep(after)
    owner.send_signal(signal.SIGINT)
    time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        owner.send_signal(signal.SIGINT)
    owner.communicate(timeout=20)
    assert owner.returncode not in (0, None)
    eventually(lambda: not marked_processes(mark), "no process is left")
    eventually(lambda: nothing_left_of(NAME), "no name is left")
