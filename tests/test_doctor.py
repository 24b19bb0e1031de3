import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rt_lrhc.commands import main as program
from rt_lrhc.commands._examinations import Finding, Verdict, compiler, packages
from rt_lrhc.commands.doctor import Options, run
from rt_lrhc.commands.main import INTERRUPTED, USAGE_ERROR, main
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.shm.namespace import Namespace


@pytest.fixture
def leftover() -> Iterator[Path]:
    """A segment whose owner is gone, as a crash leaves it."""
    path = Path("/dev/shm", Namespace(f"dead-{os.getpid()}").segment_name[1:])
    path.write_bytes(bytes(4096))
    yield path
    path.unlink(missing_ok=True)


def test_the_doctor_reports_every_subject_and_leftovers_until_they_are_removed(
    leftover: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "findings.json"
    assert run(Options(json=file)) == 0
    printed = capsys.readouterr().out
    record = json.loads(file.read_text())
    by_topic = {finding["topic"]: finding for finding in record["findings"]}
    expected = {"packages", "cores", "clock", "timer slack", "affinity", "priority", "memory lock", "limits"}
    expected |= {"shared memory", "leftovers", "compiler", "window", "GPU"}
    assert expected <= by_topic.keys()
    assert all(finding["text"] in printed for finding in record["findings"])
    assert record["machine"]["usable_cores"] >= 1
    assert str(leftover) in by_topic["leftovers"]["text"]
    assert by_topic["leftovers"]["verdict"] == Verdict.REMARK.value
    assert leftover.exists()

    assert main(["doctor", "--clean", "--json", str(file)]) == 0
    removed = {finding["topic"]: finding for finding in json.loads(file.read_text())["findings"]}["leftovers"]
    assert str(leftover) in removed["text"]
    assert removed["verdict"] == Verdict.FINE.value
    assert not leftover.exists()


def test_a_problem_shows_in_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        Finding("cores", "2 usable"),
        Finding("GPU", "torch is broken", Verdict.PROBLEM, "reinstall it"),
    ]
    monkeypatch.setattr("rt_lrhc.commands.doctor.examine", lambda clean: iter(findings))
    assert run(Options()) == 1
    assert "PROBLEM  GPU: torch is broken; reinstall it\nsee to: GPU\n" in capsys.readouterr().out


def test_a_compiler_that_does_not_work_is_a_remark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gcc = tmp_path / "gcc"
    gcc.write_text("#!/bin/sh\nexit 3\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (broken,) = compiler()
    assert (broken.verdict, str(gcc) in broken.text) == (Verdict.REMARK, True)
    gcc.unlink()
    (missing,) = compiler()
    assert missing.text == "no gcc"


def test_versions_of_what_the_package_needs_are_told() -> None:
    (found,) = packages()
    for name in (
        "rt_lrhc",
        "gymnasium",
        "numpy",
        "torch",
        "casadi",
        "posix_ipc",
        "opencv-python",
        "mujoco",
        "tyro",
    ):
        assert f"{name} " in found.text


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys; from rt_lrhc.commands.main import main; code = main(['--help']); "
        "heavy = {'torch', 'casadi', 'cv2', 'mujoco', 'tyro', 'rt_lrhc.commands.doctor'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    for name in program.command_names():
        assert f"  {name} " in run.stdout
    assert "Say what this machine offers" in run.stdout


def test_a_command_that_is_not_known_is_answered_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["docter"]) == USAGE_ERROR
    assert "unknown command 'docter'; did you mean 'doctor'?" in capsys.readouterr().err
    assert main([]) == USAGE_ERROR


def test_an_option_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--cleen"])
    assert exit_.value.code == USAGE_ERROR
    assert "cleen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            ConfigurationError("robots must be at least 1, got 0"),
            1,
            "rt-lrhc doctor: robots must be at least 1, got 0",
        ),
        (KeyboardInterrupt(), INTERRUPTED, "rt-lrhc doctor: interrupted"),
    ],
)
def test_an_error_of_ours_and_a_ctrl_c_end_a_command_without_a_traceback(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: Options) -> int:
        raise error

    monkeypatch.setattr("rt_lrhc.commands.doctor.run", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"{text}\n"


def test_the_package_runs_as_a_program() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "rt_lrhc", "--version"],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=True,
    )
    assert run.stdout.startswith("rt-lrhc ")
