"""A cluster task that is made of terms."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.errors import ConfigurationError, unknown_key
from rt_lrhc.interfaces.cluster import BoolArray, ClusterTask, FloatArray, IntArray, Moment
from rt_lrhc.tasks.config import TaskConfig
from rt_lrhc.tasks.context import TaskContext
from rt_lrhc.tasks.draws import RobotStreams
from rt_lrhc.tasks.observations import Component
from rt_lrhc.tasks.terms import Action, Command, Event, Metric, Reward, Termination, interval

DIVERGED = "diverged"
"""Name, in `info["termination_terms"]`, of the end of a robot whose simulation is not finite any more."""


class TermTask(ClusterTask):
    """N robots that do what a `TaskConfig` says. All terms run over all robots at once.

    `info` gets `reward_terms` (scaled, (N,) each), `termination_terms` (bool) and `metrics`.

    Args:
        num_robots: N.
        config: The task.

    Raises:
        ConfigurationError: If a term does not fit the robots.
    """

    def __init__(self, num_robots: int, config: TaskConfig) -> None:
        self.config = config
        self._painter: Any = None
        self.plant = _resolve(config.plant, "plant")(num_robots, **config.plant_kwargs)
        try:
            self._build(num_robots, config)
        except BaseException:
            self.plant.close()
            raise

    def _build(self, num_robots: int, config: TaskConfig) -> None:
        self.controller = config.controller
        self.controller_kwargs = dict(config.controller_kwargs)
        self.control_period = config.control_period
        self.reference_names = tuple(config.references)
        self._groups = _Groups(config)
        self.action_space, self.default_action = self._groups.space, self._groups.default
        defaults = np.repeat(self.default_action[None].astype(np.float64), num_robots, axis=0)
        self.context = TaskContext(self.plant, config.control_period, self._first_moment(), defaults)
        self._robots = np.arange(num_robots)
        self._just_began = np.zeros(num_robots, dtype=np.bool_)
        self._root = 0
        self._starts = RobotStreams(num_robots, "initial_state")
        self._commands = [_Commands(term, self.context) for term in config.commands if term.scale]
        self._events = [_Events(term, self.context) for term in config.events if term.scale]
        self._components = [Component(term, self.context) for term in config.observations if term.scale]
        self.observation_names = tuple(part.term.name for part in self._components)
        self.observation_delay_bound = max(part.longest_delay for part in self._components)
        self.observation_space = spaces.Tuple([part.space for part in self._components])
        self._rewards = [term for term in config.rewards if term.scale]
        self._terminations = [_Lasting(term, self.context) for term in config.terminations if term.scale]
        self._metrics = [term for term in config.metrics if term.scale]
        checked: list[Reward | Metric] = [*self._rewards, *self._metrics]
        for term in checked:
            self._evaluate(term)
        self._diverged = np.zeros(num_robots, dtype=np.bool_)
        self._forget()

    def _forget(self) -> None:
        """No transition has been judged, and none is under way."""
        nothing = np.zeros(self.plant.num_robots)
        names = (*(part.term.name for part in self._terminations), DIVERGED)
        self._sums = np.zeros((len(self._rewards), self.plant.num_robots))
        self._count = 0
        self._judged: dict[str, dict[str, npt.NDArray[Any]]] = {
            "reward_terms": {term.name: nothing for term in self._rewards},
            "termination_terms": {name: nothing.astype(np.bool_) for name in names},
        }

    def _first_moment(self) -> Moment:
        count = self.plant.num_robots
        nobody, nothing = np.zeros(count, np.bool_), np.zeros(count, np.int64)
        return Moment(
            time=0.0,
            states=self.plant.state.numpy(),
            inputs=np.zeros((count, len(self.plant.input_names))),
            references=np.repeat(self._groups.references[None], count, axis=0),
            plan_age=nothing - 1,
            plan_fresh=nobody,
            plan_status=nothing,
            plan_cost=np.full(count, np.nan),
            began=nobody,
        )

    # What the interface asks.

    def begin(self, root: int, episodes: IntArray, rows: BoolArray, options: Mapping[str, Any]) -> FloatArray:
        """Randomise the robots in `rows`, draw their commands, and return their initial states."""
        for key in options:
            raise ConfigurationError(f"reset(options=...): unknown option {key!r}; known: schedule")
        chosen = np.flatnonzero(rows)
        if not episodes.any():
            self._forget()
        self.context.periods[chosen] = 0
        self._just_began[chosen] = True
        self._diverged[chosen] = False
        parts: list[Component | _Commands | _Events] = [*self._components, *self._commands, *self._events]
        for part in parts:
            part.begin(root, episodes, chosen)
        for ending in self._terminations:
            ending.begin(chosen)
        self._starts.begin(root, episodes, chosen)
        start = self.config.start
        states = np.zeros((len(rows), len(self.plant.state_names)))
        states[chosen] = start(self.context, self._starts.of(chosen), start.scale)
        return states

    def references(self, actions: npt.NDArray[Any]) -> FloatArray:
        """Return what the action groups command, and the defaults for the rest."""
        context = self.context
        told = actions.astype(np.float64)
        # At a robot's first action of an episode nobody else is told anything new.
        fresh = self._just_began.copy() if self._just_began.any() else None
        self._just_began[:] = False
        if fresh is None:
            context.previous_action, context.action = context.action, told
        else:
            context.action = np.where(fresh[:, None], told, context.action)
            context.previous_action = np.where(fresh[:, None], told, context.previous_action)
        return self._groups.map(told)

    def disturb(self) -> None:
        """Count a control period, draw new commands and let events happen where it is time."""
        self.context.periods += 1
        parts: list[_Commands | _Events] = [*self._commands, *self._events]
        for part in parts:
            part.run(self.context.periods)

    def follow(self, moment: Moment) -> None:
        """Take note of a control period: time, delays, rewards, and what has to last."""
        finite = np.asarray(np.isfinite(moment.states).all(axis=1))
        if not finite.all():
            self._diverged |= ~finite
            moment = replace(
                moment, states=np.where(finite[:, None], moment.states, self.context.moment.states)
            )
        self.context.moment = moment
        for component in self._components:
            component.follow(self.context, moment.began)
        if moment.began.any():
            return
        for ending in self._terminations:
            ending.follow(self.context)
        if self.config.reward_time == "mean":
            for index, reward in enumerate(self._rewards):
                self._sums[index] += reward(self.context)
            self._count += 1

    def observe(self, states: FloatArray, plan_ages: IntArray) -> list[npt.NDArray[Any]]:
        """Return the components."""
        return [component.value(self.context) for component in self._components]

    def judge(self, states: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Return the sum of the reward terms, and whether a termination term holds."""
        if self._count:
            values: FloatArray = self._sums / self._count
        else:
            values = np.array([self._evaluate(reward) for reward in self._rewards]).reshape(self._sums.shape)
        self._sums, self._count = np.zeros_like(self._sums), 0
        terms = {
            reward.name: reward.scale * value for reward, value in zip(self._rewards, values, strict=True)
        }
        ends = {part.term.name: part.holds(self.context) for part in self._terminations}
        ends[DIVERGED] = self._diverged.copy()
        self._judged = {"reward_terms": terms, "termination_terms": ends, "metrics": self._measure()}
        total: FloatArray = np.zeros(self.plant.num_robots)
        for value in terms.values():
            total = total + value
        return total, np.any(list(ends.values()), axis=0)

    def figures(self) -> dict[str, Any]:
        """Return the terms behind the last rewards and ends, and the metrics."""
        judged = {"metrics": self._judged["metrics"] if "metrics" in self._judged else self._measure()}
        return {
            key: {name: value.copy() for name, value in part.items()}
            for key, part in {**self._judged, **judged}.items()
        }

    def _measure(self) -> dict[str, npt.NDArray[Any]]:
        return {metric.name: metric.scale * self._evaluate(metric) for metric in self._metrics}

    def view(self, states: FloatArray, references: FloatArray) -> TaskContext:
        """Return the present moment, which later steps do not change, for `picture`."""
        return self.context.snapshot()

    def picture(self, view: TaskContext) -> npt.NDArray[np.uint8] | None:
        """Return the task's picture of the robots at the moment of a `view`."""
        if self.config.draw is None:
            return None
        if self._painter is None:
            found = _resolve(self.config.draw, "draw")
            self._painter = found() if inspect.isclass(found) else found
        picture: npt.NDArray[np.uint8] = self._painter(view)
        return picture

    def close(self) -> None:
        """Close the painter and the plant."""
        if hasattr(self._painter, "close"):
            self._painter.close()
        super().close()

    def _evaluate(self, term: Reward | Metric) -> FloatArray:
        value = np.asarray(term(self.context), np.float64)
        if value.shape != (self.plant.num_robots,):
            raise ConfigurationError(
                f"{type(term).__name__} {term.name!r} must return ({self.plant.num_robots},) numbers, got {value.shape}"
            )
        return value


