"""The demonstration, as a user runs it; and stops it."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import psutil
import pytest

COMMAND = [sys.executable, "-m", "rt_lrhc", "demo", "--seconds", "2", "--robots", "4"]
MOMENTS = [0.02 + 0.02 * k for k in range(4)] + [0.3 + 0.35 * k for k in range(16)]


def test_the_demonstration_prints_figures_and_draws_pictures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path), "--json", str(figures), "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for said in (
        "time-step",
        "solve",
        "inference",
        "deadlines missed",
        "fallbacks",
        "real-time factor",
        "blocking",
    ):
        assert said in done.stdout
    values = json.loads(figures.read_text())
    assert values["step_n"] > 10 and values["robot_periods"] > 300
    assert values["pipelined_compensated_falls"] == values["blocking_falls"] == 0
    assert values["pipelined_not_compensated_falls"] > 0
    assert values["pipelined_compensated_error_rms"] < 0.5 < values["pipelined_not_compensated_error_rms"]
    for picture, words in (
        ("timing.svg", ("worker 1", "slack", "inference")),
        ("tracking.svg", ("blocking", "fall")),
    ):
        text = (tmp_path / picture).read_text()
        ElementTree.fromstring(text)
        assert all(word in text for word in words)


@pytest.mark.timeout(300)
def test_an_interrupt_at_any_moment_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C as a terminal sends it, to the whole foreground group, at 20 moments from start-up to the end."""
    before = set(os.listdir("/dev/shm"))
    stopped = 0
    for moment in MOMENTS:
        mark = f"RT_LRHC_DEMO_TEST={uuid.uuid4().hex}"
        name, _, value = mark.partition("=")
        process = subprocess.Popen(
            [*COMMAND, "--out", str(tmp_path)],
            env={**os.environ, name: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)
        stopped += process.wait(timeout=30) != 0
        left = _left(name, value, before)
        assert not left, f"interrupted after {moment:.2f} s, left {left}"
    assert stopped >= 15, "most of the moments must lie before the end of the demonstration"


def _left(name: str, value: str, before: set[str]) -> list[str]:
    """Return what is left two seconds after the end, at the latest: processes with the mark, segments of ours."""
    deadline = time.monotonic() + 2.0
    while True:
        left = [
            process.name() for process in psutil.process_iter() if _environment(process).get(name) == value
        ]
        new = set(os.listdir("/dev/shm")) - before
        left += [entry for entry in new if entry.startswith("rt_lrhc.") and _dead(entry)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _dead(entry: str) -> bool:
    """Whether nobody maps a segment: others' tests may run at the same time."""
    for process in psutil.process_iter():
        try:
            if any(entry in mapped.path for mapped in process.memory_maps(grouped=False)):
                return False
        except (psutil.Error, OSError):
            continue
    return True
