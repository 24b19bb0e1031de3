"""Slots under a hot writer that is killed now and then: no read is a mixture of two answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(120)
def test_no_read_of_a_slot_is_torn(tmp_path: Path) -> None:
    """The short form of `make torn`."""
    script = Path(__file__).parent.parent / "benchmarks" / "torn.py"
    figures = tmp_path / "figures.json"
    options = ["--reads", "100000", "--kills", "30", "--json", str(figures)]
    run = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=110, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(figures.read_text())
    assert told["reads"] >= 100_000 and told["kills of the writer"] == 30 and told["torn"] == 0
