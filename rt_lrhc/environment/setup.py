"""From a configuration to an interface, its spaces and a runner: what both environments share."""

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.config import Clock, RealTimeConfig, check_episode_length, check_number
from rt_lrhc.environment.captures import Captor, RowsCaptor, SingleCaptor
from rt_lrhc.environment.device_engine import DeviceEngine
from rt_lrhc.environment.engine import (
    Durations,
    Engine,
    EngineLike,
    Interface,
    Schedule,
)
from rt_lrhc.environment.first_row import FirstRow, is_world
from rt_lrhc.environment.remote import (
    ProcessRunner,
    RemoteEngine,
    interface_process,
    remote_interface,
    start_interface,
)
from rt_lrhc.environment.runner import InlineRunner, Runner, ThreadRunner
from rt_lrhc.environment.timing import Timing
from rt_lrhc.environment.world_engine import WorldEngine
from rt_lrhc.errors import ConfigurationError, RealTimeError, RenderError
from rt_lrhc.interface import RealTimeInterface, TupleSpace, VectorInterface
from rt_lrhc.timing.clock import VirtualTime, WallTime
from rt_lrhc.timing.realtime import PROCESS_TUNING


@dataclass(frozen=True)
class Parts:
    """An interface with its checked spaces, and the delays that it declares, s."""

    interface: Interface
    observation_space: TupleSpace
    action_space: spaces.Box
    default_action: npt.NDArray[Any]
    control_period: float | None = None
    action_delay_bound: float = 0.0
    observation_delay_bound: float = 0.0


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
    """Construct the interface, here or in a process of its own, and check that it is one."""
    if config.runner == "process":
        return remote_interface(start_interface(config, factory, extra))
    return construct_interface(config, factory, **extra)


