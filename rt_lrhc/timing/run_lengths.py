"""A record that stays small where it repeats itself: values with the number of times that each came in a row."""

from collections.abc import Iterator
from itertools import repeat
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RunLengths(Generic[Value]):
    """A list that only grows at its end; a run of equal values takes the memory of one.

    An environment that is on time for a day writes down the same thing four million times.
    """

    def __init__(self) -> None:
        self._values: list[Value] = []
        self._counts: list[int] = []
        self._total = 0

    def append(self, value: Value) -> None:
        """Append a value."""
        self._total += 1
        if self._values and self._values[-1] == value:
            self._counts[-1] += 1
        else:
            self._values.append(value)
            self._counts.append(1)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._counts.clear()
        self._total = 0

    @property
    def runs(self) -> int:
        """Number of runs: what the memory grows with."""
        return len(self._values)

    def __len__(self) -> int:
        """Return the number of values."""
        return self._total

    def __iter__(self) -> Iterator[Value]:
        """Yield every value, as often as it came."""
        for value, count in zip(self._values, self._counts, strict=True):
            yield from repeat(value, count)
