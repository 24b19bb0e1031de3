"""How many robots a machine drives: MPC at 50 Hz and physics at 500 Hz, on the whole path.

The whole path: simulation, low-level law, shared memory, MPC in worker processes, observation, reward, and an agent
that passes on what the task asks for.

1. On the wall clock: the largest number of robots of which at most 1 % of the robot-periods have no plan of nominal
   age, while the grid slips in at most 1 % of the periods (a world that is too slow slips instead of missing), and the
   time of each stage. Other users of the machine can only worsen a run: the best of some attempts counts, and the
   report says how many of them held.
2. On virtual time: robot-steps (control periods of one robot) per second, beside what the stages take one after the
   other, and what the longest alone takes: it is in between as far as they overlap.

    python benchmarks/robots.py [--robot mini_cheetah|cart_pole] [--seconds S] [--most N] [--workers W] [--json FILE]
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from common import Report

from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.tasks import make_config, scripted_agent
from rt_lrhc.timing.statistics import DurationUnit, summarise

TOLERANCE = 0.01
"""Part of the robot-periods that may be late."""

STAGES = ("collect", "trigger", "plant", "observe", "solve")
TASKS = {"mini_cheetah": "mini_cheetah_flat", "cart_pole": "cart_pole"}


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        robot: Which robot.
        seconds: Length of one run on the wall clock, s; the last one, which is quoted, is three times as long.
        most: Largest number of robots that is tried on the wall clock.
        steps: Time-steps of one run on virtual time.
        sizes: Numbers of robots on virtual time.
        rounds: Runs of each of them; the median counts.
        attempts: Runs of each number of robots on the wall clock, at most; the best counts.
        workers: Worker processes; None lets the cluster choose.
        threads: Threads of the simulation.
        json: File for the figures; samples go to .npz beside it.
    """

    robot: Literal["mini_cheetah", "cart_pole"] = "mini_cheetah"
    seconds: float = 3.0
    most: int = 512
    steps: int = 60
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    rounds: int = 3
    attempts: int = 3
    workers: int | None = None
    threads: int = 1
    json: Path | None = None


@dataclass(frozen=True)
class Run:
    """One run: stages in s a control period, each an array over the periods."""

    robots: int
    workers: int
    periods: int
    wall: float
    stages: dict[str, np.ndarray]
    late: float
    slips: float

    @property
    def holds(self) -> bool:
        """Whether so many robots are held on the wall clock."""
        return self.late <= TOLERANCE and self.slips <= TOLERANCE

    def median(self, stage: str) -> float:
        """Median of a stage, s a control period."""
        return float(np.median(self.stages[stage]))


class Robots:
    """An environment of N robots and an agent that passes on what is asked for."""

    def __init__(self, options: Options, robots: int, clock: str) -> None:
        task = TASKS[options.robot]
        config = make_config(
            task,
            # The same time-step for all, and no episode ends by the clock: resets are no part of a steady state.
            {
                "plant_kwargs.threads": options.threads,
                "time_step_duration": 0.02,
                "episode_length": float("inf"),
            },
            observation_form="dict",
            workers=options.workers,
            act_buf_len=4,  # covers what a busy machine adds to the delays, so that nothing warns of it
        )
        self._agent = scripted_agent(task)
        self.env: Any = gym.make_vec(
            {"wall": "rt_lrhc:rt-v0", "virtual": "rt_lrhc:rt-sim-v0"}[clock], num_envs=robots, config=config
        )
        self.robots = robots
        self._observation, _ = self.env.reset(seed=0)
        self.run(25)

    def run(self, steps: int) -> Run:
        """Step, and return what the last `steps` control periods took."""
        interface, client = self.env.unwrapped.interface, self.env.unwrapped.interface.client
        before, first = client.report(), interface.periods.total
        overruns = self._overruns()
        began = time.perf_counter()
        for _ in range(steps):
            self._observation, *_ = self.env.step(self._agent(self._observation).astype(np.float32))
        wall = time.perf_counter() - began
        after = client.report()
        count = interface.periods.total - first
        rows = interface.periods.values()[-count:]
        captures = interface.captures.values()[-steps:]
        solves = [times[-count:] for times in after.solve_wall_times]
        shortest = min(map(len, solves))
        labels = after.fallback_periods - before.fallback_periods
        stages = {
            "collect": rows[:, 1] - rows[:, 0],
            "trigger": rows[:, 2] - rows[:, 1],
            "plant": rows[:, 3] - rows[:, 2],
            # One capture a control period here.
            "observe": (rows[:, 4] - rows[:, 3])[: len(captures)]
            + (captures[:, 1] - captures[:, 0])[: len(rows)],
            # The slowest worker counts.
            "solve": np.max([times[-shortest:] for times in solves], axis=0),
        }
        return Run(
            self.robots,
            client.num_workers,
            count,
            wall,
            stages,
            1.0 - labels[Fallback.FRESH].sum() / labels.sum(),
            (self._overruns() - overruns) / count,
        )

    def _overruns(self) -> int:
        inner = self.env.unwrapped
        return inner.timing.summary().overruns if inner.clock == "wall" else 0

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def run_once(options: Options, robots: int, clock: str, steps: int) -> Run:
    """Start, run, close."""
    fleet = Robots(options, robots, clock)
    try:
        return fleet.run(steps)
    finally:
        fleet.close()


