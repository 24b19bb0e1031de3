"""Where the engine runs: on the caller's thread, or on a persistent one of its own."""

import logging
import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rt_lrhc.environment.engine import Engine
from rt_lrhc.errors import EnvironmentStateError, InterfaceTimeout
from rt_lrhc.timing.realtime import Granted, RealTimeOptions, apply_to_thread

_log = logging.getLogger("rt_lrhc")

_POLL = 1.0
"""Longest single wait, s; the waits below are loops of it, so that none is unbounded and Ctrl-C is heard."""

Command = Callable[[Engine], Any]


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


@dataclass
class _Ticket:
    number: int
    command: Command | None  # None closes


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
        self._number = 0
        self._commands: queue.SimpleQueue[_Ticket] = queue.SimpleQueue()
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
        if self._closed:
            return
        self._closed = True
        limit = min(self._limit, 5.0) + self._grace()
        try:
            self._call(None, limit)
        except InterfaceTimeout as error:
            _log.error("close(): %s; its thread is left behind", error)
            return
        self._thread.join(timeout=limit)

    def _call(self, command: Command | None, limit: float) -> Any:
        self._number += 1
        self._commands.put(_Ticket(self._number, command))
        return self._take_reply(self._number, limit)

    def _take_reply(self, number: int, limit: float) -> Any:
        deadline = time.monotonic() + limit
        while True:
            try:
                answered, value, error = self._replies.get(
                    timeout=max(min(_POLL, deadline - time.monotonic()), 0.0)
                )
            except queue.Empty:
                if time.monotonic() >= deadline or not self._thread.is_alive():
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
        what = f"{type(self._engine.interface).__name__}.{callback}" if callback else "the running time-step"
        return f"{what} did not return within {limit:.1f} s (callback_timeout)"

    # On the thread.

    def _serve(self) -> None:
        error: BaseException | None = None
        try:
            if self._options is not None:
                self.granted = apply_to_thread(self._options)
        except Exception as refused:
            error = refused
        self._replies.put((0, None, error))
        self._started.set()
        failure: BaseException | None = None
        while error is None:
            if failure is None:
                failure = self._attempt(self._engine.finish)
            ticket, failure = self._next_ticket(failure)
            if ticket.command is None:
                failure = self._attempt(self._engine.close)
                self._replies.put((ticket.number, None, failure))
                return
            if failure is not None:
                self._replies.put((ticket.number, None, failure))
                failure = None
                continue
            try:
                self._replies.put((ticket.number, ticket.command(self._engine), None))
            except BaseException as raised:  # it is the caller's to handle, whatever it is
                self._replies.put((ticket.number, None, raised))

    def _next_ticket(self, failure: BaseException | None) -> tuple[_Ticket, BaseException | None]:
        """Wait for the caller; meanwhile, a world that does not wait goes on."""
        while True:
            try:
                if failure is None and self._engine.idles:
                    return self._commands.get_nowait(), None
                return self._commands.get(timeout=_POLL), failure
            except queue.Empty:
                if failure is None and self._engine.idles:
                    failure = self._attempt(self._engine.idle)

    def _attempt(self, function: Callable[[], None]) -> BaseException | None:
        try:
            function()
        except BaseException as raised:  # kept for the caller's next call; never lost
            _log.debug("kept for the next call:\n%s", traceback.format_exc())
            return raised
        return None
