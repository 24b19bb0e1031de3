"""The run behind `rt-lrhc play`: agents, the loop, what it adds up to, and the video."""

import ast
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from rt_lrhc.cluster.protocol import Fallback
from rt_lrhc.environment.setup import resolve_interface
from rt_lrhc.errors import ConfigurationError, RenderError
from rt_lrhc.interface import VectorInterface
from rt_lrhc.tasks import make_config, run_summary, scripted_agent
from rt_lrhc.timing.statistics import DurationUnit, Summary, summarise

if TYPE_CHECKING:
    from rt_lrhc.commands.play import Options

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
Agent = Callable[[Mapping[str, Array]], Array]

FRAME_RATE = 25.0
"""Pictures of a video for each second of the task, at most, 1/s."""

_MS = DurationUnit.MILLISECONDS


@dataclass
class Played:
    """What a run amounted to. Times in s.

    Attributes:
        simulated: Time of the task that passed.
        wall: Wall time that it took, without start and pictures.
        steps: Time-steps.
        robots: N.
        rewards: Mean of each reward term over time-steps and robots; `total` is that of their sum.
        returns: Sum of the rewards of each robot over the run, (N,).
        ends: Episodes that ended, by cause; `time_limit` for truncations.
        metrics: Each metric, (time-steps, N).
        summary: The task's own figures from them.
        solve: Wall time of a worker's batch of solves; None without a cluster.
        misses: Deadlines missed, in robot-periods.
        fallbacks: Robot-periods under each `Fallback` label.
        failures: Solves without a usable plan, in robot-periods.
        timing: Durations of the time-steps, on the wall clock.
        overruns: Restarts and slips of the grid.
        frames: Pictures in the video.
    """

    task: str
    agent: str
    clock: str
    robots: int
    steps: int = 0
    simulated: float = 0.0
    wall: float = 0.0
    rewards: dict[str, float] = field(default_factory=dict)
    returns: FloatArray = field(default_factory=lambda: np.zeros(0))
    ends: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, FloatArray] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    solve: Summary | None = None
    misses: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    timing: dict[str, Summary] = field(default_factory=dict)
    overruns: int = 0
    frames: int = 0

    def lines(self) -> list[str]:
        """Return the figures for people."""
        count = "1 robot" if self.robots == 1 else f"{self.robots} robots"
        rows = [
            (
                "run",
                f"{self.task}, {self.agent} agent, {count}, {self.simulated:g} s on the {self.clock} clock",
            ),
            ("real-time factor", f"{self.simulated / self.wall:.3g}"),
            ("reward a time-step", ", ".join(f"{name} {value:.4g}" for name, value in self.rewards.items())),
            ("return", f"{self.returns.mean():.5g} mean over robots, {self.returns.min():.5g} least"),
            ("episodes ended", ", ".join(f"{name} {count}" for name, count in self.ends.items())),
            *(
                (name, f"{values.mean():.4g} mean, {values.min():.4g} to {values.max():.4g}")
                for name, values in self.metrics.items()
            ),
            *((name, f"{value:.4g}") for name, value in self.summary.items()),
        ]
        if self.solve is not None:
            labels = ", ".join(f"{name} {number}" for name, number in self.fallbacks.items())
            rows += [
                (
                    "solve",
                    f"{self.solve.format(_MS)} p50 / p99 / max for a worker's batch, of {self.solve.n}",
                ),
                ("deadlines missed", f"{self.misses} of {sum(self.fallbacks.values())} robot-periods"),
                ("what acted", f"{labels}; {self.failures} solves failed"),
            ]
        rows += [
            (name, f"{part.format(_MS)} p50 / p99 / max of {part.n}") for name, part in self.timing.items()
        ]
        if self.timing:
            rows.append(("overruns", str(self.overruns)))
        width = max(len(name) for name, _ in rows)
        return [f"{name:{width}}  {text}" for name, text in rows]

    def figures(self) -> dict[str, Any]:
        """Return the figures for a file, in SI units."""
        parts = dict(self.timing) if self.solve is None else {"solve": self.solve, **self.timing}
        return {
            "task": self.task,
            "agent": self.agent,
            "clock": self.clock,
            "robots": self.robots,
            "steps": self.steps,
            "simulated": self.simulated,
            "wall": self.wall,
            "real_time_factor": self.simulated / self.wall,
            "rewards": self.rewards,
            "returns": self.returns.tolist(),
            "ends": self.ends,
            "metrics": {
                name: {"mean": float(v.mean()), "min": float(v.min()), "max": float(v.max())}
                for name, v in self.metrics.items()
            },
            "summary": self.summary,
            "misses": self.misses,
            "fallbacks": self.fallbacks,
            "failures": self.failures,
            "durations": {
                name: {key: getattr(part, key) for key in ("n", "p50", "p99", "max")}
                for name, part in parts.items()
                if part.n
            },
            "overruns": self.overruns,
            "frames": self.frames,
        }


