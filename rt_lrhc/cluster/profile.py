"""What a passive reader learns from the windows of times and figures that client and workers keep in shared memory."""

import warnings
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import FloatArray, IntArray
from rt_lrhc.cluster.fields import PROFILE_WINDOW
from rt_lrhc.cluster.protocol import Lifecycle
from rt_lrhc.cluster.reader import ClusterReader
from rt_lrhc.timing.statistics import Summary, summarise


@dataclass(frozen=True)
class WorkerProfile:
    """One worker over its last answers, at most 256. Times in s.

    Attributes:
        worker: Its number.
        robots: Its robots.
        lifecycle: Where its present life is.
        pid: Process of that life.
        restarts: Lives begun after the first.
        answered: Requests that all its lives have answered.
        failures: Answers to active robots without a usable plan.
        wall: Wall time of a batch.
        cpu: Thread CPU time of a batch.
        wake: From the request to the begin of its solve.
        queue: From the end of the solve to the control period that took the answer.
        write: What it took the client to write the request.
        read: What it took the client to take the answer.
    """

    worker: int
    robots: range
    lifecycle: Lifecycle
    pid: int
    restarts: int
    answered: int
    failures: int
    wall: Summary
    cpu: Summary
    wake: Summary
    queue: Summary
    write: Summary
    read: Summary


@dataclass(frozen=True)
class ControllerProfile:
    """The controllers of n robots over the same window, one entry a robot. Rows of p50, p99, max; NaN without samples.

    Attributes:
        status: `Status` of the latest answer, (n,).
        active: Whether the client has it driven, (n,) int64.
        solve: Thread CPU time of a solve, (3, n), s.
        iterations: Iterations, (3, n).
        cost: Cost of the plan, (3, n).
        residual: KKT residual, (3, n).
    """

    status: IntArray
    active: IntArray
    solve: FloatArray
    iterations: FloatArray
    cost: FloatArray
    residual: FloatArray


def worker_profiles(reader: ClusterReader) -> list[WorkerProfile]:
    """Return the profile of each worker of a cluster, as it is now."""
    profiles = []
    for index, rows in enumerate(reader.shape.rows):
        client, worker, server = reader.client[index], reader.workers[index], reader.server[index]
        answered, collected = int(worker.answered), int(client.collected)
        profiles.append(
            WorkerProfile(
                worker=index,
                robots=range(rows.start, rows.stop),
                lifecycle=Lifecycle(int(server.lifecycle)),
                pid=int(server.pid),
                restarts=int(server.restarts),
                answered=answered,
                failures=int(worker.failures),
                wall=_summary(worker.profile_wall, answered),
                cpu=_summary(worker.profile_cpu, answered),
                wake=_summary(worker.profile_wake, answered),
                queue=_summary(client.profile_queue, collected),
                write=_summary(client.profile_write, collected),
                read=_summary(client.profile_read, collected),
            )
        )
    return profiles


def controller_profile(reader: ClusterReader) -> ControllerProfile:
    """Return the profile of all controllers of a cluster, as it is now."""
    status, active = [], []
    figures: list[list[FloatArray]] = [[], [], [], []]
    for client, worker in zip(reader.client, reader.workers, strict=True):
        status.append(worker.status[int(worker.done) & 1].copy())
        active.append(client.active[int(client.request) & 1].copy())
        windows: tuple[FloatArray | IntArray, ...] = (
            worker.profile_solve,
            worker.profile_iterations,
            worker.profile_cost,
            worker.profile_residual,
        )
        for rows, window in zip(figures, windows, strict=True):
            rows.append(_percentiles(window, int(worker.answered)))
    return ControllerProfile(
        np.concatenate(status),
        np.concatenate(active),
        *(np.concatenate(rows, axis=1) for rows in figures),
    )


def _summary(window: IntArray, count: int) -> Summary:
    return summarise(window[: min(count, PROFILE_WINDOW)].astype(np.float64) * 1e-9)


def _percentiles(window: FloatArray | IntArray, count: int) -> FloatArray:
    """Return p50, p99 and max of each robot's samples, (3, B), leaving out those that were not measured."""
    samples = np.array(window[: min(count, PROFILE_WINDOW)], np.float64)
    if not len(samples):
        return np.full((3, window.shape[1]), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a robot without any sample is NaN, as it should be
        percentiles: FloatArray = np.nanpercentile(samples, (50.0, 99.0, 100.0), axis=0)
    return percentiles
