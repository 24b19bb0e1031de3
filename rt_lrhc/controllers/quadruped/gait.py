"""Which foot stands when: gaits by phase, orders that overrule them, and the swings that they cause.

A gait has a period, a duty (the part of it that a leg stands) and an offset of phase for each leg. Legs swing on a
timer of their own, which follows the gait's phase where nothing overrules it: so a change of gait or an order never
makes a foot jump, and a foot that was lifted always comes down in a swing.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from rt_lrhc.cluster.controller import BoolArray, FloatArray, IntArray

LATEST_START = 0.35
"""A leg that stands does not begin a swing of which more than this part has passed."""

LONGEST_STRIDE = 0.32
"""Way that the body goes over a standing foot, at most, in a gait's own period, m."""

SHORTEST_PERIOD = 0.2
"""s."""

HURRY = 1.3
"""A foot swings at most this much faster than its gait has it."""

ORDER = 0.5
"""An order for a leg counts from here on: above, stand; below the negative, swing; between, follow the gait."""


class Gait(IntEnum):
    """Gaits that an agent can ask for."""

    STAND = 0
    TROT = 1
    BOUND = 2
    PRONK = 3
    PACE = 4
    WALK = 5


# Offsets are those of Cheetah-Software in tenths of a period (trot, bound, pronk, pace, walk). Periods and duties are
# ours: a control period of 20 ms wants longer steps than the 0.27 s there, and the walk keeps three feet down.
_PERIOD = np.array([0.4, 0.40, 0.32, 0.36, 0.32, 0.60])
_DUTY = np.array([1.0, 0.50, 0.50, 0.60, 0.56, 0.75])
_OFFSETS = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.5, 0.5, 0.0],
        [0.5, 0.5, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [0.5, 0.0, 0.5, 0.0],
        [0.0, 0.5, 0.75, 0.25],
    ]
)
_STAND_SWING = 0.25
"""Length of a swing that is ordered of a robot that stands, s."""


@dataclass
class Schedule:
    """What the feet of n robots do from the middle of a control period on.

    Times are counted from that middle, s.

    Attributes:
        swinging: Legs in the air now, (n, 4).
        started: Legs that have just begun to swing, (n, 4).
        progress: Part of the swing that has passed, (n, 4); 1 where a leg stands.
        rate: How fast it passes, 1/s, (n, 4).
        ceiling: Where it stops: 0.5 where the foot is held up by order, else 1, (n, 4).
        landing: Time of the next touchdown, (n, 4); infinite where there is none in sight.
        stance_time: Length of a stance, s, (n, 1).
        swing_time: Length of a swing, s, (n, 1).
        lifted: Legs that an order holds up, or will lift soon, (n, 4).
    """

    swinging: BoolArray
    started: BoolArray
    progress: FloatArray
    rate: FloatArray
    ceiling: FloatArray
    landing: FloatArray
    stance_time: FloatArray
    swing_time: FloatArray
    lifted: BoolArray
    _phase: FloatArray
    _duty: FloatArray
    _period: FloatArray
    _stand: BoolArray
    _until: FloatArray
    _lift_in: FloatArray

    def contacts(self, times: FloatArray) -> BoolArray:
        """Which feet stand at `times`, (m,): (n, m, 4)."""
        phase = self._later(times)
        scheduled = (phase < self._duty[:, None]) | self._stand[:, None]
        at = times[:, None]
        stands = np.where(
            self.swinging[:, None],
            scheduled & (at >= self.landing[:, None]),
            scheduled | (at < self._until[:, None]),
        )
        return stands & (at < self._lift_in[:, None])

    def progress_at(self, times: FloatArray) -> FloatArray:
        """Part of the swing that has passed at `times`, (m,), of legs that swing then: (n, m, 4), in [0, 1]."""
        at = times[:, None]
        own = self.progress[:, None] + self.rate[:, None] * at
        own = np.where(
            self.progress[:, None] <= self.ceiling[:, None], np.minimum(own, self.ceiling[:, None]), own
        )
        own = np.where(self.rate[:, None] < 0.0, np.maximum(own, self.ceiling[:, None]), own)
        phase = self._later(times)
        scheduled = (phase - self._duty[:, None]) / np.maximum(1.0 - self._duty[:, None], 1e-6)
        later = ~self.swinging[:, None] | (at >= self.landing[:, None])
        return np.clip(np.where(later, scheduled, own), 0.0, 1.0)

    def _later(self, times: FloatArray) -> FloatArray:
        return (self._phase[:, None] + times[:, None] / self._period[:, None]) % 1.0


