"""The QP of the quadruped's contact forces: what it says, and that it is solved."""

from functools import cache
from typing import Any

import casadi as ca
import numpy as np
import pytest
import torch

from rt_lrhc.cluster.controller import Status
from rt_lrhc.controllers.quadruped.gait import Gait
from rt_lrhc.controllers.quadruped.mini_cheetah import make_mini_cheetah
from rt_lrhc.controllers.quadruped.qp_daqp import DaqpForces, Forces, Pyramid, constraints, kkt_residual
from rt_lrhc.controllers.quadruped.references import reference_vector
from rt_lrhc.controllers.quadruped.srbd import Body, ForceQps, RigidBodyMpc
from rt_lrhc.errors import ConfigurationError
from tests.quadruped_helpers import Walkers

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

DURATIONS = np.array([0.02, 0.03, 0.03, 0.01, 0.04])
PYRAMID = Pyramid(friction=0.5, force_limit=120.0)


class _Problem:
    """A random MPC problem of three robots with different contacts."""

    def __init__(self, seed: int) -> None:
        self.draws = np.random.default_rng(seed)
        draw = self.draws.normal
        self.mpc = RigidBodyMpc(DURATIONS, 9.0, 1e-3)
        self.body = Body(*(draw(size=(3, 3)) for _ in range(4)))
        self.reference = draw(size=(3, 5, 12))
        roots = draw(size=(3, 3, 3))
        self.inertia_inverse = roots @ roots.transpose(0, 2, 1) + np.eye(3)
        self.levers = 0.2 * draw(size=(3, 5, 4, 3))
        self.contacts = self.draws.random((3, 5, 4)) < np.array([0.3, 0.6, 1.0])[:, None, None]
        self.contacts[0, 0, 0] = True
        self.weights = self.draws.uniform(0.1, 2.0, (3, 12))
        self.nominal = draw(size=(3, 5, 4, 3)) * self.contacts[..., None]
        self.qps = self.mpc.form(
            self.body,
            self.reference,
            self.inertia_inverse,
            self.levers,
            self.contacts,
            self.weights,
            self.nominal,
        )

    def cost(self, forces: FloatArray) -> FloatArray:
        """Cost of forces, (3, 5, 4, 3), by the dynamics written out as they stand, in tiny steps."""
        cost = np.zeros(3)
        for n in range(3):
            attitude, position = self.body.attitude[n].copy(), self.body.position[n].copy()
            spin, velocity = self.body.angular_velocity[n].copy(), self.body.velocity[n].copy()
            yaw = self.body.attitude[n, 2]
            turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
            for k, duration in enumerate(DURATIONS):
                force = forces[n, k].sum(axis=0) / 9.0 - np.array([0.0, 0.0, 9.81])
                moment = self.inertia_inverse[n] @ np.cross(self.levers[n, k], forces[n, k]).sum(axis=0)
                # The exact solution over a stage of constant force.
                attitude += turn @ (duration * spin + 0.5 * duration**2 * moment)
                position += duration * velocity + 0.5 * duration**2 * force
                spin += duration * moment
                velocity += duration * force
                error = np.concatenate([attitude, position, spin, velocity]) - self.reference[n, k]
                cost[n] += 0.5 * self.weights[n] @ error**2
            cost[n] += 0.5e-3 * ((forces[n] - self.nominal[n]) ** 2).sum()
        return cost


@pytest.mark.parametrize("seed", range(5))
def test_the_condensed_cost_is_the_cost_of_the_dynamics_stage_by_stage(seed: int) -> None:
    problem = _Problem(seed)
    forces = problem.draws.normal(size=(3, 5, 4, 3)) * 10.0 * problem.contacts[..., None]
    qps = problem.qps
    assert qps.pairs.tolist() == problem.contacts.sum(axis=(1, 2)).tolist()
    base = problem.cost(np.zeros_like(forces))
    for n, count in enumerate(qps.pairs):
        u = forces[n].reshape(20, 3)[qps.index[n, :count]].ravel()
        size = 3 * count
        value = 0.5 * u @ qps.hessian[n, :size, :size] @ u + qps.gradient[n, :size] @ u
        assert value == pytest.approx(problem.cost(forces)[n] - base[n], rel=1e-9)
        assert np.linalg.eigvalsh(qps.hessian[n, :size, :size]).min() > 0.9e-3


