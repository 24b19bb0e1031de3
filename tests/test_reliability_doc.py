"""The table of faults names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 30
    for file, function in named:
        assert f"def {function}(" in (ROOT / file).read_text(), f"{file} has no {function}"
