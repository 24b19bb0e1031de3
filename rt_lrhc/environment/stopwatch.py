"""How long the agent took."""

import time


class Stopwatch:
    """Measures from the return of `step()` to its next call, s of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._begin: float | None = None

    def start(self) -> None:
        """The agent has its observation."""
        self._begin = time.monotonic()

    def stop(self) -> None:
        """The agent was told to pause: what it does until its next action is no inference."""
        self._begin = None

    def read(self) -> tuple[float, float] | None:
        """Return begin and end of the inference that ends now; None where none was begun."""
        return None if self._begin is None else (self._begin, time.monotonic())