def test_forces_move_the_body_as_the_stages_say_also_between_them() -> None:
    problem = _Problem(7)
    forces = problem.draws.normal(size=(3, 5, 4, 3)) * problem.contacts[..., None]
    times = np.array([0.005, 0.02, 0.033, 0.13])
    positions, rates = problem.mpc.motion(
        problem.body, problem.inertia_inverse, problem.levers, forces, times
    )
    step = 1e-5
    ahead, _ = problem.mpc.motion(problem.body, problem.inertia_inverse, problem.levers, forces, times - step)
    slope = (positions - ahead) / step
    np.testing.assert_allclose(slope[..., 3:], rates[..., 3:], atol=1e-3)
    yaw = problem.body.attitude[:, 2]
    back = np.cos(yaw)[:, None] * slope[..., 0] - np.sin(yaw)[:, None] * slope[..., 1]
    np.testing.assert_allclose(back, rates[..., 0], atol=1e-2)


@cache
def _recorded() -> tuple[list[tuple[ForceQps, Forces]], Walkers]:
    """QPs and solutions of trots, turns, other gaits and pushes in closed loop."""
    references = [
        reference_vector(velocity_x_in_heading=1.0),
        reference_vector(yaw_rate=1.5, velocity_y_in_heading=0.3),
        reference_vector(gait=Gait.BOUND, velocity_x_in_heading=0.5),
        reference_vector(gait=Gait.WALK, roll=0.1),
        reference_vector(gait=Gait.STAND, pitch=0.2),
    ]
    walk = Walkers(references)
    record: list[tuple[ForceQps, Forces]] = []
    solve = walk.controller.qp_solver.solve

    def recording(rows: Any, qps: ForceQps) -> Forces:
        found = solve(rows, qps)
        record.append((qps, found))
        return found

    walk.controller.qp_solver.solve = recording  # type: ignore[method-assign]
    draws = np.random.default_rng(0)
    for period in range(80):
        if period % 20 == 10:
            kick = np.zeros((5, 18))
            kick[:, :6] = draws.uniform(-0.5, 0.5, (5, 6)) * [1, 1, 0.3, 1, 1, 1]
            walk.plant.push(torch.from_numpy(kick))
        walk.step()
    return record, walk


def test_four_hundred_recorded_qps_satisfy_their_kkt_conditions_and_a_second_solver_agrees() -> None:
    record, _ = _recorded()
    oracles: dict[int, Any] = {}
    compared, active = 0, 0
    for qps, found in record:
        assert found.solved.all()
        assert found.residual.max() < 1e-5
        for n, count in enumerate(qps.pairs):
            size = 3 * int(count)
            a, upper, lower = constraints(int(count), PYRAMID)
            hessian, gradient = qps.hessian[n, :size, :size], qps.gradient[n, :size]
            solver = oracles.setdefault(int(count), _oracle(size, a.shape[0]))
            answer = solver(
                h=ca.DM(hessian),
                g=gradient,
                a=ca.DM(a),
                lbx=lower[:size],
                ubx=upper[:size],
                lba=np.full(a.shape[0], -np.inf),
                uba=upper[size:],
            )
            ours = found.forces[n].reshape(-1, 3)[qps.index[n, :count]].ravel()
            # The regularisation is 1e-5 per N^2: a residual below 1e-6 leaves some hundredths of a newton open.
            np.testing.assert_allclose(ours, np.array(answer["x"]).ravel(), atol=0.05)
            assert found.cost[n] == pytest.approx(float(answer["cost"]), rel=1e-6, abs=1e-6)
            active += int((np.abs(a @ ours) < 1e-6).any())
            compared += 1
    assert compared == 400
    assert active > 50, "the record should hold forces on the friction pyramid"


def _oracle(size: int, rows: int) -> Any:
    options: Any = {"print_time": False, "piqp": {"eps_abs": 1e-9, "eps_rel": 0.0}}
    dense: Any = {"h": ca.Sparsity.dense(size, size), "a": ca.Sparsity.dense(rows, size)}
    return ca.conic("oracle", "piqp", dense, options)


def test_forces_stay_within_friction_and_limits_and_feet_in_the_air_have_none() -> None:
    record, walk = _recorded()
    for qps, found in record:
        force = found.forces
        assert force[..., 2].min() > -1e-6 and force[..., 2].max() < PYRAMID.force_limit + 1e-6
        assert (np.abs(force[..., :2]) - PYRAMID.friction * force[..., 2:]).max() < 1e-5
        stands = np.zeros(force.shape[:3], dtype=np.bool_).reshape(len(force), -1)
        for n, count in enumerate(qps.pairs):
            stands[n, qps.index[n, :count]] = True
        assert (force.reshape(len(force), -1, 3)[~stands] == 0.0).all()
    spec = walk.controller.spec
    assert (walk.plans.inputs >= spec.input_lower).all() and (walk.plans.inputs <= spec.input_upper).all()


