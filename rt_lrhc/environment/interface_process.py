"""The interface's process: hosts one interface with its engine and clock for an environment in another process.

The main thread builds the interface and then runs time-steps. A second thread answers what is asked over the line: the
picture, the trace, changed parameters, which callback runs; and it notices the environment's end. When that comes, the
main thread closes the interface, or, if it does not in time, the whole group of processes is killed.
"""

import contextlib
import faulthandler
import logging
import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from rt_lrhc.config import RealTimeConfig
from rt_lrhc.environment.captures import Capture
from rt_lrhc.environment.engine import Engine, Interface, Schedule
from rt_lrhc.environment.first_row import FirstRow, is_world
from rt_lrhc.environment.line import POLL, Line, LineClosed
from rt_lrhc.environment.mailbox import Mailbox, MailboxEnd
from rt_lrhc.environment.remote import INSIDE, WORDING
from rt_lrhc.environment.runner import Ticket, serve
from rt_lrhc.environment.setup import Parts, build_engine, construct_interface, inspect_interface
from rt_lrhc.environment.wire import pack, pack_error, space_to_json, unpack
from rt_lrhc.errors import InterfaceError, RealTimeError
from rt_lrhc.interface import RealTimeInterface, VectorInterface
from rt_lrhc.processes import ImportableName
from rt_lrhc.timing.realtime import PROCESS_TUNING, Granted, apply_to_thread

_ORPHAN_LIMIT = 5.0
"""Seconds that the interface has to close after the environment's death."""
_STUCK_MARGIN = 60.0
"""Seconds beyond `callback_timeout` after which a callback that holds the interpreter lock ends this process."""
_ATTRIBUTES = (
    "control_period",
    "overlaps",
    "draws",
    "observation_names",
    "action_delay_bound",
    "observation_delay_bound",
    "draws",
)


def main(line_fd: int) -> None:
    """Be the interface's process, until the environment closes or dies.

    Args:
        line_fd: Our end of the line.
    """
    faulthandler.enable()
    line = Line(socket.socket(fileno=line_fd))
    parent = os.pidfd_open(os.getppid())
    interface: Interface | None = None
    host: _Hosted | None = None
    try:
        interface = _answer(line, _await(line), _boot)
        if interface is not None:
            request = _await(line)
            host = _answer(line, request, lambda asked: _open(line, asked, interface))
            if host is not None:
                host.serve(line, parent)
    except LineClosed:
        pass
    finally:
        if interface is not None and (host is None or not host.served):
            with contextlib.suppress(Exception):
                interface.close()
    if host is not None and host.is_orphan:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _await(line: Line) -> dict[str, Any]:
    while True:
        request = line.receive(POLL, names=True)
        if request is not None:
            return request


def _answer(
    line: Line, request: dict[str, Any], function: Callable[[dict[str, Any]], tuple[Any, Any]]
) -> Any:
    """Run `function`, which returns an answer and a result; send the answer, return the result, None after an error."""
    try:
        answer, result = function(request)
    except BaseException as error:  # whatever it is, it is the environment's to hear
        line.send({"error": pack_error(error, traceback.format_exc())})
        return None
    line.send({"value": answer})
    return result


def _boot(request: dict[str, Any]) -> tuple[dict[str, Any], Interface]:
    """Build and inspect the interface."""
    logging.getLogger("rt_lrhc").setLevel(request["log_level"])
    factory = ImportableName(*request["name"]).find(WORDING)
    os.environ.pop(INSIDE, None)
    config = RealTimeConfig.from_mapping(
        {
            "interface": factory,
            "interface_args": request["interface_args"],
            "interface_kwargs": request["interface_kwargs"],
        }
    )
    interface = construct_interface(config, factory)
    try:
        parts = inspect_interface(interface)
        base = RealTimeInterface if isinstance(interface, RealTimeInterface) else VectorInterface
        kind = type(interface)
        description = {
            "name": kind.__name__,
            "vector": isinstance(interface, VectorInterface),
            "world": is_world(interface),
            "observes": kind.observe is not base.observe,
            "renders": kind.render is not base.render,
            "observation_space": space_to_json(
                parts.observation_space, f"{kind.__name__}'s observation space"
            ),
            "action_space": space_to_json(parts.action_space, f"{kind.__name__}'s action space"),
            "default_action": parts.default_action,
            "attributes": {name: getattr(interface, name, None) for name in _ATTRIBUTES},
        }
    except BaseException:
        interface.close()
        raise
    return description, interface


