"""An optimal control problem as a user writes it, and the CasADi functions that a solver needs of it."""

import math
from dataclasses import dataclass
from typing import Any

import casadi as ca

from rt_lrhc.cluster.controller import ControllerSpec
from rt_lrhc.controllers.qp import ABSENT_BOUND
from rt_lrhc.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class OptimalControlProblem:
    """A nonlinear least-squares OCP with dynamics x' = f(x, u, p), references p and bounds.

    Minimised over N inputs, each held for a stage of length h, and the states at the N + 1 ends of the stages:

        sum_{k<N} h/2 |stage_residual(x_k, u_k, p)|²_W + 1/2 |terminal_residual(x_N, p)|²_WN + bound penalties

    Input bounds are hard: the plan keeps them exactly. State bounds are soft: breaking one by s at stages 1 to N costs
    `state_bound_penalty` * (s + s²/2), an exact penalty once it exceeds the multipliers. So a robot that starts outside
    its bounds still gets a plan, the one that leads it back.

    Attributes:
        states: Symbols x, (nx,) SX.
        inputs: Symbols u, (nu,) SX.
        references: Symbols p that the agent commands, (nr,) SX; constant over the horizon.
        dynamics: f(x, u, p), (nx,) SX, per second.
        stage_residual: Residual in x, u and p, (any,) SX.
        stage_weights: Weight of each entry of the stage residual, at least 0, per second. Together the residual and its
            weights must make the cost strictly convex in u.
        terminal_residual: Residual in x and p, (any,) SX.
        terminal_weights: Weight of each entry of the terminal residual, at least 0.
        state_names, input_names, reference_names: See `ControllerSpec`.
        state_units, input_units, reference_units: See `ControllerSpec`.
        input_lower, input_upper, safe_input: (nu,), finite, lower < upper; the safe input within them.
        num_stages: Horizon N.
        stage_duration: h, s.
        state_lower, state_upper: (nx,), may be infinite; empty means unbounded.
        state_bound_penalty: Cost per unit by which a state bound is broken.
        periods: Period of each state that is an angle or the like, (nx,); infinite for the others; empty means none.
            The controller takes such a state as it lies nearest to zero, so that turns do not add up.
        integration_steps: Steps of the classical Runge-Kutta method (order 4) per stage.
    """

    states: ca.SX
    inputs: ca.SX
    references: ca.SX
    dynamics: ca.SX
    stage_residual: ca.SX
    stage_weights: tuple[float, ...]
    terminal_residual: ca.SX
    terminal_weights: tuple[float, ...]
    state_names: tuple[str, ...]
    input_names: tuple[str, ...]
    reference_names: tuple[str, ...]
    state_units: tuple[str, ...]
    input_units: tuple[str, ...]
    reference_units: tuple[str, ...]
    input_lower: tuple[float, ...]
    input_upper: tuple[float, ...]
    safe_input: tuple[float, ...]
    num_stages: int
    stage_duration: float
    state_lower: tuple[float, ...] = ()
    state_upper: tuple[float, ...] = ()
    state_bound_penalty: float = 1e4
    periods: tuple[float, ...] = ()
    integration_steps: int = 1

    def __post_init__(self) -> None:
        self.make_spec("", compensates_delay=True)
        self._check_expressions()
        nx = len(self.state_names)
        if not self.state_lower:
            object.__setattr__(self, "state_lower", (-math.inf,) * nx)
        if not self.state_upper:
            object.__setattr__(self, "state_upper", (math.inf,) * nx)
        if not self.periods:
            object.__setattr__(self, "periods", (math.inf,) * nx)
        for field in ("state_lower", "state_upper", "periods"):
            if len(getattr(self, field)) != nx:
                raise ConfigurationError(f"{field} must have {nx} entries, got {len(getattr(self, field))}")
        for names, lowers, uppers, limit in (
            (self.input_names, self.input_lower, self.input_upper, math.inf),
            (self.state_names, self.state_lower, self.state_upper, math.nan),
        ):
            for name, lower, upper in zip(names, lowers, uppers, strict=True):
                if not lower < upper or abs(lower) == limit or abs(upper) == limit:
                    kind = "finite bounds" if limit == math.inf else "bounds"
                    raise ConfigurationError(f"{name!r}: expected {kind} lower < upper, got {lower}, {upper}")
        for field in ("stage_weights", "terminal_weights"):
            if not all(0.0 <= weight < math.inf for weight in getattr(self, field)):
                raise ConfigurationError(f"{field} must be finite and at least 0, got {getattr(self, field)}")
        if not all(period > 0.0 for period in self.periods):
            raise ConfigurationError(f"periods must be positive (infinite: none), got {self.periods}")
        if not 0.0 < self.state_bound_penalty < math.inf:
            raise ConfigurationError(
                f"state_bound_penalty must be positive and finite, got {self.state_bound_penalty}"
            )
        if self.integration_steps < 1:
            raise ConfigurationError(f"integration_steps must be at least 1, got {self.integration_steps}")

    def _check_expressions(self) -> None:
        for field, names in (
            ("states", self.state_names),
            ("inputs", self.input_names),
            ("references", self.reference_names),
        ):
            value = getattr(self, field)
            if not isinstance(value, ca.SX) or value.shape != (len(names), 1) or not value.is_valid_input():
                raise ConfigurationError(
                    f"{field} must be a column of {len(names)} SX symbols, got {value!r}"
                )
        everything = (self.states, self.inputs, self.references)
        for field, rows, known in (
            ("dynamics", len(self.state_names), everything),
            ("stage_residual", len(self.stage_weights), everything),
            ("terminal_residual", len(self.terminal_weights), (self.states, self.references)),
        ):
            value = getattr(self, field)
            if not isinstance(value, ca.SX) or value.shape != (rows, 1):
                found = value.shape if isinstance(value, ca.SX) else type(value).__name__
                raise ConfigurationError(f"{field} must be a casadi.SX column of {rows}, got {found}")
            names_known = {symbol.name() for symbol in ca.symvar(ca.vertcat(*known))}
            unknown = [symbol.name() for symbol in ca.symvar(value) if symbol.name() not in names_known]
            if unknown:
                raise ConfigurationError(f"{field} may not depend on {', '.join(unknown)}")

    def make_spec(self, backend: str, *, compensates_delay: bool) -> ControllerSpec:
        """Return the `ControllerSpec` of a controller of this problem."""
        return ControllerSpec(
            state_names=self.state_names,
            input_names=self.input_names,
            reference_names=self.reference_names,
            state_units=self.state_units,
            input_units=self.input_units,
            reference_units=self.reference_units,
            num_stages=self.num_stages,
            stage_duration=self.stage_duration,
            input_lower=self.input_lower,
            input_upper=self.input_upper,
            safe_input=self.safe_input,
            backend=backend,
            compensates_delay=compensates_delay,
        )

    @property
    def bounded_states(self) -> tuple[int, ...]:
        """Indices of the nb states that have a finite bound."""
        bounds = zip(self.state_lower, self.state_upper, strict=True)
        return tuple(i for i, pair in enumerate(bounds) if any(map(math.isfinite, pair)))

    @property
    def input_scale(self) -> tuple[float, ...]:
        """Half the range of each input: what the QP counts inputs in.

        Interior-point methods want variables near 1. With newtons instead, HPIPM took 25 iterations where it now takes
        14 at most on the cart-pole.
        """
        return tuple((b - a) / 2.0 for a, b in zip(self.input_lower, self.input_upper, strict=True))


