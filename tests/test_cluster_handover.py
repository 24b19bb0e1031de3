"""The hand-over between client and workers: right data, true ages, no plan of another life of a robot."""

import time

import numpy as np
import pytest

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.controller import Status
from rt_lrhc.cluster.fallback import FallbackPolicy
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.errors import ConfigurationError, EnvironmentStateError, NamespaceBusy
from tests.cluster_helpers import (
    CONTROLLERS,
    PERIOD,
    cluster,
    column,
    eventually,
    reader,
    stopped,
    worker_pids,
)

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("num_robots", "num_workers"), [(1, 1), (5, 2), (7, 3), (2, 5)])
def test_each_robot_gets_the_plan_for_its_own_state(num_robots: int, num_workers: int) -> None:
    generator = np.random.default_rng(0)
    with (
        cluster(num_robots, num_workers, kwargs={"num_inputs": 3}) as (server, client),
        reader(server) as looking,
    ):
        assert client.num_workers == min(num_robots, num_workers)
        assert [robot for rows in client.rows for robot in range(num_robots)[rows]] == list(range(num_robots))
        in_force = client.inputs(0)
        assert not in_force.any() and (client.fallback == Fallback.SAFE).all()
        for period in range(5):
            now = period * PERIOD
            states, references = generator.normal(size=(2, num_robots, 3))
            assert client.trigger(now, now + PERIOD, states, references).all()
            assert client.collect(now + PERIOD, wait=True).all()
            inputs = client.inputs(now + PERIOD)
            np.testing.assert_array_equal(inputs, np.clip(references - states, -1.0, 1.0))
            assert client.fresh.all() and (client.age == 1).all() and (client.status == Status.SOLVED).all()
            for rows, answer in zip(client.rows, looking.workers, strict=True):
                slot = int(answer.done) & 1
                np.testing.assert_allclose(answer.cost[slot], in_force[rows].sum(axis=1))
                assert (answer.iterations[slot] == period + 1).all(), "reset once, before the first solve"
                assert answer.residual[slot] == pytest.approx(PERIOD * 1e-9)
                np.testing.assert_array_equal(answer.states[slot][:, 0], states[rows])
            in_force = inputs
        report = client.report()
        assert not report.misses.any() and not report.failures.any() and not report.events
        assert (report.fallback_periods[Fallback.FRESH] == 5).all() and report.periods == 6
        assert all(len(times) == 5 for times in report.solve_wall_times)


def test_a_blocking_plan_acts_at_the_time_of_its_state() -> None:
    with cluster(2, nominal_age=0) as (_, client):
        client.trigger(PERIOD, PERIOD, column(0.0, 0.0), column(0.5, -0.5))
        client.collect(PERIOD, wait=True)
        assert client.inputs(PERIOD).ravel().tolist() == [0.5, -0.5]
        assert client.fresh.all() and not client.age.any()
        client.inputs(2 * PERIOD)
        assert not client.fresh.any() and (client.fallback == Fallback.SHIFT).all()


def test_without_compensation_stage_0_lies_at_the_state() -> None:
    with cluster(1, kwargs={"compensates_delay": False}) as (_, client):
        client.trigger(0, PERIOD, column(0.0), column(1.0))
        client.collect(PERIOD, wait=True)
        assert client.inputs(PERIOD)[0, 0] == pytest.approx(0.8) and client.fresh.all()


