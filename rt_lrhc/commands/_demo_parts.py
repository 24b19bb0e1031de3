"""The two runs of the demonstration: on the wall clock, and the comparison of three ways on virtual time."""

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.cluster.report import ClusterReport
from rt_lrhc.environment.timing import TimingSummary
from rt_lrhc.figures import Curve, Lane, Panel, Work, curves, timeline
from rt_lrhc.tasks.cart_pole import cart_pole_config
from rt_lrhc.timing.realtime import Granted
from rt_lrhc.timing.statistics import DurationUnit, Summary, summarise

FloatArray = npt.NDArray[np.float64]

_MS = DurationUnit.MILLISECONDS
_STEPS_SHOWN = 10
COMPARED_SECONDS = 12.0
_OTHERS = "other robots, from their own targets"


def agent(observation: Any) -> npt.NDArray[np.float32]:
    """Send each cart to its target: `(state, target, plan_age, *actions)` to the command, (N, 1)."""
    target: npt.NDArray[np.float32] = observation[1]
    return target


@dataclass(frozen=True)
class WallRun:
    """What was measured on the wall clock; times in s of CLOCK_MONOTONIC."""

    robots: int
    workers: int
    backend: str
    boot: float
    granted: Granted
    summary: TimingSummary
    trace: dict[str, FloatArray]
    periods: FloatArray
    solves: tuple[FloatArray, ...]
    report: ClusterReport
    time_step: float
    control_period: float
    simulated: float
    wall: float
    errors: FloatArray

    @property
    def solve(self) -> Summary:
        """Wall time of a worker's batch of solves, s."""
        return summarise(np.concatenate([spans[:, 1] - spans[:, 0] for spans in self.solves]))

    def lines(self) -> list[str]:
        """Return the figures for people."""
        summary, report = self.summary, self.report
        fresh, total = report.fallback_periods[Fallback.FRESH].sum(), report.fallback_periods.sum()
        labels = ", ".join(
            f"{report.fallback_periods[label].sum()} {label.name.lower()}"
            for label in Fallback
            if label != Fallback.FRESH
        )
        rows = [
            (
                "cluster",
                f"{self.robots} controllers in {_counted(self.workers, 'worker')} ({self.backend}), "
                f"up in {self.boot:.2f} s",
            ),
            *(("granted", line) for line in self.granted.lines()),
            (
                "time-step",
                f"{summary.step.format(_MS)} p50 / p99 / max of {summary.step.n} (nominal {self.time_step * 1e3:g} ms)",
            ),
            ("sent late by", f"{summary.send_lateness.format(_MS)}"),
            ("captured late by", f"{summary.capture_lateness.format(_MS)}"),
            ("solve", f"{self.solve.format(_MS)} for a worker's batch, of {self.solve.n}"),
            ("inference", f"{summary.inference.format(_MS)}"),
            (
                "deadlines missed",
                f"{report.misses.sum()} of {total} robot-periods; {summary.overruns} overruns",
            ),
            ("plans", f"{fresh} of {total} robot-periods fresh; fallbacks: {labels}"),
            ("real-time factor", f"{self.simulated / self.wall:.3f}"),
            (
                "tracking error",
                f"{np.sqrt(np.mean(self.errors**2)):.3f} m RMS, swing-up from hanging included",
            ),
            *(("lost", line) for line in losses(report)),
            *(("worker ended", str(event)) for event in report.events),
        ]
        return [f"      {name:17} {text}" for name, text in rows]

    def figures(self) -> dict[str, Any]:
        """Return the figures under flat keys, in s."""
        figures: dict[str, Any] = {}
        for name, part in (
            ("step", self.summary.step),
            ("send_lateness", self.summary.send_lateness),
            ("capture_lateness", self.summary.capture_lateness),
            ("inference", self.summary.inference),
            ("solve", self.solve),
        ):
            figures |= {f"{name}_{key}": getattr(part, key) for key in ("n", "p50", "p99", "max")}
        report = self.report
        return figures | {
            "overruns": self.summary.overruns,
            "misses": int(report.misses.sum()),
            "robot_periods": int(report.fallback_periods.sum()),
            **{
                f"fallback_{label.name.lower()}": int(report.fallback_periods[label].sum())
                for label in Fallback
            },
            "real_time_factor": self.simulated / self.wall,
            **loss_figures(report),
            "workers_ended": [str(event) for event in report.events],
        }

    def timeline(self) -> str:
        """Draw some ten time-steps from the middle of the run."""
        trace, periods = self.trace, self.periods
        middle = max(0, len(trace["grid"]) // 2 - _STEPS_SHOWN // 2)
        steps = trace["grid"][middle : middle + _STEPS_SHOWN + 1]
        lanes = [
            Lane(
                "agent",
                Work.AGENT,
                np.stack([trace["inference_begin"], trace["inference_end"]], axis=1)[1:],
                trace["grid"][1:],
            ),
            Lane("capture", Work.CAPTURE, np.stack([trace["capture_begin"], trace["capture_end"]], axis=1)),
            Lane("plant", Work.PLANT, periods[:, 2:4]),
            *(
                Lane(f"worker {index}", Work.SOLVE, spans, _deadlines(spans, periods[:, 0]))
                for index, spans in enumerate(self.solves)
            ),
        ]
        return timeline(
            lanes,
            time_steps=steps,
            step_durations=np.diff(trace["sent"]),
            time_step_duration=self.time_step,
            control_period=self.control_period,
            first_step=middle,
            title="An agent, its plants and their controllers on one clock",
            subtitle=f"{self.robots} cart-poles, control period {self.control_period * 1e3:g} ms, "
            f"time-step {self.time_step * 1e3:g} ms, {_counted(self.workers, 'worker')} ({self.backend})",
        )


def losses(report: ClusterReport) -> list[str]:
    """Say how many processes were lost and came back; nothing where none was."""
    figures = loss_figures(report)
    if not any(figures.values()):
        return []
    workers, servers, back = (
        _counted(figures[f"{kind}_{what}"], kind)
        for kind, what in (("worker", "deaths"), ("server", "deaths"), ("worker", "respawns"))
    )
    return [f"{workers} ({figures['worker_hangs']} of them hung) and {servers} died; {back} came back"]


def loss_figures(report: ClusterReport) -> dict[str, int]:
    """Return how many processes were lost and came back, under flat keys."""
    return {
        "worker_deaths": int(report.deaths.sum()),
        "worker_hangs": int(report.hangs.sum()),
        "worker_respawns": int(report.respawns.sum()),
        "server_deaths": report.server_deaths,
    }


def _deadlines(spans: FloatArray, begins: FloatArray) -> FloatArray:
    """Return the first begin of a control period after each solve's begin: there its plan is due, (n,), s."""
    index = np.searchsorted(begins, spans[:, 0], side="right")
    return np.where(index < len(begins), begins[np.minimum(index, len(begins) - 1)], np.inf)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def run_on_the_wall_clock(robots: int, seconds: float, workers: int | None, seed: int) -> WallRun:
    """Run `robots` cart-poles for `seconds` of wall time, saying once a second how it goes."""
    began = time.monotonic()
    config = cart_pole_config(workers=workers)
    env: Any = gym.make_vec("rt_lrhc:rt-v0", num_envs=robots, config=config)
    try:
        inner = env.unwrapped
        boot = time.monotonic() - began
        observation, _ = env.reset(seed=seed)
        started, errors = time.monotonic(), []
        steps = round(seconds / config["time_step_duration"])
        per_second = round(1.0 / config["time_step_duration"])
        for step in range(1, steps + 1):
            observation, _, _, _, info = env.step(agent(observation))
            errors.append(observation[0][:, 0] - observation[1][:, 0])
            if step % per_second == 0:
                upright = int((observation[0][:, 2] > 0.9).sum())
                print(
                    f"      {step / per_second:3.0f} s  {upright} of {robots} poles upright, "
                    f"{info['plan_fresh'].sum()} plans fresh, {info['rt']['overruns'][0]} overruns",
                    flush=True,
                )
        wall = time.monotonic() - started
        client = inner.interface.client
        return WallRun(
            robots=robots,
            workers=client.num_workers,
            backend=client.spec.backend,
            boot=boot,
            granted=inner.timing.granted,
            summary=inner.timing.summary(),
            trace=inner.timing.columns(),
            periods=inner.interface.periods.values(),
            # Those of the reset lie before the clock's start, and keep nobody waiting.
            solves=tuple(spans[spans[:, 0] >= started] for spans in client.report().solve_spans),
            report=client.report(),
            time_step=config["time_step_duration"],
            control_period=inner.interface.control_period,
            simulated=inner.interface.periods.total * inner.interface.control_period,
            wall=wall,
            errors=np.array(errors),
        )
    finally:
        env.close()


@dataclass(frozen=True)
class Way:
    """One way to run the task: where the carts went, m, and who left the track. Arrays are (steps, N)."""

    name: str
    time: FloatArray
    positions: FloatArray
    targets: FloatArray
    left_track: npt.NDArray[np.bool_]

    @property
    def falls(self) -> int:
        """Episodes that ended off the track, with the pole down."""
        return int(self.left_track.sum())

    @property
    def error(self) -> float:
        """Root mean square of the cart's distance from its target, m."""
        return float(np.sqrt(np.mean((self.positions - self.targets) ** 2)))


@dataclass(frozen=True)
class Comparison:
    """The same task with and without delay, and with its compensation."""

    ways: tuple[Way, ...]
    robots: int

    def lines(self) -> list[str]:
        """Return the figures for people."""
        return [
            f"      {way.name:28} tracking error {way.error:.3f} m RMS, {_counted(way.falls, 'fall')}"
            for way in self.ways
        ]

    def figures(self) -> dict[str, Any]:
        """Return the figures under flat keys."""
        figures: dict[str, Any] = {}
        for way in self.ways:
            key = way.name.replace(",", "").replace(" ", "_")
            figures |= {f"{key}_error_rms": way.error, f"{key}_falls": way.falls}
        return figures

    def curves(self) -> str:
        """Draw where the carts went, one panel a way."""
        panels = []
        for way in self.ways:
            # An episode that ends is followed by the next one, elsewhere: no line joins them.
            shown = np.where(way.left_track, np.nan, way.positions)
            others = [
                Curve(_OTHERS, way.time, shown[:, robot] - way.targets[:, robot], faint=True)
                for robot in range(1, self.robots)
            ]
            lines = [
                Curve("target of robot 0", way.time, way.targets[:, 0], reference=True),
                *others,
                Curve("cart of robot 0", way.time, shown[:, 0]),
            ]
            fell = way.time[way.left_track.any(axis=1)]
            panels.append(
                Panel(
                    way.name,
                    "cart position / m",
                    tuple(lines),
                    note=f"RMS error {way.error:.2f} m, {_counted(way.falls, 'fall')}",
                    limits=(-2.5, 2.5),
                    marks=np.stack([fell, np.full(len(fell), -2.2)], axis=1),
                    marks_name="a robot fell and left the track",
                )
            )
        return curves(
            panels,
            title="What delay costs, and what compensation gives back",
            subtitle="Plans act one control period after their state; blocking: the world waits for the solve",
        )


def compare(robots: int, workers: int | None, seed: int) -> Comparison:
    """Run the task three ways on virtual time."""
    ways = (
        ("pipelined, compensated", {"mode": "pipelined"}, True),
        ("pipelined, not compensated", {"mode": "pipelined"}, False),
        ("blocking", {"mode": "blocking"}, None),
    )
    return Comparison(
        tuple(_run_way(name, robots, workers, seed, kwargs, flag) for name, kwargs, flag in ways), robots
    )


def _run_way(
    name: str, robots: int, workers: int | None, seed: int, kwargs: dict[str, Any], compensation: bool | None
) -> Way:
    config = cart_pole_config(workers=workers, hanging=False, **kwargs)
    config["interface_kwargs"]["delay_compensation"] = compensation
    config["time_step_duration"] = config["start_obs_capture"] = 0.02
    steps = round(COMPARED_SECONDS / 0.02)
    config["ep_max_length"] = steps + 1
    env: Any = gym.make_vec("rt_lrhc:rt-sim-v0", num_envs=robots, config=config)
    positions, targets, left_track = [], [], []
    try:
        observation, _ = env.reset(seed=seed)
        for _ in range(steps):
            observation, _, terminated, _, _ = env.step(agent(observation))
            left_track.append(terminated)
            positions.append(observation[0][:, 0])
            targets.append(observation[1][:, 0])
    finally:
        env.close()
    moments = np.arange(1, steps + 1, dtype=np.float64) * 0.02
    return Way(name, moments, np.array(positions, float), np.array(targets, float), np.array(left_track))
