"""Cart-poles that are told where to go: the agent commands the position of each cart, its MPC does the balancing."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interfaces.cluster import BoolArray, FloatArray
from rt_lrhc.tasks.common import command, plan_age
from rt_lrhc.tasks.config import TaskConfig
from rt_lrhc.tasks.context import TaskContext
from rt_lrhc.tasks.draws import Draw
from rt_lrhc.tasks.registry import make_config
from rt_lrhc.tasks.task import TermTask
from rt_lrhc.tasks.terms import Action, Command, Event, Metric, Observation, Reward, Start, Termination

TRACK = 4.0
"""An episode is terminated where a cart is farther than this from the middle, m."""

COMMAND = 1.0
"""Largest position that can be commanded, m."""


def state(context: TaskContext) -> FloatArray:
    """Cart position (m), sine and cosine of the pole's angle, cart velocity (m/s), pole velocity (rad/s), (N, 5)."""
    x, angle, v, omega = context.states.T
    return np.stack([x, np.sin(angle), np.cos(angle), v, omega], axis=1)


def distance(context: TaskContext) -> FloatArray:
    """Distance of the cart from its target, (N,), m."""
    return np.abs(context.states[:, 0] - context.command("target")[:, 0])


def distance_squared(context: TaskContext) -> FloatArray:
    """Square of the distance of the cart from its target, (N,), m^2."""
    return distance(context) ** 2


def tilt(context: TaskContext) -> FloatArray:
    """1 - cos(angle of the pole), (N,): 0 upright, 2 hanging."""
    return np.asarray(1.0 - np.cos(context.states[:, 1]), np.float64)


def off_track(context: TaskContext) -> BoolArray:
    """Whether the cart is farther from the middle than its track reaches, (N,)."""
    return np.asarray(np.abs(context.states[:, 0]) > TRACK)


def at_rest(context: TaskContext, draw: Draw, scale: float, angle: float) -> FloatArray:
    """Near rest in the middle with the pole near `angle`, rad; `scale` is what each state may be off, SI."""
    states = draw.uniform(-scale, scale, 4)
    states[:, 1] += angle
    return states


def kick(context: TaskContext, draw: Draw, scale: float) -> None:
    """Change the poles' velocities, by a normal draw of standard deviation `scale`, rad/s."""
    import torch

    velocities = np.zeros((context.num_robots, 2))
    velocities[draw.rows, 1] = scale * draw.normal()[:, 0]
    rows = np.zeros(context.num_robots, dtype=np.bool_)
    rows[draw.rows] = True
    context.plant.push(torch.from_numpy(velocities), torch.from_numpy(rows))


def draw_cart_poles(context: TaskContext) -> npt.NDArray[np.uint8]:
    """Draw the cart-poles and where they are sent."""
    from rt_lrhc.simulators.cart_pole import draw

    return draw(context.states, context.moment.references[:, 0])


def send_to_target(observation: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """An agent by hand: command the target."""
    return np.asarray(observation["target"])


def cart_pole(
    *,
    hanging: bool = True,
    target_period: float = 2.0,
    kick_speed: float = 0.5,
    control_period: float = 0.02,
    physics_threads: int = 1,
    controller_kwargs: Mapping[str, Any] | None = None,
) -> TaskConfig:
    """Cart-poles follow targets that jump, from hanging, under kicks.

    Observation: `state` (cart position in m, sine and cosine of the pole's angle, cart velocity in m/s, pole velocity
    in rad/s), `target` (m) and `plan_age` (control periods). Action: the commanded cart position, m. Reward:
    `-(x - target)^2 - 0.5 (1 - cos(angle))`. Terminated off the track.

    Args:
        hanging: Whether poles hang at first, and the MPC swings them up (else they stand).
        target_period: Time between two targets, s; infinite keeps the first.
        kick_speed: Standard deviation of the kicks to the pole's velocity, rad/s; one about every 2 s. 0 for none.
        control_period: Time between two inputs, s.
        physics_threads: Threads of the simulation.
        controller_kwargs: More keyword arguments for `rt_lrhc.controllers.cart_pole:make_cart_pole`.
    """
    return TaskConfig(
        plant="rt_lrhc.simulators.cart_pole:CartPoles",
        plant_kwargs={"threads": physics_threads},
        controller="rt_lrhc.controllers.cart_pole:make_cart_pole",
        controller_kwargs=dict(controller_kwargs or {}),
        references={"cart_position": 0.0},
        observations=(
            Observation(
                state,
                unit="m, -, -, m/s, rad/s",
                low=(-math.inf, -1.0, -1.0, -math.inf, -math.inf),
                high=(math.inf, 1.0, 1.0, math.inf, math.inf),
            ),
            Observation(
                command, name="target", parameters={"name": "target"}, unit="m", low=-COMMAND, high=COMMAND
            ),
            Observation(plan_age, unit="control periods", low=-1.0),
        ),
        actions=(Action("position", ("cart_position",), -COMMAND, COMMAND),),
        rewards=(Reward(distance_squared, -1.0), Reward(tilt, -0.5)),
        start=Start(at_rest, 0.05, parameters={"angle": math.pi if hanging else 0.0}),
        terminations=(Termination(off_track),),
        commands=(Command("target", (-COMMAND,), (COMMAND,), target_period),),
        events=(Event(kick, kick_speed, period=(1.0, 3.0)),),
        metrics=(Metric(distance), Metric(tilt)),
        control_period=control_period,
        time_step_duration=0.1,
        episode_length=10.0,
        # The action acts in the next time-step, its plan one control period later: two time-steps cover both.
        act_buf_len=2,
        reward_time="capture",
        draw="rt_lrhc.tasks.cart_pole:draw_cart_poles",
        scripted=send_to_target,
    )


class CartPoleTask(TermTask):
    """The task `cart_pole`, by its own keyword arguments.

    Args:
        num_robots: Number of cart-poles.
        kick: Standard deviation of the kicks to the pole's velocity, rad/s; one about every 2 s. 0 for none.
        **kwargs: More keyword arguments of `cart_pole`.
    """

    def __init__(self, num_robots: int, *, kick: float = 0.5, **kwargs: Any) -> None:
        if kick < 0.0:
            raise ConfigurationError(f"kick must be at least 0 rad/s, got {kick}")
        super().__init__(num_robots, cart_pole(kick_speed=kick, **kwargs))


def cart_pole_config(
    *, mode: str = "pipelined", workers: int | None = None, **task_kwargs: Any
) -> dict[str, Any]:
    """Return a configuration for `gym.make` or `gym.make_vec`: cart-poles with their MPCs in a cluster of their own.

    Args:
        mode: `"pipelined"` or `"blocking"`.
        workers: Worker processes of the cluster; None lets it choose.
        **task_kwargs: Keyword arguments of `CartPoleTask`.
    """
    config = make_config("cart_pole", mode=mode, workers=workers)
    config["interface_kwargs"].update(task="rt_lrhc.tasks.cart_pole:CartPoleTask", task_kwargs=task_kwargs)
    return config
