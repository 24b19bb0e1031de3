"""Random numbers for many robots at once, each robot from a sequence of its own."""

import numpy as np
import numpy.typing as npt

from rt_lrhc.randomness import stream

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class RobotStreams:
    """One sequence a robot for one purpose, keyed by (root, purpose, robot, episode) and nothing else.

    `rt_lrhc.randomness.stream` gives each sequence its 64-bit key when an episode begins; the numbers are then a
    hash of (key, how many were drawn before), for all robots in one pass of numpy: no generator is called in the
    control loop.

    Source of the hash: Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators, OOPSLA (SplitMix64).

    Args:
        num_robots: N.
        purpose: What the numbers are for, e.g. `"command: twist"`.
    """

    def __init__(self, num_robots: int, purpose: str) -> None:
        self._purpose = purpose
        self._keys = np.zeros(num_robots, dtype=np.uint64)
        self._drawn = np.zeros(num_robots, dtype=np.uint64)

    def begin(self, root: int, episodes: IntArray, rows: IntArray) -> None:
        """Start the sequences of the robots `rows`, (k,), in their episodes `episodes[rows]`."""
        for robot in rows:
            generator = stream(root, self._purpose, robot=int(robot), episode=int(episodes[robot]))
            self._keys[robot] = generator.integers(2**64, dtype=np.uint64)
        self._drawn[rows] = 0

    def of(self, rows: IntArray) -> "Draw":
        """Return what draws the next numbers of the robots `rows`, (k,)."""
        return Draw(self, rows)

    def seek(self, drawn: IntArray) -> None:
        """Let each sequence go on where `drawn`, (N,), numbers have been drawn."""
        self._drawn[:] = drawn

    def next(self, rows: IntArray, columns: int) -> FloatArray:
        """Return the next `columns` numbers of each of k robots, uniform in [0, 1), (k, columns)."""
        counts = self._drawn[rows][:, None] + np.arange(1, columns + 1, dtype=np.uint64)
        self._drawn[rows] += np.uint64(columns)
        words: npt.NDArray[np.uint64] = np.add(self._keys[rows][:, None], counts * _GOLDEN, dtype=np.uint64)
        words = (words ^ (words >> np.uint64(30))) * _FIRST
        words = (words ^ (words >> np.uint64(27))) * _SECOND
        words ^= words >> np.uint64(31)
        unit: FloatArray = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return unit


class Draw:
    """Draws numbers for some robots, a row each.

    Attributes:
        rows: Indices of the robots, (k,).
    """

    def __init__(self, streams: RobotStreams, rows: IntArray) -> None:
        self.rows = rows
        self._streams = streams

    def uniform(self, low: npt.ArrayLike, high: npt.ArrayLike, columns: int = 1) -> FloatArray:
        """Return numbers in [low, high), (k, columns); the bounds are scalars or (columns,)."""
        lower, upper = np.asarray(low, np.float64), np.asarray(high, np.float64)
        return lower + (upper - lower) * self._streams.next(self.rows, columns)

    def normal(self, columns: int = 1) -> FloatArray:
        """Return standard normal numbers, (k, columns), by the method of Box and Muller."""
        pairs = self._streams.next(self.rows, 2 * columns)
        radius = np.sqrt(-2.0 * np.log1p(-pairs[:, :columns]))
        return np.asarray(radius * np.cos(2.0 * np.pi * pairs[:, columns:]), np.float64)
