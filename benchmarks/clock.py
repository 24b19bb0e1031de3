"""How punctual sending and capturing are, beside rtgym 0.16, in one run.

Sides: rtgym's two environments, rt_lrhc with its thread runner (also with the spin option) and its process runner, and
the floor: a bare absolute sleeper, timer slack 1 ns, alone in a process, beside the same learner. Agents: idle;
a network (two layers of 256 in torch); a learner beside the agent in a thread, either steps of Adam on that network or
pure Python. Cells are interleaved, `--rounds` times; a target is judged by the median over the rounds.

    python benchmarks/clock.py                      what the targets need, about 3 minutes
    python benchmarks/clock.py --all --seconds 5    every agent at every time-step, half an hour
"""

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import Report
from rt_lrhc.commands._clock_trials import (
    CAPTURE,
    SIZE,
    Agent,
    PythonLearner,
    Trial,
    run_environment,
    run_floor,
)
from rt_lrhc.timing.realtime import SPIN
from rt_lrhc.timing.statistics import DurationUnit, summarise

_NS = 1_000_000_000
_MIN_STEPS = 50


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        rounds: How often each cell runs.
        seconds: Length of a cell's run, s; at least 50 time-steps.
        all: Every agent at every time-step, not only what the targets need.
        json: File for the figures; the samples go to .npz beside it.
    """

    rounds: int = 5
    seconds: float = 0.5
    all: bool = False
    json: Path | None = None


class Network(Agent):
    """Two layers of 256 in torch, on one thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        layers = torch.nn
        self.network = layers.Sequential(
            layers.Linear(SIZE, 256),
            layers.ReLU(),
            layers.Linear(256, 256),
            layers.ReLU(),
            layers.Linear(256, 1),
        )

    def act(self, observation: Any) -> npt.NDArray[Any]:
        with self._torch.no_grad():
            action: npt.NDArray[Any] = self.network(self._torch.from_numpy(observation[0])).tanh().numpy()
        return action


class TorchLearner(Network):
    """That network, and steps of Adam on it in a thread."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        torch, stop = self._torch, threading.Event()
        optimizer = torch.optim.Adam(self.network.parameters())
        batch = torch.randn(64, SIZE)

        def learn() -> None:
            while not stop.is_set():
                optimizer.zero_grad()
                self.network(batch).square().mean().backward()
                optimizer.step()

        thread = threading.Thread(target=learn, name="learner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10.0)


def rtgym_interface() -> Any:
    """Return a class that does what `StampingDevice` does, and reads from rtgym's clock what was due."""
    import rtgym

    def grid(env: Any, name: str) -> float:
        return getattr(env, f"_{type(env).__name__}__{name}")

    class Stamping(rtgym.RealTimeGymInterface):
        def __init__(self, environments: list[Any]) -> None:
            self._environments = environments  # its private grid is the only record of what was due
            self._observation = np.zeros(SIZE, dtype=np.float32)
            self._sent = self._send_due = 0.0

        def get_observation_space(self) -> Any:
            return gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1.0, 1.0, (SIZE,), np.float32)])

        def get_action_space(self) -> Any:
            return gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def get_default_action(self) -> Any:
            return np.zeros(1, dtype=np.float32)

        def send_control(self, control: Any) -> None:
            self._sent = time.perf_counter()
            # The end of the time-step before: the next one's start, unless the grid restarts.
            self._send_due = grid(self._environments[0], "t_end")

        def reset(self, seed: Any = None, options: Any = None) -> Any:
            return [self._observation], {}

        def get_obs_rew_terminated_info(self) -> Any:
            captured = time.perf_counter()
            stamps = (self._sent, self._send_due, captured, grid(self._environments[0], "t_co"))
            return [self._observation], 0.0, False, {"stamps": stamps}

        def wait(self) -> None:
            pass

    return Stamping


