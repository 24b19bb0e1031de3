"""The configuration of the environments: a dictionary at the border, a checked record inside."""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, get_args

from rt_lrhc.delays import Delay, delay_from
from rt_lrhc.errors import ConfigurationError, unknown_key
from rt_lrhc.timing.realtime import RealTimeOptions

Clock = Literal["wall", "virtual"]
Overlap = Literal["auto", "on", "off"]
RunnerKind = Literal["thread", "process"]
ObservationForm = Literal["tuple", "dict", "flat"]
ArrayBackend = Literal["numpy", "torch"]
BenchmarkType = Literal["polyak", "trace"]


_DEFAULT_REALTIME = RealTimeOptions()


@dataclass(frozen=True)
class RealTimeConfig:
    """Everything that an environment can be told. The names of the first group are rtgym's.

    Attributes:
        interface: Class (or factory) of the interface, or `"package.module:Name"`.
        interface_args: Positional arguments for it.
        interface_kwargs: Keyword arguments for it.
        time_step_duration: Nominal time between two actions, s.
        start_obs_capture: Start of a time-step to the start of its observation capture, in [0, duration] s.
        time_step_timeout_factor: Lateness of the agent that the next time-step absorbs, in time-steps.
        ep_max_length: Time-steps after which an episode is truncated; infinite for never.
        act_in_obs: Whether the action buffer is part of the observation.
        act_buf_len: Actions in the buffer; it must cover the total delay, in time-steps. `"auto"` computes it.
        reset_act_buf: Whether `reset()` refills the buffer with default actions (else it appends one).
        last_act_on_reset: Whether `reset()` sends the last action instead of the default one.
        wait_on_done: Whether the world waits (`interface.wait()`) when an episode ends.
        act_prepro_func: Maps an action of the agent to what `send_control` gets; the buffer holds the agent's.
        obs_prepro_func: Maps the observation, action buffer included, to what the agent gets.
        benchmark: Whether `benchmarks()` measures.
        benchmark_polyak: Weight of the newest measurement in its running averages, in (0, 1].
        benchmark_type: `"polyak"` (running averages) or `"trace"` (every time-step).

        action_delay: Time from the sending of an action to its effect: None, s, a dictionary or a
            `rt_lrhc.delays.Delay`; drawn for each action and robot.
        observation_delay: Age of the state in an observation at its capture; as `action_delay`.
        clock: `"wall"` or `"virtual"`; None is what the environment's id says.
        overlap: Whether time-steps are computed in the background: `"auto"`, `"on"` or `"off"`.
        runner: Where interface and clock live: `"thread"`, in a thread of this process, or `"process"`, in a process of
            their own, which this one's interpreter lock cannot make late.
        observation_form: `"tuple"` (rtgym's), `"dict"` or `"flat"`.
        array_backend: Arrays that a vector environment returns: `"numpy"` or `"torch"`.
        callback_timeout: Longest wait for the interface's callbacks before an error, s, beyond the time-step.
        realtime: What to ask of the operating system on the wall clock; a dictionary of its fields will do.
    """

    interface: Any
    interface_args: tuple[Any, ...] = ()
    interface_kwargs: Mapping[str, Any] = field(default_factory=dict)
    time_step_duration: float = 0.05
    start_obs_capture: float = 0.05
    time_step_timeout_factor: float = 1.0
    ep_max_length: float = math.inf
    act_in_obs: bool = True
    act_buf_len: int | Literal["auto"] = 1
    reset_act_buf: bool = True
    last_act_on_reset: bool = False
    wait_on_done: bool = False
    act_prepro_func: Callable[[Any], Any] | None = None
    obs_prepro_func: Callable[[Any], Any] | None = None
    benchmark: bool = False
    benchmark_polyak: float = 0.1
    benchmark_type: BenchmarkType = "polyak"
    action_delay: Delay | None = None
    observation_delay: Delay | None = None
    clock: Clock | None = None
    overlap: Overlap = "auto"
    runner: RunnerKind = "thread"
    observation_form: ObservationForm = "tuple"
    array_backend: ArrayBackend = "numpy"
    callback_timeout: float = 60.0
    realtime: RealTimeOptions = _DEFAULT_REALTIME

    def __post_init__(self) -> None:
        if self.interface is None:
            raise ConfigurationError(
                'config["interface"] is missing: give a class derived from RealTimeInterface or VectorInterface, '
                'or its name as "package.module:Name"'
            )
        if not (isinstance(self.interface, str) or callable(self.interface)):
            raise ConfigurationError(
                f'config["interface"] must be a class or "package.module:Name", got {self.interface!r}'
            )
        for name in (
            "time_step_duration",
            "start_obs_capture",
            "time_step_timeout_factor",
            "callback_timeout",
            "benchmark_polyak",
        ):
            check_number(name, getattr(self, name))
        for name in ("act_in_obs", "reset_act_buf", "last_act_on_reset", "wait_on_done", "benchmark"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("act_prepro_func", "obs_prepro_func"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ConfigurationError(f"{name} must be a function or None, got {function!r}")
        check_choice("clock", self.clock, (None, *get_args(Clock)))
        check_choice("overlap", self.overlap, get_args(Overlap))
        check_choice("runner", self.runner, get_args(RunnerKind))
        check_choice("observation_form", self.observation_form, get_args(ObservationForm))
        check_choice("array_backend", self.array_backend, get_args(ArrayBackend))
        check_choice("benchmark_type", self.benchmark_type, get_args(BenchmarkType))
        self._check_ranges()

    def _check_ranges(self) -> None:
        check_durations(self.time_step_duration, self.start_obs_capture, self.time_step_timeout_factor)
        check_episode_length(self.ep_max_length)
        length = self.act_buf_len
        if length != "auto" and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise ConfigurationError(
                f'act_buf_len must be a whole number of actions, at least 1, or "auto", got {length!r}'
            )
        if not 0.0 < self.benchmark_polyak <= 1.0:
            raise ConfigurationError(f"benchmark_polyak must lie in (0, 1], got {self.benchmark_polyak}")
        if not 0.0 < self.callback_timeout < math.inf:
            raise ConfigurationError(
                f"callback_timeout must be positive and finite, in s, got {self.callback_timeout}"
            )

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "RealTimeConfig":
        """Check a user's dictionary and return the record.

        Raises:
            ConfigurationError: If a key is unknown (it names the closest known one) or a value is unusable.
        """
        if not isinstance(config, Mapping):
            raise ConfigurationError(f"config must be a dictionary, got {type(config).__name__}")
        known = [f.name for f in fields(cls)]
        for key in config:
            if key not in known:
                raise ConfigurationError(unknown_key("configuration key", key, known))
        values = dict(config)
        values.setdefault("interface", None)
        if not isinstance(values.get("interface_kwargs", {}), Mapping):
            raise ConfigurationError(
                f"interface_kwargs must be a dictionary, got {values['interface_kwargs']!r}"
            )
        arguments = values.get("interface_args", ())
        if not isinstance(arguments, (list, tuple)):
            raise ConfigurationError(f"interface_args must be a list or a tuple, got {arguments!r}")
        values["interface_args"] = tuple(arguments)
        values["interface_kwargs"] = dict(values.get("interface_kwargs", {}))
        for key in ("action_delay", "observation_delay"):
            values[key] = delay_from(key, values.get(key))
        values["realtime"] = _realtime_options(values.get("realtime", _DEFAULT_REALTIME))
        return cls(**values)


def _realtime_options(value: object) -> RealTimeOptions:
    if isinstance(value, RealTimeOptions):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"realtime must be a RealTimeOptions or a dictionary of its fields, got {value!r}"
        )
    known = [f.name for f in fields(RealTimeOptions)]
    for key in value:
        if key not in known:
            raise ConfigurationError(unknown_key("realtime option", key, known))
    return RealTimeOptions(**value)


def check_number(name: str, value: object) -> None:
    """Raise a ConfigurationError that names `name` unless `value` is a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ConfigurationError(f"{name} must be a number, got {value!r}")


def check_durations(time_step_duration: float, start_obs_capture: float, timeout_factor: float) -> None:
    """Raise a ConfigurationError that names the duration which is out of its range; s, s and time-steps."""
    if not 0.0 < time_step_duration < math.inf:
        raise ConfigurationError(f"time_step_duration must be positive, in s, got {time_step_duration}")
    if not 0.0 <= start_obs_capture <= time_step_duration:
        raise ConfigurationError(
            f"start_obs_capture must lie in [0, {time_step_duration}] s (one time-step), got {start_obs_capture} s"
        )
    if not 0.0 <= timeout_factor < math.inf:
        raise ConfigurationError(
            f"time_step_timeout_factor must be at least 0 time-steps, got {timeout_factor}"
        )


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Raise a ConfigurationError that names `name` unless `value` is one of `known`."""
    if value not in known:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_episode_length(value: float) -> None:
    """Raise a ConfigurationError unless `value` is a number of time-steps, at least 1, or infinity."""
    check_number("ep_max_length", value)
    if value < 1 or (math.isfinite(value) and value != int(value)):
        raise ConfigurationError(
            f"ep_max_length must be a whole number of time-steps, at least 1, or inf, got {value}"
        )


class DefaultConfig(Mapping[str, Any]):
    """A read-only dictionary of defaults; `copy()` returns one of your own."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return dict(value) if isinstance(value, dict) else value

    def __setitem__(self, key: str, value: object) -> NoReturn:
        raise ConfigurationError(
            f"DEFAULT_CONFIG_DICT is read-only; take a copy: config = DEFAULT_CONFIG_DICT.copy(); config[{key!r}] = ..."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"DefaultConfig({self._values!r})"

    def copy(self) -> dict[str, Any]:
        """Return a new dictionary with these values, yours to change."""
        return {key: self[key] for key in self}


DEFAULT_CONFIG_DICT = DefaultConfig(
    {
        f.name: ({} if f.name == "interface_kwargs" else None if f.name == "interface" else f.default)
        for f in fields(RealTimeConfig)
    }
)
"""The defaults of every configuration key, under the name that rtgym gave them; `interface` is yours to set."""
