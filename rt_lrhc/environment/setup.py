"""From a configuration to an interface, its spaces and a runner: what both environments share."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.config import Clock, RealTimeConfig, check_episode_length, check_number
from rt_lrhc.environment.captures import Captor, RowsCaptor, SingleCaptor
from rt_lrhc.environment.engine import DeviceEngine, Durations, Engine, Interface, Schedule, WorldEngine
from rt_lrhc.environment.first_row import FirstRow, is_world
from rt_lrhc.environment.runner import InlineRunner, Runner, ThreadRunner
from rt_lrhc.environment.timing import Timing
from rt_lrhc.errors import ConfigurationError, RealTimeError, RenderError
from rt_lrhc.interface import RealTimeInterface, TupleSpace, VectorInterface
from rt_lrhc.timing.clock import VirtualTime, WallTime
from rt_lrhc.timing.realtime import PROCESS_TUNING


@dataclass(frozen=True)
class Parts:
    """An interface with its checked spaces."""

    interface: Interface
    observation_space: TupleSpace
    action_space: spaces.Box
    default_action: npt.NDArray[Any]


def resolve_interface(interface: Any) -> Any:
    """Return the class or factory that `config["interface"]` names."""
    if not isinstance(interface, str):
        return interface
    module_name, _, name = interface.partition(":")
    if not module_name or not name:
        raise ConfigurationError(
            f'config["interface"] must be a class or "package.module:Name", got {interface!r}'
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f'config["interface"] = {interface!r}: cannot import {module_name!r}: {error}'
        ) from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigurationError(
            f'config["interface"] = {interface!r}: module {module_name!r} has no {name!r}'
        ) from None


def build_interface(config: RealTimeConfig, factory: Any, **extra: Any) -> Interface:
    """Construct the interface and check that it is one."""
    name = getattr(factory, "__qualname__", repr(factory))
    missing = sorted(getattr(factory, "__abstractmethods__", ()))
    if missing:
        raise ConfigurationError(
            f"{name} lacks {', '.join(f'{method}()' for method in missing)}: define it, as rt_lrhc.interface describes"
        )
    try:
        interface = factory(*config.interface_args, **{**config.interface_kwargs, **extra})
    except RealTimeError:
        raise
    except TypeError as error:
        raise ConfigurationError(
            f"{name} cannot be built from interface_args {config.interface_args!r} and "
            f"interface_kwargs {dict(config.interface_kwargs, **extra)!r}: {error}"
        ) from error
    if not isinstance(interface, (RealTimeInterface, VectorInterface)):
        raise ConfigurationError(
            f'config["interface"] must give a RealTimeInterface or a VectorInterface, got {type(interface).__name__}'
        )
    return interface


def inspect_interface(interface: Interface) -> Parts:
    """Ask the interface for its spaces and default action, and check them."""
    name = type(interface).__name__
    observation_space = interface.get_observation_space()
    if not isinstance(observation_space, spaces.Tuple):
        raise ConfigurationError(
            f"{name}.get_observation_space() must return a gymnasium Tuple, got {observation_space}"
        )
    action_space = interface.get_action_space()
    if not isinstance(action_space, spaces.Box):
        raise ConfigurationError(f"{name}.get_action_space() must return a gymnasium Box, got {action_space}")
    return Parts(
        interface,
        observation_space,
        action_space,
        checked_default(interface.get_default_action(), action_space),
    )


def checked_default(action: Any, space: spaces.Box) -> npt.NDArray[Any]:
    """Return a default action in the space's dtype, or raise an error that says what is wrong with it."""
    try:
        default = np.array(action, dtype=space.dtype)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the default action must be an array of {space.dtype}, got {action!r}"
        ) from error
    if not space.contains(default):
        raise ConfigurationError(
            f"the default action must lie in the action space {space}, got {default} of shape {default.shape}"
        )
    return default


def checked_action(action: Any, space: spaces.Box, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a copy of the agent's action, clipped to the bounds, or raise an error that says what is wrong with it."""
    try:
        array = np.array(action, dtype=space.dtype)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"an action must be an array {shape} of {space.dtype}, got {action!r:.100}"
        ) from error
    if array.shape != shape:
        raise ConfigurationError(f"an action must have shape {shape}, got {array.shape}")
    clipped = np.clip(array, space.low, space.high, out=array)
    if not np.isfinite(clipped).all():
        raise ConfigurationError(f"an action must be finite, got {action!r:.200}")
    return clipped