def _open(
    line: Line, request: dict[str, Any], interface: Interface | None
) -> tuple[list[dict[str, Any]], "_Hosted"]:
    """Put the interface on its engine, and make this thread the clock's."""
    memory, rings, hears, stream = line.receive_descriptors(4)
    request_size, reply_size = request["sizes"]
    mailbox = Mailbox(
        MailboxEnd(memory, rings, hears, stream, (request_size, reply_size), is_environment=False)
    )
    config = RealTimeConfig.from_mapping({"interface": type(interface), **request["config"]})
    num_envs = request["num_envs"]
    assert interface is not None
    hosted = FirstRow(interface) if num_envs is None and isinstance(interface, VectorInterface) else interface
    parts: Parts = inspect_interface(hosted)
    engine = build_engine(parts, config, request["config"]["clock"], num_envs, request["default_action"])
    granted = Granted()
    if request["config"]["clock"] == "wall":
        granted = PROCESS_TUNING.acquire(config.realtime) + apply_to_thread(config.realtime)
    engine.granted = granted.text
    host = _Hosted(engine, interface, mailbox, config.callback_timeout)
    return [asdict(grant) for grant in granted.grants], host


class _Hosted:
    """An engine, the mailbox that brings its commands, and what is answered meanwhile."""

    def __init__(
        self, engine: Engine, interface: Interface, mailbox: Mailbox, callback_timeout: float
    ) -> None:
        self.served = False
        self.is_orphan = False
        self._closes = False
        self._engine = engine
        self._interface = interface
        self._mailbox = mailbox
        self._stuck_limit = callback_timeout + _STUCK_MARGIN
        self._ended = threading.Event()

    def serve(self, line: Line, parent: int) -> None:
        """Run time-steps until the environment closes or is gone."""
        threading.Thread(target=self._attend, args=(line, parent), name="rt_lrhc-line", daemon=True).start()
        self.served = True
        try:
            serve(self._engine, self)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._ended.set()

    # The inbox of the engine's thread.

    def take(self, timeout: float) -> Ticket | None:
        """Return the environment's next command; its absence closes the engine."""
        letter = self._mailbox.receive(timeout)
        if self.is_orphan:
            return Ticket(0, None)
        if letter is None:
            return None
        number, body = letter
        request = unpack(body, names=True)
        do = request.pop("do")
        if do == "close":
            self._closes = True
            return Ticket(number, None)
        return Ticket(number, lambda engine: getattr(engine, do)(**request))

    def answer(self, number: int, value: Any, error: BaseException | None) -> None:
        """Send the result, or the error, or the error of a result that cannot travel."""
        if self.is_orphan:
            return
        if error is None:
            try:
                body = pack(_travelling(value), "")
            except RealTimeError as refused:
                error = InterfaceError(f"{type(self._interface).__name__}: {refused}")
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            body = pack({"error": pack_error(error, trace)}, "")
        with contextlib.suppress(RealTimeError):  # the environment is gone: the other thread says so
            self._mailbox.send(number, body)

    # The second thread.

    def _attend(self, line: Line, parent: int) -> None:
        poll = select.poll()
        poll.register(line.fd, select.POLLIN)
        poll.register(parent, select.POLLIN)
        while not self._ended.is_set():
            # Beats as long as this thread gets the interpreter lock.
            faulthandler.dump_traceback_later(self._stuck_limit, exit=True)
            ready = {fd for fd, _ in poll.poll(POLL * 1e3)}
            try:
                if line.fd in ready:
                    request = line.receive(0.0, names=True)
                    if request is not None:
                        _answer(line, request, self._side_command)
                elif parent in ready:
                    raise LineClosed("the environment's process has ended")
            except LineClosed:
                self._abandon()
                return

    def _abandon(self) -> None:
        """The environment is gone, in order or not: let the interface close, but not for ever."""
        if not self._closes:
            self.is_orphan = True
            self._mailbox.wake()
        if not self._ended.wait(timeout=_ORPHAN_LIMIT):
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _side_command(self, request: dict[str, Any]) -> tuple[Any, None]:
        engine = self._engine
        value: Any = None
        match request.pop("do"):
            case "callback":
                value = engine.callback
            case "render":
                value = self._interface.render()
            case "measured":
                value = engine.measured()
            case "set_durations":
                engine.set_durations(**request)
            case "set_ep_max_length":
                engine.set_ep_max_length(**request)
            case "set_default_action":
                engine.set_default_action(**request)
            case unknown:
                raise InterfaceError(f"unknown question {unknown!r}")
        return value, None


def _travelling(value: Any) -> dict[str, Any]:
    """Return the result of a command as what travels, with the names that its errors shall use."""
    if isinstance(value, Capture):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, Schedule):
        return {"action_periods": np.array(value.action_periods, dtype=np.int64), "world": value.world}
    if isinstance(value, tuple):  # of reset()
        components, info = value
        return {"components": components, "info": info}
    assert value is None
    return {}
