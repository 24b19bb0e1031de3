"""The environment's side of the process runner: the interface's process, and what stands here for interface and engine.

Interface, engine and clock live in a fresh interpreter (`rt_lrhc.environment.interface_process`). Time-steps go through
a mailbox in shared memory: the agent's `step()` writes its action there, and the interface's process sends it at the
grid time, whoever holds this process's interpreter lock then. All else goes over a line.
"""

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.config import Clock, RealTimeConfig
from rt_lrhc.environment.captures import Capture
from rt_lrhc.environment.engine import Action, Durations, Schedule
from rt_lrhc.environment.line import Line, LineClosed
from rt_lrhc.environment.mailbox import Mailbox, capacity, open_mailbox
from rt_lrhc.environment.prepro import prepared
from rt_lrhc.environment.runner import Command, Runner
from rt_lrhc.environment.wire import pack, space_from_json, unpack, unpack_error
from rt_lrhc.errors import (
    ConfigurationError,
    EnvironmentStateError,
    InterfaceError,
    InterfaceLost,
    InterfaceTimeout,
    RealTimeError,
)
from rt_lrhc.interface import RealTimeInterface, VectorInterface
from rt_lrhc.processes import ImportableName, Wording, describe_exit
from rt_lrhc.timing.realtime import Grant, Granted

if TYPE_CHECKING:
    from rt_lrhc.environment.setup import Parts

_log = logging.getLogger("rt_lrhc")

INSIDE = "RT_LRHC_INSIDE_INTERFACE_PROCESS"
WORDING = Wording('config["interface"] with runner="process"', "class", "Name", "interface_kwargs")

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from rt_lrhc.environment.interface_process import main; main(int(sys.argv[1]))"
)
_BOOT_LIMIT = 120.0
"""Longest wait for the interface to be built: a cluster may compile its solvers, s."""
_SIDE_LIMIT = 5.0
_END_LIMIT = 5.0
_STDERR_KEPT = 4096
_POLL = 1.0
_NOT_SENT = ("interface", "interface_args", "interface_kwargs", "act_prepro_func", "obs_prepro_func")


