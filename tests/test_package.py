"""What is shipped, and what the first two commands of the README do."""

import configparser
import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from setuptools import find_packages

import rt_lrhc

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def words(section: str, key: str) -> list[str]:
    return SETUP[section][key].split()


def shipped_packages() -> list[str]:
    return find_packages(str(ROOT), include=words("options.packages.find", "include"))


def test_interfaces_are_shipped_through_the_link() -> None:
    link = ROOT / "rt_lrhc" / "interfaces"
    assert link.is_symlink()
    assert os.readlink(link) == "../interfaces"
    assert "rt_lrhc.interfaces" in shipped_packages()


def test_every_folder_of_the_package_is_shipped() -> None:
    folders = {path.parent for path in (ROOT / "rt_lrhc").glob("**/*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= set(shipped_packages())


def test_every_file_that_is_not_code_is_shipped() -> None:
    for package in shipped_packages():
        for path in (ROOT / package.replace(".", "/")).iterdir():
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                patterns = SETUP["options.package_data"].get(package, "").split()
                assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), (
                    f"{package}: {path.name}"
                )


def test_the_version_is_the_same_everywhere() -> None:
    version = SETUP["metadata"]["version"]
    assert rt_lrhc.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_mit_and_shipped() -> None:
    assert SETUP["metadata"]["license"] == "MIT"
    assert (ROOT / SETUP["metadata"]["license_files"]).read_text().startswith("MIT License")


def test_the_command_line_program_exists() -> None:
    (script,) = SETUP["options.entry_points"]["console_scripts"].strip().splitlines()
    module, function = script.partition("=")[2].strip().split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


MAKES_OWN = ("MAKE", "MFLAGS", "PYTHON", "VENV", "TORCH", "ARGS")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # This run may itself be make's, which hands its variables down.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(MAKES_OWN)}
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
        env=environment,
    )


@needs_make
def test_a_fresh_machine_gets_torch_first_and_pinned_from_the_index_that_was_asked_for(
    tmp_path: Path,
) -> None:
    plan = make("-n", "demo", f"VENV={tmp_path}/venv", "TORCH_INDEX=https://index.example/cpu").stdout
    first, second = (line for line in plan.splitlines() if "pip" in line)
    assert "--index-url https://index.example/cpu" in first
    assert re.search(r"'torch==\d+\.\d+\.\d+'$", first)
    assert "--editable ." in second
    assert "index" not in second
    plain = make("-n", "demo", f"VENV={tmp_path}/venv").stdout
    assert "index-url" not in plain


@needs_make
def test_every_check_runs_and_one_that_fails_fails_the_whole(tmp_path: Path) -> None:
    """Checkers that only tell their name; mypy fails."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "ran $*"\n[ "$2" != mypy ]\n')
    python.chmod(0o755)
    for stamp in (".installed", ".checkers"):
        (tmp_path / stamp).touch()
    run = make("test", f"VENV={tmp_path}")
    ran = [line for line in run.stdout.splitlines() if line.startswith("ran ")]
    assert [line.rstrip() for line in ran] == [
        "ran -m ruff check .",
        "ran -m ruff format --check .",
        "ran -m mypy",
        "ran -m pytest",
    ]
    assert run.returncode != 0
    assert "failed: mypy" in run.stderr


@needs_make
def test_a_python_that_is_too_old_is_refused_by_name(tmp_path: Path) -> None:
    python = tmp_path / "old-python"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    python.chmod(0o755)
    run = make("test", f"VENV={tmp_path}/venv", f"PYTHON={python}")
    assert run.returncode != 0
    assert "needs Python >= 3.11" in run.stderr
    assert "Python 3.9.1" in run.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_runs_what_make_test_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [
        line for line in script.read_text().splitlines() if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["exec make test"]