def test_a_late_plan_is_a_miss_then_acts_at_its_true_age_and_shifted() -> None:
    with cluster(4, 2) as (server, client):
        slow, _ = worker_pids(server)
        states, references = column(0, 0, 0, 0), column(0.1, 0.2, 0.3, 0.4)
        with stopped(slow):
            assert client.trigger(0, PERIOD, states, references).all()
            assert client.collect(PERIOD, wait=True, workers=np.array([False, True])).tolist() == [
                False,
                True,
            ]
            assert client.inputs(PERIOD).ravel().tolist() == [0.0, 0.0, 0.3, 0.4]
            assert client.outstanding.tolist() == [True, False]
            assert client.trigger(PERIOD, 2 * PERIOD, states, references).tolist() == [False, True]
        assert client.collect(2 * PERIOD, wait=True).all()
        inputs = client.inputs(2 * PERIOD)
        np.testing.assert_allclose(inputs.ravel(), [0.08, 0.16, 0.3, 0.4])
        assert client.age.tolist() == [2, 2, 1, 1] and client.fresh.tolist() == [False, False, True, True]
        assert client.fallback.tolist() == [Fallback.LATE, Fallback.LATE, Fallback.FRESH, Fallback.FRESH]
        client.inputs(3 * PERIOD)
        assert (client.fallback == Fallback.SHIFT).all() and client.age.tolist() == [3, 3, 2, 2]
        assert client.report().misses.tolist() == [1, 1, 0, 0]


def test_an_answer_that_is_not_looked_at_stays_for_a_later_call() -> None:
    """A recorded schedule is replayed by looking at the workers that answered then, although all have by now."""
    with cluster(4, 2) as (server, client), reader(server) as looking:
        client.trigger(0, PERIOD, column(0, 0, 0, 0), column(1, 1, 1, 1))
        assert client.collect(PERIOD, wait=True, workers=np.array([False, True])).tolist() == [False, True]
        eventually(lambda: looking.workers[0].done == 1, "the other one has answered")
        assert client.collect(PERIOD, workers=np.array([False, True])).tolist() == [False, False]
        client.inputs(PERIOD)
        assert client.fresh.tolist() == [False, False, True, True]
        assert client.collect(2 * PERIOD, wait=True).tolist() == [True, False]
        client.inputs(2 * PERIOD)
        assert client.fallback.tolist() == [Fallback.LATE, Fallback.LATE, Fallback.SHIFT, Fallback.SHIFT]


def test_a_plan_from_before_a_reset_is_never_accepted() -> None:
    with cluster(3) as (server, client), reader(server) as looking:
        states, references = column(0, 0, 0), column(1, 1, 1)
        client.trigger(0, PERIOD, states, references)
        client.collect(PERIOD, wait=True)
        assert (client.inputs(PERIOD) == 1.0).all()
        client.trigger(PERIOD, 2 * PERIOD, states, references)
        mask = np.array([False, True, False])
        client.reset(mask)
        client.collect(2 * PERIOD, wait=True)
        assert client.inputs(2 * PERIOD).ravel().tolist() == [1.0, 0.0, 1.0]
        assert client.age.tolist() == [1, -1, 1] and client.status.tolist() == [
            Status.SOLVED,
            Status.NONE,
            Status.SOLVED,
        ]
        assert client.fallback.tolist() == [Fallback.FRESH, Fallback.SAFE, Fallback.FRESH]
        client.trigger(2 * PERIOD, 3 * PERIOD, states, references)
        client.collect(3 * PERIOD, wait=True)
        client.inputs(3 * PERIOD)
        assert client.fresh.all()
        assert looking.workers[0].iterations[1].tolist() == [3, 1, 3], "the reset robot starts cold"
        assert looking.workers[0].cost[1].tolist() == [1.0, 0.0, 1.0], "the safe input was in force"


