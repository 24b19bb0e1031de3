"""Measure how punctual this machine lets the environment's clock be; draw a histogram."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from rt_lrhc.commands._clock_trials import Agent, PythonLearner, Trial, run_environment, run_floor
from rt_lrhc.timing.realtime import SPIN, machine
from rt_lrhc.timing.statistics import DurationUnit, summarise

_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc bench` shall measure.

    Attributes:
        what: What to measure: the clock.
        time_step_duration: Time-step, s.
        seconds: Length of each run, s; there are 3 of each of 7 kinds.
        out: Folder for the drawing.
    """

    what: tyro.conf.Positional[Literal["clock"]]
    time_step_duration: float = 0.005
    seconds: float = 0.7
    out: Path = Path()


def run(options: Options) -> int:
    """Measure, print a table, write `clock.svg`, and return the exit code."""
    here = machine()
    print("\n".join(here.lines()), flush=True)
    steps = max(20, round(options.seconds / options.time_step_duration))
    trials = _measure(options.time_step_duration, steps)
    print(f"time-steps of {options.time_step_duration * 1e3:g} ms; lateness p50 / p99 / max")
    print(f"{'':36}{'sending':32}{'capture':32}overruns")
    rows = {}
    for name, runs in trials.items():
        send, capture = (np.concatenate([getattr(one, what) for one in runs]) for what in ("send", "capture"))
        overruns = {cause: sum(one.overruns.get(cause, 0) for one in runs) for cause in runs[0].overruns}
        told = ", ".join(f"{cause} {count}" for cause, count in overruns.items() if count) or "0"
        texts = [summarise(values).format(DurationUnit.MICROSECONDS) for values in (send, capture)]
        print(f"{name:36}{texts[0]:32}{texts[1]:32}{told}", flush=True)
        rows[name] = send
    from rt_lrhc.figures import latenesses

    picture = latenesses(
        rows,
        title="Lateness of sending",
        subtitle=f"time-steps of {options.time_step_duration * 1e3:g} ms on {here.cpu}, load {here.load[0]:.1f}",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "clock.svg"
    path.write_text(picture)
    print(f"drawn: {path}")
    return 0


def _measure(duration: float, steps: int) -> dict[str, list[Trial]]:
    """Run each kind in turn, a few times, so that what disturbs the machine disturbs all."""
    idle, learner = Agent(), PythonLearner()
    kinds: dict[str, Callable[[], Trial]] = {
        "bare sleeper": partial(run_floor, idle, duration, steps),
        "thread": partial(run_environment, idle, duration, steps),
        "thread, spin": partial(run_environment, idle, duration, steps, spin=SPIN),
        "process": partial(run_environment, idle, duration, steps, "process"),
        "bare sleeper, busy Python beside": partial(run_floor, learner, duration, steps),
        "thread, busy Python beside": partial(run_environment, learner, duration, steps),
        "process, busy Python beside": partial(run_environment, learner, duration, steps, "process"),
    }
    trials: dict[str, list[Trial]] = {name: [] for name in kinds}
    for _ in range(_ROUNDS):
        for name, trial in kinds.items():
            trials[name].append(trial())
    return trials
