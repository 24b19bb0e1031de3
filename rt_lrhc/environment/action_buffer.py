"""The last actions, which make a delayed decision process Markovian when they are observed."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.bool_]


class ActionBuffer:
    """The last `length` actions, oldest first; holds copies and gives copies.

    Args:
        length: Number of actions, at least 1. It must cover the total delay, in time-steps.
        default_action: What fills the buffer at first: one action, or one a row, (N, ...).
    """

    def __init__(self, length: int, default_action: Array) -> None:
        self._default = default_action.copy()
        self._actions = np.repeat(self._default[None], length, axis=0)
        self._oldest = 0

    def append(self, action: Array) -> None:
        """Replace the oldest action by a copy of `action`."""
        self._actions[self._oldest] = action
        self._oldest = (self._oldest + 1) % len(self._actions)

    def replace_newest(self, action: Array, rows: Rows | None = None) -> None:
        """Replace the newest action by a copy of `action`: all of it, or the robots in the mask `rows` alone."""
        if rows is None:
            self._actions[self._oldest - 1] = action
        else:
            self._actions[self._oldest - 1, rows] = action[rows]

    def newest(self) -> Array:
        """Return a copy of the newest action."""
        newest: Array = self._actions[self._oldest - 1].copy()
        return newest

    def set_default(self, default_action: Array) -> None:
        """Use another default action from the next `clear` on."""
        self._default = default_action.copy()

    def clear(self, rows: Rows | None = None) -> None:
        """Fill the buffer with the default action: all of it, or the robots in the mask `rows`, (N,), alone."""
        if rows is None:
            self._actions[:] = self._default
        else:
            self._actions[:, rows] = self._default[rows]

    def stacked(self) -> Array:
        """Return a copy of all actions, (length, ...), oldest first."""
        return np.roll(self._actions, -self._oldest, axis=0)

    def as_list(self) -> list[Array]:
        """Return copies of the actions, oldest first."""
        actions, oldest, length = self._actions, self._oldest, len(self._actions)
        return [actions[(oldest + k) % length].copy() for k in range(length)]
