"""Workers and servers that come back: in place, warm, known by their incarnation, and not for ever."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import Status
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.cluster.protocol import Fallback, Lifecycle
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.errors import ClusterLost, ConfigurationError, ControllerError
from rt_lrhc.testing.echo import MARK
from tests.cluster_helpers import (
    CONTROLLERS,
    ECHO,
    NAME,
    PERIOD,
    cluster,
    column,
    eventually,
    nothing_left_of,
    reader,
    stopped,
)

pytestmark = pytest.mark.timeout(60)


class Loop:
    """A control loop of periods on virtual time, over robots whose state is 0 and whose reference is 1."""

    def __init__(self, client: ControlClusterClient) -> None:
        self.client = client
        self.period = 0
        self.references = np.ones((client.num_robots, client.spec.nr))

    def turn(self, wait: bool = True) -> None:
        now, client = self.period * PERIOD, self.client
        client.trigger(now, now + PERIOD, np.zeros_like(self.references), self.references)
        client.collect(now + PERIOD, wait=wait)
        client.inputs(now + PERIOD)
        self.period += 1

    def until_fresh(self) -> None:
        def turned() -> bool:
            self.turn()
            return bool(self.client.fresh.all())

        eventually(turned, "all robots have fresh plans")


@pytest.mark.parametrize("moment", ["idle", "asked"])
def test_a_killed_worker_comes_back_in_place_and_its_neighbour_notices_nothing(moment: str) -> None:
    with cluster(4, 2) as (server, client), reader(server) as looking:
        loop = Loop(client)
        loop.turn()
        before = [(one.link.go.fd, one.link.done.fd) for one in client._workers]
        for life in range(2, 7):
            victim, neighbour = client.worker_pids
            if moment == "idle":
                os.kill(victim, signal.SIGKILL)
                # It may be back before anybody looks: what counts is that its end was noted.
                eventually(
                    lambda life=life: bool(client.collect(0).any() or client.lives_ended[0] == life - 1),
                    "it ends",
                )
            else:
                with stopped(victim):
                    now = loop.period * PERIOD
                    client.trigger(now, now + PERIOD, np.zeros((4, 1)), loop.references)
                    os.kill(victim, signal.SIGKILL)
                client.collect(now + PERIOD, wait=True)
            loop.turn()
            assert client.fresh[2:].all()
            loop.until_fresh()
            assert client.worker_pids[1] == neighbour and client.worker_pids[0] != victim
            assert looking.server[0].incarnation == life and looking.server[1].incarnation == 1
        assert before == [(one.link.go.fd, one.link.done.fd) for one in client._workers]
        report = client.report()
        assert report.deaths.tolist() == report.respawns.tolist() == [5, 0]
        assert client.lives_ended.tolist() == [5, 5, 0, 0] and not report.misses[2:].any()
        assert report.fallback_periods[Fallback.FRESH, 2:].min() >= loop.period - 1
        assert [event.incarnation for event in report.events] == [1, 2, 3, 4, 5]


def test_a_plan_of_an_earlier_life_is_never_taken_for_one_of_the_present() -> None:
    """The old life answers after its death was noted: its words are there, and its incarnation gives it away."""
    with cluster(1) as (server, client), reader(server) as looking:
        loop = Loop(client)
        loop.turn()
        (pid,) = client.worker_pids
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: client.collect(0) is not None and client.alive[0] and client.worker_pids[0] != pid, "back"
        )
        (view,) = client._workers
        asked = int(looking.workers[0].done)
        with stopped(client.worker_pids[0]):
            now = loop.period * PERIOD
            client.trigger(now, now + PERIOD, np.zeros((1, 1)), loop.references)
            # What a life that came too late leaves: all is right but its incarnation.
            assert looking.client[0].incarnation == 2 and looking.workers[0].incarnation[asked & 1] == 1
            assert (int(looking.client[0].request) ^ asked) & 1, "the last good plan keeps its slot"
        client.collect(now + PERIOD, wait=True)
        assert looking.workers[0].incarnation[int(looking.client[0].request) & 1] == 2


def test_the_slot_of_the_last_whole_answer_is_not_written_by_the_next_lives() -> None:
    kwargs = {"faults": {"kill": [1]}, "marked_only": True}
    with (
        cluster(1, kwargs=kwargs, restarts=RestartPolicy(backoff=0.0)) as (server, client),
        reader(server) as looking,
    ):
        loop = Loop(client)
        loop.turn()
        good = int(looking.workers[0].done)
        plan = looking.workers[0].inputs[good & 1].copy()
        os.kill(client.worker_pids[0], signal.SIGKILL)
        loop.references[:] = MARK
        for life in (2, 3):
            eventually(
                lambda life=life: client.collect(0) is not None and client.report().respawns[0] == life - 1,
                "the next life",
            )
            loop.turn()  # dies in its first solve, over the slot that it writes
            assert not client.alive.any() and looking.workers[0].done == good
            np.testing.assert_array_equal(looking.workers[0].inputs[good & 1], plan)


def test_a_crash_loop_ends_in_quarantine_and_the_others_go_on() -> None:
    kwargs = {"faults": {"kill": [1]}, "marked_only": True}
    policy = RestartPolicy(budget=3, backoff=0.01)
    with cluster(4, 2, kwargs=kwargs, restarts=policy) as (server, client), reader(server) as looking:
        loop = Loop(client)
        loop.references[:2] = MARK
        eventually(lambda: loop.turn() is None and bool(client.quarantined[0]), "quarantine")
        for _ in range(5):
            loop.turn()
            assert client.fresh.tolist() == [False, False, True, True]
            assert client.status[:2].tolist() == [Status.LOST] * 2
        report = client.report()
        assert report.deaths.tolist() == [3, 0] and report.respawns.tolist() == [2, 0]
        assert report.events[-1].quarantined and "not started again" in str(report.events[-1])
        assert looking.server[0].lifecycle == Lifecycle.QUARANTINED and not report.misses[2:].any()
        client.close()
        with server.connect() as second:
            assert second.quarantined.tolist() == [True, False] == (~second.alive).tolist()
            assert second.report().events[-1].quarantined


def test_lives_that_served_do_not_use_up_the_budget() -> None:
    with cluster(1, restarts=RestartPolicy(budget=1)) as (_, client):
        loop = Loop(client)
        for _ in range(4):
            loop.until_fresh()
            os.kill(client.worker_pids[0], signal.SIGKILL)
            loop.turn()
        loop.until_fresh()
        assert client.report().deaths[0] == 4


@pytest.mark.parametrize(
    ("budget", "failed", "wait"),
    [(5, 0, 0.0), (5, 1, 0.1), (5, 4, 0.8), (5, 5, None), (1, 1, None), (99, 50, 10.0)],
)
def test_the_wait_for_the_next_life_doubles_up_to_a_limit(
    budget: int, failed: int, wait: float | None
) -> None:
    assert RestartPolicy(budget=budget).wait(failed) == pytest.approx(wait)
    with pytest.raises(ConfigurationError, match=r"restarts\.budget"):
        RestartPolicy(budget=0)


def test_a_stopped_worker_is_killed_once_on_the_wall_clock_and_its_successor_lives() -> None:
    """State is kept by life: a successor that inherits its predecessor's silence would be killed in turn, for ever."""
    with cluster(4, 2, hang_limit=0.2) as (_, client):
        loop = Loop(client)
        loop.turn()
        pid = client.worker_pids[0]
        os.kill(pid, signal.SIGSTOP)

        def recovered() -> bool:
            loop.turn(wait=False)
            time.sleep(0.005)
            return bool(client.report().respawns[0] and client.alive.all())

        eventually(recovered, "the worker is back")
        loop.until_fresh()
        for _ in range(100):
            loop.turn(wait=False)
            time.sleep(0.005)
        report = client.report()
        assert report.hangs.tolist() == report.deaths.tolist() == [1, 0] and not psutil.pid_exists(pid)


