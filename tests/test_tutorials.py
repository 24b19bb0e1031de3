"""Each tutorial runs alone, to its end."""

import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parent.parent / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9]*.py"))


def test_there_are_tutorials() -> None:
    assert [script.name[:2] for script in SCRIPTS] == [
        f"{number:02}" for number in range(1, len(SCRIPTS) + 1)
    ]
    assert len(SCRIPTS) >= 3


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_tutorial_runs_alone_to_its_end(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # A busy machine may make a time-step late, and that is said; nothing else may be.
    assert done.stdout.strip() and not [line for line in done.stderr.splitlines() if "ms late" not in line]
