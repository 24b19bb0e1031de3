"""Cart-poles that are told where to go: the agent commands the position of each cart, its MPC does the balancing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.config import DEFAULT_CONFIG_DICT
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interfaces.cluster import BoolArray, ClusterTask, FloatArray, IntArray
from rt_lrhc.randomness import stream

TRACK = 4.0
"""An episode is terminated where a cart is farther than this from the middle, m."""

COMMAND = 1.0
"""Largest position that can be commanded, m."""


class CartPoleTask(ClusterTask):
    """Follow a target that jumps, from hanging or upright poles, under kicks.

    Observation: `state` (cart position in m, sine and cosine of the pole's angle, cart velocity in m/s, pole velocity
    in rad/s), `target` (m) and `plan_age` (control periods). Action: the commanded cart position, m. Reward:
    `-(x - target)^2 - 0.5 (1 - cos(angle))`. Terminated off the track.

    Args:
        num_robots: Number of cart-poles.
        hanging: Whether poles hang at first, and the MPC swings them up (else they stand).
        target_period: Time between two targets, s; infinite keeps the first.
        kick: Standard deviation of the kicks to the pole's velocity, rad/s; one about every 2 s. 0 for none.
        control_period: Time between two inputs, s.
        physics_threads: Threads of the simulation.
        controller_kwargs: More keyword arguments for `rt_lrhc.controllers.cart_pole:make_cart_pole`.
    """

    controller = "rt_lrhc.controllers.cart_pole:make_cart_pole"
    reference_names = ("cart_position",)
    observation_names = ("state", "target", "plan_age")

    def __init__(
        self,
        num_robots: int,
        *,
        hanging: bool = True,
        target_period: float = 2.0,
        kick: float = 0.5,
        control_period: float = 0.02,
        physics_threads: int = 1,
        controller_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        from rt_lrhc.simulators.cart_pole import CartPoles

        if not target_period > 0.0:
            raise ConfigurationError(f"target_period must be positive, in s, got {target_period}")
        if kick < 0.0:
            raise ConfigurationError(f"kick must be at least 0 rad/s, got {kick}")
        self.plant = CartPoles(num_robots, threads=physics_threads)
        self.control_period = control_period
        self.controller_kwargs = dict(controller_kwargs or {})
        self._hanging = hanging
        self._kick = kick
        self._target_periods = max(1, round(min(target_period, 1e6) / control_period))
        self._kick_periods = (max(1, round(1.0 / control_period)), max(2, round(3.0 / control_period)))
        far = np.finfo(np.float32).max
        low, high = np.array([-far, -1, -1, -far, -far]), np.array([far, 1, 1, far, far])
        self.observation_space = spaces.Tuple(
            [
                spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32),
                spaces.Box(-COMMAND, COMMAND, (1,), np.float32),
                # -1: no plan yet.
                spaces.Box(-1.0, far, (1,), np.float32),
            ]
        )
        self.action_space = spaces.Box(-COMMAND, COMMAND, (1,), np.float32)
        self.default_action = np.zeros(1, dtype=np.float32)
        self.targets = np.zeros(num_robots)
        self._periods = np.zeros(num_robots, dtype=np.int64)
        self._next_kick = np.zeros(num_robots, dtype=np.int64)
        self._streams: list[np.random.Generator] = [np.random.default_rng(0)] * num_robots

    def begin(self, root: int, episodes: IntArray, rows: BoolArray, options: Mapping[str, Any]) -> FloatArray:
        """Draw initial states about hanging (or standing) at rest, the first targets and the first kicks."""
        states = np.zeros((len(rows), 4))
        for robot in np.flatnonzero(rows):
            start = stream(root, "initial_state", robot=int(robot), episode=int(episodes[robot]))
            states[robot] = start.uniform(-0.05, 0.05, 4)
            states[robot, 1] += np.pi if self._hanging else 0.0
            draws = stream(root, "disturbances", robot=int(robot), episode=int(episodes[robot]))
            self._streams[robot] = draws
            self.targets[robot] = draws.uniform(-COMMAND, COMMAND)
            self._periods[robot] = 0
            self._next_kick[robot] = draws.integers(*self._kick_periods)
        return states

    def references(self, actions: npt.NDArray[Any]) -> FloatArray:
        """The action is the reference."""
        return actions.astype(np.float64)

    def observe(self, states: FloatArray, plan_ages: IntArray) -> list[npt.NDArray[Any]]:
        """Return state, target and plan age as float32."""
        x, angle, v, omega = states.T
        return [
            np.stack([x, np.sin(angle), np.cos(angle), v, omega], axis=1).astype(np.float32),
            self.targets[:, None].astype(np.float32),
            plan_ages[:, None].astype(np.float32),
        ]

    def judge(self, states: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Return the reward, and whether the cart has left its track."""
        x, angle = states[:, 0], states[:, 1]
        return -((x - self.targets) ** 2) - 0.5 * (1.0 - np.cos(angle)), np.abs(x) > TRACK

    def disturb(self) -> None:
        """Count a control period of each robot; kick and draw new targets where it is time."""
        self._periods += 1
        for robot in np.flatnonzero(self._periods % self._target_periods == 0):
            self.targets[robot] = self._streams[robot].uniform(-COMMAND, COMMAND)
        kicked = self._periods >= self._next_kick
        if kicked.any():
            self._push(kicked)

    def _push(self, rows: BoolArray) -> None:
        import torch

        velocities = np.zeros((len(rows), 2))
        for robot in np.flatnonzero(rows):
            velocities[robot, 1] = self._kick * self._streams[robot].normal()
            self._next_kick[robot] += self._streams[robot].integers(*self._kick_periods)
        self.plant.push(torch.from_numpy(velocities), torch.from_numpy(rows))

    def draw(self, states: FloatArray, references: FloatArray) -> npt.NDArray[np.uint8]:
        """Draw the cart-poles and where they are sent."""
        from rt_lrhc.simulators.cart_pole import draw

        return draw(states, references[:, 0])


def cart_pole_config(
    *, mode: str = "pipelined", workers: int | None = None, **task_kwargs: Any
) -> dict[str, Any]:
    """Return a configuration for `gym.make` or `gym.make_vec`: cart-poles with their MPCs in a cluster of their own.

    Args:
        mode: `"pipelined"` or `"blocking"`.
        workers: Worker processes of the cluster; None lets it choose.
        **task_kwargs: Keyword arguments of `CartPoleTask`.
    """
    return {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": "rt_lrhc.interfaces.cluster:ClusterInterface",
        "interface_kwargs": {
            "task": "rt_lrhc.tasks.cart_pole:CartPoleTask",
            "task_kwargs": task_kwargs,
            "mode": mode,
            "workers": workers,
        },
        "time_step_duration": 0.1,
        "start_obs_capture": 0.1,
        "ep_max_length": 100,
        # The action acts in the next time-step, its plan one control period later: two time-steps cover both.
        "act_buf_len": 2,
    }
