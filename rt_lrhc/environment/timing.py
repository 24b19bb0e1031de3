"""What was measured on the wall clock, for people and for files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.timing.realtime import Granted
from rt_lrhc.timing.statistics import Summary, summarise

if TYPE_CHECKING:
    from rt_lrhc.environment.engine import EngineLike


@dataclass(frozen=True)
class TimingSummary:
    """Durations of the time-steps kept, s, and the overruns since the environment was made.

    Attributes:
        step: From one sending to the next.
        inference: The agent's, from the return of `step()` to its next call.
        send_lateness: From the grid to the call of `send_control`.
        send: Duration of the sending.
        capture_lateness: From the time that a capture was due to its begin.
        capture: Duration of the capture.
        overruns: Restarts and slips of the grid.
        overruns_by_cause: The same, by who made the time-step late (`rt_lrhc.environment.engine.CAUSES`).
    """

    step: Summary
    inference: Summary
    send_lateness: Summary
    send: Summary
    capture_lateness: Summary
    capture: Summary
    overruns: int
    overruns_by_cause: dict[str, int]


class Timing:
    """The trace of the last 8192 time-steps on the wall clock; empty on virtual time.

    Attributes:
        granted: What was asked of the operating system, and its answers.
    """

    def __init__(self, engine: "EngineLike") -> None:
        self._engine = engine
        self.granted = Granted()

    def columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the trace, a column a name (`rt_lrhc.environment.engine.TRACE_COLUMNS`), s of CLOCK_MONOTONIC."""
        return _columns(self._engine.measured()[0])

    def summary(self) -> TimingSummary:
        """Sum up the trace."""
        rows, overruns = self._engine.measured()
        trace = _columns(rows)
        # The first step after a reset or a pause follows no other one: its start says nothing of the clock.
        follows = trace["follows"][1:] == 1.0
        return TimingSummary(
            step=summarise(np.diff(trace["sent"])[follows]),
            inference=summarise(trace["inference_end"] - trace["inference_begin"]),
            send_lateness=summarise(trace["send_begin"] - trace["grid"]),
            send=summarise(trace["sent"] - trace["send_begin"]),
            capture_lateness=summarise(trace["capture_begin"] - trace["capture_due"]),
            capture=summarise(trace["capture_end"] - trace["capture_begin"]),
            overruns=sum(overruns.values()),
            overruns_by_cause=overruns,
        )

    def save(self, path: str | Path) -> None:
        """Write the trace as an .npz file, one array a column."""
        columns: dict[str, Any] = {**self.columns()}
        np.savez(path, **columns)


def _columns(rows: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    from rt_lrhc.environment.engine import TRACE_COLUMNS

    return {name: rows[:, index] for index, name in enumerate(TRACE_COLUMNS)}
