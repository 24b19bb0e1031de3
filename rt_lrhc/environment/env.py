"""The environment of one robot."""

import time
import weakref
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt

from rt_lrhc.config import Clock, RealTimeConfig, check_choice
from rt_lrhc.environment.action_buffer import ActionBuffer
from rt_lrhc.environment.controls import Controls
from rt_lrhc.environment.coverage import Coverage
from rt_lrhc.environment.first_row import FirstRow
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

if TYPE_CHECKING:
    from rt_lrhc.environment.window import Window


class RealTimeEnv(Controls, gymnasium.Env[Any, npt.NDArray[Any]]):
    """A Gymnasium environment whose world does not wait.

    `step(action)` waits for the end of the running time-step, returns the observation captured in it and starts the
    next one with `action`, which acts while the caller infers its successor. `reset()` sends the default action.
    What the delays cost is in the observation: the last `act_buf_len` actions.

    Args:
        config: Configuration; see `rt_lrhc.RealTimeConfig` for its keys and `rt_lrhc.DEFAULT_CONFIG_DICT` for defaults.
        render_mode: None, `"rgb_array"` or `"human"` (a window).
        default_clock: The clock of the environment's id; None leaves it to the configuration.

    Raises:
        ConfigurationError: If something in the configuration or the interface is not as it should be.
        RenderError: If `render_mode` is `"human"` and no window can open.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's name and type)

    def __init__(
        self, config: dict[str, Any], render_mode: str | None = None, default_clock: Clock | None = None
    ) -> None:
        checked = RealTimeConfig.from_mapping(config)
        check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        if checked.array_backend != "numpy":
            raise ConfigurationError('array_backend="torch" is for vector environments (gymnasium.make_vec)')
        factory = resolve_interface(checked.interface)
        extra = {"num_envs": 1} if isinstance(factory, type) and issubclass(factory, VectorInterface) else {}
        interface = build_interface(checked, factory, **extra)
        try:
            modes = usable_render_modes(interface, render_mode)
            parts = inspect_interface(
                FirstRow(interface) if isinstance(interface, VectorInterface) else interface
            )
            host = Host(parts, checked, default_clock, num_envs=None)
            coverage = Coverage(checked, parts)
            self._builder = ObservationBuilder(
                parts.observation_space,
                getattr(parts.interface, "observation_names", None),
                parts.action_space,
                coverage.length if checked.act_in_obs else 0,
                checked.observation_form,
                batched=False,
            )
        except BaseException:
            interface.close()
            raise
        self._control(host, checked, coverage)
        self._interface = parts.interface
        self.action_space = parts.action_space
        self.observation_space = self._builder.space
        self.render_mode = render_mode
        self.metadata = {"render_modes": modes, "render_fps": max(1, round(1.0 / checked.time_step_duration))}
        self._default_action = parts.default_action
        self._buffer = ActionBuffer(self._coverage.length, parts.default_action)
        self._last_sent = True
        self._stopwatch = Stopwatch()
        self._window: Window | None = None
        self._running = False
        self._ended_by = "reset() has not been called"
        # The host does not refer to this object: its last reference dropped, or the interpreter's end, closes it.
        weakref.finalize(self, self._host.close)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Let the running time-step end, start an episode and its first time-step, and return `(observation, info)`.

        Args:
            seed: Seed of the episode, and of those after it.
            options: Passed on to the interface. `options["schedule"]` (a `Schedule`) replays a recorded episode on
                virtual time.
        """
        super().reset(seed=seed)
        return self.restart(int(self.np_random.integers(2**31)), options)

    def restart(self, root: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Do what `reset()` does, with a given root of the episode's random streams, at least 0."""
        self._running = False
        components, info = self._host.call(lambda engine: engine.reset(root, options))
        self._running = True
        self._restart_buffer()
        observation = self._builder.build(components, self._buffer)
        if self._recorder is not None:
            self._recorder.begin(root, options, observation)
        return self._hand_out(observation), info

    def _restart_buffer(self) -> None:
        """Let the buffer hold what acted: its newest action is the one that the reset has sent."""
        first = self._buffer.newest() if self._config.last_act_on_reset else self._default_action
        if self._config.reset_act_buf:
            self._buffer.clear()
        elif self._last_sent:
            self._buffer.append(first)
        # Else the newest is the last action of an episode, which was never sent.
        self._buffer.replace_newest(first)
        self._last_sent = True

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take the observation of the time-step that ends, and send `action`, which acts in the next one.

        Args:
            action: In the action space; what exceeds its bounds is clipped. It is copied.

        Raises:
            EnvironmentStateError: After the end of an episode, or before the first `reset()`.
            InterfaceError: If a callback raised since the last call, or returned something unusable.
        """
        if not self._running:
            raise EnvironmentStateError(f"step() needs a running episode: {self._ended_by}. Call reset()")
        space = self.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        own = checked_action(action, space, space.shape)
        inference = self._stopwatch.read()
        begin = time.monotonic()
        try:
            capture = self._host.call(lambda engine: engine.hand_over(own, inference))
        except BaseException:
            self._running, self._ended_by = False, "the last call raised"
            raise
        joined = time.monotonic()
        self._buffer.append(own)
        self._last_sent = not capture.ended
        figures = capture.info["rt"]
        if capture.ended:
            self._running, self._ended_by = False, f"the episode has ended ({figures['end_reason']})"
        if self.clock == "wall":
            self._coverage.measure(figures)
        built = self._builder.build(capture.components, self._buffer)
        if self._recorder is not None:
            self._recorder.add(own, built, capture)
        observation = self._hand_out(built)
        if self._benchmarks is not None:
            self._benchmarks.add(inference, (begin, joined, time.monotonic()), figures)
        return observation, capture.reward, capture.terminated, capture.truncated, capture.info

    def _hand_out(self, observation: Any) -> Any:
        observation = prepared("obs_prepro_func", self._config.obs_prepro_func, observation)
        if self.render_mode == "human":
            self.render()
        self._stopwatch.start()
        return observation

    def wait(self) -> None:
        """Pause: let the running time-step end, then make the world wait until the next `step()` or `reset()`."""
        self._note("wait")
        self._host.call(lambda engine: engine.pause())
        self._stopwatch.stop()

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture, (height, width, 3) RGB, or show it in the window (`"human"`)."""
        if self.render_mode is None:
            raise ConfigurationError('render() needs a render_mode: gym.make(..., render_mode="rgb_array")')
        frame = self._interface.render()
        if frame is None:
            raise RenderError(
                f"{type(self.interface).__name__}.render() returned None: there is no picture yet"
            )
        if self.render_mode == "rgb_array":
            return frame
        if self._window is None:
            from rt_lrhc.environment.window import Window

            self._window = Window("rt_lrhc")
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Let the running time-step end, close the interface and the window. Idempotent, also after an error."""
        self._running, self._ended_by = False, "the environment is closed"
        if self._window is not None:
            self._window.close()
            self._window = None
        self._host.close()

    @property
    def interface(self) -> Any:
        """The interface. Its callbacks belong to the environment; what else it offers is yours to use.

        With `runner="process"`: what stands for it here, which has its spaces and draws its picture.
        """
        return self._interface.rows if isinstance(self._interface, FirstRow) else self._interface

    def set_default_action(self, action: npt.NDArray[Any]) -> None:
        """Change the action that the next `reset()` sends and fills the buffer with."""
        assert isinstance(self.action_space, gymnasium.spaces.Box)
        self._default_action = checked_default(action, self.action_space)
        self._buffer.set_default(self._default_action)
        self._host.set_default_action(self._default_action)
        self._note("set_default_action", self._default_action.tolist())
