"""An episode as it was run, in a file: what it takes to run it again, and what came out."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.config import RealTimeConfig
from rt_lrhc.delays import Delay, delay_to_dict
from rt_lrhc.environment.captures import Capture
from rt_lrhc.environment.engine import Schedule
from rt_lrhc.errors import ConfigurationError, EnvironmentStateError

Array = npt.NDArray[Any]

_FORMAT = 1
_NOT_KEPT = (
    "realtime",
    "clock",
    "overlap",
    "array_backend",
    "benchmark",
    "benchmark_polyak",
    "benchmark_type",
)
"""Keys of the configuration that have no influence on an episode, or are the replay's own."""


@dataclass(frozen=True)
class Call:
    """A call between two time-steps that changes what comes after it.

    Attributes:
        step: Actions handed over before it, since the reset.
        method: The environment's method.
        arguments: Its arguments.
    """

    step: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Recording:
    """What has happened since a reset.

    Attributes:
        config: The configuration, as JSON takes it.
        num_envs: Robots of a vector environment; None for one of a single robot.
        root: Root of the random streams.
        options: The options of the reset, without a schedule.
        schedule: What took effect when.
        calls: Calls between the time-steps, in order.
        actions: What was handed over, (K, ...).
        observations: Leaves of the K + 1 observations, before `obs_prepro_func`, each (K + 1, ...).
        outcomes: `reward`, `terminated` and `truncated`, (K, ...); for robots that were reset in between, the leaves of
            what they saw last, `final_0` ..., (K, ...), zero elsewhere.
    """

    config: dict[str, Any]
    num_envs: int | None
    root: int
    options: dict[str, Any]
    schedule: Schedule
    calls: tuple[Call, ...]
    actions: Array
    observations: tuple[Array, ...]
    outcomes: dict[str, Array]

    def save(self, path: str | Path) -> None:
        """Write an .npz file, without pickle."""
        about = {
            "format": _FORMAT,
            "config": self.config,
            "num_envs": self.num_envs,
            "root": self.root,
            "options": self.options,
            "calls": [[call.step, call.method, list(call.arguments)] for call in self.calls],
        }
        arrays: dict[str, Any] = {
            "about": np.array(json.dumps(about)),
            "actions": self.actions,
            "action_periods": np.array(self.schedule.action_periods, dtype=np.int64),
            **{f"observation_{index}": leaf for index, leaf in enumerate(self.observations)},
            **{f"outcome_{name}": values for name, values in self.outcomes.items()},
        }
        if self.schedule.world is not None:
            arrays["world"] = _as_numbers(self.schedule.world)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: If it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
            about = json.loads(str(arrays["about"]))
            if about["format"] != _FORMAT:
                raise ConfigurationError(
                    f"{path} is a recording of format {about['format']}; this version reads {_FORMAT}"
                )
            count = sum(name.startswith("observation_") for name in arrays)
            return cls(
                about["config"],
                about["num_envs"],
                about["root"],
                about["options"],
                Schedule(
                    tuple(int(period) for period in arrays["action_periods"]),
                    tuple(arrays["world"]) if "world" in arrays else None,
                ),
                tuple(Call(step, method, tuple(arguments)) for step, method, arguments in about["calls"]),
                arrays["actions"],
                tuple(arrays[f"observation_{index}"] for index in range(count)),
                {
                    name.removeprefix("outcome_"): values
                    for name, values in arrays.items()
                    if name.startswith("outcome_")
                },
            )
        except ConfigurationError:
            raise
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path} is not a recording of rt_lrhc: {error}") from error

    def environment_config(self) -> dict[str, Any]:
        """Return the configuration as the environments take it, with its functions found again."""
        config = dict(self.config)
        for key in ("act_prepro_func", "obs_prepro_func"):
            if config.get(key) is not None:
                config[key] = _function(config[key])
        return config


