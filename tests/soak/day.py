"""A day of 50 Hz on virtual time, with late agents, pauses and durations that change: `make soak`, a few minutes.

Each episode is an hour. A model of the elastic clock, in plain integers, says where every time-step has to lie; a
random schedule makes the agent late, within what a time-step absorbs and beyond it.
"""

import gc
import logging
import os
from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import psutil

from rt_lrhc import DEFAULT_CONFIG_DICT, RealTimeInterface, Schedule

PERIOD = 0.01
HOURS = float(os.environ.get("SOAK_HOURS", "24"))
STEPS = int(HOURS * 3600 * 50)
FACTOR = 1.0
BUFFER = 4


class Counter(RealTimeInterface):
    """A world that knows nothing but its time and the action in force; it ends when the action says so."""

    control_period = PERIOD

    def get_observation_space(self):
        return gym.spaces.Tuple([gym.spaces.Box(0.0, np.inf, (2,), np.float64)])

    def get_action_space(self):
        return gym.spaces.Box(-1.0, 1e9, (1,), np.float64)

    def get_default_action(self):
        return np.zeros(1)

    def send_control(self, control):
        self.in_force = float(control[0])

    def reset(self, seed=None, options=None):
        self.periods = self.waits = 0
        self.in_force = 0.0
        return self.observe(), {}

    def observe(self):
        return [np.array([self.periods, max(self.in_force, 0.0)])]

    def get_obs_rew_terminated_info(self):
        return self.observe(), 0.0, self.in_force < 0.0, {}

    def advance(self, until):
        self.periods += 1
        assert abs(until - self.periods * PERIOD) < 1e-6

    def wait(self):
        self.waits += 1


@dataclass
class Plan:
    """What an episode will do, and where the model says that its time-steps lie, in control periods."""

    schedule: Schedule
    starts: list[int]
    captures: list[int]
    overruns: list[int]
    changes: dict[int, tuple[int, int]]  # at which step the duration and the capture become these


def plan(rng: np.random.Generator, steps: int) -> Plan:
    """Draw an episode: one action in 50 is late, one in 500 too late, the durations change some times an hour."""
    sent, starts, captures, overruns, changes = [], [], [], [], {}
    duration = capture = 2
    end = missed = 0
    late = np.where(rng.random(steps) < 0.02, rng.integers(1, 3, steps), 0)
    late = np.where(rng.random(steps) < 0.002, rng.integers(3, 30, steps), late)
    new = np.where(rng.random(steps) < 0.001, rng.integers(1, 6, steps), 0)
    for step in range(steps):
        if step and new[step]:
            duration = int(new[step])
            capture = int(rng.integers(0, duration + 1))
            changes[step] = (duration, capture)
        now = end + (int(late[step]) if step else 0)
        start = end
        if now - end > FACTOR * duration:
            start, missed = now, missed + 1
        sent.append(now)
        starts.append(start)
        # An agent may be so late that the capture is due before its action is there.
        captures.append(max(start + capture, now))
        end = start + duration
        overruns.append(missed)
    return Plan(Schedule(tuple(sent)), starts, captures, overruns, changes)


def run(env: Any, rng: np.random.Generator, steps: int, missed_before: int) -> int:
    """Run an episode of `steps` time-steps and hold it to its plan; return the overruns in it."""
    expected = plan(rng, steps)
    env.set_start_obs_capture(0.0)
    env.set_time_step_duration(2 * PERIOD)
    env.set_start_obs_capture(2 * PERIOD)
    observation, info = env.reset(options={"schedule": expected.schedule})
    buffer = deque([0.0] * BUFFER, maxlen=BUFFER)
    action = np.zeros(1)
    waits = 0
    paused = rng.random(steps) < 0.0005
    for step in range(steps):
        if step + 1 in expected.changes:
            duration, capture = expected.changes[step + 1]
            env.set_start_obs_capture(0.0)
            env.set_time_step_duration(duration * PERIOD)
            env.set_start_obs_capture(capture * PERIOD)
        if paused[step]:
            env.wait()
            waits += 1
        acted = buffer[-1]
        over = step == steps - 1
        action[0] = step + 1
        observation, _, terminated, truncated, info = env.step(action)
        action[0] = np.nan
        buffer.append(step + 1)
        (periods, in_force), *actions = observation
        figures = info["rt"]
        assert periods == expected.captures[step], (step, periods, expected.captures[step])
        assert in_force == acted
        assert [part[0] for part in actions] == list(buffer)
        assert figures["overruns"] - missed_before == expected.overruns[min(step + 1, steps - 1)] or over
        assert abs(figures["time"] - periods * PERIOD) < 1e-6
        assert not terminated and truncated == over
    assert env.interface.waits == waits
    return expected.overruns[-1]


def test_a_day_of_50_hz_keeps_its_grid_its_buffer_and_its_memory() -> None:
    config = {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": Counter,
        "time_step_duration": 2 * PERIOD,
        "start_obs_capture": 2 * PERIOD,
        "time_step_timeout_factor": FACTOR,
        "act_buf_len": BUFFER,
    }
    env = gym.make("rt_lrhc:rt-sim-v0", config=config, disable_env_checker=True).unwrapped
    rng = np.random.default_rng(int(os.environ.get("SOAK_SEED", "0")))
    process = psutil.Process()
    # Pytest keeps every record that is logged: thousands of warnings of late agents.
    logging.getLogger("rt_lrhc").setLevel(logging.ERROR)
    memory: list[int] = []
    done = missed = 0
    while done < STEPS:
        steps = min(180_000, STEPS - done)
        env.set_ep_max_length(steps)
        missed += run(env, rng, steps, missed)
        done += steps
        gc.collect()
        memory.append(process.memory_info().rss)
        print(f"{done / 180_000:5.1f} h, {missed} overruns, {memory[-1] / 1e6:.0f} MB", flush=True)
    env.close()
    logging.getLogger("rt_lrhc").setLevel(logging.NOTSET)
    quarter = max(1, len(memory) // 4)
    assert np.mean(memory[-quarter:]) - np.mean(memory[quarter : 2 * quarter] or memory) < 20e6, (
        "memory grows"
    )