class GaitScheduler:
    """Phase and swings of B robots: all that a controller remembers about their gaits."""

    def __init__(self, num_robots: int) -> None:
        self._phase = np.zeros(num_robots)
        self._progress = np.ones((num_robots, 4))
        self._rate = np.zeros((num_robots, 4))
        self._ceiling = np.ones((num_robots, 4))
        self._waited = np.zeros((num_robots, 4))
        self._period = np.full(num_robots, _PERIOD[Gait.TROT])

    def reset(self, rows: IntArray | BoolArray) -> None:
        """Put robots on their four feet, at phase 0."""
        self._phase[rows] = 0.0
        self._progress[rows] = 1.0
        self._rate[rows] = 0.0
        self._ceiling[rows] = 1.0
        self._waited[rows] = 0.0

    def advance(
        self,
        rows: IntArray,
        elapsed: FloatArray,
        middle: float,
        gait: IntArray,
        orders: FloatArray,
        period: FloatArray,
        duty: FloatArray,
        speed: FloatArray,
        lead: float,
    ) -> Schedule:
        """Let time pass for the robots in `rows`, (n,), and look ahead.

        Args:
            rows: Robots.
            elapsed: Time since their last call (0 after a reset), s, (n,).
            middle: Half a control period, s: decisions are made for the middle of one.
            gait: `Gait` of each, (n,).
            orders: For each leg: stand, swing or follow the gait, see `ORDER`, (n, 4).
            period: Period, s, (n,); 0 for the gait's own.
            duty: Duty, (n,); 0 for the gait's own.
            speed: Commanded speed, (n,), m/s: a gait's own period is shortened so that no stride is too long.
            lead: Time from the order to lift a foot that stands to its lift-off, s.
        """
        self._phase[rows] = (self._phase[rows] + elapsed / self._period[rows]) % 1.0
        own = _DUTY[gait]
        duty = np.where((duty > 0.0) & (own < 1.0), np.clip(duty, 0.3, 0.9), own)
        longest = np.maximum(LONGEST_STRIDE / (duty * np.maximum(speed, 1e-3)), SHORTEST_PERIOD)
        period = np.where(
            period > 0.0, np.clip(period, SHORTEST_PERIOD, 1.5), np.minimum(_PERIOD[gait], longest)
        )
        duty = duty[:, None]
        self._period[rows] = period
        period = period[:, None]
        phase = (self._phase[rows][:, None] + _OFFSETS[gait] + middle / period) % 1.0
        stand, ordered = orders > ORDER, orders < -ORDER
        # The body needs time to lean over the other feet; the horizon sees the lift coming.
        waited = np.where(ordered, self._waited[rows] + elapsed[:, None], 0.0)
        self._waited[rows] = waited
        lift = ordered & ((waited >= lead - 1e-9) | (self._progress[rows] < 1.0))
        swing_time = np.where(duty < 1.0, (1.0 - duty) * period, _STAND_SWING)
        scheduled = (phase >= duty) & ~stand & ~ordered
        scheduled_progress = (phase - duty) / np.maximum(1.0 - duty, 1e-6)
        remaining = np.maximum((1.0 - phase) * period, 1e-3)

        progress = self._progress[rows] + self._rate[rows] * elapsed[:, None]
        ceiling = self._ceiling[rows]
        held = self._progress[rows] <= ceiling
        progress = np.where(held, np.minimum(progress, ceiling), np.maximum(progress, ceiling))
        swinging = (self._progress[rows] < 1.0) & (progress < 1.0 - 1e-6)
        started = ~swinging & (lift | (scheduled & (scheduled_progress <= LATEST_START)))
        progress = np.where(started, np.where(lift, middle / swing_time, scheduled_progress), progress)
        swinging |= started
        progress = np.where(swinging, np.clip(progress, 0.0, 1.0), 1.0)

        # On time for the gait, unless a change of gait leaves too little of it: then the foot comes down late.
        on_time = np.minimum((1.0 - progress) / remaining, HURRY / swing_time)
        rate = np.where(scheduled, on_time, 1.0 / swing_time)
        rate = np.where(lift & (progress > 0.5), -rate, rate) * swinging
        ceiling = np.where(lift, 0.5, 1.0)
        lands = swinging & ~lift
        # A swing that has been refused is stood through, to the next stance.
        until = np.where(~swinging & scheduled, remaining, 0.0)
        next_cycle = np.where(
            (duty < 1.0) & ~stand & ~ordered, remaining + np.where(until > 0.0, period, 0.0), np.inf
        )
        landing = np.where(lands, (1.0 - progress) / np.maximum(rate, 1e-6), next_cycle)
        self._progress[rows], self._rate[rows], self._ceiling[rows] = progress, rate, ceiling
        return Schedule(
            swinging=swinging,
            started=started,
            progress=progress,
            rate=rate,
            ceiling=ceiling,
            landing=landing,
            stance_time=np.where(duty < 1.0, duty * period, 0.0),
            swing_time=swing_time,
            _phase=phase,
            _duty=duty,
            _period=period,
            _stand=stand,
            lifted=ordered,
            _until=until,
            _lift_in=np.where(ordered, np.where(lift, 0.0, lead - waited), np.inf),
        )
