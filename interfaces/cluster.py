"""Where the two halves meet: N robots, each driven by its MPC in a control cluster, under references of an agent.

At each control period i, at its grid time: collect the plans that were triggered at i - 1; apply to each robot the plan
in force, or its fallback; publish the state at i and the references; trigger; let the plant run for one control period.
A plan is therefore one control period old when it acts. With delay compensation its controller predicts the state over
that period; in blocking mode (solve, then move) there is no such delay, and no overlap either.
"""

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import ControllerSpec, RHController, Status
from rt_lrhc.cluster.fallback import FallbackPolicy
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.config import check_choice
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interface import TupleSpace, VectorInterface
from rt_lrhc.simulators.plant import Plant
from rt_lrhc.timing.clock import NS, to_ns
from rt_lrhc.timing.statistics import Rows

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Mode = Literal["pipelined", "blocking"]

PERIOD_COLUMNS = ("begin", "collected", "triggered", "plant_end")
"""One row a control period, s of CLOCK_MONOTONIC: when it began, its inputs were known, its solves were triggered and the
plant had run."""


class ClusterTask(ABC):
    """What an agent is asked to do with the N robots of a cluster: plant, controller, references, reward, end.

    All arrays are rows first. A task is deterministic in `(root, robot, episode)`: it draws from
    `rt_lrhc.randomness.stream` with those keys.

    Args:
        num_robots: N; every task takes it as a keyword.

    Attributes:
        plant: The robots.
        controller: Factory of the controllers: `"package.module:factory"`, or a top-level function.
        controller_kwargs: Keyword arguments for it.
        control_period: Time between two inputs, s.
        reference_names: Names of the references that `references` returns; the controller's.
        observation_names: Names of the observation's components.
        observation_space: Space of one robot's observation.
        action_space: Space of one robot's action.
        default_action: One robot's default action.
    """

    plant: Plant
    controller: str | Callable[..., RHController]
    controller_kwargs: Mapping[str, Any]
    control_period: float
    reference_names: tuple[str, ...]
    observation_names: tuple[str, ...]
    observation_space: TupleSpace
    action_space: spaces.Box
    default_action: npt.NDArray[Any]

    @abstractmethod
    def begin(self, root: int, episodes: IntArray, rows: BoolArray, options: Mapping[str, Any]) -> FloatArray:
        """Begin episode `episodes[n]` of each robot n in `rows` and return its initial state, (N, nx)."""

    @abstractmethod
    def references(self, actions: npt.NDArray[Any]) -> FloatArray:
        """Return what `actions`, (N, ...), command of the controllers, (N, nr)."""

    @abstractmethod
    def observe(self, states: FloatArray, plan_ages: IntArray) -> list[npt.NDArray[Any]]:
        """Return the observation's components, (N, ...).

        Args:
            states: States at the capture, (N, nx).
            plan_ages: Age of each plan in force, in control periods, (N,).
        """

    @abstractmethod
    def judge(self, states: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Return rewards (N,) and terminated (N,) at `states`, (N, nx)."""

    def disturb(self) -> None:  # noqa: B027 (optional)
        """Disturb the plant, or change what is asked, after a control period; called once for each."""

    def draw(self, states: FloatArray, references: FloatArray) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the robots, (height, width, 3) RGB."""
        return None


class ClusterInterface(VectorInterface):
    """N robots, their MPCs in worker processes, and a task.

    Args:
        task: Name of the task's class, `"package.module:Name"`, or the class.
        num_envs: Number of robots N.
        task_kwargs: Keyword arguments for the task.
        mode: `"pipelined"` (solves overlap with physics and inference) or `"blocking"` (solve, then move).
        delay_compensation: Whether controllers predict the state at which their plan will act; None follows the mode.
        workers: Worker processes; None: one less than the usable cores, at least one.
        namespace: Attach to the running cluster of that name instead of starting one.
        fallback: What acts where there is no usable plan.
        hang_limit: Longest wait for a solve on virtual time and in blocking mode, s.

    Raises:
        ConfigurationError: If task, plant and controller do not fit together.
        ControllerError: If the controller cannot be found or built.
    """

    overlaps = True

    def __init__(
        self,
        task: Any,
        num_envs: int,
        *,
        task_kwargs: Mapping[str, Any] | None = None,
        mode: Mode = "pipelined",
        delay_compensation: bool | None = None,
        workers: int | None = None,
        namespace: str | None = None,
        fallback: FallbackPolicy | None = None,
        hang_limit: float = 5.0,
    ) -> None:
        check_choice("mode", mode, ("pipelined", "blocking"))
        self.num_envs = num_envs
        self.mode = mode
        self._blocking = mode == "blocking"
        self._compensates = not self._blocking if delay_compensation is None else delay_compensation
        self._server: ControlClusterServer | None = None
        self._client: ControlClusterClient | None = None
        self.task: ClusterTask = _resolve_task(task)(num_robots=num_envs, **(task_kwargs or {}))
        settings: dict[str, Any] = {
            "nominal_age": 0 if self._blocking else 1,
            "hang_limit": hang_limit,
            "fallback": fallback or FallbackPolicy(),
        }
        try:
            if namespace is None:
                self._server = ControlClusterServer(
                    ClusterConfig(
                        factory=self.task.controller,
                        controller_kwargs=dict(self.task.controller_kwargs),
                        num_robots=num_envs,
                        num_workers=workers,
                        control_period=self.task.control_period,
                        **settings,
                    )
                )
                self._server.start()
                self._client = self._server.connect()
            else:
                self._client = ControlClusterClient.attach(namespace, **settings)
            self._prepare(self._client.spec)
        except BaseException:
            self.close()
            raise

    def _prepare(self, spec: ControllerSpec) -> None:
        task, plant = self.task, self.task.plant
        if self.client.num_robots != self.num_envs:
            raise ConfigurationError(
                f"the cluster has {self.client.num_robots} controllers, the environment {self.num_envs} robots: "
                "make them equal"
            )
        if task.reference_names != spec.reference_names:
            raise ConfigurationError(
                f"{type(task).__name__} commands {task.reference_names}, its controller takes {spec.reference_names}"
            )
        self.control_period = task.control_period
        self.observation_names = task.observation_names
        self._period_ns = to_ns(task.control_period)
        self._to_controller = _columns("state", spec.state_names, plant.state_names)
        self._to_plant = _columns("input", plant.input_names, spec.input_names)
        self._references = np.zeros((self.num_envs, spec.nr))
        self._states = np.zeros((self.num_envs, len(plant.state_names)))
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._root = 0
        self._now_ns = 0
        self._accepted: list[BoolArray] = []
        self._replay: list[BoolArray] = []
        self.periods = Rows(16384, len(PERIOD_COLUMNS))

    # What the environment asks.

    def get_observation_space(self) -> TupleSpace:
        """Return the task's observation space."""
        return self.task.observation_space

    def get_action_space(self) -> spaces.Box:
        """Return the task's action space."""
        return self.task.action_space

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the task's default action."""
        return self.task.default_action

    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Give the controllers other references, from their next trigger on."""
        self._references[:] = self.task.references(control)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Begin an episode of every robot, and solve until every controller has a plan: the clock has not started."""
        options = dict(options or {})
        schedule = options.pop("schedule", None)
        client = self.client
        client.collect(self._now_ns, wait=True)
        self._root = 0 if seed is None else seed
        self._episodes[:] = 0
        self._now_ns = 0
        self._accepted = []
        self._replay = [] if schedule is None else list(schedule.world)[::-1]
        self._begin(np.ones(self.num_envs, dtype=np.bool_), options)
        self.send_control(np.repeat(np.asarray(self.task.default_action)[None], self.num_envs, axis=0))
        # Each solve initialises as many robots as the controllers' budget allows.
        for _ in range(self.num_envs + 1):
            self._trigger(act_ns=0)
            client.collect(0, wait=True)
            if not (client.status == Status.INITIALISING).any():
                break
        client.inputs(0)
        return self._observe(), self._info()

    def reset_rows(self, mask: BoolArray) -> tuple[list[Any], dict[str, Any]]:
        """Begin the next episode of the robots in `mask`; the safe input acts until their first plan."""
        self._episodes[mask] += 1
        self._begin(mask, {})
        self.client.inputs(self._now_ns)
        return self._observe(), self._info()

    def _begin(self, rows: BoolArray, options: Mapping[str, Any]) -> None:
        states = self.task.begin(self._root, self._episodes, rows, options)
        plant = self.task.plant
        plant.reset(torch.from_numpy(states), torch.from_numpy(rows))
        self.client.reset(rows)
        self._states = plant.state.numpy()

    def advance(self, until: float) -> None:
        """Run one control period, which ends at `until`."""
        clock = self.periods
        begin = _now()
        if self._blocking:
            self._trigger(act_ns=self._now_ns)
        accepted = self._collect()
        inputs = self.client.inputs(self._now_ns)
        collected = _now()
        if not self._blocking:
            self._trigger(act_ns=self._now_ns + (self._period_ns if self._compensates else 0))
        triggered = _now()
        plant = self.task.plant
        plant.step(
            torch.from_numpy(inputs if self._to_plant is None else inputs[:, self._to_plant]),
            self.control_period or 0.0,
        )
        self.task.disturb()
        self._states = plant.state.numpy()
        self._accepted.append(accepted)
        self._now_ns = to_ns(until)
        clock.add(begin, collected, triggered, _now())

    def _collect(self) -> BoolArray:
        """Accept the plans that are there or, where the world can wait, those that are under way."""
        if self._replay:
            return self.client.collect(self._now_ns, wait=True, workers=self._replay.pop())
        return self.client.collect(self._now_ns, wait=self._blocking or self.clock == "virtual")

    def _trigger(self, act_ns: int) -> None:
        states = self._states if self._to_controller is None else self._states[:, self._to_controller]
        deadline_ns = None if self.clock == "virtual" else _now_ns() + self._period_ns
        self.client.trigger(self._now_ns, act_ns, states, self._references, deadline_ns=deadline_ns)

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], FloatArray, BoolArray, dict[str, Any]]:
        """Capture the state of every robot, its reward, its end, and how its plan is."""
        rewards, terminated = self.task.judge(self._states)
        return self._observe(), rewards, terminated, self._info()

    def _observe(self) -> list[Any]:
        return self.task.observe(self._states, self.client.age)

    def _info(self) -> dict[str, Any]:
        client = self.client
        return {
            "plan_age": client.age.copy(),
            "plan_fresh": client.fresh.copy(),
            "plan_status": client.status.copy(),
            "plan_fallback": client.fallback.copy(),
        }

    def schedule(self) -> tuple[BoolArray, ...]:
        """Return, for each control period since the reset, the workers whose plans were accepted then, (W,) bool."""
        return tuple(self._accepted)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the robots at the last grid time."""
        return self.task.draw(self._states, self._references)

    def close(self) -> None:
        """Close client, server and plant."""
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.close()
        self.task.plant.close()

    @property
    def client(self) -> ControlClusterClient:
        """The client: statistics, ages, statuses, events."""
        assert self._client is not None
        return self._client

    @property
    def server(self) -> ControlClusterServer | None:
        """The server that this interface owns, None where it is attached to another's."""
        return self._server


def _resolve_task(task: Any) -> Any:
    if not isinstance(task, str):
        return task
    module_name, _, name = task.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f'task must be "package.module:Name", got {task!r}: {error}') from error


def _columns(what: str, wanted: tuple[str, ...], given: tuple[str, ...]) -> IntArray | None:
    """Return where each wanted name stands among the given ones; None where they are the same."""
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ConfigurationError(
            f"no {what} named {', '.join(missing)}: plant and controller must share names; got {given}"
        )
    return None if wanted == given else np.array([given.index(name) for name in wanted])


def _now_ns() -> int:
    return time.monotonic_ns()


def _now() -> float:
    return time.monotonic_ns() / NS
