"""Watch a running cluster: who lives, how long solves take, how they end. Disturbs nobody.

Attaches read-only from another process. Times are p50 / p99 / max over the last 256 answers of each worker. Where the
output is not a terminal it is one snapshot. Ends with Ctrl-C, or with the cluster.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import Status
from rt_lrhc.cluster.profile import ControllerProfile, WorkerProfile, controller_profile, worker_profiles
from rt_lrhc.cluster.reader import ClusterReader
from rt_lrhc.errors import ClusterError, ConfigurationError, SharedMemoryError
from rt_lrhc.shm import namespace as namespaces
from rt_lrhc.timing.statistics import DurationUnit

_MS = DurationUnit.MILLISECONDS
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc top` shall show.

    Attributes:
        namespace: Name of the cluster; None for the only one that runs.
        once: Print one snapshot and end.
        interval: Time between two pictures, s.
        robots: Controllers to list at most, the slowest first.
    """

    namespace: str | None = None
    once: bool = False
    interval: float = 1.0
    robots: int = 16

    def __post_init__(self) -> None:
        if not 0.05 <= self.interval <= 60.0:
            raise ConfigurationError(f"--interval must lie in [0.05, 60] s, got {self.interval}")
        if self.robots < 0:
            raise ConfigurationError(f"--robots must be at least 0, got {self.robots}")


def run(options: Options) -> int:
    """Show the cluster until it ends."""
    name = options.namespace or _only_one()
    reader = ClusterReader(name)
    live = not options.once and sys.stdout.isatty()
    try:
        while True:
            lines = snapshot(name, reader, options.robots)
            print((_HOME_AND_CLEAR if live else "") + "\n".join(lines), flush=True)
            if not live:
                return 0
            time.sleep(options.interval)
            if not reader.is_running:
                print(f"the cluster {name!r} has ended")
                return 0
    finally:
        reader.close()


def snapshot(name: str, reader: ClusterReader, robots: int) -> list[str]:
    """Return what there is to see now, for people.

    Args:
        name: The cluster's namespace.
        reader: Looks at it.
        robots: Controllers to list at most.
    """
    shape = reader.shape
    workers, controllers = worker_profiles(reader), controller_profile(reader)
    head = (
        f"cluster {name}: {shape.num_robots} controllers ({shape.spec.backend}) in {shape.num_workers} workers, "
        f"control period {shape.control_period_ns * 1e-6:g} ms"
    )
    return [head, "", *_worker_lines(workers), "", *_controller_lines(controllers, robots)]


def _worker_lines(workers: list[WorkerProfile]) -> list[str]:
    lines = [
        f"{'worker':>6} {'robots':>9} {'state':<11} {'process':>8} {'lives':>5} {'answers':>9} {'failed':>7}  "
        f"{'solve, wall':<24} {'solve, CPU':<24} {'wake-up':<24} {'queue':<24} {'write':<24} {'read':<24}"
    ]
    for one in workers:
        robots = f"{one.robots.start}-{one.robots.stop - 1}"
        times = (one.wall, one.cpu, one.wake, one.queue, one.write, one.read)
        lines.append(
            f"{one.worker:>6} {robots:>9} {one.lifecycle.name.lower():<11} {one.pid:>8} {one.restarts + 1:>5} "
            f"{one.answered:>9} {one.failures:>7}  "
            + " ".join(f"{times_.format(_MS):<24}" for times_ in times)
        )
    return lines


def _controller_lines(profile: ControllerProfile, count: int) -> list[str]:
    lines = [
        f"{'robot':>6} {'active':<6} {'status':<16} {'solve, CPU / ms':<22} {'iterations':<18} {'cost':<32} residual"
    ]
    slowest = np.argsort(np.nan_to_num(-profile.solve[1], nan=0.0), kind="stable")[:count]
    for robot in slowest.tolist():
        solve = " / ".join(f"{value * 1e3:.3f}" for value in profile.solve[:, robot])
        iterations = " / ".join(f"{value:g}" for value in profile.iterations[:, robot])
        cost, residual = (
            " / ".join(f"{value:.3g}" for value in figures[:, robot])
            for figures in (profile.cost, profile.residual)
        )
        status = Status(int(profile.status[robot])).name.lower()
        active = "yes" if profile.active[robot] else "no"
        lines.append(
            f"{robot:>6} {active:<6} {status:<16} {solve:<22} {iterations:<18} {cost:<32} {residual}"
        )
    left = len(profile.status) - len(slowest)
    if left:
        lines.append(f"       and {left} more, which are faster")
    return lines


def _only_one() -> str:
    """Return the name of the cluster that runs, if it is one."""
    running = []
    for name in namespaces.present():
        try:
            ClusterReader(name).close()
        except SharedMemoryError:
            continue
        running.append(name)
    if len(running) != 1:
        raise ClusterError(
            f"expected one running cluster, found {len(running)}{': ' + ', '.join(running) if running else ''}; "
            "name it with --namespace"
        )
    return running[0]
