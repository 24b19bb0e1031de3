"""The client of a control cluster: sits with the plant, publishes states, triggers solves, collects plans."""

import contextlib
import math
import select
import time
from types import TracebackType

import numpy as np

from rt_lrhc.cluster.connection import Connection
from rt_lrhc.cluster.controller import BoolArray, ControllerSpec, FloatArray, IntArray, Status
from rt_lrhc.cluster.fallback import NO_PLAN, Choice, FallbackPolicy, FallbackRules, Plans, choose
from rt_lrhc.cluster.fields import NO_DEADLINE
from rt_lrhc.cluster.handover import ClientState, WorkerView
from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.cluster.report import ClusterReport, Ledger, SolveTimes, WorkerEvent
from rt_lrhc.errors import ClusterTimeout, ConfigurationError, EnvironmentStateError

_NEWS_PATIENCE = 0.5
"""Seconds for which `report()` waits for the server to say how a worker ended."""


class ControlClusterClient:
    """Drives N robots through the controllers of a cluster, once a control period, on one thread.

    At each control period, at its grid time: `collect` what was triggered before, apply `inputs`, `trigger` the next
    solves. Nothing here waits without a bound, whatever happens to the workers or to the server.

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
            These five are updated in place by `inputs` (`status` and `cost` by `collect`): copy what you keep.
    """

    def __init__(
        self, connection: Connection, *, nominal_age: int, fallback: FallbackPolicy, hang_limit: float
    ) -> None:
        """Use `connection`, which is closed with this client; see `attach` for the settings."""
        shape, spec = connection.shape, connection.shape.spec
        count = shape.num_robots
        self._connection = connection
        self._hang_limit = hang_limit
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
        self._offsets = state.robots * spec.num_stages

        self._ledger = Ledger(count, shape.num_workers)
        self._workers = [WorkerView(link, state) for link in connection.workers]
        self._epoll = select.epoll()
        self._bells = {worker.link.done.fd: worker for worker in self._workers}
        self._lives = {worker.link.pidfd: worker for worker in self._workers}
        for fd in (*self._bells, *self._lives, connection.control.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    @classmethod
    def attach(
        cls,
        namespace: str,
        *,
        nominal_age: int = 1,
        fallback: FallbackPolicy | None = None,
        hang_limit: float = 5.0,
    ) -> "ControlClusterClient":
        """Become the client of the cluster that runs under `namespace`.

        Args:
            namespace: The cluster's namespace.
            nominal_age: Control periods from a plan's state to the period in which it acts: 1 pipelined, 0 blocking.
            fallback: What acts on a robot without such a plan.
            hang_limit: Longest wait for an answer, s.

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
            )
        except BaseException:
            connection.close()
            raise

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
        """Which workers live, (W,)."""
        return np.array([worker.alive for worker in self._workers])

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
        """
        self._require_open()
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
            wait: Whether to wait until each worker that is looked at has answered or ended, up to the hang limit.
            workers: Workers to look at, (W,); None for all. The answer of another one is left for a later call,
                which is how a recorded schedule is replayed.

        Returns:
            Which workers' answers were taken now, (W,).

        Raises:
            ClusterTimeout: If a worker that was waited for neither answers nor ends within the hang limit.
            ConfigurationError: If the shape of `workers` is wrong.
            EnvironmentStateError: After `close()`.
        """
        self._require_open()
        if workers is not None and np.shape(workers) != (self.num_workers,):
            raise ConfigurationError(
                f"workers must have shape {(self.num_workers,)}, got {np.shape(workers)}"
            )
        answered = np.zeros(self.num_workers, np.bool_)
        for index, worker in enumerate(self._workers):
            worker.looked_at = workers is None or bool(workers[index])
        self._look(time_ns, answered)
        if wait:
            self._wait(time_ns, answered)
        return answered

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
                poll.poll((give_up - time.monotonic()) * 1000.0)
                self._read_news()
        for worker in self._workers:
            if worker.unexplained:
                self._record(worker, "ended, and no server is left to say how" if self.lost else "ended", "")
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

    def _look(self, time_ns: int, answered: BoolArray) -> None:
        """Handle all that is ready now."""
        ended = []
        for fd, _ in self._epoll.poll(0):
            worker = self._bells.get(fd)
            if worker is not None:
                self._hear(worker, time_ns, answered)
            elif fd in self._lives:
                ended.append(fd)
            else:
                self._read_news()
        for fd in ended:
            worker = self._lives.pop(fd)
            # Its last answer may have come after the bells were read; after its end none can.
            self._hear(worker, time_ns, answered)
            self._epoll.unregister(fd)
            worker.alive = worker.outstanding = False
            self.status[worker.link.rows] = Status.LOST

    def _hear(self, worker: "WorkerView", time_ns: int, answered: BoolArray) -> None:
        """Read one bell, and the answer that it announces."""
        if worker.outstanding and not worker.looked_at:
            return
        if worker.link.done.drain() and worker.outstanding and worker.link.answer.done == worker.request:
            worker.outstanding = False
            answered[worker.link.index] = True
            worker.accept(time_ns, self._state, self._ledger)

    def _wait(self, time_ns: int, answered: BoolArray) -> None:
        deadline = time.monotonic() + self._hang_limit
        while True:
            awaited = [worker for worker in self._workers if worker.looked_at and worker.outstanding]
            if not awaited:
                return
            left = deadline - time.monotonic()
            if left <= 0.0:
                raise ClusterTimeout(
                    f"{' and '.join(str(worker) for worker in awaited)} neither answered nor ended within "
                    f"the hang limit of {self._hang_limit} s"
                )
            # Not the epoll: the bell of a worker that is not looked at would wake it again and again.
            poll = select.poll()
            for worker in awaited:
                poll.register(worker.link.done.fd, select.POLLIN)
                poll.register(worker.link.pidfd, select.POLLIN)
            poll.poll(math.ceil(left * 1000.0))
            self._look(time_ns, answered)

    def _read_news(self) -> None:
        for message in self._connection.news():
            worker = next((one for one in self._workers if one.link.index == message.get("worker")), None)
            if message["type"] == "worker_ended" and worker is not None:
                self._record(worker, message["how"], message["stderr"])
        if self.lost:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(self._connection.control)

    def _record(self, worker: "WorkerView", how: str, stderr: str) -> None:
        link = worker.link
        robots = range(link.rows.start, link.rows.stop)
        worker.explained = True
        self._ledger.events.append(WorkerEvent(link.index, link.incarnation, link.pid, how, robots, stderr))

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
