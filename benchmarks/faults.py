"""What killed and stopped workers cost a cluster that runs at 50 Hz, and what they cost Gymnasium's AsyncVectorEnv.

Four workers solve cart-pole MPCs on the wall clock. At random moments a random worker gets SIGKILL, or SIGSTOP, which
the hang limit ends. Bouts of faults alternate with quiet seconds. Counted are periods of robots of untouched workers
without a plan of nominal age, in the second after a fault and in seconds without one; a permutation of the seconds says
how often chance alone would bring about such a difference.

Exit code 1 if the client ever hung (a control period of more than 1 s), a worker did not come back, anything was left
behind, or the median death was seen later than 5 ms, or the median replacement took longer than 200 ms and the build.

    python benchmarks/faults.py [--kills N] [--stops N] [--async-kills N] [--seed N] [--json FILE]
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import psutil
import tyro
from common import Report

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.cluster.protocol import Lifecycle
from rt_lrhc.cluster.reader import ClusterReader
from rt_lrhc.controllers.cart_pole import make_cart_pole
from rt_lrhc.shm.namespace import Namespace

PERIOD = 20_000_000
FACTORY = "rt_lrhc.controllers.cart_pole:make_cart_pole"
WORKERS = 4
BOUT = 8
"""Faults in a row before the quiet seconds."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    kills: int = 1000
    stops: int = 200
    async_kills: int = 20
    robots: int = 8
    hang_limit: float = 0.3
    quiet: float = 2.5
    seed: int = 0
    json: Path | None = None


@dataclass
class Faults:
    """What was done to the workers, and what came of it; times in s of CLOCK_MONOTONIC."""

    begun: list[tuple[float, int]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)
    failed: int = 0


class Attacker(threading.Thread):
    """Kills and stops workers at random moments, and watches the server's words for what it makes of it."""

    def __init__(self, reader: ClusterReader, options: Options) -> None:
        super().__init__(name="attacker")
        self._server = reader.server
        self._quiet = options.quiet
        self._random = random.Random(options.seed)
        acts = [signal.SIGKILL] * options.kills + [signal.SIGSTOP] * options.stops
        self._random.shuffle(acts)
        self._acts = acts
        self.faults = Faults()
        self.give_up = threading.Event()

    def run(self) -> None:
        """Do all that was planned, one after the other."""
        self.give_up.wait(self._quiet)
        for index, act in enumerate(self._acts):
            if self.give_up.is_set():
                return
            self._attack(self._random.randrange(WORKERS), act)
            self.give_up.wait(self._quiet if index % BOUT == BOUT - 1 else self._random.uniform(0.05, 0.4))

    def _attack(self, worker: int, act: signal.Signals) -> None:
        words = self._server[worker]
        life, begin = int(words.incarnation), time.monotonic()
        os.kill(int(words.pid), act)
        self.faults.begun.append((begin, worker))
        seen = None
        while time.monotonic() < begin + 15.0 and not self.give_up.is_set():
            if seen is None and (words.lifecycle != Lifecycle.READY or words.incarnation != life):
                seen = time.monotonic() - begin
            if words.lifecycle == Lifecycle.READY and words.incarnation != life:
                if act is signal.SIGKILL and seen is not None:
                    self.faults.seen.append(seen)
                    self.faults.replaced.append(time.monotonic() - begin)
                return
            time.sleep(0.0005)
        self.faults.failed += 1


