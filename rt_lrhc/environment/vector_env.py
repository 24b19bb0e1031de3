"""The environment of N robots on one clock."""

import time
import weakref
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rt_lrhc.config import Clock, RealTimeConfig, check_choice
from rt_lrhc.environment.action_buffer import ActionBuffer
from rt_lrhc.environment.captures import Capture
from rt_lrhc.environment.controls import Controls
from rt_lrhc.environment.coverage import Coverage
from rt_lrhc.environment.observation import ObservationBuilder
from rt_lrhc.environment.prepro import prepared
from rt_lrhc.environment.setup import (
    Host,
    build_interface,
    checked_action,
    checked_default,
    inspect_interface,
    resolve_interface,
    usable_render_modes,
)
from rt_lrhc.environment.stopwatch import Stopwatch
from rt_lrhc.errors import ConfigurationError, EnvironmentStateError, RenderError
from rt_lrhc.interface import VectorInterface

Array = npt.NDArray[Any]


class RealTimeVectorEnv(Controls, gymnasium.vector.VectorEnv[Any, Any, Any]):
    """N robots whose world does not wait, on one clock, in autoreset mode SAME_STEP.

    A robot whose episode ends is reset in the same instant while the others go on; `info["final_obs"]` keeps what it
    saw last, and the action that was handed in for it is dropped: the default one acts.

    Args:
        num_envs: Number of robots N.
        config: Configuration; see `rt_lrhc.RealTimeConfig`. Its interface must be a `VectorInterface`.
        render_mode: None or `"rgb_array"`.
        default_clock: The clock of the environment's id; None leaves it to the configuration.

    Raises:
        ConfigurationError: If something in the configuration or the interface is not as it should be.
    """

    metadata = {  # noqa: RUF012 (Gymnasium's name and type)
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        config: dict[str, Any],
        render_mode: str | None = None,
        default_clock: Clock | None = None,
    ) -> None:
        checked = RealTimeConfig.from_mapping(config)
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ConfigurationError(
                f"num_envs must be a whole number of robots, at least 1, got {num_envs!r}"
            )
        check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        factory = resolve_interface(checked.interface)
        if not (isinstance(factory, type) and issubclass(factory, VectorInterface)):
            raise ConfigurationError(
                f"{getattr(factory, '__qualname__', factory)!s} is an interface of a single robot: use gymnasium.make, "
                "or derive a class from rt_lrhc.VectorInterface"
            )
        self.num_envs = int(num_envs)
        interface = build_interface(checked, factory, num_envs=self.num_envs)
        try:
            modes = usable_render_modes(interface, render_mode)
            parts = inspect_interface(interface)
            host = Host(parts, checked, default_clock, num_envs=self.num_envs)
            coverage = Coverage(checked, parts)
            self._builder = ObservationBuilder(
                parts.observation_space,
                getattr(interface, "observation_names", None),
                parts.action_space,
                coverage.length if checked.act_in_obs else 0,
                checked.observation_form,
                batched=True,
            )
        except BaseException:
            interface.close()
            raise
        self._control(host, checked, coverage)
        self._interface = interface
        self._convert = _to_torch if checked.array_backend == "torch" else _as_is
        self.single_action_space = parts.action_space
        self.single_observation_space = self._builder.space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.render_mode = render_mode
        self.metadata = {
            **type(self).metadata,
            "render_modes": [mode for mode in modes if mode == "rgb_array"],
            "render_fps": max(1, round(1.0 / checked.time_step_duration)),
        }
        self._defaults = np.repeat(parts.default_action[None], self.num_envs, axis=0)
        self._buffer = ActionBuffer(self._coverage.length, self._defaults)
        self._stopwatch = Stopwatch()
        self._running = False
        self._stopped_by = "reset() has not been called"
        # The host does not refer to this object: its last reference dropped, or the interpreter's end, closes it.
        weakref.finalize(self, self._host.close)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Let the running time-step end, start an episode of every robot, and return `(observations, info)`."""
        super().reset(seed=seed)
        return self.restart(int(self.np_random.integers(2**31)), options)

    def restart(self, root: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Do what `reset()` does, with a given root of the episodes' random streams, at least 0."""
        self._running = False
        components, info = self._host.call(lambda engine: engine.reset(root, options))
        self._running = True
        first = self._buffer.newest() if self._config.last_act_on_reset else self._defaults
        if self._config.reset_act_buf:
            self._buffer.clear()
        else:
            self._buffer.append(first)
        self._buffer.replace_newest(first)
        built = self._builder.build(components, self._buffer)
        if self._recorder is not None:
            self._recorder.begin(root, options, built)
        observation = self._convert(self._prepared(built))
        info = self._masked_info(info)
        self._stopwatch.start()
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take the observations of the time-step that ends, and send `actions`, which act in the next one.

        Args:
            actions: (N, ...), numpy or torch; what exceeds the bounds is clipped. They are copied.

        Returns:
            Observations, rewards (N,) float64, terminated (N,) bool, truncated (N,) bool, info.
        """
        if not self._running:
            raise EnvironmentStateError(
                f"step() needs a running environment: {self._stopped_by}. Call reset()"
            )
        space = self.single_action_space
        assert isinstance(space, gymnasium.spaces.Box)
        if hasattr(actions, "detach"):
            actions = actions.detach().cpu().numpy()
        own = checked_action(actions, space, (self.num_envs, *space.shape))
        inference = self._stopwatch.read()
        begin = time.monotonic()
        try:
            capture: Capture = self._host.call(lambda engine: engine.hand_over(own, inference))
        except BaseException:
            self._running, self._stopped_by = False, "the last call raised"
            raise
        joined = time.monotonic()
        figures = capture.info["rt"]
        if self.clock == "wall":
            self._coverage.measure(figures)
        before = self._buffer.newest()
        self._buffer.append(own)
        info = self._masked_info(capture.info)
        if capture.reset_rows is not None:
            self._restart_rows(capture, capture.reset_rows, before, info)
        built = self._builder.build(capture.components, self._buffer)
        if self._recorder is not None:
            self._recorder.add(own, built, capture)
        observation = self._convert(self._prepared(built))
        flags = [self._convert(value) for value in (capture.reward, capture.terminated, capture.truncated)]
        self._stopwatch.start()
        if self._benchmarks is not None:
            self._benchmarks.add(inference, (begin, joined, time.monotonic()), figures)
        return observation, *flags, info

    def _prepared(self, observation: Any) -> Any:
        return prepared("obs_prepro_func", self._config.obs_prepro_func, observation)

    def _restart_rows(
        self, capture: Capture, rows: npt.NDArray[np.bool_], before: Array, info: dict[str, Any]
    ) -> None:
        """Keep the last observation of the robots that ended, and restart their part of the action buffer.

        Args:
            capture: The capture at which they were reset.
            rows: The robots, (N,).
            before: The actions that were in force, (N, ...): the new ones of these robots were dropped.
            info: Gets the last observations.
        """
        final = self._prepared(self._builder.build(capture.final_components, self._buffer))
        info["final_obs"], info["_final_obs"] = self._builder.rows(final, rows), rows.copy()
        info["final_info"], info["_final_info"] = self._masked_info(capture.final_info, rows), rows.copy()
        if self._config.reset_act_buf:
            self._buffer.clear(rows=rows)
        # In place of the action that was dropped: the one that the reset has sent.
        self._buffer.replace_newest(before if self._config.last_act_on_reset else self._defaults, rows)

    def _masked_info(self, info: dict[str, Any], rows: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Return `info` as Gymnasium's vector environments give it: arrays with a mask `_key` beside each key.

        Scalars (those of the clock, which all robots share) are repeated for each robot.
        """
        masked: dict[str, Any] = {}
        for key, value in info.items():
            if isinstance(value, dict):
                masked[key] = self._masked_info(value, rows)
            else:
                array = np.asarray(value)
                masked[key] = array if array.shape[:1] == (self.num_envs,) else np.full(self.num_envs, value)
            masked[f"_{key}"] = np.ones(self.num_envs, dtype=np.bool_) if rows is None else rows.copy()
        return masked

    def wait(self) -> None:
        """Pause: let the running time-step end, then make the world wait until the next `step()` or `reset()`."""
        self._note("wait")
        self._host.call(lambda engine: engine.pause())
        self._stopwatch.stop()

    def render(self) -> tuple[Any, ...] | None:
        """Return one picture of all robots, as a tuple of one."""
        if self.render_mode is None:
            raise ConfigurationError(
                'render() needs a render_mode: gym.make_vec(..., render_mode="rgb_array")'
            )
        frame = self._interface.render()
        if frame is None:
            raise RenderError(
                f"{type(self._interface).__name__}.render() returned None: there is no picture yet"
            )
        return (frame,)

    def close_extras(self, **kwargs: Any) -> None:
        """Let the running time-step end and close the interface; called once by `close()`."""
        self._running, self._stopped_by = False, "the environment is closed"
        self._host.close()

    @property
    def interface(self) -> Any:
        """The interface. Its callbacks belong to the environment; what else it offers is yours to use.

        With `runner="process"`: what stands for it here, which has its spaces and draws its picture.
        """
        return self._interface

    def set_default_action(self, action: Array) -> None:
        """Change the default action of every robot, from the next reset on."""
        assert isinstance(self.single_action_space, gymnasium.spaces.Box)
        default = checked_default(action, self.single_action_space)
        self._defaults = np.repeat(default[None], self.num_envs, axis=0)
        self._buffer.set_default(self._defaults)
        self._host.set_default_action(self._defaults)
        self._note("set_default_action", default.tolist())


def _as_is(value: Any) -> Any:
    return value


def _to_torch(value: Any) -> Any:
    import torch

    if isinstance(value, tuple):
        return tuple(torch.from_numpy(part) for part in value)
    if isinstance(value, dict):
        return {key: torch.from_numpy(part) for key, part in value.items()}
    return torch.from_numpy(value)
