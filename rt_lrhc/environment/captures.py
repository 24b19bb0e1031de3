"""Captures of one robot and of many: what the interface returns, checked, counted and ended."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import InterfaceError
from rt_lrhc.interface import RealTimeInterface, TupleSpace, VectorInterface

Array = npt.NDArray[Any]
Guard = Callable[..., Any]
"""`guard(name, function, *args)` calls a callback and turns its exception into an InterfaceError that names it."""


@dataclass
class Capture:
    """One captured observation and what it means.

    Attributes:
        components: The observation's components, copies; after the reset of the rows that ended.
        reward: Float, or (N,) float64.
        terminated: Bool, or (N,) bool.
        truncated: Bool, or (N,) bool; False where terminated.
        info: The interface's, a new dictionary.
        ended: Whether the whole environment ended and awaits `reset()`: one robot only.
        reset_rows: Rows that ended and were reset at this capture, (N,) bool; None where there is none.
        final_components: The components before those resets.
        final_info: The interface's info before those resets.
        time: When it was taken, s since the reset.
        observation_age: Age of the state in `components` at the end of the time-step, s: float, or (N,) float64.
        action_age: Age of the action in force at the capture, s: float, or (N,) float64.
    """

    components: list[Array]
    reward: Any
    terminated: Any
    truncated: Any
    info: dict[str, Any]
    ended: bool = False
    reset_rows: npt.NDArray[np.bool_] | None = None
    final_components: list[Array] = field(default_factory=list)
    final_info: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0
    observation_age: Any = 0.0
    action_age: Any = 0.0


class Captor(ABC):
    """Calls the interface's callbacks that return observations, checks what they return and counts the steps."""

    def __init__(self, space: TupleSpace, ep_max_length: float, leading: tuple[int, ...]) -> None:
        self.ep_max_length = ep_max_length
        self.num_robots = leading[0] if leading else 1
        self.batched = bool(leading)
        self._expected = [
            (np.dtype(part.dtype), leading + tuple(part.shape or ()), np.dtype(part.dtype).kind in "fc")
            for part in space.spaces
        ]

    @abstractmethod
    def reset(
        self, guard: Guard, seed: int, options: dict[str, Any] | None
    ) -> tuple[list[Array], dict[str, Any]]:
        """Reset the interface and return the components and the info."""

    @abstractmethod
    def capture(self, guard: Guard) -> Capture:
        """Capture, count one step, and decide what ends."""

    @abstractmethod
    def observe(self, guard: Guard) -> list[Array]:
        """Return the components at present, without a capture."""

    def _components(self, name: str, values: Any) -> list[Array]:
        """Return copies of `values` in the declared dtypes and shapes, or raise an error that names `name`."""
        if not isinstance(values, (list, tuple)) or len(values) != len(self._expected):
            got = f"{len(values)}" if isinstance(values, (list, tuple)) else type(values).__name__
            raise InterfaceError(
                f"{name} must return a list of {len(self._expected)} observation components (one for each part of "
                f"get_observation_space()), got {got}"
            )
        components = []
        for index, (value, (dtype, shape, may_be_nan)) in enumerate(zip(values, self._expected, strict=True)):
            try:
                component = np.array(value, dtype=dtype)
            except (TypeError, ValueError) as error:
                raise InterfaceError(
                    f"{name}: component {index} is not an array of {dtype}: {error}"
                ) from error
            if component.shape != shape:
                raise InterfaceError(
                    f"{name}: component {index} must have shape {shape}, got {component.shape}"
                )
            if may_be_nan and np.count_nonzero(np.isnan(component)):
                raise InterfaceError(f"{name}: component {index} is NaN{self._where(component)}")
            components.append(component)
        return components

    def _where(self, component: Array) -> str:
        """Say at which robot, in which element a component is NaN."""
        place = [int(index[0]) for index in np.isnan(component).nonzero()]
        robot = f" at robot {place.pop(0)}" if self.batched else ""
        return f"{robot}, element {place}" if place else robot

    @staticmethod
    def _info(name: str, info: Any) -> dict[str, Any]:
        if not isinstance(info, dict):
            raise InterfaceError(f"{name} must return its info as a dictionary, got {type(info).__name__}")
        if "rt" in info:
            raise InterfaceError(f"{name}: the info key 'rt' belongs to the environment; choose another")
        return dict(info)

    @staticmethod
    def _parts(name: str, values: Any, count: int) -> tuple[Any, ...]:
        if not isinstance(values, tuple) or len(values) != count:
            raise InterfaceError(f"{name} must return a tuple of {count} values, got {values!r:.200}")
        return values


