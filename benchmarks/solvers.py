"""The real-time iteration against solvers of the whole nonlinear programme, on one cart-pole problem.

All solve the same recorded states of a closed loop (swing-up, kicks, a moving target; 20 ms apart), each from its own
last solution shifted by 20 ms. The real-time iteration takes one QP a state; ipopt and fatrop iterate to convergence,
on expanded expressions, which CasADi interprets faster. The ratio is that of medians, to ipopt. Then the real-time
iteration for several robots at once, per robot.

    python benchmarks/solvers.py [--rounds N] [--periods N] [--json FILE]
"""

import itertools
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import Report, interleaved

from rt_lrhc.cluster.controller import FloatArray, PlanBatch, SolveRequest, Status
from rt_lrhc.controllers.cart_pole import CartPoleModel, make_cart_pole, make_cart_pole_problem
from rt_lrhc.controllers.nlp import FATROP_OPTIONS, NlpSolver
from rt_lrhc.controllers.ocp import build_functions
from rt_lrhc.controllers.qp import split_trajectory
from rt_lrhc.controllers.rti import RtiController

CONTROL_PERIOD = 0.02
TARGET_RATIO = 0.2
"""Our median is to be at most this part of ipopt's."""
BATCHES = (1, 8, 32, 64)

IPOPT_OPTIONS: Mapping[str, Any] = {
    "expand": True,
    "ipopt": {
        "print_level": 0,
        "sb": "yes",
        "warm_start_init_point": "yes",
        "warm_start_bound_push": 1e-6,
        "warm_start_mult_bound_push": 1e-6,
        "mu_init": 1e-3,
    },
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    rounds: int = 6
    """Robots that each solver is run on, one after the other."""
    periods: int = 250
    """Control periods of each closed loop."""
    json: Path | None = None


@dataclass(frozen=True)
class Recording:
    """What the controllers of B robots were asked in closed loop: (periods, B, ...)."""

    states: FloatArray
    references: FloatArray


def make_plans(controller: RtiController, robots: int) -> PlanBatch:
    spec = controller.spec
    figures = [np.zeros(robots) for _ in range(3)]
    return PlanBatch(
        np.zeros((robots, spec.num_stages, spec.nu)),
        np.zeros((robots, spec.num_stages + 1, spec.nx)),
        np.zeros(robots, dtype=np.int64),
        np.zeros(robots, dtype=np.int64),
        *figures,
    )


def make_request(states: FloatArray, references: FloatArray, period: int) -> SolveRequest:
    robots = len(states)
    now = period * CONTROL_PERIOD
    return SolveRequest(
        states=states,
        references=references,
        inputs_in_force=np.zeros((robots, 1)),
        active=np.ones(robots, dtype=np.bool_),
        reset=np.full(robots, period == 0),
        time=now,
        act_time=now,
        deadline=math.inf,
    )


def record(robots: int, periods: int) -> Recording:
    """Drive cart-poles from hanging, with kicks every 1.6 s and targets every second."""
    random = np.random.default_rng(0)
    model = CartPoleModel()
    controller = make_cart_pole(robots, cold_starts_per_solve=robots)
    plans = make_plans(controller, robots)
    states = np.tile([0.0, np.pi, 0.0, 0.0], (robots, 1)) + random.normal(size=(robots, 4)) * 0.1
    references = np.zeros((robots, 1))
    forces = np.zeros(robots)
    path, targets = [], []

    def derivative(at: FloatArray) -> FloatArray:
        return np.stack(
            (at[:, 2], at[:, 3], *model.accelerations(at[:, 1], at[:, 3], forces, np.cos, np.sin)), axis=1
        )

    for period in range(periods):
        if period % 80 == 79:
            states[:, 2:] += random.normal(size=(robots, 2)) * [0.5, 1.5]
        if period % 50 == 49:
            references = random.uniform(-1.0, 1.0, size=(robots, 1))
        path.append(states.copy())
        targets.append(references)
        controller.solve(make_request(path[-1], references, period), plans)
        usable = [Status(status).usable for status in plans.status]
        forces = np.where(usable, plans.inputs[:, 0, 0], forces)
        h = CONTROL_PERIOD / 4
        for _ in range(4):
            k1 = derivative(states)
            k2 = derivative(states + h / 2 * k1)
            k3 = derivative(states + h / 2 * k2)
            k4 = derivative(states + h * k3)
            states = states + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return Recording(np.array(path), np.array(targets))


class RtiCase:
    """Replays recorded states to a real-time iteration of some robots."""

    def __init__(self, recording: Recording, robots: int, **kwargs: Any) -> None:
        self.recording, self.robots = recording, robots
        self.controller = make_cart_pole(robots, cold_starts_per_solve=robots, **kwargs)
        self.plans = make_plans(self.controller, robots)
        self.cold: list[float] = []
        self.inputs: list[FloatArray] = []
        self.failures = 0
        self._rounds = itertools.count()

    def __call__(self) -> FloatArray:
        """Return the time of each solve but the first, which is a cold start, per robot, s."""
        first = next(self._rounds) * self.robots % self.recording.states.shape[1]
        rows = slice(first, first + self.robots)
        times = []
        for period in range(len(self.recording.states)):
            request = make_request(
                self.recording.states[period, rows].copy(),
                self.recording.references[period, rows].copy(),
                period,
            )
            begin = time.perf_counter()
            self.controller.solve(request, self.plans)
            times.append((time.perf_counter() - begin) / self.robots)
            self.failures += int((self.plans.status != Status.SOLVED).sum())
            self.inputs.append(self.plans.inputs[:, 0, 0].copy())
        self.cold.append(times[0])
        return np.array(times[1:])


class NlpCase:
    """Replays recorded states to a solver of the nonlinear programme, from its last solution shifted by one period."""

    def __init__(self, recording: Recording, plugin: str, options: Mapping[str, Any]) -> None:
        ocp = make_cart_pole_problem()
        self.recording, self.ocp = recording, ocp
        self.solver = NlpSolver(ocp, build_functions(ocp), plugin, options)
        self.cold: list[float] = []
        self.inputs: list[FloatArray] = []
        self.failures = 0
        self._rounds = itertools.count()

    def __call__(self) -> FloatArray:
        """Return the time of each solve but the first, s."""
        ocp, row = self.ocp, next(self._rounds) % self.recording.states.shape[1]
        trajectory = np.zeros(ocp.num_stages + (ocp.num_stages + 1) * 4)
        inputs, states = split_trajectory(trajectory, ocp.num_stages, 4, 1)
        shift = CONTROL_PERIOD / ocp.stage_duration
        states[:] = self.recording.states[0, row]
        times = []
        for period in range(len(self.recording.states)):
            state = self.recording.states[period, row].copy()
            # As the real-time iteration does it: the turn nearest to the plan.
            state[1] -= 2 * np.pi * round((state[1] - states[0, 1]) / (2 * np.pi))
            begin = time.perf_counter()
            worked = self.solver.solve(
                state, self.recording.references[period, row], trajectory, warm=period > 0
            )
            times.append(time.perf_counter() - begin)
            self.failures += not worked
            self.inputs.append(inputs[0].copy())
            for values in (inputs, states):
                values[:-1] += shift * (values[1:] - values[:-1])
        self.cold.append(times[0])
        return np.array(times[1:])


def main(options: Options) -> int:
    """Measure and print; 1 if the target was missed."""
    report = Report()
    report.header()
    recording = record(max(BATCHES), options.periods)
    kinds = ["interpreted"] + (["compiled"] if shutil.which("gcc") else [])
    cases: dict[str, RtiCase | NlpCase] = {
        "ipopt": NlpCase(recording, "ipopt", IPOPT_OPTIONS),
        "fatrop": NlpCase(recording, "fatrop", {"expand": True, **FATROP_OPTIONS}),
    }
    for solver, kind in itertools.product(("hpipm", "piqp"), kinds):
        compile = "on" if kind == "compiled" else "off"
        cases[f"rti {solver} {kind}"] = RtiCase(recording, 1, qp_solver=solver, compile=compile)
    print(f"\n{options.rounds} closed loops of {options.periods} states, warm-started solves:")
    samples = interleaved(cases, options.rounds)
    report.durations(samples)
    print("\nthe first solve of each loop, from nothing:")
    report.durations({f"{name} cold": np.array(case.cold) for name, case in cases.items()})
    print("\nsolves that did not end well, and how far first inputs lie from ipopt's, median:")
    best = np.array(cases["ipopt"].inputs)
    for name, case in cases.items():
        report.value(f"{name} failures", case.failures, f"of {best.size}")
        report.value(f"{name} input error", float(np.median(np.abs(np.array(case.inputs) - best))), "N")

    print("\nper robot, in batches:")
    batches: dict[str, Callable[[], FloatArray]] = {
        f"rti hpipm {kind} batch of {robots}": RtiCase(
            recording, robots, qp_solver="hpipm", compile="on" if kind == "compiled" else "off"
        )
        for kind, robots in itertools.product(kinds, BATCHES)
    }
    report.durations(interleaved(batches, max(1, options.rounds // 2)))

    worst = max(np.median(samples[f"rti hpipm {kind}"]) for kind in kinds) / np.median(samples["ipopt"])
    print()
    report.value("our median / ipopt's", float(worst), f"(target: at most {TARGET_RATIO})")
    report.save(options.json)
    return int(worst > TARGET_RATIO)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