@dataclass(frozen=True)
class OcpFunctions:
    """What a solver evaluates. All outputs are dense; nb states have a bound; inputs v of the QP are u / input_scale.

    Attributes:
        stages: (x (nx, N), u (nu, N), p, x_next (nx, N)) -> A, B, b, Q, S, R, q, r, lower, upper, cost, of all stages
            side by side: the linearisation dx_next = A dx + B dv + b, the Gauss-Newton cost in (dx, dv), and the bounds
            (nu + nb, N) of (dv, the bounded dx), as in `StageQp`.
        terminal: (x, p) -> Q, q, lower, upper, cost of the end of the horizon.
        step: (x, u, p, duration) -> the state `duration` seconds later.
        rollout: (x, u (nu, N), p) -> the N states that follow x, (nx, N), and the cost of that trajectory, bound
            penalties included.
        stage_cost: (x, u, p) -> cost of a stage.
        terminal_cost: (x, p) -> cost of the end.
    """

    stages: Any
    terminal: Any
    step: Any
    rollout: Any
    stage_cost: Any
    terminal_cost: Any


def build_functions(ocp: OptimalControlProblem) -> OcpFunctions:
    """Differentiate `ocp` and build its functions."""
    x, u, p, h = ocp.states, ocp.inputs, ocp.references, ocp.stage_duration
    nx = x.numel()
    dynamics = ca.Function("dynamics", [x, u, p], [ocp.dynamics])

    def integrate(duration: Any, steps: int) -> Any:
        end = x
        for _ in range(steps):
            end = _runge_kutta_step(dynamics, end, u, p, duration / steps)
        return end

    def least_squares(residual: Any, weights: tuple[float, ...], variables: Any) -> tuple[Any, Any, Any]:
        jacobian = ca.jacobian(residual, variables)
        weighted = ca.DM(weights) * residual
        hessian = jacobian.T @ ca.diag(ca.DM(weights)) @ jacobian
        return hessian, jacobian.T @ weighted, ca.dot(residual, weighted) / 2.0

    def state_bounds(values: tuple[float, ...]) -> Any:
        return ca.vertcat(
            ca.SX(0, 1),
            *(min(max(values[i], -ABSENT_BOUND), ABSENT_BOUND) - x[i] for i in ocp.bounded_states),
        )

    end = integrate(h, ocp.integration_steps)
    scale = ca.DM(ocp.input_scale)
    to_input = ca.diagcat(ca.DM.eye(nx), ca.diag(scale))
    weights = tuple(h * weight for weight in ocp.stage_weights)
    hessian, gradient, stage_cost = least_squares(ocp.stage_residual, weights, ca.vertcat(x, u))
    hessian, gradient = to_input.T @ hessian @ to_input, to_input.T @ gradient
    x_next = ca.SX.sym("x_next", nx)
    stage = ca.Function(
        "stage",
        [x, u, p, x_next],
        [
            ca.densify(output)
            for output in ca.cse(
                [
                    ca.jacobian(end, x),
                    ca.jacobian(end, u) @ ca.diag(scale),
                    end - x_next,
                    hessian[:nx, :nx],
                    hessian[nx:, :nx],
                    hessian[nx:, nx:],
                    gradient[:nx],
                    gradient[nx:],
                    ca.vertcat((ca.DM(ocp.input_lower) - u) / scale, state_bounds(ocp.state_lower)),
                    ca.vertcat((ca.DM(ocp.input_upper) - u) / scale, state_bounds(ocp.state_upper)),
                    stage_cost,
                ]
            )
        ],
    )
    hessian, gradient, terminal_cost = least_squares(ocp.terminal_residual, ocp.terminal_weights, x)
    terminal_outputs = [
        hessian,
        gradient,
        state_bounds(ocp.state_lower),
        state_bounds(ocp.state_upper),
        terminal_cost,
    ]
    duration = ca.SX.sym("duration")
    return OcpFunctions(
        # Mapped rather than unrolled: a loop in generated C, which gcc compiles in 0.1 s rather than 20.
        stages=stage.map("stages", "serial", ocp.num_stages, [2], []),
        terminal=ca.Function("terminal", [x, p], [ca.densify(output) for output in terminal_outputs]),
        step=ca.Function("step", [x, u, p, duration], [integrate(duration, ocp.integration_steps)]),
        rollout=_build_rollout(ocp, end, stage_cost, terminal_cost),
        stage_cost=ca.Function("stage_cost", [x, u, p], [stage_cost]),
        terminal_cost=ca.Function("terminal_cost", [x, p], [terminal_cost]),
    )


