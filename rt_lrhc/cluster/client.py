"""The client of a control cluster: sits with the plant, publishes states, triggers solves, collects plans."""

import contextlib
import math
import select
import signal
import time
from types import TracebackType

import numpy as np

from rt_lrhc.cluster.connection import Connection, News
from rt_lrhc.cluster.controller import BoolArray, ControllerSpec, FloatArray, IntArray, Status
from rt_lrhc.cluster.fallback import NO_PLAN, Choice, FallbackPolicy, FallbackRules, Plans, choose
from rt_lrhc.cluster.fields import NO_DEADLINE
from rt_lrhc.cluster.handover import ClientState, WorkerView
from rt_lrhc.cluster.protocol import Fallback, Lifecycle, close_descriptors
from rt_lrhc.cluster.report import ClusterReport, Ledger, SolveTimes, WorkerEvent
from rt_lrhc.errors import (
    ClusterError,
    ClusterLost,
    ClusterTimeout,
    ConfigurationError,
    EnvironmentStateError,
)

_NEWS_PATIENCE = 0.5
"""Seconds for which `report()` waits for the server to say how a worker ended."""

_KILL_PATIENCE = 2.0
"""Seconds that the kernel has to end a process that was killed, before a wait for it gives up."""

_LOOKS_PER_HANG_LIMIT = 8
"""Silence counts only while this process runs: of the time between two looks no more than two of these parts."""