def test_a_client_that_was_stopped_itself_kills_nobody() -> None:
    """After a stall of the whole program, silence is judged by what the client saw, not by the clock."""
    with cluster(1, hang_limit=0.4) as (_, client):
        with stopped(*client.worker_pids):
            client.trigger(0, PERIOD, column(0), column(1))
            client.collect(0)
            time.sleep(0.6)  # the client, too, stands still
            client.collect(0)
        client.collect(PERIOD, wait=True)
        assert client.report().deaths[0] == 0 and client.inputs(PERIOD)[0, 0] == 1.0


def test_a_worker_killed_while_the_cluster_starts_is_started_again(tmp_path) -> None:
    once = tmp_path / "once"
    kwargs = {"path": str(once)}
    with cluster(2, 1, factory=CONTROLLERS + "killed_once_in_a_batch", kwargs=kwargs) as (server, client):
        assert once.exists()
        Loop(client).turn()
        assert client.fresh.all()
        with reader(server) as looking:
            assert looking.server[0].incarnation == 2


def test_an_answer_is_given_even_if_its_ring_was_lost() -> None:
    with cluster(1) as (_, client):
        (view,) = client._workers
        with stopped(*client.worker_pids):
            client.trigger(0, PERIOD, column(0), column(1))
            assert view.link.go.drain(), "somebody else took the ring"
        assert client.collect(PERIOD, wait=True).all()
        client.trigger(PERIOD, 2 * PERIOD, column(0), column(1))
        for _ in range(3):
            view.link.go.ring()
            view.link.done.ring()
        client.collect(2 * PERIOD, wait=True)
        assert client.report().periods == 0 and client._ledger.solves[0][-1][0] == 1
        assert len(client._ledger.solves[0]) == 2, "spurious rings are no answers"