class _Groups:
    """The action groups: spaces, default, and how they become references."""

    def __init__(self, config: TaskConfig) -> None:
        groups = [action for action in config.actions if action.scale]
        names = list(config.references)
        self.references: FloatArray = np.array([float(value) for value in config.references.values()])
        self._columns = np.array([names.index(name) for group in groups for name in group.references])
        self._scales = np.concatenate([np.full(len(group.references), group.scale) for group in groups])
        low, high, default = (self._side_by_side(groups, key) for key in ("low", "high", "default"))
        self.space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self.default = np.clip(default.astype(np.float32), self.space.low, self.space.high)

    @staticmethod
    def _side_by_side(groups: list[Action], key: str) -> FloatArray:
        return np.concatenate([np.array(getattr(group, key)) / group.scale for group in groups])

    def map(self, actions: FloatArray) -> FloatArray:
        references = np.repeat(self.references[None], len(actions), axis=0)
        references[:, self._columns] = actions * self._scales
        return references


class _Timer:
    """When it is time for each of N robots, in control periods since its episode began."""

    def __init__(self, period: float | tuple[float, float], control_period: float, num_robots: int) -> None:
        low, high = interval("period", period, least=0.0)
        self._low = max(1, round(min(low, 1e9) / control_period))
        self._high = max(self._low, round(min(high, 1e9) / control_period))
        self._next = np.zeros(num_robots, dtype=np.int64)
        self.streams: RobotStreams | None = None

    def restart(self, rows: IntArray) -> None:
        self._next[rows] = self._draw(rows)

    def due(self, periods: IntArray) -> IntArray:
        """Return the robots for which it is time, (k,), and draw when it is next."""
        rows = np.flatnonzero(periods >= self._next)
        if len(rows):
            self._next[rows] += self._draw(rows)
        return rows

    def _draw(self, rows: IntArray) -> IntArray | int:
        if self._low == self._high or self.streams is None:
            return self._low
        drawn = self.streams.next(rows, 1)[:, 0]
        return self._low + np.floor(drawn * (self._high + 1 - self._low)).astype(np.int64)


