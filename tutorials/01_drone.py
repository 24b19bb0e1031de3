"""Tutorial 01: a drone at the end of a slow radio link, on the wall clock and on virtual time.

A velocity that you send now reaches the drone 20 to 50 ms later, and the position that you have is 30 to 50 ms old. In
between, your inference takes its time too: an action is sent one time-step (50 ms) after the capture of the observation
that it answers. So an agent that trusts the position which it sees always corrects for a past that is over: it must be
gentle, or it overshoots for ever.

What is missing is in the observation: besides the position and the target it holds the last three actions. Whoever
adds up what they will have done by the time that the next one acts, knows where the drone will be then.

Run it: `python tutorials/01_drone.py`. It needs no display. `gym.make(..., render_mode="human")` shows the drone in a
window, where one can open.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from rt_lrhc.interfaces.drone import LINK_DELAY, MAX_SPEED, drone_config

Array = npt.NDArray[Any]
# (position received, target, action three steps ago, action two steps ago, last action)
Observation = tuple[Array, ...]
Agent = Callable[[Observation], Array]

STEP = drone_config()["time_step_duration"]


def naive(gain: float) -> Agent:
    """An agent that flies towards the target, the faster the farther it seems to be."""

    def act(observation: Observation) -> Array:
        position, target = observation[:2]
        velocity: Array = np.clip(gain * (target - position), -MAX_SPEED, MAX_SPEED)
        return velocity

    return act


def delay_aware(gain: float) -> Agent:
    """The same agent, starting from where the drone will be when the action begins to act."""
    link_delay = sum(LINK_DELAY) / 2
    # Reports leave every 10 ms; the one of 30 ms ago is there with a chance of 1/3, that of 40 ms ago with 2/3, that of
    # 50 ms ago for sure. This is the expected age of the newest.
    position_age = 0.030 * 1 / 3 + 0.040 * 2 / 3 * 2 / 3 + 0.050 * 2 / 3 * 1 / 3
    # When each of the three actions began or will begin to act, seen from now; each acts for one step. What it did
    # before the position was measured is in the position already.
    begins = np.array([-2 * STEP, -STEP, 0.0]) + link_delay
    shares = np.clip(begins + STEP + position_age, 0.0, STEP)

    def act(observation: Observation) -> Array:
        position, target, *actions = observation
        predicted = position + shares @ np.stack(actions)
        velocity: Array = np.clip(gain * (target - predicted), -MAX_SPEED, MAX_SPEED)
        return velocity

    return act


@dataclass(frozen=True)
class Flight:
    """What came of one episode."""

    steps: int
    reached: bool
    reward: float


def fly(env: gym.Env[Any, Any], agent: Agent, seed: int) -> Flight:
    """Fly one episode."""
    observation, _ = env.reset(seed=seed)
    steps, total, ended, reached = 0, 0.0, False, False
    while not ended:
        observation, reward, reached, truncated, _ = env.step(agent(observation))
        steps, total, ended = steps + 1, total + float(reward), reached or truncated
    return Flight(steps, reached, total)


def on_the_wall_clock() -> None:
    """Two episodes as they would be with a real drone: 50 ms a step, whatever the agent does meanwhile."""
    print("Wall clock, delay-aware agent")
    with gym.make("rt_lrhc:rt-v0", config=drone_config()) as env:
        for seed in (1, 2):
            flight = fly(env, delay_aware(14.0), seed)
            print(f"  target {'reached' if flight.reached else 'missed'} after {flight.steps} steps")
        timing = env.get_wrapper_attr("timing").summary()
        step = timing.step
        print(
            f"  duration of a step: p50 {step.p50 * 1e3:.2f}, p99 {step.p99 * 1e3:.2f}, max {step.max * 1e3:.2f} ms "
            f"(n = {step.n}); overruns: {timing.overruns}"
        )


def on_virtual_time(episodes: int = 200) -> None:
    """The same decision process, as fast as this machine can go; equal seeds give equal flights."""
    print(f"Virtual time, {episodes} episodes each")
    # 3.5 and 14 per second are about the best gains of the two.
    agents = {
        "naive, gain 3.5/s": naive(3.5),
        "naive, gain 14/s": naive(14.0),
        "delay-aware, gain 14/s": delay_aware(14.0),
    }
    with gym.make("rt_lrhc:rt-sim-v0", config=drone_config()) as env:
        begin = time.perf_counter()
        simulated = 0.0
        for name, agent in agents.items():
            flights = [fly(env, agent, seed) for seed in range(episodes)]
            steps = [flight.steps for flight in flights]
            simulated += sum(steps) * STEP
            reached = sum(flight.reached for flight in flights)
            print(
                f"  {name:24} reached {reached:3} of {episodes}; steps: mean {np.mean(steps):5.1f}, "
                f"90 % within {np.percentile(steps, 90):3.0f}"
            )
        speed = simulated / (time.perf_counter() - begin)
        print(f"  {simulated:.0f} s of flight, {speed:.0f} times faster than real time")
        again = fly(env, agent, episodes - 1)
        print(f"  the last flight, flown again, is the same to the bit: {again == flights[-1]}")


if __name__ == "__main__":
    on_the_wall_clock()
    on_virtual_time()
