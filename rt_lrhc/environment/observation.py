"""How the interface's observation and the action buffer become what the agent sees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.config import ObservationForm
from rt_lrhc.environment.action_buffer import ActionBuffer
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interface import TupleSpace

Array = npt.NDArray[Any]


class ObservationBuilder:
    """Turns components into an observation of the form that was asked for, and back into rows.

    - `"tuple"`: `(*components, *actions)`, oldest action first, as rtgym.
    - `"dict"`: the components under their names and `"action_buffer"`, (act_buf_len, ...).
    - `"flat"`: all of it concatenated as float32.

    Args:
        components: The interface's spaces.
        names: Their names; None for `observation_0` and so on.
        action_space: The space of one robot's action.
        act_buf_len: Actions in the buffer; 0 leaves the buffer out.
        form: The form.
        batched: Whether arrays carry a leading axis of robots.
    """

    def __init__(
        self,
        components: TupleSpace,
        names: Sequence[str] | None,
        action_space: spaces.Box,
        act_buf_len: int,
        form: ObservationForm,
        *,
        batched: bool,
    ) -> None:
        self._form = form
        self._batched = batched
        self._with_actions = act_buf_len > 0
        self._names = (
            list(names) if names is not None else [f"observation_{k}" for k in range(len(components.spaces))]
        )
        if (
            len(self._names) != len(components.spaces)
            or len({*self._names, "action_buffer"}) != len(self._names) + 1
        ):
            raise ConfigurationError(
                f"observation_names must name the {len(components.spaces)} components, each once and none "
                f"'action_buffer', got {self._names}"
            )
        self.space: spaces.Space[Any]
        if form == "tuple":
            self.space = spaces.Tuple([*components.spaces, *[action_space] * act_buf_len])
        elif form == "dict":
            named: dict[str, spaces.Space[Any]] = dict(zip(self._names, components.spaces, strict=True))
            if self._with_actions:
                named["action_buffer"] = _stacked_box(action_space, act_buf_len)
            self.space = spaces.Dict(named)
        else:
            self.space = _flat_box([*components.spaces, *[action_space] * act_buf_len], self._names)

    def build(self, components: list[Array], buffer: ActionBuffer) -> Any:
        """Return the observation; the components are used as they are, the actions are copied."""
        if self._form == "dict":
            observation = dict(zip(self._names, components, strict=True))
            if self._with_actions:
                stacked = buffer.stacked()
                observation["action_buffer"] = (
                    np.ascontiguousarray(stacked.swapaxes(0, 1)) if self._batched else stacked
                )
            return observation
        parts = [*components, *buffer.as_list()] if self._with_actions else components
        if self._form == "tuple":
            return tuple(parts)
        if self._batched:
            return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1, dtype=np.float32)
        return np.concatenate([part.ravel() for part in parts], dtype=np.float32)

    def rows(self, observation: Any, mask: npt.NDArray[np.bool_]) -> Any:
        """Return the observations of the robots in `mask`, as Gymnasium's vector environments put them into `info`.

        Tuples become an object array with one tuple a robot (None elsewhere); arrays keep their shape, zero elsewhere.
        """
        if self._form == "dict":
            return {name: _masked(value, mask) for name, value in observation.items()}
        if self._form == "flat":
            return _masked(observation, mask)
        rows = np.full(len(mask), None, dtype=object)
        for row in np.flatnonzero(mask):
            rows[row] = tuple(part[row].copy() for part in observation)
        return rows


def _masked(values: Array, mask: npt.NDArray[np.bool_]) -> Array:
    kept = np.zeros_like(values)
    kept[mask] = values[mask]
    return kept


def _stacked_box(space: spaces.Box, count: int) -> spaces.Box:
    low, high = (np.repeat(bound[None], count, axis=0) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype.type)


def _flat_box(parts: Sequence[spaces.Space[Any]], names: list[str]) -> spaces.Box:
    for part, name in zip(parts, names, strict=False):
        if not isinstance(part, spaces.Box):
            raise ConfigurationError(
                f'observation_form="flat" takes Box components only; {name!r} is {part}. Use "dict" or "tuple"'
            )
    boxes = [part for part in parts if isinstance(part, spaces.Box)]
    low = np.concatenate([box.low.ravel() for box in boxes], dtype=np.float32)
    high = np.concatenate([box.high.ravel() for box in boxes], dtype=np.float32)
    return spaces.Box(low, high, dtype=np.float32)
