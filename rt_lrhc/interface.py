"""What a user writes: the interface between the environment and a device, a game, a simulation or a cluster."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt

from rt_lrhc.config import Clock

if TYPE_CHECKING:
    TupleSpace = gymnasium.spaces.Tuple[Any]
else:  # Gymnasium before 1.4 has no parameter there
    TupleSpace = gymnasium.spaces.Tuple

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


class RealTimeInterface(ABC):
    """One robot, device or game. The method names are rtgym's; an rtgym interface runs here with this base class.

    The environment calls every method on one thread, the runner's, except the three `get_*_space`/`get_default_action`
    methods, which it calls once at construction, and `render`, which it calls on the caller's thread. With
    `runner="process"` it is built and called in a process of its own, and `render` on a second thread there.

    **Worlds.** An interface whose world has a time of its own (a simulation, a cluster) sets `control_period` and
    overrides `advance`. The environment then calls the methods at grid times, multiples of the control period, and
    the same interface runs on the wall clock and on virtual time. A device sets neither, and needs the wall clock.
    """

    control_period: float | None = None
    """Time between two grid points of the world, s; None for a device."""

    clock: Clock = "wall"
    """The clock that the environment runs it on; the environment sets it before the first `reset`."""

    overlaps: bool = False
    """Whether `advance` does work worth computing in the background on virtual time (solves, physics)."""

    action_delay_bound: float = 0.0
    """Longest time from `send_control` to the effect of the action, s, that the interface itself brings about."""

    observation_delay_bound: float = 0.0
    """Longest age of the state that a capture holds, s, that the interface itself brings about."""

    draws: bool = True
    """Whether `render` makes pictures; of no account where it is not overridden."""

    truncated: bool = False
    """Whether the episode ends with the latest capture for a reason of the interface's that is no termination."""

    @abstractmethod
    def get_observation_space(self) -> TupleSpace:
        """Return the space of the observation, without the action buffer."""

    @abstractmethod
    def get_action_space(self) -> gymnasium.spaces.Box:
        """Return the space of the actions."""

    @abstractmethod
    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the action that is sent at `reset()` and that fills the action buffer at first."""

    @abstractmethod
    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Apply `control` from now on. It is a copy; keep it if you like. Must not block."""

    @abstractmethod
    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Start an episode and return `(observation, info)`.

        Args:
            seed: Root of the episode's random streams (`rt_lrhc.randomness.stream`); always given by the environment.
            options: What the caller of `env.reset(options=...)` passed.
        """

    @abstractmethod
    def get_obs_rew_terminated_info(self) -> tuple[list[Any], float, bool, dict[str, Any]]:
        """Capture and return `(observation, reward, terminated, info)`. Called once a time-step."""

    def wait(self) -> None:  # noqa: B027 (optional)
        """Make the world wait: called by `env.wait()`, and at the end of an episode with `wait_on_done`."""

    def advance(self, until: float) -> None:
        """Let the world run to the grid time `until`, s since `reset()` (worlds only)."""
        raise NotImplementedError

    def observe(self) -> list[Any]:
        """Return the observation at the present grid time and change nothing (worlds with an observation delay only).

        It is called after each control period. Override it where a capture has side effects: this one captures.
        """
        return self.get_obs_rew_terminated_info()[0]

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the latest state, (height, width, 3) RGB, or None where there is none."""
        return None

    def close(self) -> None:  # noqa: B027 (optional)
        """Free what the interface holds. Called once, also after an error."""


class VectorInterface(ABC):
    """N robots on one clock: the method names of `RealTimeInterface`, rows first, plus `reset_rows`.

    The environment builds it with the keyword `num_envs=N`, besides `interface_args` and `interface_kwargs`.
    `gym.make` runs one row of it. Spaces and the default action are those of one robot; observations are a list with
    one array a component, (N, ...); rewards are (N,) float64, terminated (N,) bool, info values (N, ...) arrays.
    """

    num_envs: int
    clock: Clock = "wall"
    control_period: float | None = None
    overlaps: bool = False
    action_delay_bound: float = 0.0
    observation_delay_bound: float = 0.0
    draws: bool = True
    truncated: BoolArray | bool = False

    @abstractmethod
    def get_observation_space(self) -> TupleSpace:
        """Return the space of one robot's observation, without the action buffer."""

    @abstractmethod
    def get_action_space(self) -> gymnasium.spaces.Box:
        """Return the space of one robot's actions."""

    @abstractmethod
    def get_default_action(self) -> npt.NDArray[Any]:
        """Return one robot's default action."""

    @abstractmethod
    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Apply the actions `control`, (N, ...), from now on."""

    @abstractmethod
    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Start an episode of every robot and return `(observations, info)`."""

    @abstractmethod
    def reset_rows(self, mask: BoolArray) -> tuple[list[Any], dict[str, Any]]:
        """Start a new episode of the robots in `mask`, (N,), at this instant; the others go on undisturbed.

        Returns:
            `(observations, info)` of all N robots, captured anew.
        """

    @abstractmethod
    def get_obs_rew_terminated_info(self) -> tuple[list[Any], FloatArray, BoolArray, dict[str, Any]]:
        """Capture and return `(observations, rewards, terminated, info)`. Called once a time-step."""

    def wait(self) -> None:  # noqa: B027 (optional)
        """Make the world wait."""

    def advance(self, until: float) -> None:
        """Let the world run to the grid time `until`, s since `reset()` (worlds only)."""
        raise NotImplementedError

    def observe(self) -> list[Any]:
        """Return the observations at the present grid time and change nothing (worlds with an observation delay only).

        It is called after each control period. Override it where a capture has side effects: this one captures.
        """
        return self.get_obs_rew_terminated_info()[0]

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the latest states, (height, width, 3) RGB, or None where there is none."""
        return None

    def close(self) -> None:  # noqa: B027 (optional)
        """Free what the interface holds. Called once, also after an error."""
