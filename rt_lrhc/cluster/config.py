"""How a control cluster is set up: one frozen, checked record."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rt_lrhc.cluster.controller import RHController
from rt_lrhc.cluster.fallback import FallbackPolicy
from rt_lrhc.cluster.restarts import RestartPolicy
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.shm.namespace import Namespace


@dataclass(frozen=True)
class ClusterConfig:
    """What a control cluster is made of.

    Attributes:
        factory: What builds the controllers: `"package.module:factory"`, `"path.py:factory"`, or a top-level function.
        num_robots: Robots, at least 1.
        control_period: Time between two triggers, s.
        controller_kwargs: Keyword arguments of the factory besides `num_robots`: numbers, strings, booleans, None,
            lists and dictionaries of these (a tuple arrives as a list).
        num_workers: Worker processes; None for one less than the usable cores. Never more than robots.
        namespace: Name under which others may attach; None for one that no living cluster has.
        boot_timeout: Longest time from start to ready, s.
        hang_limit: Longest time that a worker may owe an answer, s; then it is killed, and started again.
        nominal_age: Control periods between a plan's state and the period in which it acts: 1 pipelined, 0 blocking.
        fallback: What acts on a robot that has no plan of nominal age.
        restarts: When a worker that has died is started again.

    Raises:
        ConfigurationError: If one of them is not as said here.
    """

    factory: str | Callable[..., RHController]
    num_robots: int
    control_period: float
    controller_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_workers: int | None = None
    namespace: str | None = None
    boot_timeout: float = 60.0
    hang_limit: float = 5.0
    nominal_age: int = 1
    fallback: FallbackPolicy = field(default_factory=FallbackPolicy)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)

    def __post_init__(self) -> None:
        for name, value in (("num_robots", self.num_robots), ("num_workers", self.num_workers)):
            if not (name == "num_workers" and value is None) and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name} must be an integer of at least 1, got {value!r}")
        for name, seconds in (
            ("control_period", self.control_period),
            ("boot_timeout", self.boot_timeout),
            ("hang_limit", self.hang_limit),
        ):
            if not (isinstance(seconds, (int, float)) and 1e-6 <= seconds < math.inf):
                raise ConfigurationError(f"{name} must be a time of at least 1e-6 s, got {seconds!r}")
        if self.nominal_age not in (0, 1):
            raise ConfigurationError(
                f"nominal_age must be 0 (blocking) or 1 (pipelined), in control periods, got {self.nominal_age!r}"
            )
        if self.namespace is not None:
            Namespace(self.namespace)
        for key, value in self.controller_kwargs.items():
            _check_plain(value, f"controller_kwargs[{key!r}]")
        if "num_robots" in self.controller_kwargs:
            raise ConfigurationError("controller_kwargs must not hold 'num_robots': the cluster passes it")

    @property
    def workers(self) -> int:
        """The number of worker processes."""
        wanted = self.num_workers or max(1, len(os.sched_getaffinity(0)) - 1)
        return min(wanted, self.num_robots)

    @property
    def control_period_ns(self) -> int:
        """The control period in ns."""
        return round(self.control_period * 1e9)


def _check_plain(value: object, where: str) -> None:
    """Refuse what JSON would not bring over unchanged."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigurationError(f"{where}: keys must be strings, got {key!r}")
            _check_plain(item, f"{where}[{key!r}]")
        return
    raise ConfigurationError(
        f"{where} must be a number, a string, a boolean, None, or a list or dictionary of these, because it is sent "
        f"to another process as JSON; got {type(value).__name__} (arrays: pass .tolist(); else build it in the factory)"
    )