@contextlib.contextmanager
def owned(**rest) -> Iterator[tuple[ControlClusterServer, ControlClusterClient]]:
    config = ClusterConfig(ECHO, 4, PERIOD * 1e-9, num_workers=2, **rest)
    with ControlClusterServer(config) as server, server.connect() as client:
        yield server, client


@pytest.mark.parametrize("namespace", [None, NAME])
def test_a_server_that_dies_is_replaced_while_the_robots_run_on_their_fallback(namespace: str | None) -> None:
    with owned(namespace=namespace) as (server, client):
        loop = Loop(client)
        names = set()
        for _ in range(2):
            loop.until_fresh()
            names.add(server.namespace)
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            labels: set[int] = set()

            def replaced(pid: int = pid, labels: set[int] = labels) -> bool:
                loop.turn(wait=False)
                labels.update(client.fallback.tolist())
                if client.lost:
                    server.replace(client)
                time.sleep(0.002)
                return bool(server.pid != pid and not client.lost and client.alive.all())

            eventually(replaced, "a new server")
            loop.until_fresh()
            assert Fallback.SHIFT in labels or Fallback.SAFE in labels
            names.add(server.namespace)
        report = client.report()
        assert report.server_deaths == 2 and report.deaths.tolist() == report.respawns.tolist() == [2, 2]
        assert client.namespace == server.namespace
    assert all(nothing_left_of(name) for name in names)


def test_closing_while_a_server_is_being_replaced_leaves_nothing() -> None:
    for wait in (0.0, 0.05, 0.15, 0.3):
        with owned() as (server, client):
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: client.collect(0) is not None and client.lost, "the loss is noticed")
            assert not server.replace(client)
            time.sleep(wait)


def test_a_server_killed_while_it_boots_is_started_again() -> None:
    server = ControlClusterServer(ClusterConfig(ECHO, 1, 0.02))

    def kill_first() -> None:
        eventually(lambda: server._process is not None, "the first server")
        os.kill(server.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    killer.start()
    try:
        with server, server.connect() as client:
            client.trigger(0, PERIOD, column(0), column(1))
            assert client.collect(PERIOD, wait=True).all()
    finally:
        killer.join(10.0)


def test_a_factory_that_raises_at_start_is_an_error_at_once() -> None:
    with (
        pytest.raises(ControllerError, match="the answer is not 42"),
        cluster(1, factory=CONTROLLERS + "raising"),
    ):
        pass


def test_the_loss_of_a_server_of_somebody_else_is_an_error_after_the_time_of_grace() -> None:
    with cluster(2, 2, namespace=NAME) as (server, client):
        client.close()
        with ControlClusterClient.attach(NAME, grace=0.3) as attached:
            loop = Loop(attached)
            loop.turn()
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: attached.collect(0) is not None and attached.lost, "the loss is noticed")
            loop.turn()
            assert (attached.fallback == Fallback.SHIFT).all(), "within the time of grace the robots go on"
            time.sleep(0.35)
            with pytest.raises(ClusterLost, match=r"gone for more than 0\.3 s"):
                loop.turn()
