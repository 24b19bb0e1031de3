"""What overlapping inference, solves and physics is worth: pipelined against blocking, on virtual time.

64 cart-poles, real solves on one worker, and an agent that is calibrated to take as long as the solves of a time-step,
so that each has a core. Nothing sleeps. Beside each figure stands the ideal that the measured stages allow:

    blocking   solve + physics + agent                      (one after the other)
    pipelined  max(solve, agent, (solve + physics + agent) / cores)

Exit code 1 where a target is missed with the torch agent: at least 1.5 times the steps per second of blocking mode,
whose own time-step lies within 10 % of the sum of its stages.

    python benchmarks/overlap.py [--robots N] [--steps N] [--rounds N] [--json FILE]
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
import tyro
from common import Report

from rt_lrhc.tasks.cart_pole import cart_pole_config
from rt_lrhc.timing.realtime import usable_cores

Agent = Callable[[Any], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    robots: int = 64
    steps: int = 60
    rounds: int = 5
    json: Path | None = None


@dataclass(frozen=True)
class Round:
    """Wall times of one round, s a time-step."""

    step: float
    solve: float
    physics: float
    agent: float

    @property
    def sum(self) -> float:
        """What the stages take one after the other, s."""
        return self.solve + self.physics + self.agent


class TorchAgent:
    """A policy network of many layers: as many as take the time that is asked for."""

    def __init__(self, robots: int, duration: float) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._first = torch.nn.Linear(7, 512)
        self._hidden = torch.nn.Linear(512, 512)
        self._last = torch.nn.Linear(512, 1)
        self.layers = 1
        observation = [
            np.zeros((robots, 5), np.float32),
            np.zeros((robots, 1), np.float32),
            np.zeros((robots, 1), np.float32),
        ]
        for _ in range(6):
            times = [self._time(observation) for _ in range(20)]
            self.layers = max(1, round(self.layers * duration / float(np.median(times))))

    def _time(self, observation: Any) -> float:
        began = time.perf_counter()
        self(observation)
        return time.perf_counter() - began

    @torch.no_grad()
    def __call__(self, observation: Any) -> npt.NDArray[np.float32]:
        x = torch.relu(self._first(torch.from_numpy(np.concatenate(observation[:3], axis=1))))
        for _ in range(self.layers):
            x = torch.relu(self._hidden(x))
        # Small, so that the poles stay up whatever the weights are: what is measured is time.
        return observation[1] + 0.01 * torch.tanh(self._last(x)).numpy()


class PythonAgent:
    """An agent in pure Python, which holds the interpreter lock all the while."""

    def __init__(self, duration: float) -> None:
        self.turns = 10_000
        for _ in range(6):
            began = time.perf_counter()
            self._work()
            self.turns = max(1, round(self.turns * duration / (time.perf_counter() - began)))

    def _work(self) -> float:
        x = 0.0
        for turn in range(self.turns):
            x += turn * 1e-9
        return x

    def __call__(self, observation: Any) -> npt.NDArray[np.float32]:
        self._work()
        target: npt.NDArray[np.float32] = observation[1]
        return target


class Case:
    """One mode with its own environment, measured round by round."""

    def __init__(self, robots: int, mode: str) -> None:
        config = cart_pole_config(mode=mode, workers=1, hanging=False)
        config["overlap"] = "on" if mode == "pipelined" else "off"
        config["ep_max_length"] = float("inf")
        self._env: Any = gym.make_vec("rt_lrhc:rt-sim-v0", num_envs=robots, config=config)
        self._interface = self._env.unwrapped.interface
        self.backend = self._interface.client.spec.backend
        self._observation, _ = self._env.reset(seed=0)

    def run(self, agent: Agent, steps: int) -> Round:
        """Run `steps` time-steps and return what each took."""
        periods = self._interface.periods.total
        began = time.perf_counter()
        inference = 0.0
        for _ in range(steps):
            before = time.perf_counter()
            action = agent(self._observation)
            inference += time.perf_counter() - before
            self._observation, *_ = self._env.step(action)
        wall = time.perf_counter() - began
        count = self._interface.periods.total - periods
        rows = self._interface.periods.values()[-count:]
        (solves,) = self._interface.client.report().solve_wall_times
        return Round(
            wall / steps,
            float(solves[-count:].sum()) / steps,
            float((rows[:, 3] - rows[:, 2]).sum()) / steps,
            inference / steps,
        )

    def close(self) -> None:
        """Close the environment and its cluster."""
        self._env.close()


def main(options: Options) -> int:
    """Calibrate, measure in interleaved rounds, print; return the exit code."""
    report = Report()
    report.header()
    cases = {mode: Case(options.robots, mode) for mode in ("blocking", "pipelined")}
    try:
        measure(options, report, cases)
    finally:
        for case in cases.values():
            case.close()
    report.save(options.json)
    missed = [
        f"{name} = {report.values[name]:.3f}, the target is {target}"
        for name, target, reached in (
            (
                "torch_steps_per_second_ratio",
                "at least 1.5",
                report.values["torch_steps_per_second_ratio"] >= 1.5,
            ),
            ("torch_blocking_over_sum", "at most 1.1", report.values["torch_blocking_over_sum"] <= 1.1),
        )
        if not reached
    ]
    print("\n".join(["", *missed] if missed else ["", "both targets reached"]))
    return 1 if missed else 0


def measure(options: Options, report: Report, cases: dict[str, Case]) -> None:
    """Measure both modes with each agent."""
    quick = cases["blocking"].run(lambda observation: observation[1], options.steps)
    print(f"backend: {cases['blocking'].backend}")
    report.values["backend"] = cases["blocking"].backend
    report.value("solve_per_step_alone", quick.solve * 1e3, "ms")
    agents: dict[str, Agent] = {
        "torch": TorchAgent(options.robots, quick.solve),
        "python": PythonAgent(quick.solve),
        "none": lambda observation: observation[1],
    }
    for name, agent in agents.items():
        rounds: dict[str, list[Round]] = {mode: [] for mode in cases}
        for index in range(options.rounds):
            for mode in list(cases)[:: 1 if index % 2 == 0 else -1]:
                rounds[mode].append(cases[mode].run(agent, options.steps))
        show(report, name, rounds, options)


def show(report: Report, name: str, rounds: dict[str, list[Round]], options: Options) -> None:
    """Print one agent's figures."""
    medians = {
        mode: Round(
            *(
                float(np.median([getattr(r, field) for r in of_mode]))
                for field in ("step", "solve", "physics", "agent")
            )
        )
        for mode, of_mode in rounds.items()
    }
    blocking, pipelined = medians["blocking"], medians["pipelined"]
    print(
        f"\nagent: {name}, n = {options.rounds} rounds of {options.steps} time-steps, {options.robots} robots, medians"
    )
    ideal = max(blocking.solve, blocking.agent, blocking.sum / usable_cores())
    for key, seconds in (
        ("blocking_step", blocking.step),
        ("blocking_solve", blocking.solve),
        ("blocking_physics", blocking.physics),
        ("blocking_agent", blocking.agent),
        ("blocking_sum_of_stages", blocking.sum),
        ("pipelined_step", pipelined.step),
        ("pipelined_solve", pipelined.solve),
        ("pipelined_physics", pipelined.physics),
        ("pipelined_agent", pipelined.agent),
        ("pipelined_ideal", ideal),
    ):
        report.value(f"{name}_{key}", seconds * 1e3, "ms")
    ratios = [b.step / p.step for b, p in zip(rounds["blocking"], rounds["pipelined"], strict=True)]
    report.value(f"{name}_blocking_over_sum", blocking.step / blocking.sum)
    report.value(f"{name}_steps_per_second_ratio", float(np.median(ratios)))
    report.value(f"{name}_ideal_ratio", blocking.sum / ideal)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
