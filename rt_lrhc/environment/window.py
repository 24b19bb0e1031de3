"""Pictures in a real window, without a risk to the process that makes them.

Opencv aborts the process where no display answers, a window's events must be served all the time, and a slow display
(`ssh -X`) may block for long. So a window lives in a small process of its own: the caller hands over a copy of a
picture and goes on at once, a thread writes it to a pipe, and pictures that come faster than they can be shown are
dropped but for the newest. At most two are held. The window ends with the process that made it, however that ends.
"""

import contextlib
import functools
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import RenderError

_PROGRAM = Path(__file__).with_name("window_process.py")
_HEADER = struct.Struct("<II")  # height and width, as _PROGRAM expects; importing it would load opencv here
_PROBE_TIMEOUT = 20.0
_END_TIMEOUT = 5.0
_WHAT_DECIDES = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "QT_QPA_PLATFORM")
_ADVICE = (
    'use render_mode="rgb_array" for pictures as arrays, or give the process a display: a local session, `ssh -X`, or '
    "a virtual one (`xvfb-run python ...`)"
)


@dataclass(frozen=True)
class WindowProbe:
    """Whether a window can open here.

    Attributes:
        available: Whether one was opened.
        reason: What was found, for people.
    """

    available: bool
    reason: str


def window_available() -> WindowProbe:
    """Find out whether a window can open here, by opening one in a process of its own.

    It takes some 0.3 s the first time; the answer is kept for as long as the variables that name the display do not
    change. Where none of them names one, nothing is started.
    """
    return _probe(tuple(os.environ.get(name) for name in _WHAT_DECIDES))


@functools.lru_cache(maxsize=16)
def _probe(variables: tuple[str | None, ...]) -> WindowProbe:
    display, wayland = variables[:2]
    if not display and not wayland:
        return WindowProbe(False, "neither DISPLAY nor WAYLAND_DISPLAY is set")
    where = f"DISPLAY={display}" if display else f"WAYLAND_DISPLAY={wayland}"
    with tempfile.TemporaryFile() as messages:
        process = _start(["probe"], messages, stdin=subprocess.DEVNULL)
        try:
            status = process.wait(timeout=_PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return WindowProbe(False, f"{where}: opening a window took longer than {_PROBE_TIMEOUT:.0f} s")
        finally:
            _end(process)
        if status == 0:
            return WindowProbe(True, f"{where}: a window opened")
        return WindowProbe(False, f"{where}: opening a window {_what_happened(status, messages)}")


class Window:
    """A window that shows the newest picture that it was given.

    It opens with the first picture. `show` copies the picture and never waits for the display. When a person closes the
    window it stays closed: `is_open` turns False and `show` does nothing.
    """

    def __init__(self, title: str) -> None:
        """Start the window's process.

        Args:
            title: What the window is called.

        Raises:
            RenderError: If no window can open here.
        """
        found = window_available()
        if not found.available:
            raise RenderError(f"no window can open here ({found.reason}); {_ADVICE}")
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self._process = _start(["show", title, str(os.getpid())], self._messages, stdin=subprocess.PIPE)
        self._feed = _Feed(self._process)
        self._finalizer = weakref.finalize(
            self, _close, os.getpid(), self._process, self._feed, self._messages
        )

    @property
    def process_id(self) -> int:
        """Process id of the window."""
        return self._process.pid

    @property
    def is_open(self) -> bool:
        """Whether the window is there, or will be with the first picture."""
        return self._finalizer.alive and self._process.poll() is None

    def show(self, picture: npt.NDArray[np.uint8]) -> None:
        """Show a picture as soon as the display can; one that is still waiting is dropped for it.

        Args:
            picture: (height, width, 3) uint8, RGB; copied.

        Raises:
            RenderError: If it is no picture, or the display was lost.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise RenderError(
                f"a picture must have shape (height, width, 3) and dtype uint8, got {picture.shape} {picture.dtype}"
            )
        if not self._finalizer.alive:
            raise RenderError("this window was closed by close(); make another one")
        status = self._process.poll()
        if status is None:
            self._feed.put(b"".join((_HEADER.pack(*picture.shape[:2]), np.ascontiguousarray(picture).data)))
        elif status != 0:
            raise RenderError(f"the window's process {_what_happened(status, self._messages)}; {_ADVICE}")

    def close(self) -> None:
        """Close the window, at once. Idempotent."""
        self._finalizer()


class _Feed:
    """A thread that writes the newest picture to the window's process."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        self._pipe = process.stdin.fileno()
        self._changed = threading.Condition()
        self._waiting: bytes | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="rt_lrhc-window", daemon=True)
        self._thread.start()

    def put(self, message: bytes) -> None:
        with self._changed:
            self._waiting = message
            self._changed.notify()

    def end(self) -> None:
        """Stop the thread. The window's process must have ended, so that no write can block."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        # The garbage collector may close a forgotten window on any thread, this one too.
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=_END_TIMEOUT)

    def _run(self) -> None:
        while True:
            with self._changed:
                # The limit only bounds the wait; an end that is not announced is that of the whole process.
                self._changed.wait_for(lambda: self._waiting is not None or self._ended, timeout=60.0)
                if self._ended:
                    return
                message, self._waiting = self._waiting, None
            rest = memoryview(message or b"")
            try:
                while rest:
                    rest = rest[os.write(self._pipe, rest) :]
            except BrokenPipeError:
                return


def _start(arguments: list[str], messages: IO[bytes], stdin: int) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        # -P: the folder of the program holds modules of ours, which must not pass for others.
        [sys.executable, "-P", str(_PROGRAM), *arguments],
        bufsize=0,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=messages,
        env=environment,
        start_new_session=True,  # so that Ctrl-C ends it through us alone
    )


def _close(owner: int, process: "subprocess.Popen[bytes]", feed: _Feed, messages: IO[bytes]) -> None:
    if os.getpid() != owner:
        return  # a fork of the owner ends; the window is not its own
    _end(process)
    feed.end()
    if process.stdin is not None:
        process.stdin.close()
    messages.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # it has nothing to save
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_TIMEOUT)


def _what_happened(status: int, messages: IO[bytes]) -> str:
    ending = f"ended with {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    size = messages.seek(0, os.SEEK_END)
    messages.seek(max(0, size - 4096))
    lines = [line.strip() for line in messages.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "could not connect" in line or "error" in line.lower()] or lines
    return f"{ending}: {telling[0]}" if telling else ending
