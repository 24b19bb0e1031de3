"""The quadratic program of one SQP step, and how a solver of it is chosen."""

import math
import warnings
from abc import ABC, abstractmethod
from enum import Enum
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.errors import ConfigurationError

_Scalar = TypeVar("_Scalar", bound=np.generic)

QpSolverName = Literal["auto", "hpipm", "piqp"]

ABSENT_BOUND = 1e9
"""What an absent bound holds (with its sign) instead of infinity, which would make NaN in sums and products."""


class QpStatus(Enum):
    """How a QP solve ended."""

    SOLVED = "solved"
    INACCURATE = "stopped short of its tolerance, yet within 1000 times of it"
    FAILED = "far from a solution, or not finite"


class StageQp:
    """Memory of a QP in steps dx_k, dv_k from a guess whose stage-0 state is fixed (dx_0 = 0).

    Minimise over dx, dv and the slacks s >= 0 of the state bounds

        sum_{k<=N} [dx dv]_k' [Q S'; S R]_k [dx dv]_k / 2 + q_k' dx_k + r_k' dv_k
        + penalty * sum_{1<=k<=N} sum_i (s_lower + s_lower²/2 + s_upper + s_upper²/2)_ki
    subject to
        dx_{k+1} = A_k dx_k + B_k dv_k + b_k
        lower_k <= dv_k <= upper_k                                  entries 0 to nu of the bounds, k < N
        lower_k - s_lower <= dx_k[bounded] <= upper_k + s_upper     entries nu to nu + nb, k > 0

    Matrices are column-major: `A[k, j, i]` is row i, column j. What the problem does not use may hold anything finite.

    Attributes:
        A, B, b: Dynamics, (N, nx, nx), (N, nu, nx), (N, nx).
        Q, S, R: Cost, (N + 1, nx, nx), (N, nx, nu), (N, nu, nu).
        q, r: Its gradient, (N + 1, nx), (N, nu).
        lower, upper: Bounds, (N + 1, nu + nb).
        has_lower, has_upper: Which state bounds there are, (nb,) bool; the others hold -/+ `ABSENT_BOUND`.
        step: The solution in one piece, see `split_trajectory`; dx and dv are views of it, (N + 1, nx), (N, nu).
        slack_lower, slack_upper: (N + 1, nb).
        equality_multipliers: pi of the dynamics, (N, nx): the Lagrangian holds pi_k' (A_k dx_k + ... - dx_{k+1}).
        lower_multipliers, upper_multipliers: Of the bounds, at least 0, (N + 1, nu + nb).
    """

    def __init__(
        self,
        num_stages: int,
        nx: int,
        nu: int,
        *,
        bounded_states: tuple[int, ...] = (),
        has_lower: tuple[bool, ...] = (),
        has_upper: tuple[bool, ...] = (),
        penalty: float = 1.0,
    ) -> None:
        self.num_stages, self.nx, self.nu, self.nb = num_stages, nx, nu, len(bounded_states)
        self.bounded_states, self.has_lower, self.has_upper = bounded_states, has_lower, has_upper
        self.penalty = penalty
        n, nb, nc = num_stages, self.nb, nu + self.nb
        self.A, self.B, self.b = np.zeros((n, nx, nx)), np.zeros((n, nu, nx)), np.zeros((n, nx))
        self.Q, self.S, self.R = np.zeros((n + 1, nx, nx)), np.zeros((n, nx, nu)), np.zeros((n, nu, nu))
        self.q, self.r = np.zeros((n + 1, nx)), np.zeros((n, nu))
        self.lower, self.upper = np.zeros((n + 1, nc)), np.zeros((n + 1, nc))
        self.step = np.zeros(n * nu + (n + 1) * nx)
        self.dv, self.dx = split_trajectory(self.step, n, nx, nu)
        self.slack_lower, self.slack_upper = np.zeros((n + 1, nb)), np.zeros((n + 1, nb))
        self.equality_multipliers = np.zeros((n, nx))
        self.lower_multipliers, self.upper_multipliers = np.zeros((n + 1, nc)), np.zeros((n + 1, nc))


def split_trajectory(
    trajectory: npt.NDArray[_Scalar], num_stages: int, nx: int, nu: int
) -> tuple[npt.NDArray[_Scalar], npt.NDArray[_Scalar]]:
    """Return views of `trajectory` (..., N nu + (N + 1) nx): inputs (..., N, nu) and states (..., N + 1, nx)."""
    leading = trajectory.shape[:-1]
    inputs = trajectory[..., : num_stages * nu].reshape(*leading, num_stages, nu)
    states = trajectory[..., num_stages * nu :].reshape(*leading, num_stages + 1, nx)
    return inputs, states


