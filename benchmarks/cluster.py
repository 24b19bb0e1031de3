"""What the cluster itself costs: hand-over, efficiency of the workers, and the client's CPU time a control period.

(a) 3.2 KB there and 3.2 KB back between two processes: slots and doorbells, as the cluster uses them, beside
    `multiprocessing.Pipe` and Gymnasium's `AsyncVectorEnv` with shared memory, interleaved.
(b) Controllers that burn a known CPU time. Efficiency = (controllers x mean solve in thread CPU / workers) / wall time
    from trigger to the last answer.
(c) Thread CPU time of the client for `trigger`, `collect` and `inputs`, as controllers grow; the slope of a line.

Exit code 1 where a target is missed: (a) at most 0.5 of Pipe's median; (b) from 64 controllers of 1 ms on at least 0.95
with one worker and 0.85 with two; trigger and collect of 256 robots within 20 us together, a round trip within 0.15 ms
(medians).

    python benchmarks/cluster.py [--rounds N] [--samples N] [--json FILE]
"""

import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import tyro
from common import Report, interleaved

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.doorbell import Doorbell
from rt_lrhc.shm.layout import Block, Field, Layout, create

FloatArray = npt.NDArray[np.float64]
WORDS = 400
"""8-byte words of a payload of 3.2 KB."""
PERIOD = 20_000_000
BURNING = f"{Path(__file__).parent / 'burning.py'}:make"


@dataclass(frozen=True)
class Options:
    """How much to measure."""

    rounds: int = 10
    samples: int = 300
    json: Path | None = None


@contextmanager
def slots_and_doorbells() -> Iterator[Callable[[], None]]:
    """One hand-over there and back, as between client and worker."""
    fields = (Field("count", (), "int64", "1"), Field("payload", (WORDS,), "float64", "1", slotted=True))
    shape = Layout((Block("client", "client", fields), Block("worker", "worker", fields)))
    segment = create(f"/rt_lrhc_bench.{os.getpid()}", shape)
    segment.unlink()
    go, done = Doorbell.create(), Doorbell.create()
    pid = os.fork()
    if pid == 0:
        theirs, mine = (bind(segment, shape, writers=("worker",))[name] for name in ("client", "worker"))
        while True:
            if go.wait(1.0) and go.drain():
                count = int(theirs["count"])
                mine["payload"][count & 1] = theirs["payload"][count & 1]
                mine["count"][...] = count
                done.ring()
    mine, theirs = (bind(segment, shape, writers=("client",))[name] for name in ("client", "worker"))
    out, back = np.random.default_rng(0).normal(size=WORDS), np.zeros(WORDS)
    poll = select.poll()
    poll.register(done.fd, select.POLLIN)

    def hand_over() -> None:
        count = int(mine["count"]) + 1
        mine["payload"][count & 1] = out
        mine["count"][...] = count
        go.ring()
        poll.poll(1000)
        done.drain()
        np.copyto(back, theirs["payload"][count & 1])

    try:
        yield hand_over
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        go.close()
        done.close()
        segment.close()


def _echo(connection: Connection) -> None:
    while connection.poll(60.0):
        connection.send(connection.recv())


@contextmanager
def pipe() -> Iterator[Callable[[], None]]:
    """The same through `multiprocessing.Pipe`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_echo, args=(theirs,), daemon=True)
    process.start()
    out = np.random.default_rng(0).normal(size=WORDS)

    def hand_over() -> None:
        ours.send(out)
        ours.recv()

    try:
        yield hand_over
    finally:
        process.kill()
        process.join(5.0)
        ours.close()
        theirs.close()


class Mirror(gym.Env[FloatArray, FloatArray]):
    """Observes its action."""

    def __init__(self) -> None:
        self.observation_space = self.action_space = gym.spaces.Box(-np.inf, np.inf, (WORDS,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin."""
        return np.zeros(WORDS), {}

    def step(self, action: FloatArray) -> Any:
        """Return the action."""
        return action, 0.0, False, False, {}


@contextmanager
def async_vector_env() -> Iterator[Callable[[], None]]:
    """The same through `AsyncVectorEnv` with shared memory."""
    env = gym.vector.AsyncVectorEnv([Mirror], shared_memory=True, context="fork")
    env.reset(seed=0)
    out = np.random.default_rng(0).normal(size=(1, WORDS))
    try:
        yield lambda: env.step(out) and None
    finally:
        env.close(timeout=5.0)


def hand_over(options: Options, report: Report) -> bool:
    """Measure (a)."""
    ways = {
        "multiprocessing.Pipe": pipe,
        "slots and doorbells": slots_and_doorbells,
        "AsyncVectorEnv": async_vector_env,
    }
    with ExitStack() as stack:
        calls = {name: stack.enter_context(way()) for name, way in ways.items()}

        def timed(call: Callable[[], None]) -> FloatArray:
            times = np.empty(options.samples)
            for index in range(options.samples):
                begin = time.perf_counter_ns()
                call()
                times[index] = (time.perf_counter_ns() - begin) * 1e-9
            return times

        samples = interleaved(
            {name: lambda call=call: timed(call) for name, call in calls.items()}, options.rounds
        )
    report.durations(samples)
    ratio = float(np.median(samples["slots and doorbells"]) / np.median(samples["multiprocessing.Pipe"]))
    return _target("hand-over at most 0.5 of Pipe's median", ratio <= 0.5, ratio)


