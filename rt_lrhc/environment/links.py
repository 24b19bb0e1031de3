"""Delays of messages: actions on their way to the world, observations on their way to the agent.

Times are ns on the engine's grid (a world's) or of its time source (a device's). A message that is overtaken by a newer
one is ignored when it arrives.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.delays import DelayDraws

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass
class _Message:
    number: int
    start_ns: int  # of the time-step that the action was handed over for
    due_ns: IntArray  # per robot
    under_way: BoolArray  # per robot
    actions: Array


class ActionLink:
    """Actions of N robots on their way to the world.

    Args:
        draws: The delays, of N robots.
        num_robots: N.
        batched: Whether actions carry a leading axis of robots.
    """

    def __init__(self, draws: DelayDraws, num_robots: int, *, batched: bool) -> None:
        self._draws = draws
        self._batched = batched
        self._all = np.ones(num_robots, dtype=np.bool_)
        self._under_way: deque[_Message] = deque()
        self._numbers = np.zeros(num_robots, dtype=np.int64)
        self._starts_ns = np.zeros(num_robots, dtype=np.int64)
        self._in_force: Array = np.zeros(0)
        self._sent = 0

    def restart(self, root: int) -> None:
        """Begin an episode of every robot: nothing is under way."""
        self._under_way.clear()
        self._draws.restart(root)
        self._sent = 0
        self._numbers[:] = 0

    def put(self, actions: Array, now_ns: int) -> Array:
        """Make `actions` act at once, in every robot, and return them: the first ones of an episode."""
        self._in_force = actions.copy()
        self._starts_ns[:] = now_ns
        return actions.copy()

    def put_rows(self, actions: Array, now_ns: int, rows: BoolArray) -> Array:
        """Begin the next episode of the robots in `rows`: drop what is under way to them, make `actions` act there.

        Returns:
            What is in force now, of all robots.
        """
        self._draws.restart_rows(rows)
        for message in self._under_way:
            message.under_way &= ~rows
        self._in_force[rows] = actions[rows]
        self._starts_ns[rows] = now_ns
        return self._in_force.copy()

    def send(self, actions: Array, now_ns: int, start_ns: int) -> None:
        """Send `actions` now, which were handed over for the time-step that starts at `start_ns`."""
        self._sent += 1
        due_ns = now_ns + self._draws.next_ns()
        self._under_way.append(_Message(self._sent, start_ns, due_ns, self._all.copy(), actions.copy()))

    def arrived(self, now_ns: int) -> Array | None:
        """Return the actions in force where some have arrived since the last call, else None."""
        changed = False
        for message in self._under_way:
            due = message.under_way & (message.due_ns <= now_ns)
            if due.any():
                message.under_way &= ~due
                newer = due & (message.number > self._numbers)
                changed = changed or bool(newer.any())
                self._merge(message, newer)
        while self._under_way and not self._under_way[0].under_way.any():
            self._under_way.popleft()
        return self._in_force.copy() if changed else None

    def _merge(self, message: _Message, rows: BoolArray) -> None:
        self._numbers[rows] = message.number
        self._starts_ns[rows] = message.start_ns
        if self._batched:
            self._in_force[rows] = message.actions[rows]
        elif rows[0]:
            self._in_force = message.actions

    @property
    def next_due_ns(self) -> int | None:
        """When the next action arrives; None where none is under way."""
        due = [int(m.due_ns[m.under_way].min()) for m in self._under_way if m.under_way.any()]
        return min(due, default=None)

    def age(self, now_ns: int) -> Any:
        """Return the age of the action in force, s: from the start of the time-step that it was handed over for."""
        ages = (now_ns - self._starts_ns) / 1e9
        return ages if self._batched else float(ages[0])


class ObservationLink:
    """Observations of N robots: what is handed out at t is what was sampled at t minus the delay, or just before.

    Args:
        draws: The delays, of N robots.
        num_robots: N.
        period_ns: Time between two samples.
        batched: Whether components carry a leading axis of robots.
    """

    def __init__(self, draws: DelayDraws, num_robots: int, period_ns: int, *, batched: bool) -> None:
        self._draws = draws
        self._batched = batched
        self._samples: deque[tuple[int, list[Array]]] = deque()
        # What is older than the longest delay is never asked for again.
        self._kept_ns = round(draws.delay.bound * 1e9) + period_ns
        self._states_ns = np.zeros(num_robots, dtype=np.int64)

    def restart(self, root: int, components: list[Array]) -> None:
        """Begin an episode of every robot, at time 0 with `components`."""
        self._draws.restart(root)
        self._samples.clear()
        self._states_ns[:] = 0
        self.sample(0, components)

    def restart_rows(self, rows: BoolArray, now_ns: int, components: list[Array]) -> None:
        """Begin the next episode of the robots in the mask, now, with their rows of `components`."""
        self._draws.restart_rows(rows)
        self._states_ns[rows] = now_ns
        time_ns, newest = self._samples[-1]
        assert time_ns == now_ns
        for mine, theirs in zip(newest, components, strict=True):
            mine[rows] = theirs[rows]

    def sample(self, now_ns: int, components: list[Array]) -> None:
        """Take a sample, which belongs to the link from now on."""
        self._samples.append((now_ns, components))
        while self._samples[0][0] < now_ns - self._kept_ns and self._samples[1][0] <= now_ns - self._kept_ns:
            self._samples.popleft()

    def take(self, now_ns: int) -> list[Array]:
        """Draw the delays of an observation that is captured now, and return what it holds: copies."""
        times = np.array([time_ns for time_ns, _ in self._samples])
        wanted = np.maximum(now_ns - self._draws.next_ns(), self._states_ns)
        chosen = np.maximum(np.searchsorted(times, wanted, side="right") - 1, 0)
        self._states_ns = times[chosen]
        if not self._batched:
            return [component.copy() for component in self._samples[int(chosen[0])][1]]
        components = [component.copy() for component in self._samples[int(chosen[0])][1]]
        for index in np.unique(chosen):
            rows = chosen == index
            for mine, sampled in zip(components, self._samples[int(index)][1], strict=True):
                mine[rows] = sampled[rows]
        return components

    def age(self, now_ns: int) -> Any:
        """Return the age of the state in the last observation, s."""
        ages = (now_ns - self._states_ns) / 1e9
        return ages if self._batched else float(ages[0])