def test_an_inactive_robot_gets_the_safe_input_and_starts_anew() -> None:
    with cluster(2) as (server, client), reader(server) as looking:
        states, references = column(0, 0), column(1, 1)
        for period, active in enumerate([(True, True), (True, False), (True, False), (True, True)]):
            now = period * PERIOD
            client.set_active(np.array(active))
            client.trigger(now, now + PERIOD, states, references)
            client.collect(now + PERIOD, wait=True)
            assert client.inputs(now + PERIOD).ravel().tolist() == [1.0, 1.0 if active[1] else 0.0]
            assert client.fresh.tolist() == list(active)
            assert client.status[1] == (Status.SOLVED if active[1] else Status.INACTIVE)
        assert looking.workers[0].iterations[0].tolist() == [4, 1]
        assert not client.report().failures.any()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("raise", Status.EXCEPTION),
        ("nan", Status.NONFINITE_PLAN),
        ("out_of_bounds", Status.OUT_OF_BOUNDS),
        ("infeasible", Status.INFEASIBLE),
        ("forget", Status.NONE),
    ],
)
def test_a_failed_solve_is_labelled_and_never_fresh(
    fault: str, status: Status, capfd: pytest.CaptureFixture[str]
) -> None:
    kwargs = {"faults": {fault: [2, 3]}, "marked_only": fault != "raise"}
    with cluster(3, kwargs=kwargs) as (_, client):
        states, references = column(99.5, 199.5, 0.0), column(100.0, 200.0, 0.25)
        victims = np.array([True, True, fault == "raise"])
        expected = np.array([0.5, 0.5, 0.25])
        for period in range(4):
            now = period * PERIOD
            client.trigger(now, now + PERIOD, states, references)
            client.collect(now + PERIOD, wait=True)
            inputs = client.inputs(now + PERIOD).ravel()
            failed = victims & (period in (1, 2))
            assert (client.fresh == ~failed).all()
            assert (client.status == np.where(failed, status, Status.SOLVED)).all()
            assert (client.fallback == np.where(failed, Fallback.SHIFT, Fallback.FRESH)).all()
            np.testing.assert_allclose(inputs, expected * np.where(failed, 1.0 - 0.2 * period, 1.0))
        assert (client.report().failures[status] == 2 * victims).all()
    assert ("told to raise at solve 2" in capfd.readouterr().err) == (fault == "raise")


def test_a_robot_with_a_nonfinite_state_is_not_solved_for_and_its_neighbour_is() -> None:
    with cluster(3) as (_, client):
        for states, references in (
            (column(np.nan, 0, 0), column(1, 1, 1)),
            (column(0, 0, 0), column(np.inf, 1, 1)),
        ):
            client.trigger(0, PERIOD, states, references)
            client.collect(PERIOD, wait=True)
            assert client.inputs(PERIOD).ravel().tolist() == [0.0, 1.0, 1.0]
            assert client.status.tolist() == [Status.NONFINITE_INPUT, Status.SOLVED, Status.SOLVED]
            assert client.fallback[0] == Fallback.SAFE


def test_a_status_that_is_none_is_not_taken_for_one() -> None:
    with cluster(2, factory=CONTROLLERS + "scribbling") as (_, client):
        client.trigger(0, PERIOD, column(0, 0), column(1, 1))
        client.collect(PERIOD, wait=True)
        assert not client.inputs(PERIOD).any() and (client.status == Status.EXCEPTION).all()


def test_without_new_plans_a_robot_shifts_then_holds_then_gets_the_safe_input() -> None:
    with cluster(1, fallback=FallbackPolicy(shift=0.06, hold=0.04)) as (_, client):
        client.trigger(0, PERIOD, column(0.0), column(1.0))
        client.collect(PERIOD, wait=True)
        seen = [
            (client.inputs(period * PERIOD)[0, 0], Fallback(client.fallback[0]).name)
            for period in range(1, 8)
        ]
        assert [label for _, label in seen] == ["FRESH", "SHIFT", "SHIFT", "HOLD", "HOLD", "SAFE", "SAFE"]
        np.testing.assert_allclose([value for value, _ in seen], [1.0, 0.8, 0.6, 0.6, 0.6, 0.0, 0.0])