def control(
    client: ControlClusterClient, attacker: Attacker, quiet: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Run the control loop until the attacker is done; return when periods began, s, and who was fresh, (n, W)."""
    count, spec = client.num_robots, client.spec
    states = np.zeros((count, spec.nx))
    references = np.zeros((count, spec.nr))
    begins, fresh = [], []
    start, period = time.monotonic_ns(), 0
    quiet_end = None
    while quiet_end is None or time.monotonic() < quiet_end:
        if quiet_end is None and not attacker.is_alive():
            quiet_end = time.monotonic() + quiet
        now = period * PERIOD
        client.collect(now)
        client.inputs(now)
        client.trigger(now, now + PERIOD, states, references)
        begins.append(time.monotonic())
        fresh.append([bool(client.fresh[rows].all()) for rows in client.rows])
        period += 1
        time.sleep(max(0.0, (start + period * PERIOD - time.monotonic_ns()) * 1e-9))
    return np.array(begins), np.array(fresh)


def compare_seconds(
    begins: npt.NDArray[Any], fresh: npt.NDArray[Any], faults: Faults
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the share of misses of untouched workers, in each second after a fault and in each second without one."""
    after, quiet = [], []
    times = np.array([begin for begin, _ in faults.begun])
    for second in np.arange(begins[0] + 1.0, begins[-1] - 1.0, 1.0):
        periods = (begins >= second) & (begins < second + 1.0)
        # A worker counts as touched from its fault until long after its replacement.
        touched = {worker for begin, worker in faults.begun if second - 2.0 < begin < second + 1.0}
        others = [worker for worker in range(WORKERS) if worker not in touched]
        if others and periods.any():
            misses = float((~fresh[periods][:, others]).mean())
            near = ((times > second - 1.0) & (times < second + 1.0)).any()
            (after if near else quiet).append(misses)
    return np.array(after), np.array(quiet)


def chance(after: npt.NDArray[Any], quiet: npt.NDArray[Any]) -> float:
    """Return how often a random division of the seconds differs at least as much as the one that was measured."""
    if not len(after) or not len(quiet):
        return 1.0
    generator, all_of_them = np.random.default_rng(0), np.concatenate([after, quiet])
    measured = after.mean() - quiet.mean()
    hits = 0
    for _ in range(2000):
        generator.shuffle(all_of_them)
        hits += all_of_them[: len(after)].mean() - all_of_them[len(after) :].mean() >= measured
    return hits / 2000


def campaign(options: Options, report: Report) -> bool:
    """Attack our cluster; return whether all targets are met."""
    build = float(np.median([_build_time(options) for _ in range(5)]))
    config = ClusterConfig(
        FACTORY, options.robots, PERIOD * 1e-9, num_workers=WORKERS, hang_limit=options.hang_limit
    )
    with ControlClusterServer(config) as server, server.connect() as client:
        namespace, pid = server.namespace, server.pid
        reader = ClusterReader(namespace)
        attacker = Attacker(reader, options)
        attacker.start()
        try:
            begins, fresh = control(client, attacker, options.quiet)
        finally:
            attacker.give_up.set()
            attacker.join(20.0)
            reader.close()
        told = client.report()
        restored = bool(client.alive.all())
        workers = psutil.Process(pid).children()
    leftovers = [worker.pid for worker in workers if worker.is_running()]
    name = Namespace(namespace)
    leftovers += [
        path for path in (Path("/dev/shm", name.segment_name[1:]), name.socket_path) if path.exists()
    ]
    faults, hangs = attacker.faults, int((np.diff(begins) > 1.0).sum())
    after, quiet = compare_seconds(begins, fresh, faults)
    report.value("faults", len(faults.begun))
    report.value("worker deaths told", int(told.deaths.sum()))
    report.value("of them hung", int(told.hangs.sum()))
    report.value("respawns told", int(told.respawns.sum()))
    report.value("hangs of the client", hangs)
    report.value("failed restarts", faults.failed + (not restored))
    report.value("leftovers", len(leftovers))
    report.durations({"death seen by the server": np.array(faults.seen)})
    report.durations({"replacement ready": np.array(faults.replaced)})
    report.value("build of its problem", build * 1e3, "ms")
    report.value("misses of others, second after a fault", 100 * _mean(after), f"% of {len(after)} s")
    report.value("misses of others, seconds without", 100 * _mean(quiet), f"% of {len(quiet)} s")
    report.value("chance of such a difference", chance(after, quiet))
    met = {
        "0 hangs": hangs == 0,
        "0 failed restarts": faults.failed == 0 and restored,
        "0 leftovers": not leftovers,
        "median death seen within 5 ms": float(np.median(faults.seen)) <= 0.005,
        "median replacement within 200 ms and the build": float(np.median(faults.replaced)) <= 0.2 + build,
    }
    for target, reached in met.items():
        print(f"{'met' if reached else 'MISSED'}: {target}", flush=True)
    return all(met.values())


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _build_time(options: Options) -> float:
    begin = time.perf_counter()
    make_cart_pole(max(1, options.robots // WORKERS)).close()
    return time.perf_counter() - begin


def attack_async_vector_env(options: Options, report: Report) -> None:
    """Kill a worker of Gymnasium's AsyncVectorEnv, again and again, and see what is left of it."""
    outcomes: dict[str, int] = {}
    rebuilt = []
    for kill in range(options.async_kills):
        begin = time.perf_counter()
        env = gym.vector.AsyncVectorEnv([lambda: gym.make("Pendulum-v1")] * WORKERS)
        env.reset(seed=0)
        rebuilt.append(time.perf_counter() - begin)
        victim = env.processes[kill % WORKERS]
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(5.0)
        steps = []
        for _ in range(2):
            try:
                env.step_async(np.zeros((WORKERS, 1), np.float32))
                env.step_wait(timeout=2.0)
                steps.append("goes on")
            except Exception as error:
                steps.append(type(error).__name__)
        outcome = ", then ".join(steps)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env.close_extras(timeout=0.0, terminate=True)
        for process in env.processes:
            process.kill()
            process.join(5.0)
        env.closed = True
    print(f"AsyncVectorEnv after one SIGKILL, {options.async_kills} times: first step, second step")
    for outcome, count in outcomes.items():
        report.value(f"  {outcome}", count)
    report.durations({"AsyncVectorEnv made anew, by hand": np.array(rebuilt)})


def main(options: Options) -> int:
    """Run all and return the exit code."""
    report = Report()
    report.header()
    met = campaign(options, report)
    if options.async_kills:
        attack_async_vector_env(options, report)
    report.save(options.json)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