class _Rows:
    """A Gymnasium environment of one robot or of many as one of rows that goes on after ends."""

    def __init__(self, config: dict[str, Any], clock: str, robots: int | None) -> None:
        name = {"wall": "rt_lrhc:rt-v0", "virtual": "rt_lrhc:rt-sim-v0"}[clock]
        factory = resolve_interface(config["interface"])
        self._many = isinstance(factory, type) and issubclass(factory, VectorInterface)
        if not self._many and robots not in (None, 1):
            raise ConfigurationError(f"this task has one robot: --robots must be 1, got {robots}")
        self.robots = robots or 1
        if self._many:
            self.env: Any = gym.make_vec(name, num_envs=self.robots, config=config, render_mode="rgb_array")
            self.space: Any = self.env.single_action_space
        else:
            self.env = gym.make(name, config=config, disable_env_checker=True, render_mode="rgb_array")
            self.space = self.env.action_space
        self.inner: Any = self.env.unwrapped

    def reset(self, seed: int | None) -> dict[str, Array]:
        observation, _ = self.env.reset(seed=seed)
        return self._batched(observation)

    def step(self, actions: Array) -> tuple[dict[str, Array], FloatArray, Array, Array, dict[str, Any]]:
        if self._many:
            observation, reward, terminated, truncated, info = self.env.step(actions)
            return observation, reward, terminated, truncated, info
        observation, reward, ended, truncated, info = self.env.step(actions[0])
        if ended or truncated:
            observation, _ = self.env.reset()
        flags = [np.array([flag]) for flag in (ended, truncated)]
        return self._batched(observation), np.array([reward]), *flags, info

    def _batched(self, observation: Mapping[str, Array]) -> dict[str, Array]:
        return {key: value if self._many else np.asarray(value)[None] for key, value in observation.items()}


def play(options: "Options") -> Played:
    """Run the task as the options say.

    Raises:
        ConfigurationError: If task, agent and options do not fit together.
    """
    keys: dict[str, Any] = {} if options.workers is None else {"workers": options.workers}
    config = make_config(options.task, _settings(options.set), observation_form="dict", **keys)
    rows = _Rows(config, options.clock, options.robots)
    try:
        agent = _agent(options, rows)
        played = Played(options.task, options.agent, options.clock, rows.robots)
        views = _loop(rows, agent, options, config["time_step_duration"], played)
        _measure(rows, played)
        env = rows.inner
        env.wait()  # else the world goes on while the pictures are made
        summarised = run_summary(options.task)
        if summarised is not None and played.metrics:
            played.summary = summarised(played.metrics)
        if options.video is not None:
            every = _time_steps_a_picture(config["time_step_duration"])
            played.frames = _film(rows, views, options.video, 1.0 / (every * config["time_step_duration"]))
        return played
    finally:
        rows.env.close()


def _settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return `path=value` texts as settings; what is no Python literal is text."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, found, value = text.partition("=")
        if not found:
            raise ConfigurationError(f'--set must be "path=value", got {text!r}')
        try:
            settings[path] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[path] = value
    return settings


def _agent(options: "Options", rows: _Rows) -> Agent:
    space = rows.space
    if options.agent == "zero":
        zero = np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
        return lambda observation: np.repeat(zero[None], rows.robots, axis=0)
    if options.agent == "random":
        space.seed(options.seed)
        return lambda observation: np.stack([space.sample() for _ in range(rows.robots)])
    scripted = scripted_agent(options.task)
    if scripted is None:
        raise ConfigurationError(
            f"task {options.task!r} has no agent by hand; use --agent zero or --agent random"
        )

    def act(observation: Mapping[str, Array]) -> Array:
        try:
            return np.asarray(scripted(observation), space.dtype)
        except KeyError as error:
            raise ConfigurationError(
                f"the agent by hand of {options.task!r} needs the observation {error}, which was removed"
            ) from error

    return act


