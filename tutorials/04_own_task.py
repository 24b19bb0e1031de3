"""Tutorial 04: a task of your own, made of terms.

Cart-poles on a tightrope stay near the middle while somebody kicks them, under calm orders. They inherit plant and MPC
from the task `cart_pole`. Run it: `python tutorials/04_own_task.py`.
"""

import gymnasium as gym
import numpy as np

from rt_lrhc.tasks import Observation, Reward, Termination, make_config, register, task_config, with_terms
from rt_lrhc.tasks.common import action_rate


def place(context):
    """Place of the cart on the rope, (N, 1), m: an observation term."""
    return context.state("cart_position")


def near_middle(context, width):
    """1 in the middle, 0 far from it, (N,): a reward term with a parameter."""
    return np.exp(-((context.state("cart_position")[:, 0] / width) ** 2))


def off_rope(context):
    """Whether a cart is more than 1 m from the middle, (N,) bool: a termination term."""
    return np.abs(context.state("cart_position")[:, 0]) > 1.0


def tightrope():
    """Cart-poles stay near the middle of a tightrope, under kicks."""
    return with_terms(
        task_config("cart_pole"),
        observations=Observation(place, unit="m", noise=0.01, delay=(0.02, 0.06)),  # s, drawn for each robot
        rewards=(Reward(near_middle, parameters={"width": 0.3}), Reward(action_rate, -0.1)),
        terminations=Termination(off_rope, lasting=0.1),
    )


if __name__ == "__main__":
    register("tightrope", tightrope)  # now `make_config` knows it
    settings = {"start.parameters.angle": 0.0, "observations.target": 0.0, "rewards.distance_squared": 0.0}
    # Values by their paths (a scale of 0 removes a term), and keys of the configuration: four actions cover the delays.
    config = make_config("tightrope", settings, act_buf_len=4)
    envs = gym.make_vec("rt_lrhc:rt-sim-v0", num_envs=4, config=config)
    envs.reset(seed=0)
    for _ in range(50):
        observation, reward, terminated, truncated, info = envs.step(np.zeros((4, 1), np.float32))
    print(
        "four robots:",
        {name: info["reward_terms"][name].round(2).tolist() for name in ("near_middle", "tilt")},
    )
    print("observation:", envs.unwrapped.interface.observation_names, [part.shape for part in observation])
    envs.close()
    env = gym.make("rt_lrhc:rt-v0", config=config)  # the same task, one robot, on the wall clock
    env.reset(seed=0)
    print(f"one robot  : return {sum(env.step([0.0])[1] for _ in range(20)):.1f} in 2 s of wall time")
    env.close()
