"""A task as a checked record of terms, and how to change one."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from rt_lrhc.config import check_choice, check_number
from rt_lrhc.errors import ConfigurationError, unknown_key
from rt_lrhc.tasks.terms import Action, Command, Event, Metric, Observation, Reward, Start, Termination

RewardTime = Literal["mean", "capture"]

_LISTS: dict[str, type] = {
    "observations": Observation,
    "actions": Action,
    "rewards": Reward,
    "terminations": Termination,
    "commands": Command,
    "events": Event,
    "metrics": Metric,
}


@dataclass(frozen=True)
class TaskConfig:
    """Robots, their controllers, and what an agent is asked to do with them.

    A task inherits from another by `dataclasses.replace`; `with_terms` and `change` do it for single terms and values.

    Attributes:
        plant: `"package.module:Name"` or the class (or function): called as `plant(num_robots, **plant_kwargs)`.
        controller: Factory of the controllers: `"package.module:factory"`, or a top-level function.
        references: Names of all references of the controllers, in their order, with what is commanded where no action
            group does.
        observations: What the agent sees, in this order.
        actions: What it commands, side by side in this order.
        rewards: What it is rewarded for.
        start: Draws the initial states.
        terminations: What ends an episode early. A robot whose simulation diverges is ended in any case.
        commands: What is asked of each robot, for the other terms to read.
        events: Randomisation, disturbances.
        metrics: Figures for people.
        plant_kwargs: Keyword arguments for the plant.
        controller_kwargs: Keyword arguments for the controllers' factory.
        control_period: Time between two inputs, s.
        time_step_duration: Time between two actions, s.
        start_obs_capture: Start of the time-step to the capture of its observation, s; None: at its end.
        episode_length: Time after which an episode is truncated, s; infinite for never.
        act_buf_len: Actions in the observation; they cover the total delay.
        reward_time: `"mean"`: a reward is the mean over the control periods of the transition; `"capture"`: its value
            at the capture.
        draw: `function(context) -> (height, width, 3) RGB`, or a class whose instances are such functions and have a
            `close()`, or the name of one, `"package.module:name"`; None for no picture.
        summary: `function(metrics) -> {name: number}` from all metrics of a run, each (time-steps, N): figures for
            people that are no means of metrics; None for none.
        scripted: An agent by hand: `function(observation) -> (N, na)`, from the observation's components by name, rows
            first; None for none.
    """

    plant: str | Callable[..., Any]
    controller: str | Callable[..., Any]
    references: Mapping[str, float]
    observations: tuple[Observation, ...]
    actions: tuple[Action, ...]
    rewards: tuple[Reward, ...]
    start: Start
    terminations: tuple[Termination, ...] = ()
    commands: tuple[Command, ...] = ()
    events: tuple[Event, ...] = ()
    metrics: tuple[Metric, ...] = ()
    plant_kwargs: Mapping[str, Any] = field(default_factory=dict)
    controller_kwargs: Mapping[str, Any] = field(default_factory=dict)
    control_period: float = 0.02
    time_step_duration: float = 0.02
    start_obs_capture: float | None = None
    episode_length: float = 20.0
    act_buf_len: int = 2
    reward_time: RewardTime = "mean"
    draw: str | Callable[..., Any] | None = None
    summary: Callable[..., Any] | None = None
    scripted: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name, kind in _LISTS.items():
            self._check_list(name, kind)
        if not isinstance(self.start, Start):
            raise ConfigurationError(f"start must be a Start(function), got {self.start!r}")
        for name in ("control_period", "time_step_duration", "episode_length"):
            check_number(name, getattr(self, name))
            if not getattr(self, name) > 0.0:
                raise ConfigurationError(f"{name} must be positive, in s, got {getattr(self, name)}")
        check_choice("reward_time", self.reward_time, get_args(RewardTime))
        taken: dict[str, str] = {}
        for action in self.actions:
            for reference in action.references:
                where = f"reference of action {action.name!r}"
                if reference not in self.references:
                    raise ConfigurationError(unknown_key(where, reference, list(self.references)))
                if reference in taken:
                    raise ConfigurationError(
                        f"reference {reference!r} is commanded by action {taken[reference]!r} and {action.name!r}"
                    )
                taken[reference] = action.name
        for name in ("observations", "actions"):
            if not any(term.scale for term in getattr(self, name)):
                raise ConfigurationError(f"{name} must have at least one term whose scale is not 0")

    def _check_list(self, name: str, kind: type) -> None:
        terms = tuple(getattr(self, name))
        object.__setattr__(self, name, terms)
        seen: set[str] = set()
        for term in terms:
            if not isinstance(term, kind):
                raise ConfigurationError(f"{name} must hold {kind.__name__}(...) terms, got {term!r}")
            term_name: str = term.name  # type: ignore[attr-defined]  # all kinds have one
            if term_name in seen:
                raise ConfigurationError(
                    f"{name} has two terms named {term_name!r}; give one of them another name=..."
                )
            seen.add(term_name)

    @property
    def ep_max_length(self) -> float:
        """Time-steps after which an episode is truncated."""
        steps = self.episode_length / self.time_step_duration
        return max(1, round(steps)) if math.isfinite(steps) else math.inf


def with_terms(config: TaskConfig, **terms: Any) -> TaskConfig:
    """Return a task with terms added, or put in the place of those of the same name.

    Args:
        config: The task to inherit from.
        **terms: By list: one term or several, e.g. `rewards=Reward(upright, 0.5)`.

    Raises:
        ConfigurationError: If there is no list of that name, or a term does not fit in.
    """
    for name, given in terms.items():
        if name not in _LISTS:
            raise ConfigurationError(unknown_key("list of terms", name, list(_LISTS)))
        new = {term.name: term for term in (given if isinstance(given, (tuple, list)) else (given,))}
        old = {term.name: term for term in getattr(config, name)}
        merged: dict[str, Any] = {name: tuple((old | new).values())}
        config = dataclasses.replace(config, **merged)
    return config


def change(config: TaskConfig, settings: Mapping[str, Any]) -> TaskConfig:
    """Return a task with some values changed, each under its path.

    Paths are `"field"`, `"list.term"` (its scale), `"list.term.field"`, and one name more for what lies in a
    dictionary: `{"control_period": 0.01, "rewards.action_rate": 0.0, "events.push.parameters.speed": 0.5}`.

    Raises:
        ConfigurationError: If a path leads nowhere (it names the closest), or a value is unusable.
    """
    for path, value in settings.items():
        config = _changed(config, path, path.split("."), value)
    return config


def _changed(record: Any, path: str, names: list[str], value: Any) -> Any:
    """Return a copy of a record, a tuple of terms or a dictionary, with the value at the end of `names` changed."""
    name, *rest = names
    if isinstance(record, tuple) and record and hasattr(record[0], "name"):
        known = [term.name for term in record]
        _check_known(path, name, known)
        return tuple(
            _changed(term, path, rest or ["scale"], value) if term.name == name else term for term in record
        )
    if isinstance(record, Mapping):
        if rest:
            _check_known(path, name, list(record))
        return {**record, name: _changed(record[name], path, rest, value) if rest else value}
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        raise ConfigurationError(
            f"setting {path!r}: nothing lies below {record!r}, but {name!r} is asked for"
        )
    _check_known(path, name, [f.name for f in fields(record)])
    inner = _changed(getattr(record, name), path, rest, value) if rest else value
    return dataclasses.replace(record, **{name: inner})


def _check_known(path: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ConfigurationError(unknown_key(f"setting {path!r}:", name, known))
