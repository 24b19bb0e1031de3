"""The cart-pole: swing-up, balance, and tracking of a commanded cart position."""

import difflib
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import casadi as ca

from rt_lrhc.controllers.ocp import OptimalControlProblem
from rt_lrhc.controllers.rti import RtiController, RtiOptions
from rt_lrhc.errors import ConfigurationError


@dataclass(frozen=True)
class CartPoleModel:
    """A cart on a rail with a pole of one point mass; x points right, z up.

    The pole is upright at angle 0 and turns towards negative x at positive angles: its tip lies at
    (cart_position - pole_length sin(pole_angle), pole_length cos(pole_angle)). That is a hinge about (0, -1, 0), y
    pointing away from the viewer. Neither joint has friction.

    Attributes:
        cart_mass: kg.
        pole_mass: Point mass at the tip, kg.
        pole_length: Hinge to tip, m.
        gravity: m/s².
        max_force: Largest force on the cart in either direction, N.

    Source: acados' example `pendulum_on_cart`, with the same values.
    """

    cart_mass: float = 1.0
    pole_mass: float = 0.1
    pole_length: float = 0.8
    gravity: float = 9.81
    max_force: float = 80.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 < value < math.inf:
                raise ConfigurationError(f"{field.name} of the cart-pole must be positive, got {value}")

    def accelerations(
        self, angle: Any, angular_velocity: Any, force: Any, cos: Any, sin: Any
    ) -> tuple[Any, Any]:
        """Return the cart's acceleration in m/s² and the pole's in rad/s².

        From d/dt of the Lagrangian's momenta, with M, m, l, g of this model, the angle t and the force F:
        (M + m) a - m l cos(t) t'' + m l sin(t) t'² = F and l t'' - cos(t) a = g sin(t).

        Args:
            angle: rad, of any type that `cos` and `sin` take.
            angular_velocity: rad/s.
            force: N.
            cos: Cosine for that type.
            sin: Sine for that type.
        """
        c, s = cos(angle), sin(angle)
        mass, length = self.pole_mass, self.pole_length
        effective_mass = self.cart_mass + mass * s * s
        cart = (force + mass * s * (self.gravity * c - length * angular_velocity**2)) / effective_mass
        return cart, (c * cart + self.gravity * s) / length


def make_cart_pole_problem(
    model: CartPoleModel | None = None,
    *,
    num_stages: int = 25,
    stage_duration: float = 0.04,
    state_weights: Sequence[float] = (2e3, 2e3, 2e-2, 2e-2),
    input_weight: float = 0.02,
    position_limit: float = math.inf,
) -> OptimalControlProblem:
    """Return the optimal control problem of the cart-pole.

    Args:
        model: Physical constants, by default those of `CartPoleModel`.
        num_stages: Horizon N.
        stage_duration: s.
        state_weights: Of (position error, angle, velocity, angular velocity), per second; at the end of the horizon the
            same numbers. acados' example: twice (1e3, 1e3, 1e-2, 1e-2).
        input_weight: Of the force, 1/(N² s). acados' example has 0.02, which is quick and forgives no delay; from 2 on
            the controller is calm enough to bear 20 ms of it.
        position_limit: Soft limit of the cart's distance from the rail's middle, m.

    Raises:
        ConfigurationError: If a value is out of its range.
    """
    model = model or CartPoleModel()
    if len(state_weights) != 4:
        raise ConfigurationError(f"state_weights must have 4 entries, got {len(state_weights)}")
    if not input_weight > 0.0:
        raise ConfigurationError(f"input_weight must be positive, got {input_weight}")
    if not position_limit > 0.0:
        raise ConfigurationError(f"position_limit must be positive, in m, got {position_limit}")
    x, force, target = ca.SX.sym("x", 4), ca.SX.sym("force"), ca.SX.sym("target")
    position, angle, velocity, angular_velocity = ca.vertsplit(x)
    errors = ca.vertcat(position - target, angle, velocity, angular_velocity)
    return OptimalControlProblem(
        states=x,
        inputs=force,
        references=target,
        dynamics=ca.vertcat(
            velocity, angular_velocity, *model.accelerations(angle, angular_velocity, force, ca.cos, ca.sin)
        ),
        stage_residual=ca.vertcat(errors, force),
        stage_weights=(*state_weights, input_weight),
        terminal_residual=errors,
        terminal_weights=tuple(state_weights),
        state_names=("cart_position", "pole_angle", "cart_velocity", "pole_velocity"),
        input_names=("cart_force",),
        reference_names=("cart_position",),
        state_units=("m", "rad", "m/s", "rad/s"),
        input_units=("N",),
        reference_units=("m",),
        input_lower=(-model.max_force,),
        input_upper=(model.max_force,),
        safe_input=(0.0,),
        num_stages=num_stages,
        stage_duration=stage_duration,
        state_lower=(-position_limit, -math.inf, -math.inf, -math.inf),
        state_upper=(position_limit, math.inf, math.inf, math.inf),
        periods=(math.inf, 2.0 * math.pi, math.inf, math.inf),
    )


def make_cart_pole(num_robots: int, **kwargs: Any) -> RtiController:
    """Make a controller of `num_robots` cart-poles: a factory for the cluster.

    Args:
        num_robots: Number of cart-poles.
        kwargs: Options of `CartPoleModel`, `make_cart_pole_problem` and `RtiOptions`, in one flat set of names.

    Raises:
        ConfigurationError: For an unknown option, naming the closest known one, or a value out of its range.
    """
    of_problem = inspect.signature(make_cart_pole_problem).parameters
    defaults = {
        **{field.name: field.default for field in fields(CartPoleModel)},
        **{name: parameter.default for name, parameter in of_problem.items() if name != "model"},
        **{field.name: field.default for field in fields(RtiOptions)},
    }
    for name, value in kwargs.items():
        if name not in defaults:
            closest = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {closest[0]!r}? " if closest else ""
            raise ConfigurationError(
                f"unknown option {name!r} of the cart-pole; {hint}Known: {', '.join(defaults)}"
            )
        _check_type(name, value, defaults[name])

    def chosen(names: Iterable[str]) -> dict[str, Any]:
        return {name: kwargs[name] for name in names if name in kwargs}

    model = CartPoleModel(**chosen(field.name for field in fields(CartPoleModel)))
    problem = make_cart_pole_problem(model, **chosen(of_problem))
    return RtiController(
        problem, num_robots, RtiOptions(**chosen(field.name for field in fields(RtiOptions)))
    )


def _check_type(name: str, value: Any, default: Any) -> None:
    expected: tuple[str, tuple[type, ...]]
    if isinstance(default, bool):
        expected = "True or False", (bool,)
    elif isinstance(default, int):
        expected = "an integer", (int,)
    elif isinstance(default, float):
        expected = "a number", (int, float)
    elif isinstance(default, tuple):
        expected = "numbers", (list, tuple)
    else:
        expected = "a string", (str, type(default))
    kind, types = expected
    fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
    if fits and isinstance(value, (list, tuple)):
        fits = all(isinstance(member, (int, float)) for member in value)
    if not fits:
        raise ConfigurationError(f"option {name!r} of the cart-pole must be {kind}, got {value!r}")
