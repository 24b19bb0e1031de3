"""What agents are asked to do: tasks made of named terms, and their registry."""

from rt_lrhc.tasks.config import TaskConfig, change, with_terms
from rt_lrhc.tasks.registry import (
    description,
    make_config,
    register,
    run_summary,
    scripted_agent,
    task_config,
    task_names,
    unregister,
)
from rt_lrhc.tasks.terms import (
    Action,
    Command,
    Event,
    Metric,
    Observation,
    Reward,
    Start,
    Term,
    Termination,
)

__all__ = [
    "Action",
    "Command",
    "Event",
    "Metric",
    "Observation",
    "Reward",
    "Start",
    "TaskConfig",
    "Term",
    "Termination",
    "change",
    "description",
    "make_config",
    "register",
    "run_summary",
    "scripted_agent",
    "task_config",
    "task_names",
    "unregister",
    "with_terms",
]