def end_thread(env: Any) -> None:
    """End the background thread of rtgym's second environment, which has no `close()`."""
    if type(env).__name__ == "RealTimeEnvTS":
        # Its __del__ would do this, but the thread keeps the object alive; and then it releases a lock that is free.
        env._RealTimeEnvTS__die = True
        env._RealTimeEnvTS__ev_start_ts.set()
        env._at_thread.join(timeout=10.0)
        type(env).__del__ = lambda self: None


def run_rtgym(id: str, agent: Agent, time_step_duration: float, steps: int) -> Trial:
    """Run `steps` time-steps of rtgym."""
    import rtgym

    environments: list[Any] = []
    config = {
        **rtgym.DEFAULT_CONFIG_DICT,
        "interface": rtgym_interface(),
        "interface_kwargs": {"environments": environments},
        "time_step_duration": time_step_duration,
        "start_obs_capture": CAPTURE * time_step_duration,
        "time_step_timeout_factor": 1.0,
        "ep_max_length": 10**9,
        "act_buf_len": 2,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env: Any = gymnasium.make(id, config=config, disable_env_checker=True).unwrapped
        environments.append(env)
        stamps = []
        with agent.at_work():
            observation, _ = env.reset(seed=0)
            begin = time.process_time_ns()
            for _ in range(steps):
                observation, _, _, _, info = env.step(agent.act(observation))
                stamps.append(info["stamps"])
            cpu = time.process_time_ns() - begin
        env.wait()  # joins the running time-step
        end_thread(env)
    sent, send_due, captured, capture_due = np.array(stamps).T
    overruns = sum("timed out" in str(warning.message) for warning in caught)
    return Trial((sent - send_due)[1:], (captured - capture_due)[1:], {"rtgym": overruns}, cpu / _NS / steps)


Side = Callable[[Agent, float, int], Trial]

SIDES: dict[str, Side] = {
    "rtgym v1": partial(run_rtgym, "rtgym:real-time-gym-v1"),
    "rtgym ts-v1": partial(run_rtgym, "rtgym:real-time-gym-ts-v1"),
    "thread": run_environment,
    "thread, spin": partial(run_environment, spin=SPIN),
    "process": partial(run_environment, runner="process"),
    "floor": run_floor,
}

AGENTS: dict[str, Callable[[], Agent]] = {
    "idle": Agent,
    "network": Network,
    "torch learner": TorchLearner,
    "Python learner": PythonLearner,
}

Cell = tuple[str, float]


def cells(options: Options) -> list[Cell]:
    if options.all:
        return [(agent, duration) for agent in AGENTS for duration in (0.02, 0.005, 0.001)]
    return [
        *(("idle", duration) for duration in (0.02, 0.005, 0.001)),
        *((agent, 0.005) for agent in list(AGENTS)[1:]),
    ]


def measure(options: Options) -> dict[Cell, dict[str, list[Trial]]]:
    agents = {name: make() for name, make in AGENTS.items()}
    trials: dict[Cell, dict[str, list[Trial]]] = {
        cell: {side: [] for side in SIDES} for cell in cells(options)
    }
    for index in range(options.rounds):
        for cell, sides in trials.items():
            agent, duration = cell
            steps = max(_MIN_STEPS, min(8000, round(options.seconds / duration)))
            for side in list(SIDES)[:: 1 if index % 2 == 0 else -1]:
                sides[side].append(SIDES[side](agents[agent], duration, steps))
        print(f"round {index + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return trials


def of_rounds(trials: list[Trial], what: str, figure: str) -> npt.NDArray[np.float64]:
    """Return a figure of each round."""
    return np.array([getattr(summarise(getattr(trial, what)), figure) for trial in trials])


def report_cell(report: Report, cell: Cell, sides: dict[str, list[Trial]]) -> None:
    agent, duration = cell
    print(f"\n{agent}, time-steps of {duration * 1e3:g} ms; lateness p50 / p99 / max")
    print(f"{'':14}{'sending':30}{'capture':30}{'overruns':>9}{'CPU/step':>11}   steps")
    for side, trials in sides.items():
        name = f"{agent} {duration * 1e3:g} ms {side}"
        texts = []
        for what in ("send", "capture"):
            samples = np.concatenate([getattr(trial, what) for trial in trials])
            summary = summarise(samples)
            texts.append(summary.format(DurationUnit.MICROSECONDS))
            for figure in ("p50", "p99", "max"):
                report.values[f"{name} {what} {figure}"] = getattr(summary, figure)
            report.samples[f"{name} {what}"] = samples
        overruns = [trial.overruns for trial in trials]
        total = sum(sum(one.values()) for one in overruns)
        by_cause = {cause: sum(one.get(cause, 0) for one in overruns) for cause in overruns[0]}
        cpu = float(np.median([trial.cpu for trial in trials]))
        report.values |= {f"{name} overruns": total, f"{name} CPU per step": cpu}
        report.values |= {f"{name} overruns by {cause}": count for cause, count in by_cause.items()}
        causes = ", ".join(
            f"{cause} {count}" for cause, count in by_cause.items() if count and cause != "rtgym"
        )
        steps = sum(len(trial.send) for trial in trials)
        cpu_text = f"{cpu * 1e6:8.0f} us" if cpu else ""
        print(f"{side:14}{texts[0]:30}{texts[1]:30}{total:9}{cpu_text:>11}{steps:8} {causes}", flush=True)


@dataclass(frozen=True)
class Target:
    """One ratio that shall not be exceeded, as a median over the rounds."""

    cell: Cell
    side: str
    what: str
    figure: str
    against: str
    most: float


IDLE = [("idle", duration) for duration in (0.02, 0.005, 0.001)]
BESIDE: Cell = ("Python learner", 0.005)
TARGETS = [
    *(Target(cell, "thread", "send", "p50", "rtgym", 0.5) for cell in IDLE),
    *(Target(cell, "thread", "capture", "p50", "floor", 1.3) for cell in IDLE),
    *(
        Target(cell, "thread, spin", what, "p50", "rtgym", 0.1)
        for cell in IDLE
        for what in ("send", "capture")
    ),
    Target(BESIDE, "process", "capture", "p99", "floor", 1.5),
    Target(BESIDE, "process", "capture", "p99", "rtgym", 0.1),
    Target(BESIDE, "process", "send", "p99", "rtgym", 0.2),
]


def report_targets(report: Report, trials: dict[Cell, dict[str, list[Trial]]]) -> None:
    print("\ntargets: ratio, median over the rounds; against the better of rtgym's two environments")
    for target in TARGETS:
        sides = trials[target.cell]
        mine = of_rounds(sides[target.side], target.what, target.figure)
        others = [side for side in sides if side.startswith(target.against)]
        best = np.min([of_rounds(sides[side], target.what, target.figure) for side in others], axis=0)
        ratio = float(np.median(mine / best))
        agent, duration = target.cell
        name = f"{agent}, {duration * 1e3:g} ms: {target.side}, {target.figure} of {target.what} / {target.against}"
        report_ratio(report, name, ratio, target.most)
    sides = trials["idle", 0.001]
    for other in (side for side in sides if side.startswith("rtgym")):
        pairs = zip(sides["thread"], sides[other], strict=True)
        ratio = float(np.median([mine.cpu / its.cpu for mine, its in pairs]))
        report_ratio(report, f"idle, 1 ms: thread, CPU per step / {other}", ratio, 1.0)
    ours = [
        trial.overruns.get(cause, 0)
        for each in trials.values()
        for side in ("thread", "thread, spin", "process")
        for trial in each[side]
        for cause in ("capture", "sending", "world")
    ]
    report_ratio(report, "overruns caused by rt_lrhc", float(sum(ours)), 0.0)


def report_ratio(report: Report, name: str, value: float, most: float) -> None:
    report.values[name] = value
    print(f"{name:68} {value:6.2f}, at most {most:g}: {'reached' if value <= most else 'NOT reached'}")


def main(options: Options) -> None:
    report = Report()
    report.header()
    trials = measure(options)
    for cell, sides in trials.items():
        report_cell(report, cell, sides)
    report_targets(report, trials)
    report.save(options.json)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
