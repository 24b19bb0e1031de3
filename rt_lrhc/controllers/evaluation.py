"""CasADi functions on fixed memory, interpreted or compiled."""

import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import casadi as ca
import numpy as np

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.errors import ConfigurationError

Compile = Literal["auto", "on", "off"]

COMPILER = "gcc"
FLAGS = ("-O2", "-fPIC", "-shared")
COMPILER_TIMEOUT = 60.0
"""Limit of one call of the compiler, s; the cart-pole takes 0.3 s."""


class Evaluation:
    """One CasADi function bound to arrays: a call reads its arguments and writes its results in place, in under a us.

    A direct call of the function costs 16 us and allocates. The arrays are read in column-major order, so a matrix of
    shape (rows, columns) is a C-contiguous array (columns, rows).
    """

    def __init__(
        self,
        function: Any,
        arguments: Sequence[FloatArray],
        results: Sequence[FloatArray],
        *,
        sparse: bool = False,
    ) -> None:
        """Bind `function`; `sparse` allows arguments and results that hold the non-zeros of a sparse matrix only.

        Raises:
            ValueError: If an array does not fit.
        """
        # CasADi checks none of this; it would read and write other memory, or shift what follows a missing zero.
        for kind, arrays, count, sparsity in (
            ("argument", arguments, function.n_in(), function.sparsity_in),
            ("result", results, function.n_out(), function.sparsity_out),
        ):
            if len(arrays) != count:
                raise ValueError(f"{function.name()} has {count} {kind}s, got {len(arrays)} arrays")
            for i, array in enumerate(arrays):
                if (
                    array.dtype != np.float64
                    or not array.flags.c_contiguous
                    or array.size != sparsity(i).nnz()
                ):
                    raise ValueError(
                        f"{kind} {i} of {function.name()} must be a contiguous float64 array of {sparsity(i).nnz()}, "
                        f"got {array.dtype} {array.shape}"
                    )
                if not (sparse or sparsity(i).is_dense()):
                    raise ValueError(f"{kind} {i} of {function.name()} is sparse: densify it")
        self._memory = (tuple(arguments), tuple(results))
        # The evaluator alone does not keep the buffer alive: without this reference it would write to freed memory.
        self._buffer, self._evaluate = function.buffer()
        for i, array in enumerate(arguments):
            if array.size:
                self._buffer.set_arg(i, array.data)
        for i, array in enumerate(results):
            if array.size:
                self._buffer.set_res(i, array.data)

    def run(self) -> None:
        """Evaluate. NaN in the arguments gives NaN in the results, without an error."""
        self._evaluate()

    def stats(self) -> dict[str, Any]:
        """Return CasADi's statistics of the last run of a solver."""
        return dict(self._buffer.stats())


def compile_functions(functions: Sequence[Any], mode: Compile) -> tuple[list[Any], bool]:
    """Return `functions` as machine code where `mode` and this machine allow, and whether they are.

    The library is kept under `$XDG_CACHE_HOME/rt_lrhc` (by default `~/.cache/rt_lrhc`), named by the content that made
    it: C source, compiler version, flags and machine.

    Args:
        functions: CasADi functions; other than their order, names do not matter.
        mode: `"off"`: interpreted. `"auto"`: compiled if a compiler is found; if it fails, a warning and interpreted.
            `"on"`: an error instead.

    Raises:
        ConfigurationError: With `"on"`, if there is no compiler or it fails; for an unknown mode.
    """
    if mode not in ("auto", "on", "off"):
        raise ConfigurationError(f"compile must be 'auto', 'on' or 'off', got {mode!r}")
    compiler = shutil.which(COMPILER) if mode != "off" else None
    if compiler is None:
        if mode == "on":
            raise ConfigurationError(
                f"compile='on' needs {COMPILER}, which is not in PATH; use 'auto' or 'off'"
            )
        return list(functions), False
    generator = ca.CodeGenerator("rt_lrhc_ocp")
    for function in functions:
        generator.add(function)
    try:
        library = _build_library(generator.dump(), compiler)
        return [ca.external(function.name(), str(library)) for function in functions], True
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        problem = f"cannot compile the controller's functions: {error}"
        if mode == "on":
            raise ConfigurationError(f"{problem}; use compile='auto' or 'off'") from error
        warnings.warn(f"{problem}; they are interpreted instead (slower)", RuntimeWarning, stacklevel=2)
        return list(functions), False


def _build_library(source: str, compiler: str) -> Path:
    """Return the path of the shared library of `source`, building it unless the cache has it."""
    version = _run([compiler, "-v"])
    key = "\0".join((source, version, *FLAGS, platform.machine()))
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rt_lrhc"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{directory} must belong to user {os.getuid()} and be writable by nobody else")
    library = directory / f"ocp-{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as build:
            source_path, built = Path(build, "ocp.c"), Path(build, "ocp.so")
            source_path.write_text(source)
            _run([compiler, *FLAGS, "-o", str(built), str(source_path), "-lm"])
            # Atomic: a process that builds the same library at the same time replaces it by an equal one.
            os.replace(built, library)
    return library


def _run(command: list[str]) -> str:
    """Run the compiler within its time limit and return what it wrote to stderr."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, message = process.communicate(timeout=COMPILER_TIMEOUT)
        except BaseException:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the compiler's own children too
            raise
    if process.returncode != 0:
        raise OSError(f"{command[0]} ended with status {process.returncode}: {message.strip()[-500:]}")
    return message