def best_of(options: Options, robots: int, steps: int) -> tuple[Run, list[bool]]:
    """Return the best run of some attempts, until one holds, and which of them held."""
    runs: list[Run] = []
    while len(runs) < options.attempts and not (runs and runs[-1].holds):
        runs.append(run_once(options, robots, "wall", steps))
        show(runs[-1])
    return min(runs, key=lambda run: max(run.late, run.slips)), [run.holds for run in runs]


def largest_on_the_wall_clock(options: Options, report: Report) -> None:
    """Double, then halve the interval, and confirm the largest number that held with longer runs."""
    steps = round(options.seconds / 0.02)
    held, failed, robots = 0, options.most + 1, 8
    while held < robots < failed:
        run, _ = best_of(options, robots, steps)
        held, failed = (robots, failed) if run.holds else (held, robots)
        robots = min(2 * robots, options.most) if failed > options.most else (held + failed) // 8 * 4
    # A long run finds what a short one misses: step down until one holds.
    held = held or 4
    while True:
        run, attempts = best_of(options, held, 3 * steps)
        if run.holds or held <= 4:
            break
        held = held * 7 // 8 // 4 * 4
    report.value("robots_held_on_the_wall_clock", held if run.holds else 0)
    report.value("attempts_until_it_held", len(attempts))
    report.value("workers", run.workers)
    report.value("late_part_of_robot_periods", run.late)
    report.value("slips_a_period", run.slips)
    samples = {f"wall, {held} robots: {stage}": run.stages[stage] for stage in STAGES}
    report.durations(samples, DurationUnit.MILLISECONDS)
    for stage in STAGES:
        report.value(f"wall_{stage}_per_robot", 1e6 * run.median(stage) / held, "us")


def show(run: Run) -> None:
    """Print one run on the wall clock in one line."""
    stages = ", ".join(f"{stage} {1e3 * run.median(stage):.2f}" for stage in STAGES)
    print(
        f"  {run.robots:4} robots: {100 * run.late:6.2f} % late, {100 * run.slips:6.2f} % slips; "
        f"medians in ms: {stages}; solve p99 {1e3 * summarise(run.stages['solve']).p99:.2f}",
        flush=True,
    )


def robot_steps_on_virtual_time(options: Options, report: Report) -> None:
    """Measure each size in interleaved rounds."""
    runs: dict[int, list[Run]] = {size: [] for size in options.sizes}
    for index in range(options.rounds):
        for size in list(runs)[:: 1 if index % 2 == 0 else -1]:
            runs[size].append(run_once(options, size, "virtual", options.steps))
    print("virtual time: robot-steps a second; ms a control period: measured, sum and maximum of the stages")
    for size, of_size in runs.items():
        period = float(np.median([run.wall / run.periods for run in of_size]))
        # Here collecting waits for the solve, so it is no stage of its own.
        stages = {
            stage: float(np.median([run.median(stage) for run in of_size]))
            for stage in STAGES
            if stage != "collect"
        }
        total, longest = sum(stages.values()), max(stages.values())
        shares = ", ".join(f"{stage} {1e3 * value:.2f}" for stage, value in stages.items())
        print(
            f"  {size:4} robots: {size / period:8.0f} /s; {1e3 * period:7.2f} ms, sum {1e3 * total:7.2f}, "
            f"max {1e3 * longest:7.2f}  ({shares})",
            flush=True,
        )
        report.values |= {
            f"virtual_{size}_robot_steps_per_second": size / period,
            f"virtual_{size}_period_ms": 1e3 * period,
            f"virtual_{size}_stages_sum_ms": 1e3 * total,
            f"virtual_{size}_stages_max_ms": 1e3 * longest,
            **{f"virtual_{size}_{stage}_ms": 1e3 * value for stage, value in stages.items()},
        }


def main(options: Options) -> None:
    """Measure both and print."""
    report = Report()
    report.header()
    report.values["robot"] = options.robot
    print(f"wall clock: {options.robot} at 50 Hz, physics at 500 Hz")
    largest_on_the_wall_clock(options, report)
    robot_steps_on_virtual_time(options, report)
    report.save(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