def test_a_warm_start_does_not_change_the_solution() -> None:
    record, walk = _recorded()
    cold = DaqpForces(5, walk.controller.mpc.num_stages, PYRAMID)
    rows = np.arange(5)
    saved = 0
    for qps, found in record[1:40]:
        cold.reset(rows)
        again = cold.solve(rows, qps)
        np.testing.assert_allclose(again.forces, found.forces, atol=1e-4)
        saved += int(again.iterations.sum() - found.iterations.sum())
    assert saved > 0


def test_the_kkt_residual_sees_every_kind_of_fault() -> None:
    qps = _Problem(3).qps
    count = int(qps.pairs[2])
    size = 3 * count
    a, upper, lower = constraints(count, PYRAMID)
    hessian, gradient = qps.hessian[2, :size, :size], qps.gradient[2, :size]
    solver = DaqpForces(3, 5, PYRAMID)
    assert solver.solve(np.arange(3), qps).residual.max() < 1e-6
    free: FloatArray = np.asarray(np.linalg.solve(hessian, -gradient), dtype=np.float64)
    none = np.zeros(size + len(a))
    assert kkt_residual(hessian, gradient, free, none, a, upper, lower) > 1.0  # beyond the limits
    assert kkt_residual(hessian, gradient, np.zeros(size), none, a, upper, lower) > 1e-3  # not stationary
    multipliers: FloatArray = none.copy()
    multipliers[0] = 1.0
    still = -(hessian @ np.zeros(size)) - multipliers[:size]
    assert kkt_residual(hessian, still, np.zeros(size), multipliers, a, upper, lower) == pytest.approx(1.0)


def test_an_impossible_contact_schedule_is_a_status_and_neighbours_go_on() -> None:
    lifted = reference_vector(contact_fr=-1.0, contact_fl=-1.0, contact_hr=-1.0, contact_hl=-1.0)
    walk = Walkers([lifted, reference_vector()])
    walk.run(0.4)
    statuses = np.array(walk.statuses)
    assert Status.INFEASIBLE in statuses[:, 0]
    assert statuses[0, 0] == Status.SOLVED  # there are feet on the ground still, for the time of the lead
    assert (statuses[:, 1] == Status.SOLVED).all()


def test_a_fallen_robot_and_a_non_finite_one_are_statuses_and_others_are_solved() -> None:
    walk = Walkers([reference_vector()] * 4)
    walk.run(0.1)
    state = walk.plant.state.numpy()
    state[0, 3:7] = [0.0, 1.0, 0.0, 0.0]
    state[1, 2] = 0.05
    state[2, 9] = np.nan
    walk.controller.solve(walk.request(state), walk.plans)
    assert walk.plans.status.tolist() == [
        Status.DIVERGED,
        Status.DIVERGED,
        Status.NONFINITE_INPUT,
        Status.SOLVED,
    ]
    walk.run(0.1)  # they are upright again, and start anew
    assert (walk.plans.status == Status.SOLVED).all()


def test_rows_that_are_not_active_are_left_alone() -> None:
    walk = Walkers([reference_vector()] * 3)
    walk.run(0.1)
    request = walk.request(walk.plant.state.numpy())
    request.active[1] = False
    walk.plans.inputs[1] = 7.0
    walk.plans.status[:] = Status.NONE
    walk.controller.solve(request, walk.plans)
    assert walk.plans.status.tolist() == [Status.SOLVED, Status.NONE, Status.SOLVED]
    assert (walk.plans.inputs[1] == 7.0).all()


def test_wrong_settings_are_errors_that_name_them() -> None:
    for settings, message in (
        ({"frictoin": 0.5}, "unknown setting 'frictoin'; known: control_period"),
        ({"friction": 0.0}, "friction must be positive, got 0.0"),
        ({"weights": (1.0,)}, "weights must be 12 numbers"),
        ({"qp_stages": 0}, "qp_stages must be at least 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_mini_cheetah(1, **settings)
    with pytest.raises(ConfigurationError, match="unknown reference 'speed'"):
        reference_vector(speed=1.0)
