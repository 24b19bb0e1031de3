"""What `benchmarks()` returns: rtgym's durations, and the delays that the action buffer has to cover."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.config import BenchmarkType
from rt_lrhc.timing.statistics import Rows

FloatArray = npt.NDArray[np.float64]

_COLUMNS = ("inference", "begin", "joined", "end", "observation_age", "action_age", "send_lateness")


class Benchmarks:
    """Collects what the caller of `step()` sees: one row a time-step, the last 8192 of them.

    Args:
        kind: `"polyak"` or `"trace"`.
        polyak: Weight of the newest value in a running average, in (0, 1].
    """

    def __init__(self, kind: BenchmarkType, polyak: float) -> None:
        self._kind = kind
        self._polyak = polyak
        self._rows = Rows(8192, len(_COLUMNS))

    def add(
        self,
        inference: tuple[float, float] | None,
        times: tuple[float, float, float],
        figures: dict[str, Any],
    ) -> None:
        """Add one call of `step()`.

        Args:
            inference: Begin and end of the inference before it, s; None where it was not measured.
            times: When the call began, had the time-step's result, and ended, s.
            figures: Its `info["rt"]`, before masks were added.
        """
        inferred = float("nan") if inference is None else inference[1] - inference[0]
        ages = (float(np.max(figures[name])) for name in ("observation_age", "action_age"))
        self._rows.add(inferred, *times, *ages, float(figures["send_lateness"]))

    def result(self, trace: dict[str, FloatArray], buffer: tuple[int, int]) -> dict[str, Any]:
        """Return the benchmarks of the configured kind.

        Args:
            trace: The trace of the clock, a column a name.
            buffer: Actions that the buffer needs, and has.
        """
        mine = dict(zip(_COLUMNS, self._rows.values().T, strict=True))
        delays = {name: mine[name] for name in _COLUMNS[4:]}
        deltas = {
            "time_step_duration": np.diff(trace["send_begin"]),
            "step_duration": mine["end"] - mine["begin"],
            "join_duration": mine["joined"] - mine["begin"],
            "inference_duration": mine["inference"],
            "send_control_duration": trace["sent"] - trace["send_begin"],
            "get_obs_duration": trace["capture_end"] - trace["capture_begin"],
        }
        if self._kind == "polyak":
            averages = {name: self._average(values) for name, values in {**deltas, **delays}.items()}
            return {**averages, "act_buf_len": buffer}
        # As rtgym has them: these two from the second time-step on, beside clock["start_step"][1:].
        deltas["time_step_duration"] = np.diff(mine["begin"])
        deltas["inference_duration"] = mine["begin"][1:] - mine["end"][:-1]
        clock = {
            "start_step": mine["begin"],
            "end_step_join": mine["joined"],
            "end_step": mine["end"],
            "start_get_obs": trace["capture_begin"],
            "end_get_obs": trace["capture_end"],
            "start_send_control": trace["send_begin"],
            "end_send_control": trace["sent"],
        }
        return {"clock": clock, "deltas": deltas, "delays": delays, "act_buf_len": buffer}

    def _average(self, values: FloatArray) -> tuple[float, float]:
        """Return the running average and the running average deviation; NaN where nothing was measured."""
        known = values[~np.isnan(values)].tolist()
        if not known:
            return float("nan"), float("nan")
        average, deviation = known[0], 0.0
        for value in known[1:]:
            difference = value - average
            average += self._polyak * difference
            deviation += self._polyak * (abs(difference) - deviation)
        return average, deviation