class _Commands:
    """One command of each robot, in the context under its name."""

    def __init__(self, term: Command, context: TaskContext) -> None:
        self.term = term
        middle = 0.5 * term.scale * (np.array(term.low) + np.array(term.high))
        self._values: FloatArray = np.repeat(middle[None], context.num_robots, axis=0)
        context.commands[term.name] = self._values
        self._streams = RobotStreams(context.num_robots, f"command: {term.name}")
        self._timer = _Timer(term.period, context.control_period, context.num_robots)
        self._timer.streams = self._streams

    def begin(self, root: int, episodes: IntArray, rows: IntArray) -> None:
        self._streams.begin(root, episodes, rows)
        self._sample(rows)
        self._timer.restart(rows)

    def run(self, periods: IntArray) -> None:
        rows = self._timer.due(periods)
        if len(rows):
            self._sample(rows)

    def _sample(self, rows: IntArray) -> None:
        draw, term = self._streams.of(rows), self.term
        values = term.scale * draw.uniform(term.low, term.high, len(term.low))
        if term.zero:
            values *= draw.uniform(0.0, 1.0) >= term.zero
        self._values[rows] = values


class _Events:
    """One event of each robot, at the begin of its episodes or from time to time."""

    def __init__(self, term: Event, context: TaskContext) -> None:
        self.term = term
        self._context = context
        self._streams = RobotStreams(context.num_robots, f"event: {term.name}")
        self._timer: _Timer | None = None
        if term.period is not None:
            self._timer = _Timer(term.period, context.control_period, context.num_robots)
            self._timer.streams = self._streams

    def begin(self, root: int, episodes: IntArray, rows: IntArray) -> None:
        self._streams.begin(root, episodes, rows)
        if self._timer is None:
            self._happen(rows)
        else:
            self._timer.restart(rows)

    def run(self, periods: IntArray) -> None:
        if self._timer is not None:
            rows = self._timer.due(periods)
            if len(rows):
                self._happen(rows)

    def _happen(self, rows: IntArray) -> None:
        self.term(self._context, self._streams.of(rows), self.term.scale)


class _Lasting:
    """One termination, and for how long it has been true of each robot."""

    def __init__(self, term: Termination, context: TaskContext) -> None:
        self.term = term
        self._needed = round(term.lasting / context.control_period)
        self._periods = np.zeros(context.num_robots, dtype=np.int64)
        value = np.asarray(term(context))
        if value.shape != (context.num_robots,) or value.dtype != np.bool_:
            raise ConfigurationError(
                f"Termination {term.name!r} must return ({context.num_robots},) bool, got {value.shape} {value.dtype}"
            )

    def begin(self, rows: IntArray) -> None:
        self._periods[rows] = 0

    def follow(self, context: TaskContext) -> None:
        if self._needed:
            self._periods += 1
            self._periods *= self.term(context)

    def holds(self, context: TaskContext) -> BoolArray:
        if self._needed:
            return self._periods >= self._needed
        value: BoolArray = self.term(context)
        return value


def _resolve(value: str | Callable[..., Any], what: str) -> Callable[..., Any]:
    if callable(value):
        return value
    module_name, _, name = value.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f'{what} must be "package.module:name", got {value!r}: {error}') from error
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigurationError(unknown_key(f"{what} in {module_name}", name, known))
    found: Callable[..., Any] = getattr(module, name)
    return found
