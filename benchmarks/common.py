"""What the benchmarks share: the head of a report, interleaved rounds, and figures that are printed and kept alike."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.timing.realtime import machine
from rt_lrhc.timing.statistics import DurationUnit, summarise

FloatArray = npt.NDArray[np.float64]


def commit() -> str:
    """Return the commit that is measured, marked if the files differ from it; "unknown" outside a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, timeout=10.0, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, timeout=10.0, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.stdout.decode().strip() + (" with changes" if changes.stdout else "")


def interleaved(cases: Mapping[str, Callable[[], FloatArray]], rounds: int) -> dict[str, FloatArray]:
    """Run all cases in turn, `rounds` times, so that what disturbs the machine disturbs them alike.

    Args:
        cases: By name: something that measures and returns its samples, (n,), s.
        rounds: How often each case runs; every second round runs them in the opposite order.

    Returns:
        All samples of each case, rounds in order, (n * rounds,), s.
    """
    samples: dict[str, list[FloatArray]] = {name: [] for name in cases}
    for index in range(rounds):
        for name in list(cases)[:: 1 if index % 2 == 0 else -1]:
            samples[name].append(np.ravel(cases[name]()))
    return {name: np.concatenate(parts) for name, parts in samples.items()}


class Report:
    """Figures that are printed for people as they come, and kept under the names that were printed."""

    def __init__(self) -> None:
        self.values: dict[str, str | float] = {}
        self.samples: dict[str, Any] = {}

    def header(self) -> None:
        """Print and keep where and how this is measured: machine, load, commit, command."""
        here = machine()
        command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
        print("\n".join((*here.lines(), f"commit {commit()}, command: {command}")), flush=True)
        self.values |= {
            "cpu": here.cpu,
            "cores": here.usable_cores,
            "load": here.load[0],
            "kernel": here.kernel,
        }
        self.values |= {"python": here.python, "commit": commit(), "command": command}

    def value(self, name: str, value: float, unit: str = "") -> None:
        """Print and keep one figure."""
        print(f"{name:40} {value:.4g} {unit}".rstrip(), flush=True)
        self.values[name] = float(value)

    def durations(self, samples: Mapping[str, FloatArray], unit: DurationUnit | None = None) -> None:
        """Print a table of durations, s, with n and p50 / p99 / max, and the ratio of each median to the first one."""
        reference: float | None = None
        for name, values in samples.items():
            summary = summarise(values)
            reference = summary.p50 if reference is None else reference
            ratio = summary.p50 / reference
            print(f"{name:40} n {summary.n:<7} {summary.format(unit):28} ratio {ratio:.3f}", flush=True)
            figures = {
                "n": summary.n,
                "p50": summary.p50,
                "p99": summary.p99,
                "max": summary.max,
                "ratio": ratio,
            }
            self.values |= {f"{name} {figure}": float(value) for figure, value in figures.items()}
            self.samples[name] = np.asarray(values, dtype=np.float64)

    def save(self, path: Path | None) -> None:
        """Write the figures to `path` as flat JSON and the samples to .npz beside it; None writes nothing."""
        if path is not None:
            path.write_text(json.dumps(self.values, indent=2) + "\n")
            np.savez_compressed(path.with_suffix(".npz"), **self.samples)