def _target(name: str, met: bool, value: float) -> bool:
    print(f"{'met' if met else 'MISSED'}: {name}: {value:.3g}", flush=True)
    return met


@contextmanager
def cluster(controllers: int, workers: int, burn: float) -> Iterator[ControlClusterClient]:
    """A cluster of burning controllers."""
    config = ClusterConfig(
        BURNING, controllers, PERIOD * 1e-9, {"burn": burn}, num_workers=workers, hang_limit=60.0
    )
    with ControlClusterServer(config) as server, server.connect() as client:
        yield client


@dataclass
class Costs:
    """What control periods cost, s: wall time of a round trip, of trigger and collect, and the client's thread CPU."""

    trip: FloatArray
    calls: FloatArray
    cpu: FloatArray
    solve_cpu: float


def control(client: ControlClusterClient, periods: int) -> Costs:
    """Run `periods` control periods, each of which waits for its plans."""
    count = client.num_robots
    states, references = np.zeros((count, client.spec.nx)), np.ones((count, client.spec.nr))
    trip, calls, cpu, solves = (np.empty(periods) for _ in range(4))
    for period in range(-2, periods):
        now = (period + 2) * PERIOD
        cpu_begin, begin = time.thread_time_ns(), time.perf_counter_ns()
        client.trigger(now, now + PERIOD, states, references)
        triggered, cpu_middle = time.perf_counter_ns(), time.thread_time_ns()
        left = set(range(client.num_workers))
        poll = select.poll()
        for worker in client._workers:
            poll.register(worker.link.done.fd, select.POLLIN)
        while (
            left
        ):  # until all have rung; then `collect` is measured as on the wall clock, where it does not wait
            for fd, _ in poll.poll(1000):
                poll.unregister(fd)
                left.pop()
        arrived, cpu_arrived = time.perf_counter_ns(), time.thread_time_ns()
        client.collect(now + PERIOD)
        end = time.perf_counter_ns()
        client.inputs(now + PERIOD)
        cpu_end = time.thread_time_ns()
        if period >= 0:
            trip[period] = (end - begin) * 1e-9
            calls[period] = (triggered - begin + end - arrived) * 1e-9
            cpu[period] = (cpu_middle - cpu_begin + cpu_end - cpu_arrived) * 1e-9
            times = [client.last_solve(worker) for worker in range(client.num_workers)]
            solves[period] = sum(one.thread_cpu_ns for one in times if one is not None) * 1e-9
    return Costs(trip, calls, cpu, float(solves.mean()))


def efficiency(report: Report) -> bool:
    """Measure (b)."""
    reached = True
    for workers, target in ((1, 0.95), (2, 0.85)):
        for burn in (0.1e-3, 1e-3, 5e-3):
            for controllers in (8, 64, 512):
                periods = max(3, min(100, round(1.0 / (controllers * burn / workers))))
                with cluster(controllers, workers, burn) as client:
                    costs = control(client, periods)
                value = costs.solve_cpu / workers / float(np.median(costs.trip))
                report.value(f"efficiency {controllers} x {burn * 1e3:g} ms, {workers} workers", value)
                if controllers >= 64 and burn == 1e-3:
                    name = f"efficiency of {controllers} controllers of 1 ms on {workers} workers at least {target}"
                    reached &= _target(name, value >= target, value)
    return reached


def client_costs(options: Options, report: Report) -> bool:
    """Measure (c), and the calls and the round trip of (b)."""
    counts, cpu = (8, 32, 64, 128, 256, 512), []
    reached = True
    for count in counts:
        with cluster(count, 2, 0.0) as client:
            costs = control(client, options.samples)
        cpu.append(float(np.median(costs.cpu)))
        report.durations({f"client CPU a period, {count} robots": costs.cpu})
        if count == 256:
            report.durations({"trigger and collect, 256 robots": costs.calls})
            value = float(np.median(costs.calls))
            reached &= _target("trigger and collect of 256 robots at most 20 us", value <= 20e-6, value)
        if count == 8:
            report.durations({"round trip, 8 robots, 2 workers": costs.trip})
            value = float(np.median(costs.trip))
            reached &= _target("round trip at most 0.15 ms", value <= 0.15e-3, value)
    slope, offset = np.polyfit(counts, cpu, 1)
    left = np.array(cpu) - (slope * np.array(counts) + offset)
    report.value("client CPU, slope", slope * 1e9, "ns a robot and period")
    report.value("client CPU, at 0 robots", offset * 1e6, "us a period")
    report.value("client CPU, largest distance from a line", float(np.abs(left).max()) * 1e6, "us")
    return reached


def main(options: Options) -> int:
    """Run all and return the exit code."""
    report = Report()
    report.header()
    reached = [hand_over(options, report), efficiency(report), client_costs(options, report)]
    report.save(options.json)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