class QpSolver(ABC):
    """Solves the QP in one `StageQp`, each time from the guess alone: nothing leaks from one solve to the next.

    Attributes:
        name: Its name, for the manifest.
        iterations: Interior-point iterations of the last solve.
        residual: Infinity norm of its KKT residual: stationarity, dynamics, bounds and complementarity.
        objective: Value of its solution.
    """

    name: str
    iterations: int = 0
    residual: float = math.nan
    objective: float = math.nan

    def __init__(self, qp: StageQp, tolerance: float) -> None:
        self.qp = qp
        self._tolerance = tolerance

    @abstractmethod
    def solve(self) -> QpStatus:
        """Solve the QP that its `StageQp` holds now, and write the solution there."""

    def _judge(self, claims_success: bool) -> QpStatus:
        # A NaN fails every comparison.
        if not (self.residual <= 1e3 * self._tolerance and math.isfinite(self.objective)):
            return QpStatus.FAILED
        return QpStatus.SOLVED if claims_success else QpStatus.INACCURATE


def make_qp_solver(
    name: QpSolverName,
    qp: StageQp,
    *,
    tolerance: float,
    max_iterations: int,
    hpipm_library: str | None = None,
) -> QpSolver:
    """Return a solver of `qp`.

    HPIPM comes with CasADi but is no public part of it, so it is taken only if it solves a QP with a known answer.

    Args:
        name: `"auto"` takes HPIPM where it works, else PIQP.
        qp: The memory to solve in.
        tolerance: KKT residual to reach.
        max_iterations: Limit of the interior-point iterations.
        hpipm_library: Path of another `libhpipm.so`, such as one built for this CPU.

    Raises:
        ConfigurationError: If HPIPM is asked for by name and does not work here, or the name is unknown.
    """
    from rt_lrhc.controllers.qp_hpipm import HpipmSolver
    from rt_lrhc.controllers.qp_piqp import PiqpSolver

    if name not in ("auto", "hpipm", "piqp"):
        raise ConfigurationError(f"qp_solver must be 'auto', 'hpipm' or 'piqp', got {name!r}")
    if name != "piqp":
        try:
            trial, dx, dv = make_trial_qp()
            HpipmSolver(trial, tolerance=1e-8, max_iterations=50, library=hpipm_library).solve()
            error = max(np.abs(trial.dx - dx).max(), np.abs(trial.dv - dv).max())
            if not error < 1e-5:
                raise ArithmeticError(f"it solves a known problem with an error of {error}")
            return HpipmSolver(qp, tolerance=tolerance, max_iterations=max_iterations, library=hpipm_library)
        except (OSError, AttributeError, ArithmeticError) as problem:
            if name == "hpipm":
                raise ConfigurationError(
                    f"qp_solver='hpipm' does not work here: {problem}; use 'auto'"
                ) from problem
            warnings.warn(f"HPIPM does not work here: {problem}; PIQP is used", RuntimeWarning, stacklevel=2)
    return PiqpSolver(qp, tolerance=tolerance, max_iterations=max_iterations)


def make_trial_qp() -> tuple[StageQp, FloatArray, FloatArray]:
    """Return a QP together with its solution dx and dv.

    The solution and its multipliers are chosen first, so that inputs are free, at the upper and at the lower bound, and
    a one-sided state bound is inactive, active and broken; b, q, r and the bounds then follow from the KKT conditions.
    """
    n, nx, nu, penalty = 3, 2, 1, 2.0
    random = np.random.default_rng(0)
    qp = StageQp(n, nx, nu, bounded_states=(1,), has_lower=(False,), has_upper=(True,), penalty=penalty)
    dx, dv = random.normal(size=(n + 1, nx)), random.normal(size=(n, nu))
    dx[0] = 0.0
    pi = random.normal(size=(n, nx))
    qp.A[:], qp.B[:] = random.normal(size=(n, nx, nx)), random.normal(size=(n, nu, nx))
    qp.Q[:], qp.S[:], qp.R[:] = np.eye(nx) * 3.0 + 0.5, random.normal(size=(n, nx, nu)) * 0.3, 2.0
    input_force = np.array([0.0, 0.7, -0.4])  # multiplier of the upper less that of the lower bound
    state_force = np.array([0.0, 0.0, 0.5 * penalty, 1.25 * penalty])  # the last is broken by 0.25
    qp.lower[:], qp.upper[:] = -ABSENT_BOUND, ABSENT_BOUND
    qp.lower[:n, 0] = dv[:, 0] - np.array([1.0, 1.0, 0.0])
    qp.upper[:n, 0] = dv[:, 0] + np.array([1.0, 0.0, 1.0])
    qp.upper[:, 1] = dx[:, 1] + np.array([0.0, 1.0, 0.0, -0.25])
    for k in range(n):
        a, b, s = qp.A[k].T, qp.B[k].T, qp.S[k].T
        qp.b[k] = dx[k + 1] - a @ dx[k] - b @ dv[k]
        qp.r[k] = -(qp.R[k].T @ dv[k] + s @ dx[k] + b.T @ pi[k] + input_force[k])
        qp.q[k] = -(qp.Q[k].T @ dx[k] + s.T @ dv[k] + a.T @ pi[k] - pi[k - 1] + [0.0, state_force[k]])
    qp.q[n] = -(qp.Q[n].T @ dx[n] - pi[n - 1] + [0.0, state_force[n]])
    return qp, dx, dv
