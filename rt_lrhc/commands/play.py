"""Let an agent play a task, on either clock: figures, and a video, also without a display."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rt_lrhc.config import Clock
from rt_lrhc.errors import ConfigurationError


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc play` shall do.

    Attributes:
        task: Name of a task (see `rt-lrhc list`), or "package.module:function", or "path.py:function".
        agent: Who acts: the task's agent by hand, nobody (all actions zero), or chance.
        clock: Wall clock, as on a robot, or virtual time, as fast as it goes.
        seconds: Length of the run in the task's time, s.
        robots: Robots; None for one.
        seed: Seed of the task and of the random agent.
        workers: Worker processes of the cluster; None lets it choose.
        set: A change of the task, such as "rewards.action_rate=0" or "commands.twist.zero=1.0"; any number of times.
        video: File (.mp4) to write pictures to.
        json: File to write the figures to.
    """

    task: Annotated[str, tyro.conf.Positional]
    agent: Literal["scripted", "zero", "random"] = "scripted"
    clock: Clock = "virtual"
    seconds: float = 10.0
    robots: int | None = None
    seed: int = 0
    workers: int | None = None
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    video: Path | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.robots is not None and self.robots < 1:
            raise ConfigurationError(f"--robots must be at least 1, got {self.robots}")
        if not 0.0 < self.seconds <= 86400.0:
            raise ConfigurationError(f"--seconds must lie in (0, 86400] s, got {self.seconds}")
        if self.video is not None and self.video.suffix != ".mp4":
            raise ConfigurationError(f"--video must name an .mp4 file, got {self.video}")


def run(options: Options) -> int:
    """Play, print the figures, write what was asked for."""
    from rt_lrhc.commands._play_parts import play

    played = play(options)
    print("\n".join(played.lines()), flush=True)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(played.figures(), indent=2) + "\n", encoding="utf-8")
        print(f"wrote {options.json}")
    if options.video is not None:
        print(f"wrote {options.video}: {played.frames} pictures")
    return 0
