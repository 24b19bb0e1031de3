"""DAQP on condensed force QPs, row by row, each from the active set of the solve before.

Source: D. Arnström, A. Bemporad, D. Axehill (2022), A Dual Active-Set Solver for Embedded Quadratic Programming Using
Recursive LDL' Updates, IEEE Trans. Automatic Control 67(8).
"""

from dataclasses import dataclass
from functools import lru_cache

import daqp
import numpy as np
import numpy.typing as npt

from rt_lrhc.cluster.controller import BoolArray, FloatArray, IntArray
from rt_lrhc.controllers.quadruped.srbd import ForceQps

ROWS = 7
"""Constraints of a foot that stands: three boxes of its force, four sides of its friction pyramid."""

_ACTIVE_UPPER, _ACTIVE_LOWER = 1, 3  # DAQP's flags of a constraint in the first working set
_ABSENT = 1e30


@dataclass(frozen=True)
class Pyramid:
    """Limits of the force of the ground on a foot: |f_x|, |f_y| <= friction f_z and 0 <= f_z <= force_limit."""

    friction: float
    force_limit: float


@dataclass(frozen=True)
class Forces:
    """Solutions of n QPs.

    Attributes:
        forces: (n, N, 4, 3), N; zero for feet in the air and where there is no solution.
        solved: Which QPs were solved, (n,).
        iterations: Iterations of the solver, (n,).
        cost: Value of the QP at the solution, (n,).
        residual: Infinity norm of the KKT conditions (stationarity, and forces beyond the limits in N), (n,).
    """

    forces: FloatArray
    solved: BoolArray
    iterations: IntArray
    cost: FloatArray
    residual: FloatArray


@lru_cache(maxsize=256)
def constraints(pairs: int, pyramid: Pyramid) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return rows A, upper and lower bounds of a QP with `pairs` feet: `lower <= [u; A u] <= upper`.

    The first 3 pairs entries bound the variables, the next 4 pairs belong to A, (4 pairs, 3 pairs). Do not write.
    """
    sides = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    side = np.concatenate([sides, np.full((4, 1), -pyramid.friction)], axis=1)
    rows = np.kron(np.eye(pairs), side)
    # The pyramid implies fz >= 0, and with fz <= force_limit bounds on fx and fy: written out, they would only make the
    # working sets degenerate.
    upper = np.concatenate([np.tile([_ABSENT, _ABSENT, pyramid.force_limit], pairs), np.zeros(4 * pairs)])
    lower = np.full(7 * pairs, -_ABSENT)
    return rows, upper, lower


class DaqpForces:
    """Solves the force QPs of B robots and remembers their active sets.

    Args:
        num_robots: B.
        num_stages: N.
        pyramid: Limits of the forces.
        iteration_limit: Iterations after which a QP counts as unsolved.
    """

    name = "daqp"

    def __init__(
        self, num_robots: int, num_stages: int, pyramid: Pyramid, *, iteration_limit: int = 400
    ) -> None:
        self._num_stages = num_stages
        self._pyramid = pyramid
        self._iteration_limit = iteration_limit
        # Of each robot, stage and foot: 3 boxes, then 4 sides.
        self._working: npt.NDArray[np.int32] = np.zeros((num_robots, num_stages * 4, ROWS), dtype=np.int32)

    def reset(self, rows: IntArray | BoolArray) -> None:
        """Forget the active sets of robots."""
        self._working[rows] = 0

    def solve(self, rows: IntArray, qps: ForceQps) -> Forces:
        """Solve the QPs of the robots in `rows`, (n,)."""
        n, slots = len(rows), self._num_stages * 4
        forces = np.zeros((n, slots, 3))
        solved = np.zeros(n, dtype=np.bool_)
        iterations = np.zeros(n, dtype=np.int64)
        cost, residual = np.full(n, np.nan), np.full(n, np.nan)
        for i, robot in enumerate(rows):
            count = int(qps.pairs[i])
            if count == 0:
                continue
            index = qps.index[i, :count]
            a, upper, lower = constraints(count, self._pyramid)
            size = 3 * count
            hessian = np.ascontiguousarray(qps.hessian[i, :size, :size])
            gradient = qps.gradient[i, :size]
            working = self._working[robot]
            guess = working[index]
            sense = np.concatenate([guess[:, :3].ravel(), guess[:, 3:].ravel()])
            solution, value, flag, info = daqp.solve(
                hessian, gradient, a, upper, lower, sense, iter_limit=self._iteration_limit, eps_prox=0.0
            )
            iterations[i] = info["iterations"]
            working[:] = 0
            if flag != 1 or not np.isfinite(solution).all():
                continue
            multipliers = info["lam"]
            active = np.where(multipliers > 0.0, _ACTIVE_UPPER, np.where(multipliers < 0.0, _ACTIVE_LOWER, 0))
            working[index, :3] = active[:size].reshape(count, 3)
            working[index, 3:] = active[size:].reshape(count, 4)
            forces[i, index] = solution.reshape(count, 3)
            solved[i] = True
            cost[i] = value
            residual[i] = kkt_residual(hessian, gradient, solution, multipliers, a, upper, lower)
        return Forces(forces.reshape(n, self._num_stages, 4, 3), solved, iterations, cost, residual)


def kkt_residual(
    hessian: FloatArray,
    gradient: FloatArray,
    solution: FloatArray,
    multipliers: FloatArray,
    a: FloatArray,
    upper: FloatArray,
    lower: FloatArray,
) -> float:
    """Infinity norm of stationarity, infeasibility and complementarity of a solution.

    Multipliers are positive at upper and negative at lower bounds. Complementarity counts the distance from the bound,
    where the multiplier is not zero, or the multiplier, whichever is smaller.
    """
    size = len(solution)
    stationarity = hessian @ solution + gradient + multipliers[:size] + a.T @ multipliers[size:]
    values = np.concatenate([solution, a @ solution])
    above, below = values - upper, lower - values
    gap = np.where(multipliers > 0.0, -above, np.where(multipliers < 0.0, -below, 0.0))
    complementarity = np.minimum(np.abs(gap), np.abs(multipliers))
    return float(max(np.abs(stationarity).max(), above.max(), below.max(), complementarity.max(), 0.0))