class Recorder:
    """Keeps what a `Recording` needs while an environment runs.

    Args:
        config: The environment's configuration.
        num_envs: Robots of a vector environment; None for one of a single robot.
    """

    def __init__(self, config: RealTimeConfig, num_envs: int | None) -> None:
        self._config = config
        self._num_envs = num_envs
        self._root: int | None = None
        self._options: dict[str, Any] = {}
        self._before: list[Call] = []
        self._calls: list[Call] = []
        self._actions: list[Array] = []
        self._observations: list[list[Array]] = []
        self._outcomes: list[dict[str, Any]] = []

    def begin(self, root: int, options: Mapping[str, Any] | None, observation: Any) -> None:
        """Begin anew, with a reset. Parameters that were changed before it are part of the recording."""
        self._root = root
        self._options = {key: value for key, value in (options or {}).items() if key != "schedule"}
        changes = [*self._before, *self._calls]
        self._before = [Call(-1, call.method, call.arguments) for call in changes if call.method != "wait"]
        self._calls, self._actions, self._outcomes = [], [], []
        self._observations = [leaves(observation)]

    def note(self, method: str, *arguments: Any) -> None:
        """Add a call between two time-steps."""
        self._calls.append(Call(len(self._actions), method, arguments))

    def add(self, action: Array, observation: Any, capture: Capture) -> None:
        """Add a time-step."""
        self._actions.append(action.copy())
        self._observations.append(leaves(observation))
        self._outcomes.append(outcome(capture))

    def recording(self, schedule: Schedule) -> Recording:
        """Return what was recorded since the last reset."""
        if self._root is None:
            raise EnvironmentStateError("recording() needs a reset() after start_recording()")
        return Recording(
            config_to_json(self._config),
            self._num_envs,
            self._root,
            _checked_json("options", self._options),
            schedule,
            (*self._before, *self._calls),
            np.stack(self._actions) if self._actions else np.zeros(0),
            stacked(self._observations),
            stacked_outcomes(self._outcomes),
        )


def leaves(observation: Any) -> list[Array]:
    """Return the arrays of an observation of any form, copies."""
    if isinstance(observation, dict):
        return [np.array(value) for value in observation.values()]
    if isinstance(observation, tuple):
        return [np.array(value) for value in observation]
    return [np.array(observation)]


def outcome(capture: Capture) -> dict[str, Any]:
    """Return what came out of a time-step besides the observation."""
    final: dict[str, Any] = {}
    for index, component in enumerate(capture.components):
        ended = np.zeros_like(component)
        if capture.reset_rows is not None:
            ended[capture.reset_rows] = capture.final_components[index][capture.reset_rows]
        final[f"final_{index}"] = ended
    flags = {"reward": capture.reward, "terminated": capture.terminated, "truncated": capture.truncated}
    return {**flags, **(final if isinstance(capture.terminated, np.ndarray) else {})}


def stacked(observations: list[list[Array]]) -> tuple[Array, ...]:
    """Return the leaves, stacked over the time-steps."""
    return tuple(np.stack(leaf) for leaf in zip(*observations, strict=True))


def stacked_outcomes(outcomes: list[dict[str, Any]]) -> dict[str, Array]:
    """Return the outcomes, stacked over the time-steps."""
    names = outcomes[0] if outcomes else ()
    return {name: np.stack([np.asarray(one[name]) for one in outcomes]) for name in names}


def config_to_json(config: RealTimeConfig) -> dict[str, Any]:
    """Return a configuration as JSON takes it: classes and functions by name.

    Raises:
        ConfigurationError: If a value cannot be written; it names the key.
    """
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _NOT_KEPT or value == field.default:
            continue
        if isinstance(value, Delay):
            values[field.name] = delay_to_dict(value)
        elif callable(value):
            values[field.name] = _name_of(field.name, value)
        elif field.name == "interface_kwargs":
            values[field.name] = {
                key: delay_to_dict(inner) if isinstance(inner, Delay) else _checked_json(key, inner)
                for key, inner in value.items()
            }
        else:
            values[field.name] = _checked_json(field.name, value)
    return values


def _checked_json(name: str, value: Any) -> Any:
    """Return `value` as JSON gives it back, numpy's numbers and arrays as lists."""
    if callable(value):
        return _name_of(name, value)
    try:
        return json.loads(json.dumps(value, default=_plain))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{name} = {value!r:.100} cannot be written to a recording: {error}; use numbers, strings, lists and "
            "dictionaries"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if callable(value):
        return _name_of("a value", value)
    raise TypeError(f"{type(value).__name__} is not known to JSON")


def _name_of(key: str, value: Callable[..., Any]) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module is None or module == "__main__" or not name or "<" in name:
        raise ConfigurationError(
            f"{key} = {value!r:.100} cannot be written to a recording, because no other program finds it by name: "
            "define it at the top of a module"
        )
    return f"{module}:{name}"


def _function(name: str) -> Any:
    module_name, _, qualified = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"the recording's function {name!r} is not found: {error}") from error
    return found


def _as_numbers(world: Any) -> Array:
    try:
        values = np.asarray(world)
    except ValueError as error:
        raise ConfigurationError(f"the world's schedule is not an array of numbers: {error}") from error
    if values.dtype.kind not in "biuf":
        raise ConfigurationError(f"the world's schedule must be an array of numbers, got {values.dtype}")
    return values
