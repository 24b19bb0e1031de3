"""The README says what is so."""

import re
import subprocess
import sys
from pathlib import Path

import rt_lrhc

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_snippet_runs_as_it_is(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "plans fresh" in done.stdout


def test_every_configuration_key_is_in_the_table_with_its_default() -> None:
    table = README[README.index("## Configuration") : README.index("## Limits")]
    named = {
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(rt_lrhc.DEFAULT_CONFIG_DICT)
    for key in ("time_step_duration", "start_obs_capture", "time_step_timeout_factor"):
        assert (
            f"| {rt_lrhc.DEFAULT_CONFIG_DICT[key]} |" in re.search(rf"^\| `{key}`.*$", table, re.MULTILINE)[0]
        )


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|placeholder", README)


def test_every_file_that_is_named_exists() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:tutorials|docs|benchmarks)/[\w./]+)`|\]\(([\w./]+)\)", README):
        assert (root / (name[0] or name[1])).exists(), name
