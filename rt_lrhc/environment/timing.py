"""What was measured on the wall clock, for people and for files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rt_lrhc.timing.realtime import Granted
from rt_lrhc.timing.statistics import Summary, summarise

if TYPE_CHECKING:
    from rt_lrhc.environment.engine import Engine


@dataclass(frozen=True)
class TimingSummary:
    """Durations of the time-steps kept, s, and the overruns since the environment was made.

    Attributes:
        step: From one sending to the next.
        inference: The agent's, from the return of `step()` to its next call.
        send_lateness: From the grid to the end of the sending of an action.
        capture_lateness: From the time that a capture was due to its begin.
        capture: Duration of the capture.
        overruns: Restarts of the grid.
    """

    step: Summary
    inference: Summary
    send_lateness: Summary
    capture_lateness: Summary
    capture: Summary
    overruns: int


class Timing:
    """The trace of the last 8192 time-steps on the wall clock; empty on virtual time.

    Attributes:
        granted: What was asked of the operating system, and its answers.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.granted = Granted()

    def columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the trace, a column a name (`rt_lrhc.environment.engine.TRACE_COLUMNS`), s of CLOCK_MONOTONIC."""
        from rt_lrhc.environment.engine import TRACE_COLUMNS

        rows = self._engine.trace.values()
        return {name: rows[:, index] for index, name in enumerate(TRACE_COLUMNS)}

    def summary(self) -> TimingSummary:
        """Sum up the trace."""
        trace = self.columns()
        # The first step after a reset or a pause follows no other one: its start is not the end of the last.
        follows = np.abs(trace["grid"][1:] - trace["end_due"][:-1]) < 1e-6
        return TimingSummary(
            step=summarise(np.diff(trace["sent"])[follows]),
            inference=summarise(trace["inference_end"] - trace["inference_begin"]),
            send_lateness=summarise(trace["sent"] - trace["grid"]),
            capture_lateness=summarise(trace["capture_begin"] - trace["capture_due"]),
            capture=summarise(trace["capture_end"] - trace["capture_begin"]),
            overruns=self._engine.clock.overruns,
        )

    def save(self, path: str | Path) -> None:
        """Write the trace as an .npz file, one array a column."""
        np.savez(path, allow_pickle=False, **self.columns())
