"""A time source that moves only when a test says so."""

from rt_lrhc.timing.clock import to_ns


class ManualTime:
    """Time that stands still until `advance()`; `sleep_until` is remembered and jumps, like virtual time."""

    def __init__(self) -> None:
        self._now_ns = 0
        self.deadlines_ns: list[int] = []

    def now_ns(self) -> int:
        """Return the present, ns."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._now_ns += to_ns(seconds)

    def sleep_until(self, deadline_ns: int) -> None:
        """Remember `deadline_ns` and jump to it, unless it has passed."""
        self.deadlines_ns.append(deadline_ns)
        self._now_ns = max(self._now_ns, deadline_ns)
