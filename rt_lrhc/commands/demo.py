"""Watch an agent step cart-poles through their MPCs: real solves, real processes, a clock that does not wait."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rt_lrhc.commands._demo_parts import Comparison, WallRun, compare, run_on_the_wall_clock
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.timing.realtime import machine

MODES = ("pipelined", "pipelined, no compensation", "blocking")


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc demo` shall do.

    Attributes:
        robots: Cart-poles, each with its own MPC.
        seconds: Length of the run on the wall clock, s.
        workers: Worker processes of the cluster; None lets it choose.
        seed: Seed of targets, kicks and initial states.
        out: Folder for the pictures.
        json: File to write the figures to as well.
    """

    robots: int = 8
    seconds: float = 8.0
    workers: int | None = None
    seed: int = 0
    out: Path = Path("runs/demo")
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.robots < 1:
            raise ConfigurationError(f"--robots must be at least 1, got {self.robots}")
        if not 2.0 <= self.seconds <= 3600.0:
            raise ConfigurationError(f"--seconds must lie in [2, 3600] s, got {self.seconds}")


def run(options: Options) -> int:
    """Run the demonstration, print its figures and write its pictures."""
    options.out.mkdir(parents=True, exist_ok=True)
    here = machine()
    print("\n".join(here.lines()), flush=True)
    print(f"[1/3] {options.robots} cart-poles on the wall clock for {options.seconds:g} s", flush=True)
    wall = run_on_the_wall_clock(options.robots, options.seconds, options.workers, options.seed)
    print("\n".join(wall.lines()), flush=True)
    print("[2/3] the same task three ways, 12 s each on virtual time", flush=True)
    comparison = compare(options.robots, options.workers, options.seed)
    print("\n".join(comparison.lines()), flush=True)
    pictures = _draw(options, wall, comparison)
    print(f"[3/3] wrote {' and '.join(str(path) for path in pictures)}")
    if options.json is not None:
        options.json.write_text(json.dumps(_figures(wall, comparison), indent=2) + "\n")
    return 0


def _draw(options: Options, wall: WallRun, comparison: Comparison) -> list[Path]:
    pictures = {"timing.svg": wall.timeline(), "tracking.svg": comparison.curves()}
    paths = []
    for name, text in pictures.items():
        path = options.out / name
        path.write_text(text)
        paths.append(path)
    return paths


def _figures(wall: WallRun, comparison: Comparison) -> dict[str, Any]:
    return {**wall.figures(), **comparison.figures()}
