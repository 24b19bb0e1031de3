"""HPIPM, called by ctypes from the library that comes with CasADi.

Source: Frison and Diehl (2020), HPIPM: a high-performance quadratic programming framework for model predictive control,
IFAC-PapersOnLine 53(2).
"""

import ctypes
import math
from pathlib import Path
from typing import Any

import casadi as ca
import numpy as np
import numpy.typing as npt

from rt_lrhc.controllers.qp import QpSolver, QpStatus, StageQp

_BALANCE = 2
"""HPIPM's mode with iterative refinement where needed: as fast as SPEED on the cart-pole, with fewer failures."""
_INITIAL_BARRIER = 100.0


class HpipmSolver(QpSolver):
    """HPIPM on one `StageQp`: stage-0 state eliminated, absent bounds masked, state bounds with slacks.

    It starts at dx = 0 and dv = 0, the guess itself, so that its answer depends on no earlier solve; its warm start of
    the multipliers would carry over from one robot to the next.

    Raises (on construction):
        OSError: If the library cannot be loaded or belongs to another release of CasADi.
        AttributeError: If it lacks a function.
    """

    name = "hpipm"

    def __init__(
        self, qp: StageQp, *, tolerance: float, max_iterations: int, library: str | None = None
    ) -> None:
        super().__init__(qp, tolerance)
        if library is None:
            if not ca.CasadiMeta.version().startswith("3.8."):
                raise OSError(f"expected the libhpipm of CasADi 3.8, got that of {ca.CasadiMeta.version()}")
            library = str(Path(ca.__file__).with_name("libhpipm.so"))
        self._library = ctypes.CDLL(library)
        self._memory: list[Any] = []
        n, nx, nu, nb = qp.num_stages, qp.nx, qp.nu, qp.nb
        call = self._call
        dim = self._create("dim", n)
        sizes = (
            [0] + [nx] * n,
            [nu] * n + [0],
            [0] + [nb] * n,
            [nu] * n + [0],
            [0] * (n + 1),
            [0] + [nb] * n,
        )
        call("dim_set_all", *(self._integers(size) for size in sizes), dim)
        program = self._create("", dim)
        solution = self._create("sol", dim)
        options = self._create("ipm_arg", dim)
        call("ipm_arg_set_default", _BALANCE, options)
        for option in ("tol_stat", "tol_eq", "tol_ineq", "tol_comp"):
            call(f"ipm_arg_set_{option}", ctypes.byref(ctypes.c_double(tolerance)), options)
        call("ipm_arg_set_mu0", ctypes.byref(ctypes.c_double(_INITIAL_BARRIER)), options)
        call("ipm_arg_set_iter_max", ctypes.byref(ctypes.c_int(max_iterations)), options)
        call("ipm_arg_set_warm_start", ctypes.byref(ctypes.c_int(0)), options)
        self._workspace = self._create("ipm_ws", dim, options)

        stages = self._pointers
        scratch = np.zeros((n + 1, nx + nu + nb + 1))
        unused = stages(scratch)
        weight, zero = stages(np.full((n + 1, nb + 1), qp.penalty)), stages(np.zeros((n + 1, nb + 1)))
        input_indices = stages(np.tile(np.arange(nu, dtype=np.int32), (n + 1, 1)))
        state_indices = stages(np.tile(np.array((*qp.bounded_states, 0), dtype=np.int32), (n + 1, 1)))
        # A slack's index is that of its bound within the stage: at stage N no input comes before the states.
        slack_indices = np.tile(np.arange(nu, nu + nb + 1, dtype=np.int32), (n + 1, 1))
        slack_indices[n] -= nu
        state_lower, state_upper = stages(qp.lower[:, nu:]), stages(qp.upper[:, nu:])
        self._set_all = self._library.d_ocp_qp_set_all
        self._set_arguments = (
            *map(stages, (qp.A, qp.B, qp.b, qp.Q, qp.S, qp.R, qp.q, qp.r)),
            *(state_indices, state_lower, state_upper),
            *(input_indices, stages(qp.lower), stages(qp.upper)),
            *(unused, unused, unused, unused),
            *(weight, weight, weight, weight, stages(slack_indices), None, zero, zero),
            program,
        )
        self._solve = self._library.d_ocp_qp_ipm_solve
        self._solve_arguments = (program, solution, options, self._workspace)
        self._get_all = self._library.d_ocp_qp_sol_get_all
        self._get_arguments = (
            solution,
            *map(stages, (qp.dv, qp.dx, qp.slack_lower, qp.slack_upper, qp.equality_multipliers)),
            # HPIPM packs the multipliers of a stage, and stage N has no inputs.
            *(stages(values, skip_at_end=nu) for values in (qp.lower_multipliers, qp.upper_multipliers)),
            *(unused, unused, unused, unused),
        )
        for side, present in (("lbx", qp.has_lower), ("ubx", qp.has_upper)):
            mask = np.array((*present, True), dtype=np.float64)
            for k in range(1, n + 1):
                call(f"set_{side}_mask", k, mask.ctypes.data_as(ctypes.c_void_p), program)

        self._status, self._iterations = ctypes.c_int(), ctypes.c_int()
        self._objective = ctypes.c_double()
        self._residuals = [ctypes.c_double() for _ in range(4)]
        figures = ("status", "iter", "obj", "max_res_stat", "max_res_eq", "max_res_ineq", "max_res_comp")
        targets: tuple[Any, ...] = (self._status, self._iterations, self._objective, *self._residuals)
        self._figures = tuple(
            (getattr(self._library, f"d_ocp_qp_ipm_get_{figure}"), ctypes.byref(target))
            for figure, target in zip(figures, targets, strict=True)
        )

    def solve(self) -> QpStatus:  # noqa: D102 (inherited)
        self._set_all(*self._set_arguments)
        self._solve(*self._solve_arguments)
        self._get_all(*self._get_arguments)
        for get, target in self._figures:
            get(self._workspace, target)
        self.iterations = self._iterations.value
        self.objective = self._objective.value
        residuals = [residual.value for residual in self._residuals]
        # The sum notices a NaN, which `max` may lose.
        self.residual = max(residuals) if math.isfinite(sum(residuals)) else math.inf
        return self._judge(self._status.value == 0)

    def _call(self, name: str, *arguments: Any) -> None:
        getattr(self._library, f"d_ocp_qp_{name}")(*arguments)

    def _create(self, kind: str, *arguments: Any) -> ctypes.c_void_p:
        """Allocate an object of HPIPM and the memory it works in, both zeroed, and create it."""
        prefix = f"d_ocp_qp_{kind}_" if kind else "d_ocp_qp_"
        sizes = getattr(self._library, f"{prefix}strsize"), getattr(self._library, f"{prefix}memsize")
        for size in sizes:
            size.restype = ctypes.c_size_t
        structure = ctypes.create_string_buffer(sizes[0]())
        memory = ctypes.create_string_buffer(sizes[1](*arguments) + 1)
        self._memory += [structure, memory]
        pointer = ctypes.c_void_p(ctypes.addressof(structure))
        getattr(self._library, f"{prefix}create")(
            *arguments, pointer, ctypes.c_void_p(ctypes.addressof(memory))
        )
        return pointer

    def _integers(self, values: list[int]) -> Any:
        array = (ctypes.c_int * len(values))(*values)
        self._memory.append(array)
        return array

    def _pointers(self, array: npt.NDArray[Any], *, skip_at_end: int = 0) -> ctypes.c_void_p:
        """Return a C array with one pointer to each stage of `array`, at stage N behind `skip_at_end` entries."""
        addresses = [array.ctypes.data + k * array.strides[0] for k in range(len(array))]
        addresses[-1] += skip_at_end * array.itemsize
        pointers = (ctypes.c_void_p * (self.qp.num_stages + 1))(*addresses)
        self._memory += [array, pointers]
        return ctypes.c_void_p(ctypes.addressof(pointers))
