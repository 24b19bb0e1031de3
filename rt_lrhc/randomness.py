"""Independent random streams, keyed by what they are for.

A stream depends on its key alone: neither lateness, nor the number of robots, nor another robot's reset moves it.
"""

import zlib

import numpy as np


def stream(root: int, purpose: str, *, robot: int = 0, episode: int = 0) -> np.random.Generator:
    """Return the random stream of one robot, episode and purpose.

    Args:
        root: The root drawn at `reset()`, at least 0.
        purpose: What the numbers are for, e.g. `"target"`.
        robot: Index of the robot.
        episode: Number of resets of that robot since the root was drawn.
    """
    key = (zlib.crc32(purpose.encode()), robot, episode)
    return np.random.default_rng(np.random.SeedSequence(entropy=root, spawn_key=key))
