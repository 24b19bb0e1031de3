"""When a worker that has died gets its next life."""

import math
from dataclasses import dataclass

from rt_lrhc.errors import ConfigurationError


@dataclass(frozen=True)
class RestartPolicy:
    """After a life that served a request the next begins at once; one that died before it served counts.

    The wait doubles with each of these in a row, and after `budget` of them the worker is quarantined: it is not
    started again, its robots stay on their fallback, and the others go on.

    Attributes:
        budget: Lives in a row that may die before they served a request, at least 1.
        backoff: Wait after the first of these, s.
        backoff_limit: Longest such wait, s.
        delay: Wait after a life that served, s.

    Raises:
        ConfigurationError: If one of them is not as said here.
    """

    budget: int = 5
    backoff: float = 0.1
    backoff_limit: float = 10.0
    delay: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int) or self.budget < 1:
            raise ConfigurationError(f"restarts.budget must be an integer of at least 1, got {self.budget!r}")
        for name in ("backoff", "backoff_limit", "delay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(
                    f"restarts.{name} must be a time of at least 0 s, got {getattr(self, name)!r}"
                )

    def wait(self, failed: int) -> float | None:
        """Return the wait in s after `failed` such lives in a row, or None when it is time for quarantine."""
        if failed == 0:
            return self.delay
        if failed >= self.budget:
            return None
        return float(min(self.backoff * 2.0 ** (failed - 1), self.backoff_limit))
