"""Where the two halves meet: N robots, each driven by its MPC in a control cluster, under references of an agent.

At each control period i, at its grid time: collect the plans that were triggered at i - 1; apply to each robot the plan
in force, or its fallback; publish the state at i and the references; trigger; let the plant run for one control period.
A plan is therefore one control period old when it acts. With delay compensation its controller predicts the state over
that period; in blocking mode (solve, then move) there is no such delay, and no overlap either.
"""

import contextlib
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
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
from rt_lrhc.delays import DelayDraws, delay_from, rounded_up
from rt_lrhc.errors import ClusterError, ConfigurationError
from rt_lrhc.interface import TupleSpace, VectorInterface
from rt_lrhc.simulators.plant import Plant
from rt_lrhc.timing.clock import NS, to_ns
from rt_lrhc.timing.run_lengths import RunLengths
from rt_lrhc.timing.statistics import Rows

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_RECOVERY_TIMEOUT = 60.0
"""Seconds that `reset()` waits at most for a cluster that has lost processes."""

Mode = Literal["pipelined", "blocking"]

PERIOD_COLUMNS = ("begin", "collected", "triggered", "plant_end", "followed")
"""One row a control period, s of CLOCK_MONOTONIC: when it began, its inputs were known, its solves were triggered, the
plant had run, and the task had taken note of it."""

CAPTURE_COLUMNS = ("begin", "end")
"""One row a capture, s of CLOCK_MONOTONIC: when observation and reward were asked for, and were there."""