def usable_render_modes(interface: Interface, asked: str | None) -> list[str]:
    """Return the render modes that work for this interface on this machine.

    Raises:
        ConfigurationError: If pictures were asked for and the interface makes none.
        RenderError: If a window was asked for and none can open; it says why.
    """
    base = RealTimeInterface if isinstance(interface, RealTimeInterface) else VectorInterface
    if type(interface).render is base.render:
        if asked is not None:
            raise ConfigurationError(
                f"render_mode={asked!r}: {type(interface).__name__} makes no pictures; define its render()"
            )
        return []
    # Without a display there is nothing to probe: importing OpenCV and starting the probe take 0.2 s.
    if asked != "human" and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        return ["rgb_array"]
    from rt_lrhc.environment.window import window_available

    probe = window_available()
    if asked == "human" and not probe.available:
        raise RenderError(
            f'render_mode="human" needs a window, and none can open: {probe.reason}. Use render_mode="rgb_array", '
            "or start the program under a display (xvfb-run, ssh -X)"
        )
    return ["human", "rgb_array"] if probe.available else ["rgb_array"]


class Host:
    """An interface on its engine and runner: what both environments drive.

    Args:
        parts: The interface and its spaces.
        config: The configuration.
        default_clock: The clock of the environment's id, where the configuration names none.
        num_envs: Rows, or None for one robot.
    """

    def __init__(
        self, parts: Parts, config: RealTimeConfig, default_clock: Clock, num_envs: int | None
    ) -> None:
        self.config = config
        self.clock: Clock = config.clock or default_clock
        interface = parts.interface
        world = is_world(interface)
        if not world and self.clock == "virtual":
            raise ConfigurationError(
                f"{type(interface).__name__} has no advance(), so its time is the wall's: a device cannot run on "
                'virtual time. Use clock="wall", or define advance() and control_period'
            )
        inner = interface.rows if isinstance(interface, FirstRow) else interface
        inner.clock = self.clock
        captor: Captor
        default = parts.default_action
        if num_envs is None:
            assert isinstance(interface, RealTimeInterface)
            captor = SingleCaptor(interface, parts.observation_space, config.ep_max_length)
        else:
            assert isinstance(interface, VectorInterface)
            captor = RowsCaptor(interface, parts.observation_space, config.ep_max_length, num_envs)
            default = np.repeat(default[None], num_envs, axis=0)
        wall = self.clock == "wall"
        self._engine: Engine = (WorldEngine if world else DeviceEngine)(
            interface,
            captor,
            Durations(config.time_step_duration, config.start_obs_capture, config.time_step_timeout_factor),
            default,
            WallTime(config.realtime.spin) if wall else VirtualTime(),
            last_act_on_reset=config.last_act_on_reset,
            wait_on_done=config.wait_on_done,
            prepro=config.act_prepro_func,
            measured=wall,
        )
        self.timing = Timing(self._engine)
        self._durations = self._engine.durations
        self._wall = wall
        self._background = self._in_background(interface)
        self._runner: Runner | None = None
        self._tuned = False
        self._closed = False

    def _in_background(self, interface: Interface) -> bool:
        overlap = self.config.overlap
        if self._wall and overlap == "off":
            raise ConfigurationError(
                'overlap="off" is for virtual time: on the wall clock the world does not wait'
            )
        return self._wall or overlap == "on" or (overlap == "auto" and interface.overlaps)

    def call(self, command: Callable[[Engine], Any]) -> Any:
        """Run `command` on the engine, where it lives, after the running time-step."""
        return self._started().call(command)

    def _started(self) -> Runner:
        """Return the runner, starting it at the first call: nothing runs before the first `reset()`."""
        if self._runner is None:
            if not self._background or self._closed:
                self._runner = InlineRunner(self._engine)
            else:
                if self._wall:
                    self.timing.granted = PROCESS_TUNING.acquire(self.config.realtime)
                    self._tuned = True
                self._runner = ThreadRunner(
                    self._engine,
                    self.config.realtime if self._wall else None,
                    self.config.callback_timeout,
                    # Two: the running time-step, and one that an elastic clock has yet to begin.
                    lambda: 2 * self._durations.time_step_duration if self._wall else 0.0,
                )
                self.timing.granted = self.timing.granted + self._runner.granted
        return self._runner

    def close(self) -> None:
        """Stop, close the interface and undo what was asked of the process. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._started().close()
        finally:
            if self._tuned:
                self._tuned = False
                PROCESS_TUNING.release()

    # Parameters that may change while the environment runs, from the next time-step on.

    def set_time_step_duration(self, duration: float) -> None:
        """Change the nominal time-step, s."""
        check_number("time_step_duration", duration)
        self._set_durations(replace(self._durations, time_step_duration=duration))

    def set_start_obs_capture(self, start: float) -> None:
        """Change the start of the capture, s after that of the time-step."""
        check_number("start_obs_capture", start)
        self._set_durations(replace(self._durations, start_obs_capture=start))

    def _set_durations(self, durations: Durations) -> None:
        self._engine.set_durations(durations)
        self._durations = durations

    def set_ep_max_length(self, length: float) -> None:
        """Change the number of time-steps after which an episode is truncated."""
        check_episode_length(length)
        self._engine.captor.ep_max_length = length

    def set_default_action(self, action: npt.NDArray[Any]) -> None:
        """Change what `reset()` sends: one action, or one a row."""
        self._engine.default_action = action

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset."""
        schedule: Schedule = self.call(lambda engine: engine.schedule())
        return schedule
