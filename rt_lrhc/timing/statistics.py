"""Measured durations, kept in bounded memory and summed up as p50, p99 and max."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import ConfigurationError

FloatArray = npt.NDArray[np.float64]


class DurationUnit(Enum):
    """A unit in which durations are shown to people. The value is its symbol."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"

    @property
    def seconds(self) -> float:
        """Length of one unit, s."""
        return {"s": 1.0, "ms": 1e-3, "us": 1e-6}[self.value]


@dataclass(frozen=True)
class Summary:
    """What a set of samples amounts to. SI units; all NaN where there is no sample.

    Attributes:
        n: Number of samples summed up.
        p50: Median.
        p99: 99th percentile, interpolated linearly between samples.
        max: Largest sample.
        mean: Arithmetic mean, for totals and ratios; never quoted alone.
    """

    n: int
    p50: float
    p99: float
    max: float
    mean: float

    def format(self, unit: DurationUnit | None = None) -> str:
        """Return the durations p50 / p99 / max for people, e.g. `"20.0 / 20.4 / 21.3 ms"`.

        Args:
            unit: Unit to show them in; None takes the one in which the median reads best.
        """
        if self.n == 0:
            return "no samples"
        unit = unit or _readable_unit(self.p50)
        values = [value / unit.seconds for value in (self.p50, self.p99, self.max)]
        decimals = _decimals(values[0])
        return " / ".join(f"{value:.{decimals}f}" for value in values) + f" {unit.value}"


def _readable_unit(duration: float) -> DurationUnit:
    for unit in (DurationUnit.SECONDS, DurationUnit.MILLISECONDS):
        if abs(duration) >= unit.seconds:
            return unit
    return DurationUnit.MICROSECONDS


def _decimals(value: float) -> int:
    """Decimals that show three significant digits of `value`, at most three of them."""
    if value == 0.0 or not math.isfinite(value):
        return 1
    return min(3, max(0, 2 - math.floor(math.log10(abs(value)))))


def summarise(samples: FloatArray) -> Summary:
    """Sum up `samples`, any shape. NaN means "not measured" and does not count."""
    values = np.asarray(samples, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if values.size == 0:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    p50, p99 = np.percentile(values, (50.0, 99.0))
    return Summary(int(values.size), float(p50), float(p99), float(values.max()), float(values.mean()))


class Rows:
    """The last `capacity` rows of numbers, in memory that is allocated once.

    Args:
        capacity: Number of rows kept; older ones are overwritten.
        columns: Numbers in a row, e.g. 2 for the start and the end of a piece of work.

    Raises:
        ConfigurationError: If `capacity` or `columns` is below 1.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        if capacity < 1 or columns < 1:
            raise ConfigurationError(
                f"capacity and columns must be at least 1, got {capacity} rows of {columns} columns"
            )
        self.capacity = capacity
        # One writer. A reader on another thread may miss rows that are being added, and see one of them half written.
        self._rows = np.full((capacity, columns), np.nan)
        self._total = 0

    @property
    def total(self) -> int:
        """Number of rows ever added since the last `clear`."""
        return self._total

    def __len__(self) -> int:
        """Return the number of rows kept."""
        return min(self._total, self.capacity)

    def add(self, *row: float) -> None:
        """Append one row."""
        self._rows[self._total % self.capacity] = row
        self._total += 1

    def values(self) -> FloatArray:
        """Return a copy of the rows kept, oldest first, (len(self), columns)."""
        if self._total <= self.capacity:
            return self._rows[: self._total].copy()
        return np.roll(self._rows, -(self._total % self.capacity), axis=0)

    def clear(self) -> None:
        """Forget all rows."""
        self._total = 0


class Samples:
    """The last `capacity` samples of one quantity, in memory that is allocated once.

    Args:
        capacity: Number of samples kept; older ones are overwritten, and a summary covers only what is kept.

    Raises:
        ConfigurationError: If `capacity` is below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ConfigurationError(f"capacity must be at least 1 sample, got {capacity}")
        self.capacity = capacity
        # One writer. A reader on another thread may miss samples that are being added; it never sees half of one.
        self._values = np.full(capacity, np.nan)
        self._total = 0

    @property
    def total(self) -> int:
        """Number of samples ever added since the last `clear`."""
        return self._total

    def __len__(self) -> int:
        """Return the number of samples kept."""
        return min(self._total, self.capacity)

    def add(self, value: float) -> None:
        """Append one sample."""
        self._values[self._total % self.capacity] = value
        self._total += 1

    def add_many(self, values: FloatArray | Iterable[float]) -> None:
        """Append samples in order, e.g. one of each robot; an array of any shape is taken in C order."""
        new = np.asarray(
            values if isinstance(values, np.ndarray) else list(values), dtype=np.float64
        ).reshape(-1)
        start = self._total % self.capacity
        if start + new.size <= self.capacity:
            self._values[start : start + new.size] = new
        else:
            kept = new[-self.capacity :]
            where = np.arange(self._total + new.size - kept.size, self._total + new.size) % self.capacity
            self._values[where] = kept
        self._total += new.size

    def values(self) -> FloatArray:
        """Return a copy of the samples kept, oldest first, (len(self),)."""
        if self._total <= self.capacity:
            return self._values[: self._total].copy()
        return np.roll(self._values, -(self._total % self.capacity))

    def summary(self) -> Summary:
        """Sum up the samples kept."""
        return summarise(self.values())

    def clear(self) -> None:
        """Forget all samples."""
        self._total = 0
