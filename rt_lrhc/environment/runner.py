"""Where the engine runs: on the caller's thread, or on a persistent one of its own."""

import logging
import os
import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rt_lrhc.environment.engine import Engine, EngineLike
from rt_lrhc.environment.first_row import owner_name
from rt_lrhc.errors import EnvironmentStateError, InterfaceTimeout
from rt_lrhc.timing.realtime import Granted, RealTimeOptions, apply_to_thread

_log = logging.getLogger("rt_lrhc")

_POLL = 1.0
"""Longest single wait, s; the waits below are loops of it, so that none is unbounded and Ctrl-C is heard."""

Command = Callable[[EngineLike], Any]


@dataclass
class Ticket:
    """Something to run on the engine; a command of None closes it."""

    number: int
    command: Command | None


class Inbox(Protocol):
    """Where the engine's thread finds what the caller wants, and leaves what came of it."""

    def take(self, timeout: float) -> Ticket | None:
        """Return the next ticket, or None where none comes within `timeout` s."""

    def answer(self, number: int, value: Any, error: BaseException | None) -> None:
        """Leave the result of ticket `number`, or what it raised."""


def serve(engine: Engine, inbox: Inbox) -> None:
    """Run time-steps and the caller's commands between them, until the engine is closed.

    What a time-step raises is kept for the caller's next command, which is then not run.
    """
    failure: BaseException | None = None
    while True:
        if failure is None:
            failure = _attempt(engine.finish)
        ticket, failure = _next_ticket(engine, inbox, failure)
        if ticket.command is None:
            if failure is not None:
                _log.error("closed after an error that no call was left to raise", exc_info=failure)
            inbox.answer(ticket.number, None, _attempt(engine.close))
            return
        if failure is not None:
            inbox.answer(ticket.number, None, failure)
            failure = None
            continue
        try:
            value, error = ticket.command(engine), None
        except BaseException as raised:  # it is the caller's to handle, whatever it is
            value, error = None, raised
        inbox.answer(ticket.number, value, error)


def _next_ticket(
    engine: Engine, inbox: Inbox, failure: BaseException | None
) -> tuple[Ticket, BaseException | None]:
    """Wait for the caller; meanwhile, a world that does not wait goes on."""
    while True:
        idles = failure is None and engine.idles
        ticket = inbox.take(0.0 if idles else _POLL)
        if ticket is not None:
            return ticket, failure
        if idles:
            failure = _attempt(engine.idle)


def _attempt(function: Callable[[], None]) -> BaseException | None:
    try:
        function()
    except BaseException as raised:  # kept for the caller's next call; never lost
        _log.debug("kept for the next call:\n%s", traceback.format_exc())
        return raised
    return None


class Runner(ABC):
    """Runs commands on the engine, each after the running time-step has ended."""

    granted = Granted()

    @abstractmethod
    def call(self, command: Command) -> Any:
        """Finish the running time-step, run `command` and return what it returns; raise what either raises."""

    @abstractmethod
    def close(self) -> None:
        """Let the running time-step end, close the interface and stop. Idempotent."""


class InlineRunner(Runner):
    """Runs time-steps on the caller's thread, when their result is asked for: for worlds with nothing to overlap."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._closed = False

    def call(self, command: Command) -> Any:
        """Run the pending time-step, then `command`."""
        if self._closed:
            raise EnvironmentStateError("the environment is closed")
        self._engine.finish()
        return command(self._engine)

    def close(self) -> None:
        """Close the interface."""
        if not self._closed:
            self._closed = True
            self._engine.close()


class ThreadRunner(Runner):
    """Runs time-steps on a persistent thread while the caller infers the next action.

    Args:
        engine: What to run; the thread alone touches it from now on.
        options: What to ask of the operating system for the thread.
        limit: Longest wait for a command beyond what is added by `grace()`, s.
        grace: Returns the time that the running time-step may take by right, s.
    """

    def __init__(
        self, engine: Engine, options: RealTimeOptions | None, limit: float, grace: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._options = options
        self._limit = limit
        self._grace = grace
        self._closed = False
        self._pid = os.getpid()
        self._number = 0
        self._commands: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="rt_lrhc-clock", daemon=True)
        self._thread.start()
        if not self._started.wait(timeout=limit):
            raise InterfaceTimeout(f"the clock's thread did not start within {limit} s")
        self._take_reply(0, limit)

    def call(self, command: Command) -> Any:
        """Hand `command` to the thread and wait for its result."""
        if self._closed:
            raise EnvironmentStateError("the environment is closed")
        return self._call(command, self._limit + self._grace())

    def close(self) -> None:
        """Stop the thread; where a callback hangs, say so and leave it behind (it is a daemon)."""
        if self._closed or os.getpid() != self._pid:  # a forked child has no say, and no such thread
            return
        self._closed = True
        if threading.current_thread() is self._thread:
            # The collector found the environment on this thread of all: it cannot wait for itself.
            self._commands.put(Ticket(self._number + 1, None))
            return
        limit = min(self._limit, 5.0) + self._grace()
        try:
            self._call(None, limit)
        except InterfaceTimeout as error:
            _log.error("close(): %s; its thread is left behind", error)
            return
        self._thread.join(timeout=limit)

    def _call(self, command: Command | None, limit: float) -> Any:
        self._number += 1
        self._commands.put(Ticket(self._number, command))
        return self._take_reply(self._number, limit)

    def _take_reply(self, number: int, limit: float) -> Any:
        deadline = time.monotonic() + limit
        while True:
            try:
                answered, value, error = self._replies.get(
                    timeout=max(min(_POLL, deadline - time.monotonic()), 0.0)
                )
            except queue.Empty:
                ended = not self._thread.is_alive() and self._replies.empty()
                if time.monotonic() >= deadline or ended:
                    raise InterfaceTimeout(self._why(limit)) from None
                continue
            # An earlier call may have been left by Ctrl-C before its reply came.
            if answered != number:
                continue
            if error is not None:
                raise error
            return value

    def _why(self, limit: float) -> str:
        if not self._thread.is_alive():
            return "the clock's thread has ended"
        callback = self._engine.callback
        what = f"{owner_name(self._engine.interface)}.{callback}" if callback else "the running time-step"
        return f"{what} did not return within {limit:.1f} s (callback_timeout)"

    # On the thread.

    def _serve(self) -> None:
        error: BaseException | None = None
        try:
            if self._options is not None:
                self.granted = apply_to_thread(self._options)
        except Exception as refused:
            error = refused
        self.answer(0, None, error)
        self._started.set()
        if error is None:
            serve(self._engine, self)

    def take(self, timeout: float) -> Ticket | None:
        """Return the caller's next ticket."""
        try:
            return self._commands.get(timeout=timeout) if timeout > 0.0 else self._commands.get_nowait()
        except queue.Empty:
            return None

    def answer(self, number: int, value: Any, error: BaseException | None) -> None:
        """Leave a result to the caller."""
        self._replies.put((number, value, error))
