"""Whether the action buffer covers the total delay, as declared and as measured."""

import logging
import math
from collections import Counter
from typing import Any

from rt_lrhc.config import RealTimeConfig
from rt_lrhc.delays import Delay, required_buffer_length, rounded_up
from rt_lrhc.environment.engine import Durations
from rt_lrhc.environment.setup import Parts

_log = logging.getLogger("rt_lrhc")

_RARE = 0.05
"""Part of the time-steps that a measured length need not cover: on a shared machine somebody is late now and then."""

_ENOUGH = 20
"""Time-steps that are measured before anything is said about them."""

_NEGLIGIBLE = 0.1
"""Part of a time-step for which an action may go on acting, by a late sending, without counting as one more."""


class Coverage:
    """Compares the length of the action buffer with what the delays need, and says once what is too small.

    The delays add up: those that the configuration declares, on a world rounded up to its control periods, and those
    that the interface brings about itself (`action_delay_bound`, `observation_delay_bound`).

    Args:
        config: The configuration.
        parts: What the interface declares.
    """

    def __init__(self, config: RealTimeConfig, parts: Parts) -> None:
        self._name = type(parts.interface).__name__
        self._action = _bound(config.action_delay, parts.control_period)
        self._observation = _bound(config.observation_delay, parts.control_period)
        self._own_action, self._own_observation = parts.action_delay_bound, parts.observation_delay_bound
        self._in_observation = config.act_in_obs
        self._durations = Durations(
            config.time_step_duration, config.start_obs_capture, config.time_step_timeout_factor
        )
        self._warned = 0
        self._counts: Counter[int] = Counter()
        self.length = self.declared if config.act_buf_len == "auto" else config.act_buf_len
        self._check_declared()

    @property
    def declared(self) -> int:
        """Length that the declared delays need, in actions."""
        return self._needed(self._action + self._own_action)

    def _needed(self, action_delay: float) -> int:
        durations = self._durations
        return required_buffer_length(
            durations.time_step_duration,
            durations.start_obs_capture,
            action_delay,
            self._observation + self._own_observation,
        )

    def set_durations(self, durations: Durations) -> None:
        """Check again, with other durations."""
        self._durations = durations
        self._counts.clear()
        self._check_declared()

    def _check_declared(self) -> None:
        if self.declared > self.length:
            advice = f'act_buf_len={self.declared}, or "auto"'
            self._warn(self.declared, "the declared delays", self._action + self._own_action, advice)

    @property
    def measured(self) -> int:
        """Length that covers 95 % of the measured time-steps; 0 where none was measured."""
        beyond = _RARE * self._counts.total()
        for needed in sorted(self._counts, reverse=True):
            beyond -= self._counts[needed]
            if beyond < 0.0:
                return needed
        return 0

    def measure(self, figures: dict[str, Any]) -> None:
        """Take the `info["rt"]` of a time-step on the wall clock into account: sending may be late, too."""
        late = float(figures["send_lateness"])
        durations = self._durations
        counted = max(late - _NEGLIGIBLE * durations.time_step_duration, 0.0)
        # What is later than the clock absorbs restarts the grid and is an overrun, not a delay.
        longest = durations.time_step_timeout_factor * durations.time_step_duration
        needed = self._needed(self._action + self._own_action + min(counted, longest))
        self._counts[needed] += 1
        if needed > self.length and self._counts.total() >= _ENOUGH and self.measured > self.length:
            self._warn(
                needed,
                "the delays with the measured lateness of sending",
                self._action + self._own_action + late,
                f"act_buf_len={needed}, or a faster agent",
            )

    def _warn(self, needed: int, what: str, action_delay: float, advice: str) -> None:
        if needed <= self._warned or not self._in_observation:
            return
        self._warned = needed
        _log.warning(
            "act_buf_len = %d is too small: %s of %s (actions up to %.1f ms, observations up to %.1f ms) need %d "
            "actions at time-steps of %.1f ms that are captured after %.1f ms: give %s",
            self.length,
            what,
            self._name,
            action_delay * 1e3,
            (self._observation + self._own_observation) * 1e3,
            needed,
            self._durations.time_step_duration * 1e3,
            self._durations.start_obs_capture * 1e3,
            advice,
        )


def _bound(delay: Delay | None, control_period: float | None) -> float:
    if delay is None:
        return 0.0
    bound = rounded_up(delay.bound, control_period)
    assert math.isfinite(bound)
    return bound
