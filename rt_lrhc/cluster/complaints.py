"""Tracebacks on stderr, at most one a second: a controller that fails at every solve must not fill a disk."""

import sys
import time
import traceback

_INTERVAL_NS = 1_000_000_000


class Complaints:
    """Prints what went wrong, and how many times nothing was printed about it."""

    def __init__(self) -> None:
        self._next_ns = 0
        self._suppressed = 0

    def exception(self, what: str) -> None:
        """Print `what` and the traceback of the exception being handled, unless one was printed just now."""
        self._print(f"{what}\n{traceback.format_exc()}")

    def message(self, what: str) -> None:
        """Print `what`, unless something was printed just now."""
        self._print(f"{what}\n")

    def _print(self, text: str) -> None:
        now = time.monotonic_ns()
        if now < self._next_ns:
            self._suppressed += 1
            return
        if self._suppressed:
            text = f"({self._suppressed} more since the last message)\n{text}"
        print(f"rt_lrhc: {text}", end="", file=sys.stderr, flush=True)
        self._next_ns = now + _INTERVAL_NS
        self._suppressed = 0
