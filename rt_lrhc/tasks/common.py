"""Terms that any task can use: commands, plans, actions."""

import numpy as np

from rt_lrhc.cluster.controller import Status
from rt_lrhc.interfaces.cluster import BoolArray, FloatArray
from rt_lrhc.tasks.context import TaskContext

_USABLE = np.array([status.usable for status in Status])
_WAITING = np.isin(np.arange(len(Status)), (Status.NONE, Status.INITIALISING))


def command(context: TaskContext, name: str) -> FloatArray:
    """A command, (N, d), in its own unit."""
    return context.command(name).copy()


def plan_age(context: TaskContext) -> FloatArray:
    """Age of the plan in force, (N, 1), control periods; -1 without one."""
    return context.plan_age[:, None].astype(np.float64)


def plan_status(context: TaskContext) -> FloatArray:
    """Whether the latest solve was usable, was waiting for its cold start, or failed: (N, 3), one of them is 1."""
    usable, waiting = _USABLE[context.plan_status], _WAITING[context.plan_status]
    return np.stack([usable, waiting, ~(usable | waiting)], axis=1).astype(np.float64)


def plan_cost(context: TaskContext, reference: float = 1.0) -> FloatArray:
    """Cost c of the latest plan as log(1 + |c| / reference) with the sign of c, (N, 1); 0 without a plan."""
    cost = np.nan_to_num(context.plan_cost, nan=0.0, posinf=0.0, neginf=0.0)
    return (np.sign(cost) * np.log1p(np.abs(cost) / reference))[:, None]


def plan_health(context: TaskContext) -> FloatArray:
    """1 where a plan of nominal age acts, else 0, (N,)."""
    return context.plan_fresh.astype(np.float64)


def action_rate(context: TaskContext) -> FloatArray:
    """Sum of squared differences between the last two actions, (N,), in the squared units of the actions."""
    return np.asarray(((context.action - context.previous_action) ** 2).sum(axis=1), np.float64)


def plan_failing(context: TaskContext) -> BoolArray:
    """Whether the latest solve gave no usable plan, (N,); waiting for a cold start is not failing."""
    return ~(_USABLE | _WAITING)[context.plan_status]