def _loop(rows: _Rows, agent: Agent, options: "Options", time_step: float, played: Played) -> list[Any]:
    """Step, keep the figures, and return what pictures will be made of."""
    steps = max(1, round(options.seconds / time_step))
    every, views = _time_steps_a_picture(time_step), []
    totals: dict[str, float] = {}
    metrics: dict[str, list[Array]] = {}
    returns = np.zeros(rows.robots)
    observation = rows.reset(options.seed)
    began = said = time.monotonic()
    for step in range(steps):
        observation, reward, _, truncated, info = rows.step(agent(observation))
        returns += reward
        for name, values in _terms(info, "reward_terms").items():
            totals[name] = totals.get(name, 0.0) + float(values.mean())
        # Of robots that ended, the metrics are those of their end.
        for name, values in _terms(info, "metrics").items():
            metrics.setdefault(name, []).append(values)
        _count_ends(played.ends, info, truncated)
        if options.video is not None and step % every == 0:
            views.append(_view(rows))
        if time.monotonic() - said >= 1.0:
            said = time.monotonic()
            print(f"{(step + 1) * time_step:8.1f} s of {options.seconds:g} s", flush=True)
    played.wall = time.monotonic() - began
    played.steps, played.simulated = steps, steps * time_step
    played.returns = returns
    played.rewards = {
        "total": float(returns.mean()) / steps,
        **{name: total / steps for name, total in totals.items()},
    }
    played.metrics = {name: np.stack(values).astype(np.float64) for name, values in metrics.items()}
    return views


def _terms(info: Mapping[str, Any], key: str) -> dict[str, Array]:
    """Return the named arrays under a key of `info`, (N,) each, without Gymnasium's masks."""
    return {
        name: np.atleast_1d(values) for name, values in info.get(key, {}).items() if not name.startswith("_")
    }


def _count_ends(ends: dict[str, int], info: Mapping[str, Any], truncated: Array) -> None:
    for name, values in _terms(info, "termination_terms").items():
        ends[name] = ends.get(name, 0) + int(values.sum())
    ends["time_limit"] = ends.get("time_limit", 0) + int(truncated.sum())


def _measure(rows: _Rows, played: Played) -> None:
    client = getattr(getattr(rows.inner, "interface", None), "client", None)
    if client is not None:
        report = client.report()
        played.solve = summarise(np.concatenate([np.ravel(times) for times in report.solve_wall_times]))
        played.misses = int(report.misses.sum())
        played.failures = int(report.failures.sum())
        played.fallbacks = {
            label.name.lower(): int(report.fallback_periods[label].sum()) for label in Fallback
        }
    if played.clock == "wall":
        summary = rows.inner.timing.summary()
        played.timing = {
            "time-step": summary.step,
            "sent late by": summary.send_lateness,
            "captured late by": summary.capture_lateness,
            "inference": summary.inference,
        }
        played.overruns = summary.overruns


def _time_steps_a_picture(time_step: float) -> int:
    return max(1, round(1.0 / (FRAME_RATE * time_step)))


def _view(rows: _Rows) -> Any:
    """Return a view for a picture after the run, or the picture itself where the task has no views."""
    view = getattr(rows.inner.interface, "view", None)
    if view is not None:
        return view()
    picture = rows.env.render()
    return picture[0] if isinstance(picture, tuple) else picture


def _film(rows: _Rows, views: list[Any], path: Path, rate: float) -> int:
    """Write the pictures and return their number.

    Raises:
        RenderError: If the task makes no pictures, or OpenCV cannot write the file.
    """
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = None
    said = time.monotonic()
    try:
        for index, view in enumerate(views):
            picture = view if isinstance(view, np.ndarray) else rows.inner.interface.picture(view)
            if picture is None:
                raise RenderError("this task makes no pictures; leave --video away")
            height, width = (size // 2 * 2 for size in picture.shape[:2])  # codecs want even sizes
            if writer is None:
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
                if not writer.isOpened():
                    raise RenderError(f"OpenCV cannot write {path}: its build lacks a writer of mp4")
            writer.write(np.ascontiguousarray(picture[:height, :width, ::-1]))
            if time.monotonic() - said >= 1.0:
                said = time.monotonic()
                print(f"{index + 1:8} of {len(views)} pictures", flush=True)
    finally:
        if writer is not None:
            writer.release()
    return len(views)