class ControlClusterClient:
    """Drives N robots through the controllers of a cluster, once a control period, on one thread.

    At each control period, at its grid time: `collect` what was triggered before, apply `inputs`, `trigger` the next
    solves. Nothing here waits without a bound, whatever happens to the workers or to the server: the robots of a worker
    that has ended run on their fallback until its next life answers, and one that owes an answer for longer than the
    hang limit is killed.

    Attributes:
        namespace: The cluster's namespace.
        spec: What its controllers are.
        num_robots: N.
        num_workers: W.
        rows: The robots of each worker, W slices.
        age: Control periods between each robot's plan's state and now, (N,) int64; -1 without a plan.
        fresh: Whether a plan of nominal age acts, (N,) bool.
        fallback: `Fallback` label of what acts, (N,) int64.
        status: `Status` of each robot's latest answer, (N,) int64; `LOST` where its worker has ended.
        cost: Cost of each robot's last accepted plan, (N,); NaN without one, and where its controller reports none.
        lives_ended: How often the worker of each robot has ended under this client, (N,) int64.
            These six are updated in place by `inputs` (the last three and `status` by `collect`): copy what you keep.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        nominal_age: int,
        fallback: FallbackPolicy,
        hang_limit: float,
        grace: float = math.inf,
    ) -> None:
        """Use `connection`, which is closed with this client; see `attach` for the settings."""
        shape, spec = connection.shape, connection.shape.spec
        count = shape.num_robots
        self._connection = connection
        self._hang_limit = hang_limit
        self._hang_limit_ns = round(hang_limit * 1e9)
        self._longest_silence_ns = 2 * self._hang_limit_ns // _LOOKS_PER_HANG_LIMIT
        self._seen_ns = time.monotonic_ns()
        self._grace = grace
        self._lost_since: float | None = None
        self._period_ns = shape.control_period_ns
        self._rules = FallbackRules.of(fallback, spec, shape.control_period_ns, nominal_age)
        self.namespace = connection.namespace
        self.spec: ControllerSpec = spec
        self.num_robots = count
        self.num_workers = shape.num_workers
        self.rows = shape.rows

        # Beyond every epoch of an earlier client: its robots' plans and warm starts are not ours.
        past = max(int(link.request.reset_epoch.max()) for link in connection.workers)
        self._state = state = ClientState(
            plans=Plans.none(count, spec),
            choice=Choice.safe(count, spec),
            status=np.zeros(count, np.int64),
            active=np.ones(count, np.int64),
            epoch=np.full(count, past + 1, np.int64),
            robots=np.arange(count),
            cost=np.full(count, math.nan),
        )
        self.age: IntArray = state.choice.age
        self.fresh: BoolArray = state.choice.fresh
        self.fallback: IntArray = state.choice.fallback
        self.status: IntArray = state.status
        self.cost: FloatArray = state.cost
        self.lives_ended: IntArray = np.zeros(count, np.int64)
        self._offsets = state.robots * spec.num_stages

        self._ledger = Ledger(count, shape.num_workers)
        self._epoll = select.epoll()
        self._listen(connection)

    def _listen(self, connection: Connection) -> None:
        """Take up the workers of a connection."""
        self._workers = [WorkerView(link, self._state) for link in connection.workers]
        self._bells = {worker.link.done.fd: worker for worker in self._workers}
        self._lives = {worker.link.pidfd: worker for worker in self._workers if worker.alive}
        for fd in (*self._bells, *self._lives, connection.control.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        for worker in self._workers:
            if not worker.alive:
                self.status[worker.link.rows] = Status.LOST
        self._read_news()

    @classmethod
    def attach(
        cls,
        namespace: str,
        *,
        nominal_age: int = 1,
        fallback: FallbackPolicy | None = None,
        hang_limit: float = 5.0,
        grace: float = 1.0,
    ) -> "ControlClusterClient":
        """Become the client of the cluster that runs under `namespace`.

        Args:
            namespace: The cluster's namespace.
            nominal_age: Control periods from a plan's state to the period in which it acts: 1 pipelined, 0 blocking.
            fallback: What acts on a robot without such a plan.
            hang_limit: Longest time that a worker may owe an answer, s, while this process runs; then it is killed.
            grace: Time from the end of the server to `ClusterLost`, s; the robots run on their fallback in it.

        Raises:
            ClusterError: If no cluster of this user runs there, or it does not answer.
            NamespaceBusy: If another client drives it.
            LayoutError: If this program and the cluster do not agree on the fields.
        """
        connection = Connection(namespace)
        try:
            return cls(
                connection,
                nominal_age=nominal_age,
                fallback=fallback or FallbackPolicy(),
                hang_limit=hang_limit,
                grace=grace,
            )
        except BaseException:
            connection.close()
            raise

    @property
    def control_period(self) -> float:
        """Time between two triggers, s."""
        return self._period_ns / 1e9

    @property
    def lost(self) -> bool:
        """Whether the server is gone. The robots then run on their fallback."""
        return self._connection.lost

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers, also of those that have ended."""
        return tuple(worker.link.pid for worker in self._workers)

    @property
    def alive(self) -> BoolArray:
        """Which workers live and serve, (W,)."""
        return np.array([worker.alive for worker in self._workers])

    @property
    def quarantined(self) -> BoolArray:
        """Which workers are not started again, (W,), because too many of their lives ended before they served."""
        return np.array([worker.link.server.lifecycle == Lifecycle.QUARANTINED for worker in self._workers])

    @property
    def outstanding(self) -> BoolArray:
        """Which workers owe an answer, (W,)."""
        return np.array([worker.outstanding for worker in self._workers])

    def trigger(
        self,
        time_ns: int,
        act_time_ns: int,
        states: FloatArray,
        references: FloatArray,
        deadline_ns: int | None = None,
    ) -> BoolArray:
        """Ask all workers that are not busy for plans. Never blocks; the arrays are copied.

        The inputs in force that the controllers are told are those of the last `inputs` call.

        Args:
            time_ns: Grid time of the states, ns.
            act_time_ns: Grid time from which the plans shall act, ns, not before `time_ns`.
            states: Measured states, (N, nx).
            references: References in force, (N, nr).
            deadline_ns: Latest useful end of the solves, ns of CLOCK_MONOTONIC; None for no deadline.

        Returns:
            Which workers were triggered, (W,). One that has not answered yet is not: a miss of its robots.

        Raises:
            ConfigurationError: If a shape or the order of the times is wrong.
            EnvironmentStateError: After `close()`.
            ClusterLost: If the server is gone for longer than the time of grace.
        """
        self._require_usable()
        if states.shape != (self.num_robots, self.spec.nx) or references.shape != (
            self.num_robots,
            self.spec.nr,
        ):
            raise ConfigurationError(
                f"states must have shape {(self.num_robots, self.spec.nx)} and references "
                f"{(self.num_robots, self.spec.nr)}, got {states.shape} and {references.shape}"
            )
        if act_time_ns < time_ns:
            raise ConfigurationError(
                f"act_time_ns must not lie before time_ns ({time_ns}), got {act_time_ns}"
            )
        period = time_ns // self._period_ns
        deadline = NO_DEADLINE if deadline_ns is None else deadline_ns
        triggered = [worker.alive and not worker.outstanding for worker in self._workers]
        for worker, free in zip(self._workers, triggered, strict=True):
            if free:
                worker.write(period, time_ns, act_time_ns, deadline, states, references)
            elif worker.alive:
                self._ledger.misses[worker.link.rows] += worker.active
        # After all is written: a worker that wakes up on this core delays no other.
        for worker, free in zip(self._workers, triggered, strict=True):
            if free:
                worker.link.go.ring()
        return np.array(triggered)

    def collect(self, time_ns: int, wait: bool = False, workers: BoolArray | None = None) -> BoolArray:
        """Take the answers that have come, and notice who has ended.

        Args:
            time_ns: Present grid time, ns: when the plans taken now begin to act.
            wait: Whether to wait until each worker that is looked at has answered or ended: at the hang limit it is
                killed.
            workers: Workers to look at, (W,); None for all. The answer of another one is left for a later call,
                which is how a recorded schedule is replayed.

        Returns:
            Which workers' answers were taken now, (W,).

        Raises:
            ClusterTimeout: If a worker that was killed at the hang limit does not end: the kernel holds it.
            ClusterLost: If the server is gone for longer than the time of grace.
            ConfigurationError: If the shape of `workers` is wrong.
            EnvironmentStateError: After `close()`.
        """
        self._require_usable()
        if workers is not None and np.shape(workers) != (self.num_workers,):
            raise ConfigurationError(
                f"workers must have shape {(self.num_workers,)}, got {np.shape(workers)}"
            )
        answered = np.zeros(self.num_workers, np.bool_)
        for index, worker in enumerate(self._workers):
            worker.looked_at = workers is None or bool(workers[index])
        self._look(time_ns, answered)
        self._watch_silence()
        if wait:
            self._wait(time_ns, answered)
        return answered

    def wait_until_alive(self, timeout: float) -> bool:
        """Wait up to `timeout` s until all workers serve but those in quarantine; return whether they do.

        Not for the control loop. Ends at once if the server is gone.
        """
        self._require_open()
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._connection.control, select.POLLIN)
        unheard = np.zeros(self.num_workers, np.bool_)
        for worker in self._workers:
            worker.looked_at = False
        while True:
            self._look(0, unheard)
            if (self.alive | self.quarantined).all():
                return True
            left = deadline - time.monotonic()
            if left <= 0.0 or self.lost:
                return False
            poll.poll(math.ceil(min(left, 0.1) * 1000.0))

    def adopt(self, connection: Connection) -> None:
        """Go on with another server, after the end of this client's own: counters, robots and their plans stay.

        Its controllers start cold. The connection is closed with this client.

        Raises:
            ClusterError: If its controllers are others.
        """
        self._require_open()
        shape = connection.shape
        if (shape.spec, shape.num_robots, shape.num_workers, shape.control_period_ns) != (
            self.spec,
            self.num_robots,
            self.num_workers,
            self._period_ns,
        ):
            raise ClusterError(
                f"the cluster {connection.namespace!r} cannot take over from {self.namespace!r}: its controllers, "
                "robots, workers or control period differ"
            )
        for worker in self._workers:
            if worker.alive:
                self._bury(worker, 0, np.zeros(self.num_workers, np.bool_))
            if not worker.explained:
                self._record(worker, "ended with its server", "", quarantined=False)
        self._epoll.close()
        self._workers = []
        self._connection.close()
        self._epoll = select.epoll()
        self._connection = connection
        self._lost_since = None
        self.namespace = connection.namespace
        past = max(int(link.request.reset_epoch.max()) for link in connection.workers)
        self._state.epoch[...] += past + 1
        self._listen(connection)
        self._ledger.respawns += 1

    def inputs(self, time_ns: int) -> FloatArray:
        """Return the saturated inputs in force from `time_ns` on, (N, nu), a copy; update age, fresh and fallback.

        Each robot's plan is evaluated at `time_ns` minus the time of its stage 0, each input being held for one stage;
        what stands in for a plan is said by the fallback policy. Call it once a control period.
        """
        plans, choice = self._state.plans, self._state.choice
        choose(plans, time_ns, self._rules, choice, self._offsets)
        if np.count_nonzero(np.isfinite(choice.inputs)) < choice.inputs.size:
            # Workers check every plan; this is against one that changes after its check. It never reaches the plant.
            broken = ~np.isfinite(choice.inputs).all(axis=1)
            plans.valid[broken] = False
            self.status[broken] = Status.NONFINITE_PLAN
            self._ledger.count_failures(self.status[broken], self._state.robots[broken])
            choose(plans, time_ns, self._rules, choice, self._offsets)
        self._ledger.count_period(choice.fallback, choice.fresh)
        return choice.inputs.copy()

    def reset(self, robots: BoolArray) -> None:
        """Forget the plans of the robots in the mask, (N,): the safe input acts until their first plan since now.

        Answers to requests before this call are never accepted, and their controllers drop the warm start.
        """
        self._drop(np.asarray(robots, np.bool_), Status.NONE)

    def set_active(self, robots: BoolArray) -> None:
        """Let the controllers drive the robots in the mask, (N,), alone; the others get the safe input."""
        wanted = np.asarray(robots, np.bool_)
        changed = wanted != (self._state.active != 0)
        self._state.active[...] = wanted
        self._drop(changed & wanted, Status.NONE)
        self._drop(changed & ~wanted, Status.INACTIVE)

    def last_solve(self, worker: int) -> SolveTimes | None:
        """Return when the latest answered request of a worker was worked on, or None before the first."""
        window = self._ledger.solves[worker]
        return SolveTimes(*window[-1]) if window else None

    def report(self) -> ClusterReport:
        """Return the counters so far and what became of the workers. Not for the control loop: it may wait briefly."""
        give_up = time.monotonic() + _NEWS_PATIENCE
        poll = select.poll()
        if not self.lost and self._connection.control.fileno() >= 0:
            poll.register(self._connection.control, select.POLLIN)
            while (
                any(worker.unexplained for worker in self._workers)
                and time.monotonic() < give_up
                and not self.lost
            ):
                poll.poll(max(0.0, give_up - time.monotonic()) * 1000.0)
                self._read_news()
        for worker in self._workers:
            if worker.unexplained:
                self._record(worker, "ended with its server" if self.lost else "ended", "", quarantined=False)
        return self._ledger.report()

    def close(self) -> None:
        """Leave the cluster, which then takes another client. May be called twice."""
        for worker in self._workers:
            worker.alive = worker.outstanding = False
        self._epoll.close()
        self._workers = []
        self._connection.close()

    def __enter__(self) -> "ControlClusterClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._epoll.closed:
            raise EnvironmentStateError(
                f"the client of cluster {self.namespace!r} is closed; connect another one"
            )

    def _require_usable(self) -> None:
        self._require_open()
        if self._lost_since is not None and time.monotonic() - self._lost_since > self._grace:
            raise ClusterLost(
                f"the server of cluster {self.namespace!r} has been gone for more than {self._grace} s; start it again "
                "and attach anew"
            )

    def _look(self, time_ns: int, answered: BoolArray) -> None:
        """Handle all that is ready now."""
        ended, news = [], False
        for fd, _ in self._epoll.poll(0):
            worker = self._bells.get(fd)
            if worker is not None:
                self._hear(worker, time_ns, answered)
            elif fd in self._lives:
                ended.append(fd)
            else:
                news = True
        for fd in ended:
            self._bury(self._lives[fd], time_ns, answered)
        # Last: the next life is not taken up before the end of the one before is noted.
        if news:
            self._read_news()

    def _bury(self, worker: "WorkerView", time_ns: int, answered: BoolArray) -> None:
        """Note the end of a worker's present life."""
        # Its last answer may have come after the bells were read; after its end none can.
        self._hear(worker, time_ns, answered)
        link = worker.link
        self._epoll.unregister(link.pidfd)
        del self._lives[link.pidfd]
        self._ledger.deaths[link.index] += 1
        self._ledger.hangs[link.index] += worker.killed_at is not None
        self.lives_ended[link.rows] += 1
        if worker.killed_at is not None:
            how = f"did not answer within the hang limit of {self._hang_limit} s and was killed"
            self._record(worker, how, "", quarantined=False)
        worker.end_life()
        self.status[link.rows] = Status.LOST

    def _hear(self, worker: "WorkerView", time_ns: int, answered: BoolArray) -> None:
        """Read one bell, and the answer that it announces."""
        if worker.outstanding and not worker.looked_at:
            return
        if worker.link.done.drain() and worker.outstanding and worker.link.answer.done == worker.request:
            worker.outstanding = False
            answered[worker.link.index] = True
            worker.accept(time_ns, self._state, self._ledger)

    def _watch_silence(self) -> None:
        """Kill the workers that owe an answer for longer than the hang limit.

        Through the pidfd, which names one life for good. Time in which this process did not look counts little: it may
        have been stopped itself, with the workers.
        """
        now = time.monotonic_ns()
        passed = min(now - self._seen_ns, self._longest_silence_ns)
        self._seen_ns = now
        for worker in self._workers:
            if not worker.outstanding:
                continue
            worker.silent_ns += passed
            if worker.killed_at is None and worker.is_hung(self._hang_limit_ns):
                worker.killed_at = now * 1e-9
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(worker.link.pidfd, signal.SIGKILL)

    def _wait(self, time_ns: int, answered: BoolArray) -> None:
        while True:
            awaited = [worker for worker in self._workers if worker.looked_at and worker.outstanding]
            if not awaited:
                return
            now = time.monotonic()
            held = [
                one for one in awaited if one.killed_at is not None and now > one.killed_at + _KILL_PATIENCE
            ]
            if held:
                raise ClusterTimeout(
                    f"{' and '.join(map(str, held))} did not answer within the hang limit of {self._hang_limit} s, and "
                    f"has not ended {_KILL_PATIENCE} s after SIGKILL: the kernel holds it"
                )
            # Not the epoll: the bell of a worker that is not looked at would wake it again and again.
            poll = select.poll()
            for worker in awaited:
                poll.register(worker.link.done.fd, select.POLLIN)
                poll.register(worker.link.pidfd, select.POLLIN)
            poll.poll(math.ceil(self._hang_limit / _LOOKS_PER_HANG_LIMIT * 1000.0))
            self._look(time_ns, answered)
            self._watch_silence()

    def _read_news(self) -> None:
        for news in self._connection.news():
            worker = next((one for one in self._workers if one.link.index == news[0].get("worker")), None)
            if worker is None:
                close_descriptors(news[1])
            else:
                self._hear_of(worker, news)
        if self.lost and self._lost_since is None:
            self._lost_since = time.monotonic()
            self._ledger.server_deaths += 1
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(self._connection.control)

    def _hear_of(self, worker: "WorkerView", news: News) -> None:
        """Take one message about a worker; its descriptors are ours."""
        message, descriptors = news
        link, incarnation = worker.link, int(message["incarnation"])
        if message["type"] == "worker_ready" and len(descriptors) == 1 and incarnation > link.incarnation:
            if worker.alive:
                self._bury(worker, 0, np.zeros(self.num_workers, np.bool_))
            if not worker.explained:
                self._record(worker, "ended", "", quarantined=False)
            worker.begin_life(incarnation, int(message["pid"]), descriptors[0])
            self._lives[link.pidfd] = worker
            self._epoll.register(link.pidfd, select.EPOLLIN)
            self._ledger.respawns[link.index] += 1
            return
        close_descriptors(descriptors)
        if message["type"] != "worker_ended":
            return
        if incarnation == link.incarnation:
            if not self._ledger.knows_end_of(link.index, incarnation):
                self._record(worker, message["how"], message["stderr"], quarantined=message["quarantined"])
        elif incarnation > link.incarnation:
            # A life that ended before it was ready: this client never held its pidfd.
            link.incarnation, link.pid = incarnation, int(message["pid"])
            self._ledger.deaths[link.index] += 1
            self._record(worker, message["how"], message["stderr"], quarantined=message["quarantined"])

    def _record(self, worker: "WorkerView", how: str, stderr: str, *, quarantined: bool) -> None:
        link = worker.link
        robots = range(link.rows.start, link.rows.stop)
        worker.explained = True
        self._ledger.events.append(
            WorkerEvent(link.index, link.incarnation, link.pid, how, robots, stderr, quarantined)
        )

    def _drop(self, robots: BoolArray, status: Status) -> None:
        state = self._state
        state.epoch[robots] += 1
        state.plans.valid[robots] = False
        state.choice.inputs[robots] = self._rules.safe_input
        self.age[robots] = NO_PLAN
        state.cost[robots] = math.nan
        self.fresh[robots] = False
        self.fallback[robots] = Fallback.SAFE
        self.status[robots] = status
        for worker in self._workers:
            if not worker.alive:
                self.status[worker.link.rows] = Status.LOST
