"""The benchmark of the clock, as a user runs it."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def test_the_clocks_benchmark_prints_a_table_and_draws_a_histogram(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rt_lrhc", "bench", "clock", "--seconds", "0.1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for row in ("bare sleeper", "thread, spin", "process, busy Python beside"):
        assert f"\n{row}  " in done.stdout
    picture = (tmp_path / "clock.svg").read_text()
    ElementTree.fromstring(picture)
    assert "process, busy Python beside" in picture
