"""The tasks by name, and from a task to a configuration for `gym.make` and `gym.make_vec`."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rt_lrhc.config import DEFAULT_CONFIG_DICT
from rt_lrhc.errors import ConfigurationError, unknown_key
from rt_lrhc.tasks.config import TaskConfig, change

Factory = Callable[[], TaskConfig | dict[str, Any]]

CLUSTER_KEYS = (
    "mode",
    "delay_compensation",
    "workers",
    "namespace",
    "fallback",
    "hang_limit",
    "grace",
    "strict",
    "solve_delay",
)
"""Keyword arguments of `rt_lrhc.interfaces.cluster:ClusterInterface`, which loads torch and so is not imported here."""


@dataclass(frozen=True)
class Entry:
    """A registered task.

    Attributes:
        factory: Returns a fresh `TaskConfig`, or a configuration dictionary; or its name, `"package.module:function"`.
        scripted: Agent by hand of a task that is a dictionary: a function as `TaskConfig.scripted`, or its name.
    """

    factory: str | Factory
    scripted: str | Callable[..., Any] | None = None


# Filled by `register` alone; the names are imported when they are looked up, so that the list costs nothing.
_ENTRIES: dict[str, Entry] = {}


def register(name: str, factory: str | Factory, *, scripted: str | Callable[..., Any] | None = None) -> None:
    """Register a task under a name.

    Args:
        name: The name, for `make_config` and the command line.
        factory: Called without arguments at each look-up: returns a fresh `TaskConfig`, or a configuration dictionary
            for an interface without one. The first line of its docstring says what the task is. Or its name,
            `"package.module:function"`.
        scripted: Agent by hand of a task that is a dictionary.

    Raises:
        ConfigurationError: If the name is taken, or no name.
    """
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigurationError(f"a task's name must be text without colons, got {name!r}")
    if name in _ENTRIES:
        raise ConfigurationError(
            f"a task named {name!r} is registered already ({_ENTRIES[name].factory}); choose another name"
        )
    _ENTRIES[name] = Entry(factory, scripted)


def unregister(name: str) -> None:
    """Take a task out of the registry."""
    _entry(name)
    del _ENTRIES[name]


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted(_ENTRIES)


def description(name: str) -> str:
    """Return what a task is, in one line, without importing it where its factory is given by name."""
    factory = _entry(name).factory
    text = _docstring(factory) if isinstance(factory, str) else inspect.getdoc(factory)
    return (text or "").partition("\n")[0]


def task_config(name: str) -> TaskConfig:
    """Return a fresh record of a task, to inherit from.

    Args:
        name: A registered name, or `"package.module:function"` or `"path.py:function"`.

    Raises:
        ConfigurationError: If there is no such task (it names the closest), or it is not made of terms.
    """
    made = _made(name)
    if not isinstance(made, TaskConfig):
        raise ConfigurationError(
            f"task {name!r} is an interface of its own, not made of terms: use make_config({name!r})"
        )
    return made


def scripted_agent(name: str) -> Callable[..., Any] | None:
    """Return the agent by hand of a task, None where it has none."""
    made = _made(name)
    if isinstance(made, TaskConfig):
        return made.scripted
    agent = _ENTRIES[name].scripted if name in _ENTRIES else None
    return _found(agent) if isinstance(agent, str) else agent


def run_summary(name: str) -> Callable[..., Any] | None:
    """Return what sums up the metrics of a run of a task, None where it has nothing of the kind."""
    made = _made(name)
    return made.summary if isinstance(made, TaskConfig) else None


def make_config(
    task: str | TaskConfig, settings: Mapping[str, Any] | None = None, **keys: Any
) -> dict[str, Any]:
    """Return a configuration of a task, for `gym.make` or `gym.make_vec`.

    Args:
        task: Its name, as for `task_config`, or the task itself.
        settings: What to change in it, by path: see `rt_lrhc.tasks.change`.
        **keys: Keys of the environment's configuration (`time_step_duration`, `clock`, `observation_form`, ...), and
            those of the cluster (`CLUSTER_KEYS`: `mode`, `workers`, `delay_compensation`, `solve_delay`, ...).

    Raises:
        ConfigurationError: If a name or a key is unknown (it names the closest), or a value is unusable.
    """
    made = task if isinstance(task, TaskConfig) else _made(task)
    known = [*DEFAULT_CONFIG_DICT, *(CLUSTER_KEYS if isinstance(made, TaskConfig) else ())]
    for key in keys:
        if key not in known:
            raise ConfigurationError(unknown_key("key of the task's configuration", key, known))
    if not isinstance(made, TaskConfig):
        if settings:
            raise ConfigurationError(
                f"task {task!r} is not made of terms, so there are no settings to change"
            )
        return {**DEFAULT_CONFIG_DICT.copy(), **made, **keys}
    config = change(made, settings or {})
    # A time-step that is given as a key counts for what is derived from it, too.
    duration = keys.get("time_step_duration", config.time_step_duration)
    config = change(config, {"time_step_duration": duration})
    capture = config.start_obs_capture
    environment = {key: value for key, value in keys.items() if key not in CLUSTER_KEYS}
    return {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": "rt_lrhc.interfaces.cluster:ClusterInterface",
        "interface_kwargs": {
            "task": "rt_lrhc.tasks.task:TermTask",
            "task_kwargs": {"config": config},
            **{key: keys[key] for key in CLUSTER_KEYS if key in keys},
        },
        "start_obs_capture": duration if capture is None else capture,
        "ep_max_length": config.ep_max_length,
        "act_buf_len": config.act_buf_len,
        **environment,
        "time_step_duration": duration,
    }


def _entry(name: str) -> Entry:
    if name not in _ENTRIES:
        raise ConfigurationError(unknown_key("task", name, task_names()))
    return _ENTRIES[name]


def _made(name: str) -> TaskConfig | dict[str, Any]:
    factory = name if ":" in name else _entry(name).factory
    made = (_found(factory) if isinstance(factory, str) else factory)()
    if not isinstance(made, (TaskConfig, dict)):
        raise ConfigurationError(
            f"the factory of task {name!r} must return a TaskConfig or a dictionary, got {type(made).__name__}"
        )
    return made


def _found(name: str) -> Callable[..., Any]:
    """Return the function that `"package.module:function"` or `"path.py:function"` names."""
    where, _, function = name.rpartition(":")
    try:
        module = _imported_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigurationError(f"cannot import {where!r} of {name!r}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigurationError(unknown_key(f"function in {where}", function, known))
    called: Callable[..., Any] = found
    return called


def _imported_file(path: Path) -> Any:
    """Import a file under its own name, its folder first on the path, as if it were the program's script."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(path.stem)


def _docstring(name: str) -> str | None:
    """Return the docstring of `"package.module:function"`, read from the source."""
    where, _, function = name.rpartition(":")
    spec = find_spec(where)
    if spec is None or spec.origin is None:
        return None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_docstring(node)
    return None


register("cart_pole", "rt_lrhc.tasks.cart_pole:cart_pole")
register("mini_cheetah_flat", "rt_lrhc.tasks.mini_cheetah:mini_cheetah_flat")
register("mini_cheetah_ref", "rt_lrhc.tasks.mini_cheetah:mini_cheetah_ref")
register("drone", "rt_lrhc.tasks.drone:drone", scripted="rt_lrhc.tasks.drone:fly_to_target")