def test_a_worker_that_is_silent_for_the_hang_limit_is_killed_and_the_wait_ends() -> None:
    with cluster(4, 2, hang_limit=0.1, restarts=RestartPolicy(backoff=3600.0)) as (server, client):
        slow = worker_pids(server)[1]
        with stopped(slow):
            client.trigger(0, PERIOD, column(0, 0, 0, 0), column(1, 1, 1, 1))
            assert client.collect(PERIOD, wait=True).tolist() == [True, False]
            client.inputs(PERIOD)
            assert client.fresh.tolist() == [True, True, False, False]
        assert client.alive.tolist() == [True, False] and client.lives_ended.tolist() == [0, 0, 1, 1]
        report = client.report()
        assert report.hangs.tolist() == report.deaths.tolist() == [0, 1]
        (event,) = report.events
        assert (event.worker, event.pid) == (1, slow) and "hang limit of 0.1 s and was killed" in str(event)


def test_a_second_client_is_refused_and_a_later_one_inherits_no_plan() -> None:
    with cluster(2) as (server, first), reader(server) as looking:
        with pytest.raises(NamespaceBusy, match="driven by process"):
            ControlClusterClient.attach(server.namespace)
        (pid,) = worker_pids(server)
        with stopped(pid):
            first.trigger(0, PERIOD, column(0, 0), column(1, 1))
            first.close()
            first.close()
            second = server.connect()
            assert second.outstanding.all(), "busy with the request of the first client"
            assert not second.trigger(0, PERIOD, column(0, 0), column(1, 1)).any()
        second.collect(PERIOD, wait=True)
        assert not second.inputs(PERIOD).any() and (second.status == Status.NONE).all()
        second.trigger(PERIOD, 2 * PERIOD, column(0, 0), column(1, 1))
        second.collect(2 * PERIOD, wait=True)
        assert (second.inputs(2 * PERIOD) == 1.0).all() and second.fresh.all()
        assert looking.workers[0].iterations[0].tolist() == [1, 1]
        with pytest.raises(EnvironmentStateError, match="closed"):
            first.trigger(0, 0, column(0, 0), column(1, 1))


def test_wrong_shapes_and_times_are_refused_in_words() -> None:
    with cluster(2) as (_, client):
        with pytest.raises(ConfigurationError, match=r"states must have shape \(2, 1\)"):
            client.trigger(0, 0, np.zeros((2, 2)), column(0, 0))
        with pytest.raises(ConfigurationError, match="act_time_ns must not lie before"):
            client.trigger(PERIOD, 0, column(0, 0), column(0, 0))
        with pytest.raises(ConfigurationError, match=r"workers must have shape \(1,\)"):
            client.collect(0, workers=np.ones(2, np.bool_))


def test_last_solve_lies_between_trigger_and_collect() -> None:
    with cluster(1) as (_, client):
        assert client.last_solve(0) is None
        begin = time.monotonic_ns()
        client.trigger(3 * PERIOD, 4 * PERIOD, column(0.0), column(1.0))
        client.collect(4 * PERIOD, wait=True)
        end = time.monotonic_ns()
        times = client.last_solve(0)
        assert times is not None and times.period == 3
        assert begin <= times.begin_ns <= times.end_ns <= end


def test_one_robot_controllers_fail_alone_and_forget_on_reset() -> None:
    kwargs = {"gain": 0.25}
    with (
        cluster(3, factory=CONTROLLERS + "robot_by_robot", kwargs=kwargs) as (server, client),
        reader(server) as look,
    ):
        for period in range(3):
            now = period * PERIOD
            client.reset(np.array([False, False, period == 2]))
            client.trigger(now, now + PERIOD, column(1, 2, 3), column(2.0, -1.0, 4.0))
            client.collect(now + PERIOD, wait=True)
            assert client.inputs(now + PERIOD).ravel().tolist() == [0.5, 0.0, 1.0]
            assert client.status.tolist() == [Status.SOLVED, Status.EXCEPTION, Status.SOLVED]
        answer = look.workers[0]
        np.testing.assert_array_equal(answer.cost[1], [np.nan, np.nan, 1.0])
        np.testing.assert_allclose(answer.states[1, 2], 3.02)
        np.testing.assert_allclose(answer.states[1, 0], 1.0)