def _build_rollout(ocp: OptimalControlProblem, end: Any, stage_cost: Any, terminal_cost: Any) -> Any:
    x, u, p, nx = ocp.states, ocp.inputs, ocp.references, len(ocp.state_names)
    penalty = ca.SX(0.0)
    for i in ocp.bounded_states:
        for excess in (ocp.state_lower[i] - x[i], x[i] - ocp.state_upper[i]):
            broken = ca.fmax(0.0, excess)
            penalty += ocp.state_bound_penalty * (broken + broken**2 / 2.0)
    bounds_cost = ca.Function("bounds_cost", [x], [penalty])
    cost = ca.SX.sym("cost")
    advance = ca.Function(
        "advance", [ca.vertcat(x, cost), u, p], [ca.vertcat(end, cost + stage_cost + bounds_cost(end))]
    )
    final = ca.Function("final", [x, p], [terminal_cost])
    initial, inputs = ca.MX.sym("initial", nx), ca.MX.sym("inputs", u.numel(), ocp.num_stages)
    references = ca.MX.sym("references", p.numel())
    accumulate = advance.mapaccum("accumulate", ocp.num_stages)
    path = accumulate(ca.vertcat(initial, 0.0), inputs, ca.repmat(references, 1, ocp.num_stages))
    states = path[:nx, :]
    total = path[nx, -1] + final(states[:, -1], references)
    return ca.Function("rollout", [initial, inputs, references], [states, total])


def _runge_kutta_step(dynamics: Any, x: Any, u: Any, p: Any, duration: Any) -> Any:
    k1 = dynamics(x, u, p)
    k2 = dynamics(x + duration / 2.0 * k1, u, p)
    k3 = dynamics(x + duration / 2.0 * k2, u, p)
    k4 = dynamics(x + duration * k3, u, p)
    return x + duration / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