class SingleCaptor(Captor):
    """One robot: scalars, and an end that awaits the caller's `reset()`."""

    def __init__(self, interface: RealTimeInterface, space: TupleSpace, ep_max_length: float) -> None:
        super().__init__(space, ep_max_length, ())
        self._interface = interface
        self._steps = 0

    def reset(
        self, guard: Guard, seed: int, options: dict[str, Any] | None
    ) -> tuple[list[Array], dict[str, Any]]:
        """Reset the interface; the first step of the episode is yet to come."""
        components, info = self._parts(
            "reset", guard("reset", self._interface.reset, seed=seed, options=options), 2
        )
        self._steps = 0
        return self._components("reset", components), self._info("reset", info)

    def observe(self, guard: Guard) -> list[Array]:
        """Return the components at present."""
        return self._components("observe", guard("observe", self._interface.observe))

    def capture(self, guard: Guard) -> Capture:
        """Capture; termination overrides truncation."""
        name = "get_obs_rew_terminated_info"
        components, reward, terminated, info = self._parts(
            name, guard(name, self._interface.get_obs_rew_terminated_info), 4
        )
        self._steps += 1
        if not isinstance(terminated, (bool, np.bool_)):
            raise InterfaceError(f"{name}: terminated must be a bool, got {terminated!r}")
        try:
            reward = float(reward)
        except (TypeError, ValueError) as error:
            raise InterfaceError(f"{name}: the reward must be a number, got {reward!r}") from error
        if math.isnan(reward):
            raise InterfaceError(f"{name}: the reward is NaN")
        terminated = bool(terminated)
        truncated = not terminated and (self._steps >= self.ep_max_length or bool(self._interface.truncated))
        components, info = self._components(name, components), self._info(name, info)
        return Capture(components, reward, terminated, truncated, info, ended=terminated or truncated)


class RowsCaptor(Captor):
    """N robots: each that ends is reset in the same instant, while the others go on."""

    def __init__(
        self, interface: VectorInterface, space: TupleSpace, ep_max_length: float, num_envs: int
    ) -> None:
        super().__init__(space, ep_max_length, (num_envs,))
        self._interface = interface
        self._num_envs = num_envs
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self, guard: Guard, seed: int, options: dict[str, Any] | None
    ) -> tuple[list[Array], dict[str, Any]]:
        """Reset every robot."""
        components, info = self._parts(
            "reset", guard("reset", self._interface.reset, seed=seed, options=options), 2
        )
        self._steps[:] = 0
        return self._components("reset", components), self._info("reset", info)

    def observe(self, guard: Guard) -> list[Array]:
        """Return the components at present."""
        return self._components("observe", guard("observe", self._interface.observe))

    def capture(self, guard: Guard) -> Capture:
        """Capture all rows, reset the ended ones and capture those again."""
        name = "get_obs_rew_terminated_info"
        components, reward, terminated, info = self._parts(
            name, guard(name, self._interface.get_obs_rew_terminated_info), 4
        )
        self._steps += 1
        rewards = self._row_values(name, "rewards", reward, np.float64)
        if np.isnan(rewards).any():
            raise InterfaceError(f"{name}: the reward of robot {int(np.isnan(rewards).argmax())} is NaN")
        ended_well = self._row_values(name, "terminated", terminated, np.bool_)
        over = (self._steps >= self.ep_max_length) | np.asarray(self._interface.truncated, dtype=np.bool_)
        truncated = over & ~ended_well
        capture = Capture(
            self._components(name, components), rewards, ended_well, truncated, self._info(name, info)
        )
        rows = ended_well | truncated
        if rows.any():
            self._reset_rows(guard, capture, rows)
        return capture

    def _reset_rows(self, guard: Guard, capture: Capture, rows: npt.NDArray[np.bool_]) -> None:
        components, info = self._parts(
            "reset_rows", guard("reset_rows", self._interface.reset_rows, rows.copy()), 2
        )
        self._steps[rows] = 0
        capture.reset_rows = rows
        capture.final_components, capture.final_info = capture.components, capture.info
        capture.components = self._components("reset_rows", components)
        capture.info = self._info("reset_rows", info)

    def _row_values(self, name: str, what: str, values: Any, dtype: Any) -> Array:
        array = np.array(values)
        if array.shape != (self._num_envs,) or not np.can_cast(array.dtype, dtype, casting="same_kind"):
            raise InterfaceError(
                f"{name}: {what} must be an array ({self._num_envs},) of {np.dtype(dtype)}, got {array.dtype} "
                f"{array.shape}"
            )
        return array.astype(dtype)
