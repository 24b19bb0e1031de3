"""Run a recorded episode again under virtual time, and say whether it is the same, value by value.

A recording comes from `env.unwrapped.start_recording()`, an episode, and `env.unwrapped.recording().save("FILE.npz")`.

Exit code: 0 if every observation, reward and end is the same; 1 if not, or if the file cannot be replayed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc replay` shall do.

    Attributes:
        file: The recording, an .npz file.
    """

    file: Annotated[Path, Positional]


def run(options: Options) -> int:
    """Replay, print the outcome and return the exit code."""
    from rt_lrhc.environment.recording import Recording
    from rt_lrhc.environment.replay import replay

    recording = Recording.load(options.file)
    robots = "1 robot" if recording.num_envs is None else f"{recording.num_envs} robots"
    print(f"{options.file}: {len(recording.actions)} time-steps, {robots}, {recording.config['interface']}")
    difference = replay(recording)
    print("the same, value by value" if difference is None else f"first difference: {difference}")
    return 0 if difference is None else 1
