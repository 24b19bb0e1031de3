"""The fault kit, and with it each row of the table of faults: right data or a labelled fallback, and life goes on."""

import time

import numpy as np
import pytest

from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import Status
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.errors import ConfigurationError, ControllerError
from rt_lrhc.testing.faults import Fault, faulty
from tests.cluster_helpers import ECHO, PERIOD, eventually

pytestmark = pytest.mark.timeout(60)


def cluster_with(*faults: Fault, num_robots: int = 2, num_workers: int = 1, **rest) -> ControlClusterServer:
    config = ClusterConfig(
        **faulty(ECHO, faults),
        num_robots=num_robots,
        control_period=PERIOD * 1e-9,
        num_workers=num_workers,
        **rest,
    )
    return ControlClusterServer(config)


class Run:
    """A control loop whose every input is checked: that of the plan for this period, or a labelled fallback."""

    def __init__(self, client) -> None:
        self.client = client
        self.period = 0
        self.labels: list[int] = []

    def turn(self, wait: bool = True) -> None:
        client, now = self.client, self.period * PERIOD
        reference = np.full((client.num_robots, 1), 0.1 + 0.8 * (self.period % 7) / 7)
        client.trigger(now, now + PERIOD, np.zeros_like(reference), reference)
        client.collect(now + PERIOD, wait=wait)
        inputs = client.inputs(now + PERIOD)
        np.testing.assert_allclose(inputs[client.fresh], reference[client.fresh])
        assert np.isfinite(inputs).all() and (np.abs(inputs) <= 1.0).all()
        self.labels.append(int(client.fallback[0]))
        self.period += 1

    def until_fresh(self) -> None:
        eventually(lambda: self.turn() is None and bool(self.client.fresh.all()), "fresh plans")


@pytest.mark.parametrize("point", ["before_solve", "mid_write", "after_solve", "before_done", "after_done"])
@pytest.mark.parametrize("action", ["kill", "exit", "segfault"])
def test_a_worker_that_dies_at_any_point_comes_back_and_no_wrong_plan_is_taken(point, action) -> None:
    fault = Fault(point, action, solves=(3,), lives=(1, 2))
    with cluster_with(fault) as server, server.connect() as client:
        run = Run(client)
        eventually(lambda: run.turn() is None and client.report().respawns[0] == 2, "the third life")
        run.until_fresh()
        for _ in range(5):
            run.turn()
            assert client.fresh.all()
        report = client.report()
        assert report.deaths.tolist() == [2] and report.server_deaths == 0
        how = {"kill": "killed by SIGKILL", "exit": "exited with status 3", "segfault": "killed by SIGSEGV"}
        assert [event.how for event in report.events] == [how[action]] * 2


@pytest.mark.parametrize("action", ["stop", "sleep", "call"])
@pytest.mark.parametrize("point", ["before_solve", "before_done"])
def test_a_worker_that_hangs_at_any_point_is_killed_once_and_comes_back(point, action) -> None:
    fault = Fault(point, action, solves=(3,), lives=(1,), seconds=600.0)
    with cluster_with(fault, hang_limit=0.2) as server, server.connect() as client:
        run = Run(client)

        def recovered() -> bool:
            run.turn(wait=False)
            time.sleep(0.005)
            return bool(client.report().respawns[0] == 1 and client.alive.all())

        eventually(recovered, "the next life")
        run.until_fresh()
        assert client.report().hangs.tolist() == client.report().deaths.tolist() == [1]
        assert Fallback.SHIFT in run.labels


def test_an_exception_outside_the_solve_ends_the_worker_with_its_traceback() -> None:
    with (
        cluster_with(Fault("before_done", "raise", solves=(2,), lives=(1,))) as server,
        server.connect() as client,
    ):
        run = Run(client)
        eventually(lambda: run.turn() is None and bool(client.report().events), "the end")
        (event,) = client.report().events
        assert event.how == "exited with status 1" and "a fault that was asked for" in event.stderr
        run.until_fresh()


def test_a_slow_solve_is_a_miss_and_no_reason_to_kill() -> None:
    fault = Fault("before_solve", "sleep", solves=(2,), seconds=0.1)
    with cluster_with(fault, hang_limit=5.0) as server, server.connect() as client:
        run = Run(client)
        run.turn()
        eventually(lambda: run.turn(wait=False) is None and client.report().misses.all(), "a miss")
        run.until_fresh()
        assert not client.report().deaths.any()


@pytest.mark.parametrize(
    ("point", "action", "status"),
    [
        ("after_solve", "nan", Status.NONFINITE_PLAN),
        ("after_solve", "corrupt", Status.OUT_OF_BOUNDS),
        ("after_solve", "infeasible", Status.INFEASIBLE),
        ("before_done", "nan", Status.NONFINITE_PLAN),
    ],
)
def test_spoilt_plans_are_labelled_and_concern_their_robot_alone(point, action, status) -> None:
    fault = Fault(point, action, solves=(2, 3), robots=(1,))
    with cluster_with(fault, num_robots=3) as server, server.connect() as client:
        run = Run(client)
        for period in range(5):
            run.turn()
            spoilt = period in (1, 2)
            assert client.fresh.tolist() == [True, not spoilt, True]
            assert client.status[1] == (status if spoilt else Status.SOLVED)
        assert client.report().failures[status].tolist() == [0, 2, 0]


def test_inputs_that_are_spoilt_after_their_check_are_saturated() -> None:
    with cluster_with(Fault("before_done", "corrupt", solves=(1,))) as server, server.connect() as client:
        client.trigger(0, PERIOD, np.zeros((2, 1)), np.ones((2, 1)))
        client.collect(PERIOD, wait=True)
        assert (np.abs(client.inputs(PERIOD)) <= 1.0).all()


def test_a_later_life_that_cannot_be_built_is_tried_again_with_its_reason_told() -> None:
    faults = [Fault("before_done", "kill", solves=(2,), lives=(1,)), Fault("boot", "raise", lives=(2, 3))]
    policy = RestartPolicy(backoff=0.01)
    with cluster_with(*faults, restarts=policy) as server, server.connect() as client:
        run = Run(client)
        eventually(lambda: run.turn() is None and len(client.report().events) == 3, "three ends")
        assert all("a fault that was asked for, at boot" in event.how for event in client.report().events[1:])
        run.until_fresh()


def test_a_later_life_that_is_never_ready_is_given_up_at_the_boot_limit() -> None:
    faults = [
        Fault("before_done", "kill", solves=(2,), lives=(1,)),
        Fault("boot", "sleep", lives=(2,), seconds=600.0),
    ]
    with cluster_with(*faults, boot_timeout=2.0) as server, server.connect() as client:
        run = Run(client)
        eventually(lambda: run.turn() is None and len(client.report().events) == 2, "two ends")
        assert "did not build its controllers within 2.0 s" in client.report().events[1].how
        run.until_fresh()


def test_a_controller_that_cannot_be_built_at_first_is_an_error_at_once() -> None:
    with pytest.raises(ControllerError, match="a fault that was asked for, at boot"):
        cluster_with(Fault("boot", "raise")).start()


def test_without_faults_the_kit_changes_nothing() -> None:
    with cluster_with() as server, server.connect() as client:
        run = Run(client)
        for _ in range(5):
            run.turn()
            assert client.fresh.all()


def test_a_fault_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="point of a fault must be one of boot"):
        Fault("somewhere", "kill")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="action of a fault must be one of kill"):
        Fault("boot", "dance")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="needs plans"):
        Fault("boot", "nan")
