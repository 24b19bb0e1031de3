"""One row of a vector interface as a single-robot interface, so that one configuration serves both."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.interface import RealTimeInterface, TupleSpace, VectorInterface


class FirstRow(RealTimeInterface):
    """A vector interface of one robot, without its leading axis.

    Args:
        rows: The vector interface, with `num_envs` = 1.
    """

    def __init__(self, rows: VectorInterface) -> None:
        self.rows = rows
        self.control_period = rows.control_period
        self.overlaps = rows.overlaps
        self.draws = rows.draws
        self.action_delay_bound = rows.action_delay_bound
        self.observation_delay_bound = rows.observation_delay_bound
        self.observation_names = getattr(rows, "observation_names", None)

    def get_observation_space(self) -> TupleSpace:
        """Return the space of the robot's observation."""
        return self.rows.get_observation_space()

    def get_action_space(self) -> spaces.Box:
        """Return the space of the robot's actions."""
        return self.rows.get_action_space()

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the robot's default action."""
        return self.rows.get_default_action()

    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Apply the action."""
        self.rows.send_control(control[None])

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Start an episode."""
        observations, info = self.rows.reset(seed=seed, options=options)
        return [part[0] for part in observations], _first(info)

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], float, bool, dict[str, Any]]:
        """Capture."""
        observations, rewards, terminated, info = self.rows.get_obs_rew_terminated_info()
        self.truncated = bool(np.any(self.rows.truncated))
        return [part[0] for part in observations], float(rewards[0]), bool(terminated[0]), _first(info)

    def wait(self) -> None:
        """Make the world wait."""
        self.rows.wait()

    def advance(self, until: float) -> None:
        """Let the world run to the grid time `until`."""
        self.rows.advance(until)

    def observe(self) -> list[Any]:
        """Return the observation, without a capture."""
        return [part[0] for part in self.rows.observe()]

    def schedule(self) -> Any:
        """Return what the interface recorded of itself, None where it keeps nothing."""
        recorded = getattr(self.rows, "schedule", None)
        return recorded() if recorded is not None else None

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture."""
        return self.rows.render()

    def close(self) -> None:
        """Free what the interface holds."""
        self.rows.close()


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """Return the info of row 0: arrays lose their leading axis, numbers become Python's; scalars are all rows'."""
    first: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, dict):
            first[key] = _first(value)
        elif np.ndim(value) == 0:
            first[key] = value
        else:
            row = np.asarray(value)[0]
            first[key] = row.item() if row.ndim == 0 else row.copy()
    return first


def owner_name(interface: RealTimeInterface | VectorInterface) -> str:
    """Return the name of the user's class, for messages."""
    return type(interface.rows if isinstance(interface, FirstRow) else interface).__name__


def is_world(interface: RealTimeInterface | VectorInterface) -> bool:
    """Whether the interface defines `advance`."""
    if isinstance(interface, FirstRow):
        return is_world(interface.rows)
    base = RealTimeInterface if isinstance(interface, RealTimeInterface) else VectorInterface
    return type(interface).advance is not base.advance
