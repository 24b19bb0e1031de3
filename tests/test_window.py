import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc.environment.window import Window, window_available
from rt_lrhc.environment.window_process import HEADER, take_newest
from rt_lrhc.errors import RenderError

WATCHDOG = 60.0
DEAD_DISPLAY = ":47110"
RED, GREEN, BLUE = (200, 30, 10), (20, 180, 40), (0, 60, 250)

needs_xvfb = pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed")


@dataclass
class Screen:
    """A virtual X server whose screen is a file."""

    display: str
    process: "subprocess.Popen[bytes]"
    file: Path

    def pixel(self, x: int, y: int) -> tuple[int, ...]:
        """Colour of a pixel, RGB. The file is an X window dump: 32-bit big-endian header words, then BGRX."""
        data = self.file.read_bytes()
        words = np.frombuffer(data[:100], dtype=">u4")
        header_size, bytes_per_line, num_colours = int(words[0]), int(words[12]), int(words[19])
        start = header_size + 12 * num_colours + y * bytes_per_line + 4 * x
        return tuple(reversed(data[start : start + 3]))


@contextmanager
def virtual_screen(folder: Path) -> Iterator[Screen]:
    read_end, write_end = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(write_end),
        "-screen",
        "0",
        "640x480x24",
        "-nolisten",
        "tcp",
        "-noreset",
    ]
    with subprocess.Popen(
        [*command, "-fbdir", str(folder)],
        pass_fds=[write_end],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(write_end)
        try:
            with os.fdopen(read_end) as number:
                display = f":{number.readline().strip()}"
            yield Screen(display, process, folder / "Xvfb_screen0")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def shared_screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    with virtual_screen(tmp_path_factory.mktemp("screen")) as screen:
        yield screen


@pytest.fixture
def screen(shared_screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    use_display(monkeypatch, shared_screen.display)
    return shared_screen


def use_display(monkeypatch: pytest.MonkeyPatch, display: str | None) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if display is None:
        monkeypatch.delenv("DISPLAY", raising=False)
    else:
        monkeypatch.setenv("DISPLAY", display)


def plain(colour: tuple[int, int, int], height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WATCHDOG
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WATCHDOG} s"
        time.sleep(0.02)


def opened(screen: Screen, title: str, picture: np.ndarray, x: int = 80, y: int = 60) -> Window:
    """A window that shows `picture`. Qt leaves some 4 windows in 1000 black without a window manager: then another."""
    expected = tuple(picture[y, x].tolist())
    for _ in range(5):
        window = Window(title)
        window.show(picture)
        deadline = time.monotonic() + WATCHDOG / 6
        while time.monotonic() < deadline:
            if screen.pixel(x, y) == expected:
                return window
            time.sleep(0.02)
        window.close()
    raise AssertionError(f"{title}: five windows stayed black")


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("display", [None, "", DEAD_DISPLAY])
def test_where_no_window_can_open_an_error_says_why_and_what_to_do(
    display: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opencv alone would abort this process."""
    use_display(monkeypatch, display)
    found = window_available()
    assert not found.available
    assert (f"DISPLAY={DEAD_DISPLAY}" if display else "neither DISPLAY nor WAYLAND_DISPLAY") in found.reason
    if display:
        assert "could not connect to display" in found.reason
    with pytest.raises(RenderError, match="rgb_array") as raised:
        Window("nowhere")
    assert found.reason in str(raised.value)


def test_the_display_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    use_display(monkeypatch, DEAD_DISPLAY)
    first = window_available()
    monkeypatch.setattr(sys, "executable", "/nonexistent")  # another try would raise
    assert window_available() is first


@needs_xvfb
def test_a_window_shows_the_colours_that_it_was_given(screen: Screen) -> None:
    assert window_available().available
    threads = threading.active_count()
    window = opened(screen, "colours", plain(BLUE))
    try:
        picture = plain(RED)
        picture[60:] = GREEN
        window.show(picture)
        picture[:] = 0  # the window has a copy
        eventually(lambda: screen.pixel(80, 30) == RED and screen.pixel(80, 90) == GREEN, "the picture")
        window.show(plain(BLUE, 200, 300)[:, ::2])  # another size, and not contiguous
        eventually(lambda: screen.pixel(140, 190) == BLUE, "the larger picture")
        assert window.is_open
    finally:
        window.close()
    window.close()
    assert has_ended(window.process_id) and not window.is_open
    assert threading.active_count() == threads
    with pytest.raises(RenderError, match=r"closed by close\(\)"):
        window.show(plain(RED))


@needs_xvfb
def test_a_display_that_blocks_does_not_block_the_caller_and_gets_the_newest_picture(screen: Screen) -> None:
    """The window's process is stopped: far more is shown than a pipe holds, and all but the newest is dropped."""
    window = opened(screen, "blocked", plain(RED))
    try:
        os.kill(window.process_id, signal.SIGSTOP)
        for shade in range(100):
            window.show(plain((shade, 0, 0), 400, 600))
        window.show(plain(GREEN, 400, 600))
        assert screen.pixel(80, 60) == RED
        os.kill(window.process_id, signal.SIGCONT)
        eventually(lambda: screen.pixel(599, 399) == GREEN, "the newest picture")
        os.kill(window.process_id, signal.SIGSTOP)
        window.show(plain(BLUE, 400, 600))
    finally:
        window.close()  # while it is stopped and a picture is half written
    assert has_ended(window.process_id)


@needs_xvfb
def test_a_window_that_is_forgotten_ends(screen: Screen) -> None:
    window = Window("forgotten")
    window.show(plain(RED))
    pid, threads = window.process_id, threading.active_count()
    del window
    gc.collect()
    eventually(lambda: has_ended(pid), "the window's process")
    eventually(lambda: threading.active_count() == threads - 1, "the feeding thread")


@needs_xvfb
def test_a_window_that_a_person_closes_stays_closed_without_an_error(screen: Screen) -> None:
    window = opened(screen, "closed by hand", plain(GREEN))
    try:
        press_the_close_button(screen.display, "closed by hand")
        eventually(lambda: not window.is_open, "the end of the window")
        window.show(plain(RED))
        assert not window.is_open
    finally:
        window.close()


def press_the_close_button(display_name: str, title: str) -> None:
    """Send the window what a window manager sends it then: the message WM_DELETE_WINDOW."""
    x11 = ctypes.CDLL("libX11.so.6")  # the X server itself came with it
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = ctypes.c_void_p(x11.XOpenDisplay(display_name.encode()))
    root = ctypes.c_ulong(x11.XDefaultRootWindow(display))
    ignored, children, count = ctypes.c_ulong(), ctypes.POINTER(ctypes.c_ulong)(), ctypes.c_uint()
    tree = [ctypes.byref(value) for value in (ignored, ignored, children, count)]
    x11.XQueryTree(display, root, *tree)
    for child in map(ctypes.c_ulong, children[: count.value]):
        name = ctypes.c_char_p()
        if x11.XFetchName(display, child, ctypes.byref(name)) and name.value == title.encode():
            protocols, delete = (
                x11.XInternAtom(display, atom, 0) for atom in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")
            )
            # XClientMessageEvent: type, serial, send_event, display, window, message_type, format, data; of 24 longs.
            client_message = 33
            event = (ctypes.c_long * 24)(client_message, 0, 0, 0, child.value, protocols, 32, delete)
            x11.XSendEvent(display, child, 0, 0, ctypes.byref(event))
    x11.XFree(children)
    x11.XCloseDisplay(display)


@needs_xvfb
def test_what_is_no_picture_is_an_error_that_says_so(screen: Screen) -> None:
    window = Window("no picture")
    try:
        for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(RenderError, match=r"\(height, width, 3\) and dtype uint8, got"):
                window.show(wrong)
    finally:
        window.close()


@needs_xvfb
def test_a_display_that_is_lost_is_an_error_and_no_abort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with virtual_screen(tmp_path) as screen:
        use_display(monkeypatch, screen.display)
        window = opened(screen, "lost", plain(RED))
        try:
            screen.process.kill()
            eventually(lambda: not window.is_open, "the end of the window")
            with pytest.raises(RenderError, match="the window's process ended with"):
                window.show(plain(RED))
        finally:
            window.close()


@needs_xvfb
@pytest.mark.parametrize("stopped", [False, True])
def test_the_window_ends_with_a_process_that_is_killed(screen: Screen, tmp_path: Path, stopped: bool) -> None:
    """Even where a fork of that process lives on and holds its pipes."""
    program = tmp_path / "killed.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, time
            import numpy as np
            from rt_lrhc.environment.window import Window
            window = Window("killed")
            fork = os.fork()
            if fork == 0:
                time.sleep(60)
                os._exit(0)
            window.show(np.zeros((100, 100, 3), dtype=np.uint8))
            print(window.process_id, fork, flush=True)
            time.sleep(60)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        window, fork = map(int, process.stdout.readline().split())
        if stopped:
            process.send_signal(signal.SIGSTOP)
        process.kill()
        try:
            eventually(lambda: has_ended(window), "the window's process")
            assert not has_ended(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


@needs_xvfb
def test_a_script_that_forgets_its_window_ends_in_order(screen: Screen) -> None:
    script = "import numpy as np; from rt_lrhc.environment.window import Window; w = Window('left'); "
    script += "w.show(np.zeros((9, 9, 3), dtype=np.uint8)); print(w.process_id)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=True,
    )
    assert done.stderr == ""
    eventually(lambda: has_ended(int(done.stdout)), "the window's process")


@given(
    shades=st.lists(st.integers(0, 255), max_size=8),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_the_newest_complete_picture_is_taken_however_the_stream_is_cut(
    shades: list[int], cuts: list[int]
) -> None:
    pictures = [plain((shade, 1, 2), 1 + shade % 3, 2) for shade in shades]
    stream = b"".join(HEADER.pack(*p.shape[:2]) + p.tobytes() for p in pictures)
    ends = np.cumsum([HEADER.size + p.size for p in pictures])
    incoming, received, shown = bytearray(), 0, 0
    while received < len(stream):
        cut = cuts[received % len(cuts)]
        incoming += stream[received : received + cut]
        received = min(received + cut, len(stream))
        complete = int((ends <= received).sum())
        newest = take_newest(incoming)
        assert (newest is None) == (complete == shown)
        if newest is not None:
            np.testing.assert_array_equal(newest, pictures[complete - 1])
        shown = complete
    assert incoming == b""


@needs_xvfb
def test_the_end_of_a_fork_leaves_the_window_to_its_owner(screen: Screen) -> None:
    script = textwrap.dedent(
        """
        import os, sys, time
        from rt_lrhc.environment.window import Window
        window = Window("shared")
        fork = os.fork()
        if fork == 0:
            sys.exit()  # runs the finalizers that the fork inherited
        os.waitpid(fork, 0)
        time.sleep(0.2)  # a signal would have arrived
        print(window.is_open)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WATCHDOG, check=True
    )
    assert done.stdout == "True\n"