class InterfaceProcess:
    """A process that hosts one interface; its own group of processes, which ends with it, and with this one.

    Args:
        name: The interface's class or factory.
        request: What the process is told first.

    Raises:
        RealTimeError: What went wrong there, as the subclass that it was.

    Attributes:
        description: What it says of its interface.
    """

    def __init__(self, name: ImportableName, request: Mapping[str, Any]) -> None:
        if INSIDE in os.environ:
            raise ConfigurationError(
                'an environment with runner="process" is being made inside an interface\'s own process: it imported a '
                "script that makes one at its top level; put that code under `if __name__ == '__main__':`"
            )
        self.name = name
        self._lock = threading.Lock()  # one question at a time on the line
        self._mailbox: Mailbox | None = None
        self._number = 0
        self._answered = 0
        self._closed = False
        self._owner_pid = os.getpid()
        self._tail = b""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC)
        try:
            # A session of its own: Ctrl-C is for this process, which then ends that one in order.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stderr=stderr_write,
                env={**os.environ, INSIDE: "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(stderr_read)
            raise
        finally:
            theirs.close()
            os.close(stderr_write)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._line = Line(ours, alarm=self._pidfd)
        self._listener = threading.Thread(
            target=self._listen, args=(stderr_read,), name="rt_lrhc-stderr", daemon=True
        )
        self._listener.start()
        try:
            self.description: dict[str, Any] = self.ask(
                "boot",
                _BOOT_LIMIT,
                ConfigurationError,
                name=[name.module, name.attribute, name.is_file],
                **request,
            )
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_ours(self) -> bool:
        """Whether this process started it; a forked child of ours has no say."""
        return os.getpid() == self._owner_pid

    def open(self, request_size: int, reply_size: int, **request: Any) -> Granted:
        """Put the interface on an engine and its clock, and return what the operating system granted there."""
        ours, theirs = open_mailbox(request_size, reply_size)
        try:
            self._mailbox = Mailbox(ours, alarm=self._pidfd)
            answer = self.ask(
                "open",
                _BOOT_LIMIT,
                ConfigurationError,
                theirs.descriptors,
                sizes=list(theirs.sizes),
                **request,
            )
        finally:
            for fd in theirs.descriptors:
                os.close(fd)
        return Granted(tuple(Grant(**grant) for grant in answer))

    def ask(
        self,
        do: str,
        limit: float = _SIDE_LIMIT,
        error: type[RealTimeError] = InterfaceError,
        descriptors: tuple[int, ...] = (),
        /,
        **arguments: Any,
    ) -> Any:
        """Ask for something that is no part of a time-step, and return the answer.

        Raises:
            RealTimeError: What was raised there; `error` if the arguments cannot travel.
            InterfaceLost: If the process has ended.
            InterfaceTimeout: If no answer comes in `limit` s.
        """
        with self._lock:
            try:
                self._line.send({"do": do, **arguments}, error, names=True)
                if descriptors:
                    self._line.send_descriptors(descriptors)
                answer = self._line.receive(limit)
            except LineClosed:
                raise self._lost() from None
        if answer is None:
            raise InterfaceTimeout(
                f"the interface's process (pid {self.pid}) did not answer {do!r} within {limit} s"
            )
        return _checked(answer)["value"]

    def request(self, do: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """Have something done between two time-steps, and return what comes of it.

        Raises:
            RealTimeError: What was raised there.
            InterfaceLost: If the process has ended.
            InterfaceTimeout: If it is not done in `limit` s; names the callback that runs.
        """
        mailbox = self._mailbox
        assert mailbox is not None
        body = pack({"do": do, **arguments}, "", ConfigurationError, names=True)
        if self._answered != self._number:  # Ctrl-C left the last call before its answer came
            self._wait(mailbox, limit)
        self._number += 1
        mailbox.send(self._number, body)
        return _checked(unpack(self._wait(mailbox, limit)))

    def _wait(self, mailbox: Mailbox, limit: float) -> bytearray:
        deadline = time.monotonic() + limit
        while True:
            letter = mailbox.receive(max(min(_POLL, deadline - time.monotonic()), 0.0))
            if letter is not None:
                self._answered = letter[0]
                if letter[0] == self._number:
                    return letter[1]
            elif self._has_ended():
                raise self._lost()
            elif time.monotonic() >= deadline:
                raise InterfaceTimeout(self._why(limit))

    def _why(self, limit: float) -> str:
        what = "the running time-step"
        with contextlib.suppress(RealTimeError):
            callback = self.ask("callback", 1.0)
            if callback:
                what = f"{self.name.attribute.rpartition('.')[2]}.{callback}"
        return f"{what} did not return within {limit:.1f} s (callback_timeout)"

    def _has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _lost(self) -> InterfaceLost:
        """Say how the process ended. It is not started again: nobody knows what its world did meanwhile."""
        if self._closed:
            return InterfaceLost("the interface's process has been closed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL)
        self._listener.join(timeout=_POLL)
        code = self._process.poll()
        how = "closed its line" if code is None else describe_exit(code)
        tail = self._tail.decode(errors="replace").strip()
        words = f"; its last words were:\n{tail}" if tail else ""
        return InterfaceLost(f"the process of {self.name} (pid {self.pid}) was lost: {how}{words}")

    def _listen(self, stderr: int) -> None:
        """Pass on what the process writes to stderr, and keep its last words."""
        with open(stderr, "rb", buffering=0) as source:
            while text := source.read(4096):
                self._tail = (self._tail + text)[-_STDERR_KEPT:]
                with contextlib.suppress(OSError):
                    os.write(2, text)

    def close(self, limit: float = _END_LIMIT) -> None:
        """End the process: in order within `limit` s, else by SIGKILL. What it started ends with it. Idempotent."""
        if self._closed or not self.is_ours:
            return
        self._closed = True
        self._line.close()
        try:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(limit * 1e3):
                _log.error("close(): %s (pid %d) did not end in %.1f s: killed", self.name, self.pid, limit)
        finally:
            # Before it is reaped its group's number cannot be anybody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(_END_LIMIT)
            self._listener.join(timeout=_POLL)
            os.close(self._pidfd)
            if self._mailbox is not None:
                self._mailbox.close()


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise unpack_error(answer["error"])
    return answer


def start_interface(config: RealTimeConfig, factory: Any, extra: Mapping[str, Any]) -> InterfaceProcess:
    """Start the process of the interface that `config` names.

    Args:
        config: The configuration.
        factory: The interface's class or factory, found in this process.
        extra: Further keyword arguments of the interface.

    Raises:
        ConfigurationError: If another process cannot find the class, or an argument cannot travel; says what to do.
        RealTimeError: What went wrong there.
    """
    named = config.interface if isinstance(config.interface, str) else factory
    request = {
        "log_level": _log.getEffectiveLevel(),
        "interface_args": list(config.interface_args),
        "interface_kwargs": {**config.interface_kwargs, **extra},
    }
    return InterfaceProcess(ImportableName.of_thing(named, WORDING), request)


class _StandIn:
    """What stands here for an interface in another process: its spaces, its picture, its end, and nothing else."""

    process: InterfaceProcess

    def __init__(self, process: InterfaceProcess) -> None:
        described = process.description
        self.process = process
        self._observation_space = space_from_json(described["observation_space"])
        self._action_space = space_from_json(described["action_space"])
        self._default_action = described["default_action"]
        for name, value in described["attributes"].items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{type(self).__name__} runs in a process of its own (runner='process'): its {name!r} is not here; "
            "let the interface put it into info"
        )

    def get_observation_space(self) -> Any:
        """Return the interface's observation space."""
        return self._observation_space

    def get_action_space(self) -> Any:
        """Return the interface's action space."""
        return self._action_space

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the interface's default action."""
        return np.array(self._default_action)

    def close(self) -> None:
        """End the process."""
        self.process.close()

    def _elsewhere(self, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError(f"the callbacks of {type(self).__name__} run in a process of their own")

    send_control = reset = reset_rows = get_obs_rew_terminated_info = wait = _elsewhere


def _render(self: _StandIn) -> npt.NDArray[np.uint8] | None:
    picture: npt.NDArray[np.uint8] | None = self.process.ask("render", _BOOT_LIMIT)
    return picture


def remote_interface(process: InterfaceProcess) -> RealTimeInterface | VectorInterface:
    """Return what stands for the interface of `process`, in a class of the same name and abilities."""
    described = process.description
    base: Any = VectorInterface if described["vector"] else RealTimeInterface
    methods: dict[str, Any] = {"__doc__": _StandIn.__doc__}
    if described["world"]:
        methods["advance"] = _StandIn._elsewhere
    if described["observes"]:
        methods["observe"] = _StandIn._elsewhere
    if described["renders"]:
        methods["render"] = _render
    stand_in: RealTimeInterface | VectorInterface = type(described["name"], (_StandIn, base), methods)(
        process
    )
    return stand_in


def interface_process(interface: Any) -> InterfaceProcess | None:
    """Return the process that `interface` stands for, None where the interface is here."""
    return interface.process if isinstance(interface, _StandIn) else None


class RemoteEngine:
    """Stands for the engine in the interface's process.

    `act_prepro_func` runs here, when the action is handed over: a function need not be one that another process finds.
    """

    def __init__(
        self,
        process: InterfaceProcess,
        parts: "Parts",
        config: RealTimeConfig,
        clock: Clock,
        num_envs: int | None,
    ) -> None:
        self.process = process
        self.durations = Durations(
            config.time_step_duration, config.start_obs_capture, config.time_step_timeout_factor
        )
        self._config = config
        self._wall = clock == "wall"
        self._kept: tuple[npt.NDArray[np.float64], dict[str, int]] | None = None
        leading = () if num_envs is None else (num_envs,)
        default = (
            parts.default_action
            if num_envs is None
            else np.repeat(parts.default_action[None], num_envs, axis=0)
        )
        observation = [
            ((*leading, *(part.shape or ())), part.dtype) for part in parts.observation_space.spaces
        ]
        settings = {
            one.name: getattr(config, one.name) for one in fields(config) if one.name not in _NOT_SENT
        }
        self.granted = process.open(
            capacity((default.shape, default.dtype)),
            # Twice: robots that end in a vector environment have a last observation and a first one.
            capacity(*observation, *observation, *[(leading, np.float64)] * 8),
            config={**settings, "clock": clock},
            num_envs=num_envs,
            default_action=self._prepared(default),
        )

    @property
    def limit(self) -> float:
        """Longest wait for a command, s: the callbacks', two time-steps, and what the way costs."""
        grace = 2 * self.durations.time_step_duration if self._wall else 0.0
        return self._config.callback_timeout + grace

    def reset(self, seed: int, options: dict[str, Any] | None) -> tuple[list[Action], dict[str, Any]]:
        """Reset the interface and begin the first time-step."""
        value = self.process.request("reset", self.limit, seed=seed, options=options)
        return value["components"], value["info"]

    def hand_over(self, action: Action, inference: tuple[float, float] | None) -> Capture:
        """Leave the action for the next time-step, and take the capture of the one that ends."""
        value = self.process.request(
            "hand_over", self.limit, action=self._prepared(action), inference=inference
        )
        return Capture(**value)

    def pause(self) -> None:
        """Make the world wait until the next action or reset."""
        self.process.request("pause", self.limit)

    def schedule(self) -> Schedule:
        """Return what took effect when since the last reset."""
        value = self.process.request("schedule", self.limit)
        return Schedule(tuple(value["action_periods"].tolist()), value["world"])

    def set_durations(self, durations: Durations) -> None:
        """Use other durations from the next time-step on."""
        self.process.ask("set_durations", durations=durations)
        self.durations = durations

    def set_ep_max_length(self, length: float) -> None:
        """Truncate episodes after another number of time-steps."""
        self.process.ask("set_ep_max_length", length=length)

    def set_default_action(self, action: Action) -> None:
        """Send another action at resets."""
        self.process.ask("set_default_action", action=self._prepared(action))

    def measured(self) -> tuple[npt.NDArray[np.float64], dict[str, int]]:
        """Return the trace and the overruns by cause; after `close()`, what they were."""
        if self._kept is not None:
            return self._kept
        rows, overruns = self.process.ask("measured")
        return rows, overruns

    def close(self) -> None:
        """Let the running time-step end, close the interface and end its process."""
        if not self.process.is_ours:
            return
        try:
            self._kept = self.measured()
            limit = (
                min(self._config.callback_timeout, _END_LIMIT) + self.limit - self._config.callback_timeout
            )
            self.process.request("close", limit)
        except (InterfaceTimeout, InterfaceLost) as error:
            self._kept = self._kept or (np.zeros((0, 0)), {})
            _log.error("close(): %s", error)
            self.process.close(0.0)
        finally:
            self.process.close()

    def _prepared(self, action: Action) -> Any:
        function = self._config.act_prepro_func
        return action if function is None else prepared("act_prepro_func", function, action.copy())


class ProcessRunner(Runner):
    """Runs commands on the engine in the interface's process."""

    def __init__(self, engine: RemoteEngine) -> None:
        self.granted = engine.granted
        self._engine = engine
        self._closed = False

    def call(self, command: Command) -> Any:
        """Have `command` run there and wait for its result."""
        if self._closed:
            raise EnvironmentStateError("the environment is closed")
        return command(self._engine)

    def close(self) -> None:
        """End the process."""
        if not self._closed:
            self._closed = True
            self._engine.close()
