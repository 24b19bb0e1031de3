"""The process that owns a window: run as a file by `window.py`, on numpy and opencv alone.

`window_process.py probe` opens a window, closes it and exits with 0 where that works.
`window_process.py show TITLE PARENT_PID` shows the newest picture that comes in on stdin, until stdin ends, the parent
process ends, or the person closes the window; then it exits with 0. A picture is its height and width (two
little-endian 32-bit words) and its pixels, RGB. Opencv aborts the process where the display fails: then the exit
status says so.
"""

import os
import resource
import select
import struct
import sys
import threading
import time
from typing import Any

import cv2
import numpy as np

HEADER = struct.Struct("<II")

_WINDOW = cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL
_PUMP_PERIOD = 0.02
"""Longest time between two looks at the window's own events, s."""


def probe() -> None:
    """Open a small window and close it."""
    cv2.namedWindow("rt_lrhc", _WINDOW)
    cv2.imshow("rt_lrhc", np.zeros((16, 16, 3), dtype=np.uint8))
    served_until = time.monotonic() + 0.1
    while time.monotonic() < served_until:
        cv2.waitKey(1)
    cv2.destroyAllWindows()
    cv2.waitKey(1)


def show(title: str, parent: int) -> None:
    """Show the newest picture that comes in, until there is no reason to."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Qt may lose the event that says that a window is there, and then never paints that window; mostly the first one of
    # a process, on a server without a window manager. (opencv 5.0 with Qt 5.15, Xvfb, 2 loaded cores: 33 of 1900
    # windows stayed black; after a first window of this kind, 3 of 800.)
    probe()
    pictures = select.poll()
    pictures.register(0, select.POLLIN)
    incoming = bytearray()
    opened = False
    pumped = 0.0
    while True:
        picture = None
        if pictures.poll(round(_PUMP_PERIOD * 1000)):
            chunk = os.read(0, 1 << 20)
            if not chunk:
                return
            incoming += chunk
            picture = take_newest(incoming)
        if picture is not None:
            if not opened:
                cv2.namedWindow(title, _WINDOW)
                opened = True
            cv2.imshow(title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if opened and (picture is not None or time.monotonic() - pumped >= _PUMP_PERIOD):
            cv2.waitKey(1)
            pumped = time.monotonic()
            if _was_closed(title):
                return


def _was_closed(title: str) -> bool:
    """Whether the person has closed the window."""
    try:
        return bool(cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1.0)
    except cv2.error:
        return True  # opencv with Qt no longer knows of the last window once it was closed, and raises


def _end_with(parent: int) -> None:
    """End this process when the parent has ended, even while the display blocks.

    The end of stdin does not say so where a process that the parent forked holds the pipe open, and PR_SET_PDEATHSIG
    speaks of the parent's thread.
    """
    try:
        process = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(0)
    if os.getppid() == parent:  # else it had ended before, and its number may be another process's
        ended = select.poll()
        ended.register(process, select.POLLIN)
        while not ended.poll(60_000):
            pass
    os._exit(0)


def take_newest(incoming: bytearray) -> Any:
    """Remove all complete pictures from `incoming`; return the last of them, (height, width, 3) uint8, or None."""
    newest, start = None, 0
    while len(incoming) >= start + HEADER.size:
        height, width = HEADER.unpack_from(incoming, start)
        end = start + HEADER.size + height * width * 3
        if len(incoming) < end:
            break
        newest, start = (height, width, start + HEADER.size, end), end
    if newest is None:
        return None
    height, width, begin, end = newest
    picture = np.frombuffer(bytes(incoming[begin:end]), dtype=np.uint8).reshape(height, width, 3)
    del incoming[:end]
    return picture


def main() -> None:
    """Run what the arguments say, as an unimportant process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is expected where there is no display
    # A parent with real-time priority hands it down; drawing must not take time from what needs it.
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(10)
    cv2.setNumThreads(1)
    if sys.argv[1] == "probe":
        probe()
    else:
        show(sys.argv[2], int(sys.argv[3]))


if __name__ == "__main__":
    main()