def construct_interface(config: RealTimeConfig, factory: Any, **extra: Any) -> Interface:
    """Construct the interface in this process and check that it is one."""
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
    for bound in ("action_delay_bound", "observation_delay_bound"):
        check_number(f"{name}.{bound}", getattr(interface, bound))
        if not 0.0 <= getattr(interface, bound) < math.inf:
            raise ConfigurationError(
                f"{name}.{bound} must be at least 0 s and finite, got {getattr(interface, bound)}"
            )
    return Parts(
        interface,
        observation_space,
        action_space,
        checked_default(interface.get_default_action(), action_space),
        interface.control_period,
        float(interface.action_delay_bound),
        float(interface.observation_delay_bound),
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
    # np.clip and .all() take twice as long; NaN stays NaN in both.
    np.minimum(np.maximum(array, space.low, out=array), space.high, out=array)
    if np.count_nonzero(np.isfinite(array)) < array.size:
        raise ConfigurationError(f"an action must be finite, got {action!r:.200}")
    return array


def usable_render_modes(interface: Interface, asked: str | None) -> list[str]:
    """Return the render modes that work for this interface on this machine.

    Raises:
        ConfigurationError: If pictures were asked for and the interface makes none.
        RenderError: If a window was asked for and none can open; it says why.
    """
    base = RealTimeInterface if isinstance(interface, RealTimeInterface) else VectorInterface
    if type(interface).render is base.render or not interface.draws:
        if asked is not None:
            raise ConfigurationError(
                f"render_mode={asked!r}: {type(interface).__name__} makes no pictures: it has no render(), or was made "
                "without them"
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


def build_engine(
    parts: Parts, config: RealTimeConfig, clock: Clock, num_envs: int | None, default_action: Any = None
) -> Engine:
    """Put an interface of this process on its engine.

    Args:
        parts: The interface and its spaces.
        config: The configuration.
        clock: The clock.
        num_envs: Rows, or None for one robot.
        default_action: What `reset()` sends, of all rows, instead of the interface's.

    Raises:
        ConfigurationError: If the interface cannot run on this clock, or not with these durations.
    """
    interface = parts.interface
    world = is_world(interface)
    if not world and clock == "virtual":
        raise ConfigurationError(
            f"{type(interface).__name__} has no advance(), so its time is the wall's: a device cannot run on "
            'virtual time. Use clock="wall", or define advance() and control_period'
        )
    inner = interface.rows if isinstance(interface, FirstRow) else interface
    inner.clock = clock
    captor: Captor
    default = parts.default_action
    if num_envs is None:
        assert isinstance(interface, RealTimeInterface)
        captor = SingleCaptor(interface, parts.observation_space, config.ep_max_length)
    else:
        assert isinstance(interface, VectorInterface)
        captor = RowsCaptor(interface, parts.observation_space, config.ep_max_length, num_envs)
        default = np.repeat(default[None], num_envs, axis=0)
    return (WorldEngine if world else DeviceEngine)(
        interface,
        captor,
        Durations(config.time_step_duration, config.start_obs_capture, config.time_step_timeout_factor),
        default if default_action is None else default_action,
        WallTime(config.realtime.spin) if clock == "wall" else VirtualTime(),
        last_act_on_reset=config.last_act_on_reset,
        wait_on_done=config.wait_on_done,
        prepro=config.act_prepro_func,
        measured=clock == "wall",
        action_delay=config.action_delay,
        observation_delay=config.observation_delay,
    )


class Host:
    """An interface on its engine and runner: what both environments drive.

    Args:
        parts: The interface and its spaces.
        config: The configuration.
        default_clock: The clock of the environment's id, where the configuration names none.
        num_envs: Rows, or None for one robot.
    """

    def __init__(
        self, parts: Parts, config: RealTimeConfig, default_clock: Clock | None, num_envs: int | None
    ) -> None:
        self.config = config
        self.num_envs = num_envs
        if config.clock is not None and default_clock is not None and config.clock != default_clock:
            raise ConfigurationError(
                f"the environment's id says clock={default_clock!r}, its configuration clock={config.clock!r}: leave "
                'the key out, or use the other id ("rt_lrhc:rt-v0" for the wall clock, "rt_lrhc:rt-sim-v0" for virtual)'
            )
        self.clock: Clock = config.clock or default_clock or "wall"
        inner = parts.interface.rows if isinstance(parts.interface, FirstRow) else parts.interface
        remote = interface_process(inner)
        self._engine: EngineLike = (
            build_engine(parts, config, self.clock, num_envs)
            if remote is None
            else RemoteEngine(remote, parts, config, self.clock, num_envs)
        )
        wall = self.clock == "wall"
        self.timing = Timing(self._engine)
        self._durations = self._engine.durations
        self._wall = wall
        self._background = self._in_background(parts.interface)
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

    def call(self, command: Callable[[EngineLike], Any]) -> Any:
        """Run `command` on the engine, where it lives, after the running time-step."""
        return self._started().call(command)

    def _started(self) -> Runner:
        """Return the runner, starting it at the first call: nothing runs before the first `reset()`."""
        if self._runner is None:
            engine = self._engine
            if self._wall and not self._closed:
                self.timing.granted = PROCESS_TUNING.acquire(self.config.realtime)
                self._tuned = True
            if isinstance(engine, RemoteEngine):
                self._runner = ProcessRunner(engine)
                self.timing.granted = self._runner.granted
                return self._runner
            assert isinstance(engine, Engine)
            if not self._background or self._closed:
                self._runner = InlineRunner(engine)
            else:
                self._runner = ThreadRunner(
                    engine,
                    self.config.realtime if self._wall else None,
                    self.config.callback_timeout,
                    # Two: the running time-step, and one that an elastic clock has yet to begin.
                    lambda: 2 * self._durations.time_step_duration if self._wall else 0.0,
                )
                self.timing.granted = self.timing.granted + self._runner.granted
                engine.granted = self.timing.granted.text
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

    @property
    def durations(self) -> Durations:
        """The durations that hold from the next time-step on."""
        return self._durations

    def set_time_step_duration(self, duration: float, timeout_factor: float | None = None) -> None:
        """Change the nominal time-step, s, and the lateness that one absorbs, in time-steps."""
        check_number("time_step_duration", duration)
        factor = self._durations.time_step_timeout_factor if timeout_factor is None else timeout_factor
        check_number("time_step_timeout_factor", factor)
        self._set_durations(
            replace(self._durations, time_step_duration=duration, time_step_timeout_factor=factor)
        )

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
        self._engine.set_ep_max_length(length)

    def set_default_action(self, action: npt.NDArray[Any]) -> None:
        """Change what `reset()` sends: one action, or one a row."""
        self._engine.set_default_action(action)

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset."""
        schedule: Schedule = self.call(lambda engine: engine.schedule())
        return schedule
