"""What a client has seen of its cluster: counters per robot, the ends of workers, a window of solve times."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import BoolArray, FloatArray, IntArray, Status
from rt_lrhc.cluster.protocol import Fallback

SOLVE_WINDOW = 4096
"""Solves of each worker whose times are kept."""
_EVENTS_KEPT = 256


@dataclass(frozen=True)
class WorkerEvent:
    """The end of one life of a worker.

    Attributes:
        worker: Number of the worker.
        incarnation: Which life.
        pid: The process that it was.
        how: How it ended, in words, e.g. "killed by SIGKILL".
        robots: The robots that it drove.
        stderr: The last 4 KB that it wrote to stderr.
        quarantined: Whether it will not be started again, because too many of its lives ended before they served.
    """

    worker: int
    incarnation: int
    pid: int
    how: str
    robots: range
    stderr: str
    quarantined: bool = False

    def __str__(self) -> str:
        who = f"worker {self.worker} (process {self.pid}, robots {self.robots.start} to {self.robots[-1]})"
        return f"{who} {self.how}{'; it is not started again' if self.quarantined else ''}"


@dataclass(frozen=True)
class SolveTimes:
    """When a worker worked on one request. Times in ns of CLOCK_MONOTONIC.

    Attributes:
        period: Control period of the request.
        begin_ns: When it was taken up.
        end_ns: When its plans were ready.
        thread_cpu_ns: CPU time that it took.
    """

    period: int
    begin_ns: int
    end_ns: int
    thread_cpu_ns: int


@dataclass(frozen=True)
class ClusterReport:
    """A copy of all counters, for n robots and W workers.

    Attributes:
        periods: Control periods for which inputs were chosen.
        misses: Times that a robot could not be triggered because its worker was busy, (n,).
        fallback_periods: Control periods under each `Fallback` label, (5, n).
        failures: Answers without a usable plan, by `Status`, (12, n).
        events: Ends of workers, the oldest first; of many the last 256.
        deaths: Lives of each worker that have ended, (W,).
        hangs: How many of these were ended because they did not answer, (W,).
        respawns: Lives of each worker that have begun after another, (W,).
        server_deaths: Servers that have ended under this client.
        solve_wall_times: Wall times of the last solves of each worker, s, W arrays.
        solve_spans: Their begins and ends, s of CLOCK_MONOTONIC, W arrays (n, 2).
    """

    periods: int
    misses: IntArray
    fallback_periods: IntArray
    failures: IntArray
    events: tuple[WorkerEvent, ...]
    deaths: IntArray
    hangs: IntArray
    respawns: IntArray
    server_deaths: int
    solve_wall_times: tuple[FloatArray, ...]
    solve_spans: tuple[FloatArray, ...]


class Ledger:
    """Counts, in the control loop, at a cost that grows only with what goes wrong."""

    def __init__(self, num_robots: int, num_workers: int) -> None:
        self.periods = 0
        self.misses: IntArray = np.zeros(num_robots, np.int64)
        self.failures: IntArray = np.zeros((len(Status), num_robots), np.int64)
        self.events: deque[WorkerEvent] = deque(maxlen=_EVENTS_KEPT)
        self.deaths: IntArray = np.zeros(num_workers, np.int64)
        self.hangs: IntArray = np.zeros(num_workers, np.int64)
        self.respawns: IntArray = np.zeros(num_workers, np.int64)
        self.server_deaths = 0
        self.solves: tuple[deque[tuple[int, int, int, int]], ...] = tuple(
            deque(maxlen=SOLVE_WINDOW) for _ in range(num_workers)
        )
        self._not_fresh: IntArray = np.zeros((len(Fallback), num_robots), np.int64)

    def knows_end_of(self, worker: int, incarnation: int) -> bool:
        """Whether the end of a life has been recorded."""
        return any((event.worker, event.incarnation) == (worker, incarnation) for event in self.events)

    def count_failures(self, status: IntArray, robots: IntArray) -> None:
        """Count answers without a usable plan: one status for each of `robots`."""
        self.failures[status, robots] += 1

    def count_period(self, fallback: IntArray, fresh: BoolArray) -> None:
        """Count one control period under the labels `fallback`, (n,)."""
        self.periods += 1
        if np.count_nonzero(fresh) < len(fresh):
            robots = np.flatnonzero(~fresh)
            self._not_fresh[fallback[robots], robots] += 1

    def report(self) -> ClusterReport:
        """Return a copy of everything."""
        labels = self._not_fresh.copy()
        labels[Fallback.FRESH] = self.periods - labels.sum(axis=0)
        spans = tuple(
            np.array([times[1:3] for times in window], dtype=np.float64).reshape(-1, 2) * 1e-9
            for window in self.solves
        )
        walls = tuple(span[:, 1] - span[:, 0] for span in spans)
        return ClusterReport(
            periods=self.periods,
            misses=self.misses.copy(),
            fallback_periods=labels,
            failures=self.failures.copy(),
            events=tuple(self.events),
            deaths=self.deaths.copy(),
            hangs=self.hangs.copy(),
            respawns=self.respawns.copy(),
            server_deaths=self.server_deaths,
            solve_wall_times=walls,
            solve_spans=spans,
        )
