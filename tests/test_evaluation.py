"""Functions on fixed memory, and the cache of compiled ones, with a compiler that is watched, broken or slow."""

import gc
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import casadi as ca
import numpy as np
import psutil
import pytest

from rt_lrhc.controllers import evaluation
from rt_lrhc.controllers.cart_pole import make_cart_pole, make_cart_pole_problem
from rt_lrhc.controllers.evaluation import Evaluation, compile_functions
from rt_lrhc.controllers.ocp import build_functions
from rt_lrhc.errors import ConfigurationError
from tests.test_rti import make_plans, request, some_states

GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="gcc is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rt_lrhc"


def put_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make `script` the only gcc; PATH has the system's other tools."""
    compiler = folder / "gcc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def square() -> ca.Function:
    x = ca.SX.sym("x", 2)
    return ca.Function("square", [x], [x * x])


def test_an_evaluation_reads_and_writes_its_arrays_in_place() -> None:
    argument, result = np.array([2.0, 3.0]), np.zeros(2)
    evaluate = Evaluation(square(), [argument], [result])
    evaluate.run()
    assert result.tolist() == [4.0, 9.0]
    argument[0] = 5.0
    evaluate.run()
    assert result.tolist() == [25.0, 9.0]


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = np.zeros(2)
    for bad in (np.zeros(3), np.zeros(2, dtype=np.float32), np.zeros(4)[::2]):
        with pytest.raises(ValueError, match="argument 0 of square must be a contiguous float64 array of 2"):
            Evaluation(square(), [bad], [good])
        with pytest.raises(ValueError, match="result 0 of square"):
            Evaluation(square(), [good], [bad])
    with pytest.raises(ValueError, match="square has 1 arguments, got 2 arrays"):
        Evaluation(square(), [good, good], [good])
    x = ca.SX.sym("x", 2)
    diagonal = ca.Function("diagonal", [x], [ca.diag(x)])
    with pytest.raises(ValueError, match="result 0 of diagonal is sparse"):
        Evaluation(diagonal, [good], [np.zeros(2)])


@needs_gcc
def test_compiled_plans_equal_interpreted_ones_to_rounding() -> None:
    results = []
    for compile in ("off", "on"):
        controller = make_cart_pole(3, compile=compile, cold_starts_per_solve=3)
        assert controller.spec.backend.endswith("compiled" if compile == "on" else "interpreted")
        plans = make_plans(controller, 3)
        for k in range(3):
            controller.solve(request(some_states(3), 0.02 * k, act_time=0.02 * k + 0.02), plans)
        results.append(plans.inputs.copy())
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


@needs_gcc
def test_the_second_time_the_cache_is_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    put_compiler(tmp_path, monkeypatch, f'echo "$@" >> {log}; exec {GCC} "$@"')
    for _ in range(2):
        functions, compiled = compile_functions([square()], "on")
        assert compiled
        assert np.array(functions[0]([2.0, 3.0])).ravel().tolist() == [4.0, 9.0]
    built = [line for line in log.read_text().splitlines() if "-shared" in line]
    assert len(built) == 1
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    x = ca.SX.sym("x", 2)
    compile_functions([ca.Function("square", [x], [x * x + 1])], "on")
    assert len(list(cache.iterdir())) == 2, "another source is another library"


@needs_gcc
def test_two_processes_may_build_the_same_library_at_once(cache: Path) -> None:
    code = (
        "from rt_lrhc.controllers.cart_pole import make_cart_pole; "
        "print(make_cart_pole(1, compile='on').spec.backend)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in started:
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "hpipm, compiled\n")
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_broken_compiler_is_warned_about_and_done_without(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_compiler(tmp_path, monkeypatch, "echo 'no space left on device' >&2; exit 3")
    with pytest.warns(RuntimeWarning, match="status 3: no space left on device.*interpreted instead"):
        controller = make_cart_pole(1, compile="auto")
    assert controller.spec.backend.endswith("interpreted")
    with pytest.raises(ConfigurationError, match=r"cannot compile .* status 3.* use compile='auto' or 'off'"):
        compile_functions([square()], "on")


def test_a_compiler_that_writes_nonsense_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_compiler(tmp_path, monkeypatch, 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo x > "$2"; shift; done')
    with pytest.warns(RuntimeWarning, match="interpreted instead"):
        functions, compiled = compile_functions([square()], "auto")
    assert not compiled
    assert float(functions[0](3.0)[0]) == 9.0


def test_a_compiler_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    put_compiler(tmp_path, monkeypatch, f"sleep 600 & echo $! > {child}; wait")
    monkeypatch.setattr(evaluation, "COMPILER_TIMEOUT", 0.5)
    with pytest.warns(RuntimeWarning, match="timed out"):
        assert not compile_functions([square()], "auto")[1]
    pid = int(child.read_text())
    limit = time.monotonic() + 10.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit, "the compiler's child still runs"
        time.sleep(0.01)


def test_no_compiler_is_no_reason_to_complain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not compile_functions([square()], "auto")[1]
    with pytest.raises(ConfigurationError, match="compile='on' needs gcc"):
        compile_functions([square()], "on")


@needs_gcc
def test_a_cache_that_others_may_write_is_not_trusted(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="writable by nobody else"):
        assert not compile_functions([square()], "auto")[1]


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"compile must be .* got 'yes'"):
        compile_functions([square()], "yes")  # type: ignore[arg-type]


def test_an_evaluation_lives_as_long_as_its_run_method_and_passes_nan_through() -> None:
    """CasADi's own evaluator outlives its memory: that was a segmentation fault."""
    step = build_functions(make_cart_pole_problem()).step
    end = np.zeros(4)
    run = Evaluation(step, [np.full(4, math.nan), np.zeros(1), np.zeros(1), np.full(1, 0.02)], [end]).run
    gc.collect()
    run()
    assert np.isnan(end).all()
