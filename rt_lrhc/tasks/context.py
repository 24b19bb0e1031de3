"""What the terms of a task see: the robots, their plans, and what is asked of them, at one grid time."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from rt_lrhc.errors import ConfigurationError, unknown_key
from rt_lrhc.interfaces.cluster import BoolArray, FloatArray, IntArray, Moment
from rt_lrhc.simulators.plant import Plant

Result = TypeVar("Result")


class TaskContext:
    """The present moment of N robots, rows first. Terms read it; events alone change `commands` and the plant.

    A robot whose simulation has diverged keeps the last state that was finite, so that no term meets NaN.

    Attributes:
        plant: The robots.
        num_robots: N.
        control_period: Time between two inputs, s.
        moment: States, inputs, references and plans; a new one at each control period.
        periods: Control periods since each robot's episode began, (N,).
        action: What each robot was told last, the action groups side by side, (N, na).
        previous_action: What it was told before that, (N, na); equal to `action` at first.
        commands: What is asked of each robot, by name of the command, (N, d).
    """

    def __init__(self, plant: Plant, control_period: float, moment: Moment, action: FloatArray) -> None:
        self.plant = plant
        self.num_robots = plant.num_robots
        self.control_period = control_period
        self.moment = moment
        self.periods: IntArray = np.zeros(plant.num_robots, dtype=np.int64)
        self.action: FloatArray = action.copy()
        self.previous_action: FloatArray = action.copy()
        self.commands: dict[str, FloatArray] = {}
        self._columns: dict[tuple[str, ...], IntArray] = {}
        self._made: dict[Any, tuple[Moment, Any]] = {}

    @property
    def time(self) -> FloatArray:
        """Time since each robot's episode began, (N,), s."""
        return np.asarray(self.periods * self.control_period, np.float64)

    @property
    def states(self) -> FloatArray:
        """States of the plant, (N, nx)."""
        return self.moment.states

    @property
    def inputs(self) -> FloatArray:
        """Inputs that acted in the control period that ends now, (N, nu)."""
        return self.moment.inputs

    @property
    def plan_age(self) -> IntArray:
        """Age of each plan in force, in control periods, (N,); -1 without one."""
        return self.moment.plan_age

    @property
    def plan_fresh(self) -> BoolArray:
        """Whether it has its nominal age, (N,)."""
        return self.moment.plan_fresh

    @property
    def plan_status(self) -> IntArray:
        """`Status` of each robot's latest solve, (N,)."""
        return self.moment.plan_status

    @property
    def plan_cost(self) -> FloatArray:
        """Cost of each robot's latest plan, (N,); NaN without one."""
        return self.moment.plan_cost

    def state(self, *names: str) -> FloatArray:
        """Return states by name, (N, len(names)): a copy.

        Raises:
            ConfigurationError: If the plant has no state of that name.
        """
        columns = self._columns.get(names)
        if columns is None:
            known = list(self.plant.state_names)
            for name in names:
                if name not in known:
                    raise ConfigurationError(unknown_key("state", name, known))
            columns = self._columns[names] = np.array([known.index(name) for name in names])
        return self.states[:, columns]

    def command(self, name: str) -> FloatArray:
        """Return a command by name, (N, d)."""
        if name not in self.commands:
            raise ConfigurationError(unknown_key("command", name, list(self.commands)))
        return self.commands[name]

    def snapshot(self) -> "TaskContext":
        """Return this moment, which later ones do not change; the plant alone goes on."""
        twin = copy.copy(self)
        twin.periods = self.periods.copy()
        twin.commands = {name: values.copy() for name, values in self.commands.items()}
        twin._made = {}
        return twin

    def once(self, function: "Callable[[TaskContext], Result]") -> Result:
        """Return `function(self)`, computed once a moment however many terms ask for it."""
        made = self._made.get(function)
        if made is None or made[0] is not self.moment:
            made = self._made[function] = (self.moment, function(self))
        result: Result = made[1]
        return result