@dataclass(frozen=True)
class Moment:
    """The robots and their plans at a grid time, rows first. The arrays are the task's to keep.

    Attributes:
        time: Grid time since the reset of the environment, s.
        states: States of the plant, (N, nx).
        inputs: Inputs, in the plant's order, that acted in the control period that ends here, (N, nu).
        references: References of the controllers, (N, nr).
        plan_age: Age of each plan in force, in control periods, (N,); -1 without one.
        plan_fresh: Whether it has its nominal age, (N,).
        plan_status: `Status` of each robot's latest solve, (N,).
        plan_cost: Cost of each robot's latest plan, (N,); NaN without one.
        began: Robots whose episode begins here, (N,); all others have just run for a control period, unless some began.
    """

    time: float
    states: FloatArray
    inputs: FloatArray
    references: FloatArray
    plan_age: IntArray
    plan_fresh: BoolArray
    plan_status: IntArray
    plan_cost: FloatArray
    began: BoolArray


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
        observation_delay_bound: Longest age of what `observe` returns, s, that the task itself brings about.
        home_inputs: Inputs of the plant that the controller does not have, by name, and the value that each keeps.
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
    observation_delay_bound: float = 0.0
    home_inputs: Mapping[str, float] = MappingProxyType({})

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

    def follow(self, moment: Moment) -> None:  # noqa: B027 (optional)
        """Take note of a grid time: once after each control period, and after each `begin`."""

    def figures(self) -> dict[str, Any]:
        """Return more values for `info`, arrays (N, ...) or dictionaries of them, at each capture."""
        return {}

    def disturb(self) -> None:  # noqa: B027 (optional)
        """Disturb the plant, or change what is asked, after a control period; called once for each."""

    def close(self) -> None:
        """Free what the task holds: the plant."""
        self.plant.close()

    def draw(self, states: FloatArray, references: FloatArray) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the robots, (height, width, 3) RGB."""
        return None

    def view(self, states: FloatArray, references: FloatArray) -> Any:
        """Return what `picture` needs of the present; what comes later must not change it."""
        return states.copy(), references.copy()

    def picture(self, view: Any) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the robots at the time of a `view`."""
        return self.draw(*view)


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
        hang_limit: Longest time that a worker may owe its plans, s of wall time on both clocks; then it is killed and
            started again, while its robots run on their fallback.
        grace: Time from the end of the server of an attached cluster to `ClusterLost`, s. A server of one's own is
            replaced.
        strict: On virtual time, raise `ClusterError` when a worker has ended: the episode cannot be repeated. Else
            `info["plan_interrupted"]` says so.
        solve_delay: Time from the trigger of a solve to the arrival of its plans, at least: None, s, a dictionary or a
            `rt_lrhc.delays.Delay`; drawn for each control period and worker, whose robots' plans arrive together. They
            count as arrived at the first control period not before.

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
        grace: float = 1.0,
        strict: bool = False,
        solve_delay: Any = None,
    ) -> None:
        check_choice("mode", mode, ("pipelined", "blocking"))
        check_choice("delay_compensation", delay_compensation, (None, True, False))
        if not isinstance(fallback, (FallbackPolicy, type(None))):
            raise ConfigurationError(f"fallback must be a FallbackPolicy or None, got {fallback!r}")
        self._solve_delay = delay_from("solve_delay", solve_delay)
        if self._solve_delay is not None and mode == "blocking":
            raise ConfigurationError(
                'solve_delay needs mode="pipelined": in blocking mode the world waits for its solves'
            )
        self.num_envs = num_envs
        self.mode = mode
        self._blocking = mode == "blocking"
        self._compensates = not self._blocking if delay_compensation is None else delay_compensation
        self._strict = strict
        self._server: ControlClusterServer | None = None
        self._client: ControlClusterClient | None = None
        self.task: ClusterTask = _make_task(task, num_envs, task_kwargs or {})
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
                self._client = ControlClusterClient.attach(namespace, grace=grace, **settings)
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
        if abs(self.client.control_period - task.control_period) > 1e-9:
            raise ConfigurationError(
                f"the cluster {self.client.namespace!r} has a control period of {self.client.control_period} s, "
                f"{type(task).__name__} one of {task.control_period} s: make them equal"
            )
        if task.reference_names != spec.reference_names:
            raise ConfigurationError(
                f"{type(task).__name__} commands {task.reference_names}, its controller takes {spec.reference_names}"
            )
        self.control_period = task.control_period
        self.observation_names = task.observation_names
        self._solve_draws = (
            None
            if self._solve_delay is None
            else DelayDraws(self._solve_delay, "solves", self.client.num_workers)
        )
        self._due_ns = np.zeros(self.client.num_workers, dtype=np.int64)
        self.action_delay_bound = 0.0 if self._blocking else self._longest_solve(task.control_period)
        self.observation_delay_bound = task.observation_delay_bound
        self._period_ns = to_ns(task.control_period)
        self._to_controller = _columns("state", spec.state_names, plant.state_names)
        commanded = tuple(name for name in plant.input_names if name not in task.home_inputs)
        unknown = [name for name in task.home_inputs if name not in plant.input_names]
        if unknown:
            raise ConfigurationError(
                f"home_inputs: the plant has no input {unknown[0]!r}; got {plant.input_names}"
            )
        self._to_plant = _columns("input", commanded, spec.input_names)
        self._home = np.array([task.home_inputs.get(name, 0.0) for name in plant.input_names])
        self._commanded = np.array([name not in task.home_inputs for name in plant.input_names], np.bool_)
        self._references = np.zeros((self.num_envs, spec.nr))
        self._states = np.zeros((self.num_envs, len(plant.state_names)))
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._root = 0
        self._now_ns = 0
        self._accepted: RunLengths[bytes] = RunLengths()
        self._replay: list[BoolArray] = []
        self._inputs = np.zeros((self.num_envs, len(plant.input_names)))
        self._safe_input = self._in_plant_order(np.array([spec.safe_input]))
        self._lives_ended = self.client.lives_ended.copy()
        self._nobody = np.zeros(self.num_envs, dtype=np.bool_)
        self._captured_ns = 0
        self._duration = np.zeros(self.num_envs)
        self.captures = Rows(16384, len(CAPTURE_COLUMNS))
        self.periods = Rows(16384, len(PERIOD_COLUMNS))

    def _longest_solve(self, control_period: float) -> float:
        """Longest time from an action to the first plan that knows of it, s: it may come just after a trigger."""
        bound = 0.0 if self._solve_delay is None else self._solve_delay.bound
        periods = max(1, round(rounded_up(bound, control_period) / control_period))
        return (2 * periods - 1) * control_period

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
        self._wait_for_cluster()
        client.collect(self._now_ns, wait=True)
        self._root = 0 if seed is None else seed
        self._episodes[:] = 0
        self._now_ns = self._captured_ns = 0
        self._duration = np.zeros(self.num_envs)
        self._accepted.clear()
        self._replay = [] if schedule is None else list(schedule.world or ())[::-1]
        self._lives_ended = client.lives_ended.copy()
        everybody = np.ones(self.num_envs, dtype=np.bool_)
        self._begin(everybody, options)
        self.send_control(np.repeat(np.asarray(self.task.default_action)[None], self.num_envs, axis=0))
        # Each solve initialises as many robots as the controllers' budget allows.
        for _ in range(self.num_envs + 1):
            self._trigger(act_ns=0)
            client.collect(0, wait=True)
            if not (client.status == Status.INITIALISING).any():
                break
        self._due_ns[:] = 0
        if self._solve_draws is not None:
            self._solve_draws.restart(self._root)
        self._inputs = self._in_plant_order(client.inputs(0))
        self._follow(everybody)
        return self._observe(), self._info()

    def _wait_for_cluster(self) -> None:
        """Wait for the workers, and the server, that were lost: the clock has not started."""
        client = self.client
        give_up = time.monotonic() + _RECOVERY_TIMEOUT
        client.collect(self._now_ns)
        while time.monotonic() < give_up and not client.wait_until_alive(give_up - time.monotonic()):
            if self._server is not None and client.lost:
                self._server.replace(client)
                time.sleep(0.01)
            elif client.lost:
                return

    def reset_rows(self, mask: BoolArray) -> tuple[list[Any], dict[str, Any]]:
        """Begin the next episode of the robots in `mask`; the safe input acts until their first plan."""
        self._episodes[mask] += 1
        self._begin(mask, {})
        self._lives_ended[mask] = self.client.lives_ended[mask]
        # The others keep what acted on them: the plans of this instant have not been collected yet.
        self._inputs = np.where(mask[:, None], self._safe_input, self._inputs)
        self._follow(mask)
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
        self._inputs = self._in_plant_order(self.client.inputs(self._now_ns))
        collected = _now()
        if not self._blocking:
            self._trigger(act_ns=self._now_ns + (self._period_ns if self._compensates else 0))
        triggered = _now()
        plant = self.task.plant
        plant.step(torch.from_numpy(self._inputs), self.control_period or 0.0)
        stepped = _now()
        self.task.disturb()
        self._states = plant.state.numpy()
        self._accepted.append(accepted.tobytes())
        self._now_ns = to_ns(until)
        self._follow(self._nobody)
        clock.add(begin, collected, triggered, stepped, _now())

    def _in_plant_order(self, inputs: FloatArray) -> FloatArray:
        commanded = inputs if self._to_plant is None else inputs[:, self._to_plant]
        if len(self._home) == commanded.shape[1]:
            return commanded
        ordered = np.tile(self._home, (len(inputs), 1))
        ordered[:, self._commanded] = commanded
        return ordered

    def _follow(self, began: BoolArray) -> None:
        client = self.client
        self.task.follow(
            Moment(
                time=self._now_ns / NS,
                states=self._states,
                inputs=self._inputs,
                references=self._references.copy(),
                plan_age=client.age.copy(),
                plan_fresh=client.fresh.copy(),
                plan_status=client.status.copy(),
                plan_cost=client.cost.copy(),
                began=began.copy(),
            )
        )

    def _collect(self) -> BoolArray:
        """Accept the plans that are there or, where the world can wait, those that are under way."""
        accepted = self._accept()
        if self._server is not None and self.client.lost:
            self._server.replace(self.client)
        if self._strict and self.clock == "virtual" and self._interrupted().any():
            robots = np.flatnonzero(self._interrupted()).tolist()
            raise ClusterError(
                f"a worker ended that drove robots {robots}: this episode cannot be repeated, and strict is on; "
                f"reset() begins another ({'; '.join(map(str, self.client.report().events[-3:]))})"
            )
        return accepted

    def _interrupted(self) -> BoolArray:
        """Return the robots whose worker has ended since their episode began, (N,)."""
        interrupted: BoolArray = self.client.lives_ended != self._lives_ended
        return interrupted

    def _accept(self) -> BoolArray:
        if self._replay:
            return self.client.collect(self._now_ns, wait=True, workers=self._replay.pop())
        arrived = None if self._solve_draws is None else self._due_ns <= self._now_ns
        return self.client.collect(
            self._now_ns, wait=self._blocking or self.clock == "virtual", workers=arrived
        )

    def _trigger(self, act_ns: int) -> None:
        states = self._states if self._to_controller is None else self._states[:, self._to_controller]
        deadline_ns = None if self.clock == "virtual" else _now_ns() + self._period_ns
        triggered = self.client.trigger(
            self._now_ns, act_ns, states, self._references, deadline_ns=deadline_ns
        )
        if self._solve_draws is not None:
            # Drawn for every worker in every control period: what a late worker does moves no other draw.
            due_ns = self._now_ns + self._solve_draws.next_ns()
            self._due_ns[triggered] = due_ns[triggered]

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], FloatArray, BoolArray, dict[str, Any]]:
        """Capture the state of every robot, its reward, its end, and how its plan is."""
        begin = _now()
        self._duration = np.full(self.num_envs, (self._now_ns - self._captured_ns) / NS)
        self._captured_ns = self._now_ns
        rewards, terminated = self.task.judge(self._states)
        captured = self._observe(), rewards, terminated, self._info()
        self.captures.add(begin, _now())
        return captured

    def observe(self) -> list[Any]:
        """Return the observations at the present grid time."""
        return self._observe()

    def _observe(self) -> list[Any]:
        return self.task.observe(self._states, self.client.age)

    def _info(self) -> dict[str, Any]:
        client = self.client
        return {
            "plan_age": client.age.copy(),
            "plan_fresh": client.fresh.copy(),
            "plan_status": client.status.copy(),
            "plan_fallback": client.fallback.copy(),
            "plan_interrupted": self._interrupted(),
            # Of the transition that ends here, also where its robot has begun anew: it belongs to the reward.
            "duration": self._duration.copy(),
            **self.task.figures(),
        }

    def schedule(self) -> tuple[BoolArray, ...]:
        """Return, for each control period since the reset, the workers whose plans were accepted then, (W,) bool."""
        return tuple(np.frombuffer(accepted, dtype=np.bool_) for accepted in self._accepted)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the robots at the last grid time."""
        return self.picture(self.view())

    def view(self) -> Any:
        """Return what `picture` needs of this grid time: cheap, where a picture itself would make the agent late."""
        return self.task.view(self._states, self._references)

    def picture(self, view: Any) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the robots at the time of a `view`."""
        return self.task.picture(view)

    def close(self) -> None:
        """Close client, server and plant."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self.task.close)
            if self._server is not None:
                last_first.callback(self._server.close)
            if self._client is not None:
                last_first.callback(self._client.close)

    @property
    def client(self) -> ControlClusterClient:
        """The client: statistics, ages, statuses, events."""
        assert self._client is not None
        return self._client

    @property
    def server(self) -> ControlClusterServer | None:
        """The server that this interface owns, None where it is attached to another's."""
        return self._server


def _make_task(task: Any, num_robots: int, task_kwargs: Mapping[str, Any]) -> ClusterTask:
    factory = _resolve_task(task)
    if not callable(factory):
        raise ConfigurationError(f"task must be a class derived from ClusterTask or its name, got {task!r}")
    made = factory(num_robots=num_robots, **task_kwargs)
    if not isinstance(made, ClusterTask):
        raise ConfigurationError(f"task must give a ClusterTask, {task!r} gave {type(made).__name__}")
    return made


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
