"""List the tasks: what each is about, what its agent sees and commands."""

from dataclasses import dataclass
from typing import Any

from rt_lrhc.config import RealTimeConfig
from rt_lrhc.tasks import description, make_config, task_names


@dataclass(frozen=True)
class Options:
    """What `rt-lrhc list` shall show.

    Attributes:
        names: Only the names and what they are: nothing of a task is imported.
    """

    names: bool = False


def run(options: Options) -> int:
    """Print the tasks."""
    width = max(map(len, task_names()), default=0)
    for name in task_names():
        print(f"{name:{width}}  {description(name)}")
        if not options.names:
            observation, action = _spaces(name)
            print(f"{'':{width}}    sees      {observation}")
            print(f"{'':{width}}    commands  {action}")
    return 0


def _spaces(name: str) -> tuple[str, str]:
    """Return the components of one robot's observation and of its action, with their widths."""
    from rt_lrhc.environment.setup import resolve_interface
    from rt_lrhc.tasks.config import TaskConfig
    from rt_lrhc.tasks.task import TermTask

    config = make_config(name)
    kwargs = config["interface_kwargs"]
    task = kwargs.get("task_kwargs", {}).get("config")
    if isinstance(task, TaskConfig):
        # Robots without their controllers: no process is started for a list.
        robots = TermTask(1, task)
        try:
            groups = [f"{group.name} {len(group.references)}" for group in task.actions if group.scale]
            return _widths(robots.observation_names, robots.observation_space.spaces), ", ".join(groups)
        finally:
            robots.close()
    checked = RealTimeConfig.from_mapping(config)
    interface = resolve_interface(checked.interface)(*checked.interface_args, **checked.interface_kwargs)
    try:
        space = interface.get_observation_space()
        names = getattr(interface, "observation_names", [str(index) for index in range(len(space.spaces))])
        return _widths(names, space.spaces), str(interface.get_action_space().shape[0])
    finally:
        interface.close()


def _widths(names: Any, spaces: Any) -> str:
    return ", ".join(f"{name} {space.shape[0]}" for name, space in zip(names, spaces, strict=True))
