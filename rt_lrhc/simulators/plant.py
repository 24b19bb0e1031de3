"""What a plant is: N robots of one kind that are reset, stepped and pushed together, torch tensors in and out."""

from abc import ABC, abstractmethod

import torch

from rt_lrhc.errors import ConfigurationError


class Plant(ABC):
    """A batch of N robots, simulated or real, that moves under inputs held for a control period.

    A robot's state has nx entries: its positions first, then its nv velocities. Names say which is which, so that peers
    map by name. All tensors are (N, ...), on `device`, and rows of different robots never influence each other.

    A plant is used by one thread at a time.

    Attributes:
        num_robots: N.
        simulation_timestep: Integration step, s; a real robot's is its input period.
        state_names: Names of the nx states.
        velocity_names: Names of the nv velocities, the last of `state_names`.
        input_names: Names of the nu inputs.
        input_lower: Lower bounds of the inputs, (nu,) float64.
        input_upper: Upper bounds of the inputs, (nu,) float64.
        device: Where the tensors live.
    """

    num_robots: int
    simulation_timestep: float
    state_names: tuple[str, ...]
    velocity_names: tuple[str, ...]
    input_names: tuple[str, ...]
    input_lower: torch.Tensor
    input_upper: torch.Tensor
    device: torch.device = torch.device("cpu")

    @property
    @abstractmethod
    def state(self) -> torch.Tensor:
        """States of all robots now, (N, nx) float64: a copy, which later steps do not change."""

    @abstractmethod
    def reset(self, state: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Put robots at given states, with inputs at zero and no memory of what they did before.

        Args:
            state: States of all N robots, (N, nx); only the rows in `mask` are read.
            mask: Robots to reset, (N,) bool; None for all.

        Raises:
            ConfigurationError: If a shape is wrong, or a state that is read is not finite.
        """

    @abstractmethod
    def step(self, inputs: torch.Tensor, duration: float) -> None:
        """Hold `inputs` for `duration`.

        Args:
            inputs: Inputs of all N robots, (N, nu); saturated at `input_lower` and `input_upper`.
            duration: A whole number of `simulation_timestep`, s.

        Raises:
            ConfigurationError: If the shape or the duration is wrong, or an input is not finite.
        """

    @abstractmethod
    def push(self, velocity: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Change velocities at once, as an impulse would.

        Args:
            velocity: What is added to each robot's velocities, (N, nv); only the rows in `mask` are read.
            mask: Robots to push, (N,) bool; None for all.

        Raises:
            ConfigurationError: If a shape is wrong, or a velocity that is read is not finite.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the plant holds. Further calls do nothing."""


def simulation_steps(duration: float, simulation_timestep: float) -> int:
    """Number of integration steps in `duration`.

    Args:
        duration: Time to simulate, s.
        simulation_timestep: Integration step, s.

    Raises:
        ConfigurationError: If `duration` is not a whole, positive number of integration steps, to 1 ns.
    """
    steps = duration / simulation_timestep
    # `round` of NaN or infinity raises ValueError or OverflowError, which would not name the argument.
    whole = round(steps) if 0.0 < steps < 1e9 else 0
    if whole < 1 or abs(whole * simulation_timestep - duration) > 1e-9:
        raise ConfigurationError(
            f"duration must be a whole number, at least 1, of simulation timesteps of {simulation_timestep} s, "
            f"got {duration} s ({steps:g} of them); choose a control period that is a multiple"
        )
    return whole
