"""Convex MPC of quadrupeds for all robots of a worker: contact forces by a QP, joint targets by kinematics.

One solve is a chain of passes over all robots: predict the state at which the plan will act; ask the gait which feet
stand; place the feet; form the QPs of the contact forces; solve them, row by row; turn forces and swings into commands
for the joints. It remembers of each robot the phase of its gait, where its feet were lifted, the ground's height, and
where it should be (an anchor that moves as commanded, never far from the robot, so that no velocity error stays).
"""

import time
from dataclasses import fields

import numpy as np

from rt_lrhc.cluster.controller import (
    FloatArray,
    IntArray,
    PlanBatch,
    RHController,
    SolveRequest,
    Status,
)
from rt_lrhc.controllers.quadruped.gait import GaitScheduler, Schedule
from rt_lrhc.controllers.quadruped.model import QuadrupedModel
from rt_lrhc.controllers.quadruped.qp_daqp import DaqpForces, Pyramid
from rt_lrhc.controllers.quadruped.references import Commands
from rt_lrhc.controllers.quadruped.robots import Robots, predict, unpack
from rt_lrhc.controllers.quadruped.rotations import (
    attitude_of_matrix,
    matrix_of_attitude,
    quaternion_of_attitude,
)
from rt_lrhc.controllers.quadruped.settings import QuadrupedSettings, make_spec
from rt_lrhc.controllers.quadruped.srbd import GRAVITY, Body, RigidBodyMpc
from rt_lrhc.controllers.quadruped.swing import step, swing

_ANCHOR_LEASH = 0.08  # m
_GROUND_RATE = 0.1  # m/s; the ground is believed to rise no faster
_YAW_LEASH = 0.2  # rad
_LONGEST_GAP = 0.2  # s; after a longer time without a solve, a gait goes on as if it had been this


class QuadrupedController(RHController):
    """The MPC of B quadrupeds of one model.

    States: position, quaternion, joint positions; base velocity in the world, angular velocity in the base, joint
    velocities. Inputs: for each joint position target, velocity target and feed-forward torque. References: see
    `rt_lrhc.controllers.quadruped.references`. A robot that has fallen is `DIVERGED`; a schedule without any foot on
    the ground over the whole horizon is `INFEASIBLE`.
    """

    def __init__(self, model: QuadrupedModel, num_robots: int, settings: QuadrupedSettings) -> None:
        self._model = model
        self._settings = settings
        period = settings.control_period
        durations = np.full(settings.qp_stages, settings.qp_stage_duration)
        durations[0] = period
        self.mpc = RigidBodyMpc(durations, model.mass, settings.regularisation)
        self.qp_solver = DaqpForces(
            num_robots, settings.qp_stages, Pyramid(settings.friction, settings.force_limit)
        )
        self._gaits = GaitScheduler(num_robots)
        self._weights = np.array(settings.weights)
        self._inertia_inverse = np.linalg.inv(model.inertia)
        self._stage_middles: FloatArray = 0.5 * (self.mpc.times[1:] + self.mpc.times[:-1])
        self._command_middles = np.linspace(0.5, settings.num_stages - 0.5, settings.num_stages) * period
        self._command_ends = np.linspace(1.0, settings.num_stages, settings.num_stages) * period
        self._command_stage = np.minimum(
            np.searchsorted(self.mpc.times, self._command_middles, side="right") - 1, settings.qp_stages - 1
        )
        self._upper = np.tile(
            np.stack([model.position_limits, model.velocity_limits, model.torque_limits], axis=1), (4, 1)
        )
        self._known = np.zeros(num_robots, dtype=np.bool_)
        self._standing = np.ones((num_robots, 4), dtype=np.bool_)
        self._liftoff = np.zeros((num_robots, 4, 3))
        self._ground = np.zeros(num_robots)
        self._anchor = np.zeros((num_robots, 2))
        self._heading = np.zeros(num_robots)
        self._last = np.zeros(num_robots)
        self.spec = make_spec(model, settings)

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        """Solve the active rows."""
        begin = time.thread_time()
        self._known[request.reset] = False
        rows = np.flatnonzero(request.active)
        finite = np.isfinite(request.states[rows]).all(axis=1)
        finite &= np.isfinite(request.references[rows]).all(axis=1)
        finite &= np.isfinite(request.inputs_in_force[rows]).all(axis=1)
        plans.status[rows[~finite]] = Status.NONFINITE_INPUT
        rows = rows[finite]
        robots = unpack(self._model, request.states[rows])
        upright = robots.turn[:, 2, 2] > self._settings.fall_tilt
        ground = np.where(
            self._known[rows], self._ground[rows], robots.feet[..., 2].min(axis=1, initial=np.inf)
        )
        clear = robots.base[:, 2] - ground + self._model.foot_radius > self._settings.fall_height
        stands = upright & clear
        plans.status[rows[~stands]] = Status.DIVERGED
        # Whoever has fallen starts anew when it is up again.
        self._known[rows[~stands]] = False
        rows = rows[stands]
        if len(rows) == 0:
            return
        robots = Robots(*(getattr(robots, field.name)[stands] for field in fields(Robots)))
        self._meet(rows, robots, request.act_time)
        if request.act_time > request.time:
            robots = predict(
                self._model,
                robots,
                request.inputs_in_force[rows],
                self._standing[rows],
                request.act_time - request.time,
                # Its own friction is a cautious one.
                Pyramid(0.8, self._settings.force_limit),
            )
        self._plan(rows, robots, Commands.of(request.references[rows]), request.act_time, plans)
        plans.solve_time[rows] = (time.thread_time() - begin) / len(rows)

    def _meet(self, rows: IntArray, robots: Robots, act_time: float) -> None:
        """Begin the memory of robots that were reset."""
        new = ~self._known[rows]
        if not new.any():
            return
        chosen = rows[new]
        self._known[chosen] = True
        self._standing[chosen] = True
        self._liftoff[chosen] = robots.feet[new]
        self._ground[chosen] = robots.feet[new][..., 2].mean(axis=1)
        self._anchor[chosen] = robots.base[new, :2]
        self._heading[chosen] = np.arctan2(robots.turn[new, 1, 0], robots.turn[new, 0, 0])
        self._last[chosen] = act_time
        self._gaits.reset(chosen)
        self.qp_solver.reset(chosen)

    def _plan(
        self, rows: IntArray, robots: Robots, commands: Commands, act_time: float, plans: PlanBatch
    ) -> None:
        n, model, mpc = len(rows), self._model, self.mpc
        half = 0.5 * self._settings.control_period
        elapsed = np.clip(act_time - self._last[rows], 0.0, _LONGEST_GAP)
        self._last[rows] = act_time
        schedule = self._gaits.advance(
            rows,
            elapsed,
            half,
            commands.gait,
            commands.orders,
            commands.period,
            commands.duty,
            np.linalg.norm(commands.velocity, axis=1),
            self._settings.lift_lead,
        )
        self._standing[rows] = ~schedule.swinging
        self._remember_feet(rows, robots, schedule)

        arm = robots.turn @ model.centre
        attitude = attitude_of_matrix(robots.turn)
        attitude[:, 2] += 2.0 * np.pi * np.rint((self._heading[rows] - attitude[:, 2]) / (2.0 * np.pi))
        body = Body(
            attitude=attitude,
            position=robots.base + arm,
            angular_velocity=robots.angular_velocity,
            velocity=robots.velocity + np.cross(robots.angular_velocity, arm),
        )
        cos, sin = np.cos(attitude[:, 2]), np.sin(attitude[:, 2])
        heading = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
        wanted = (heading @ commands.velocity[..., None])[..., 0]
        self._move_anchor(rows, robots, attitude, wanted, commands, elapsed)
        reference = self._reference(rows, wanted, commands)
        reference[..., 3:5] += self._support_shift(heading, schedule)[:, None]
        footholds = self._footholds(rows, robots, heading, wanted, commands, schedule)

        contacts = schedule.contacts(self._stage_middles - half)
        middles = self._stage_middles[:, None]
        path = body.position[:, None] + middles * body.velocity[:, None] * [1.0, 1.0, 0.0]
        places = self._places(robots, schedule, footholds, self._stage_middles - half)
        levers = places - path[:, :, None]
        inertia_inverse = robots.turn @ self._inertia_inverse @ robots.turn.transpose(0, 2, 1)
        share = np.where(contacts, model.mass * GRAVITY / np.maximum(contacts.sum(axis=2), 1)[..., None], 0.0)
        nominal = np.zeros((n, mpc.num_stages, 4, 3))
        nominal[..., 2] = share
        qps = mpc.form(
            body,
            reference,
            inertia_inverse,
            levers,
            contacts,
            self._weights * commands.weight_factors,
            nominal,
        )
        found = self.qp_solver.solve(rows, qps)
        plans.status[rows] = np.where(
            found.solved, Status.SOLVED, np.where(qps.pairs == 0, Status.INFEASIBLE, Status.DIVERGED)
        )
        plans.iterations[rows] = found.iterations
        plans.cost[rows] = found.cost
        plans.residual[rows] = found.residual

        forces = found.forces[:, self._command_stage]
        times = np.concatenate([self._command_middles, self._command_ends])
        positions, rates = mpc.motion(body, inertia_inverse, levers, found.forces, times)
        self._command(rows, robots, schedule, footholds, commands, forces, positions, rates, plans)

    def _remember_feet(self, rows: IntArray, robots: Robots, schedule: Schedule) -> None:
        """Note where feet leave the ground, and how high the ground is."""
        self._liftoff[rows] = np.where(schedule.started[..., None], robots.feet, self._liftoff[rows])
        # Of the feet that should stand, the lowest is the likeliest to do so; a robot thrown up lifts no ground.
        standing = ~schedule.swinging | schedule.started
        lowest = np.where(standing, robots.feet[..., 2], np.inf).min(axis=1)
        rise = np.where(np.isfinite(lowest), _GROUND_RATE * self._settings.control_period, 0.0)
        self._ground[rows] = np.minimum(lowest, self._ground[rows] + rise)

    def _move_anchor(
        self,
        rows: IntArray,
        robots: Robots,
        attitude: FloatArray,
        wanted: FloatArray,
        commands: Commands,
        elapsed: FloatArray,
    ) -> None:
        """Let the place and the heading where robots should be follow the command, on a leash."""
        here = robots.base[:, :2]
        offset = self._anchor[rows] + elapsed[:, None] * wanted - here
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        self._anchor[rows] = here + offset * np.minimum(1.0, _ANCHOR_LEASH / np.maximum(length, 1e-9))
        turned = self._heading[rows] + elapsed * commands.yaw_rate - attitude[:, 2]
        self._heading[rows] = attitude[:, 2] + np.clip(turned, -_YAW_LEASH, _YAW_LEASH)

    def _reference(self, rows: IntArray, wanted: FloatArray, commands: Commands) -> FloatArray:
        """Attitude, position, angular velocity and velocity at the end of each stage, (n, N, 12)."""
        times = self.mpc.times[1:]
        n = len(rows)
        reference = np.zeros((n, len(times), 12))
        turned = commands.yaw_rate[:, None] * times
        reference[..., 0:2] = commands.attitude[:, None]
        reference[..., 2] = self._heading[rows][:, None] + turned
        reference[..., 3:5] = self._anchor[rows][:, None] + times[:, None] * _turned(wanted, 0.5 * turned)
        foot = self._ground[rows] - self._model.foot_radius
        reference[..., 5] = (foot + commands.height + self._model.centre[2])[:, None]
        # The anchor is one of the base; its centre of mass lies elsewhere.
        centre = self._model.centre[:2]
        cos, sin = np.cos(reference[..., 2]), np.sin(reference[..., 2])
        reference[..., 3] += cos * centre[0] - sin * centre[1]
        reference[..., 4] += sin * centre[0] + cos * centre[1]
        reference[..., 8] = commands.yaw_rate[:, None]
        reference[..., 9:11] = _turned(wanted, turned)
        return reference

    def _support_shift(self, heading: FloatArray, schedule: Schedule) -> FloatArray:
        """Where to lean while feet are held up by order: over the middle of the others, (n, 2)."""
        hips = self._model.legs.hips[:, :2] + np.stack([np.zeros(4), self._model.legs.lateral], axis=1)
        rest = ~schedule.lifted
        middle = (rest[..., None] * hips).sum(axis=1) / np.maximum(rest.sum(axis=1), 1)[:, None]
        shift: FloatArray = (heading @ middle[..., None])[..., 0]
        return shift

    def _footholds(
        self,
        rows: IntArray,
        robots: Robots,
        heading: FloatArray,
        wanted: FloatArray,
        commands: Commands,
        schedule: Schedule,
    ) -> FloatArray:
        """Where each foot will step next, (n, 4, 3)."""
        model = self._model
        landing = np.minimum(schedule.landing, self.mpc.times[-1])
        hips = model.legs.hips[:, :2] + np.stack([np.zeros(4), model.legs.lateral], axis=1)
        arms = hips @ heading.transpose(0, 2, 1)
        spin = np.stack([-arms[..., 1], arms[..., 0]], axis=-1)
        turn_rate = commands.yaw_rate[:, None, None]
        velocity = robots.velocity[:, None, :2] + robots.angular_velocity[:, None, 2:] * spin
        command = wanted[:, None] + turn_rate * spin
        ahead = _turned_each(arms, commands.yaw_rate[:, None] * landing)
        below = robots.base[:, None, :2] + landing[..., None] * robots.velocity[:, None, :2] + ahead
        offsets = commands.footholds @ heading.transpose(0, 2, 1)
        places = below + offsets
        places += step(velocity, command, commands.yaw_rate, schedule.stance_time, commands.height)
        return np.concatenate(
            [places, np.broadcast_to(self._ground[rows][:, None, None], (len(rows), 4, 1))], axis=2
        )

    def _places(
        self, robots: Robots, schedule: Schedule, footholds: FloatArray, times: FloatArray
    ) -> FloatArray:
        """Where feet stand at `times`, if they do, (n, m, 4, 3): where they are now, or after a step."""
        stepped = schedule.swinging[:, None] | (times[:, None] >= schedule.landing[:, None])
        return np.where(stepped[..., None], footholds[:, None], robots.feet[:, None])

    def _command(
        self,
        rows: IntArray,
        robots: Robots,
        schedule: Schedule,
        footholds: FloatArray,
        commands: Commands,
        forces: FloatArray,
        positions: FloatArray,
        rates: FloatArray,
        plans: PlanBatch,
    ) -> None:
        """Write joint targets and torques, and the states that they should lead to."""
        model, count = self._model, self._settings.num_stages
        half = 0.5 * self._settings.control_period
        times: FloatArray = self._command_middles - half
        contacts = schedule.contacts(times)
        attitude, angular = positions[:, :count, :3], rates[:, :count, :3]
        turn = matrix_of_attitude(attitude)
        arm = turn @ model.centre
        base = positions[:, :count, 3:] - arm
        velocity = rates[:, :count, 3:] - np.cross(angular, arm)

        progress = schedule.progress_at(times)
        start = np.where(schedule.swinging[..., None], self._liftoff[rows], robots.feet)
        own = np.where(schedule.swinging, schedule.rate, 1.0 / schedule.swing_time)
        clearance = np.where(commands.clearance > 0.0, commands.clearance, self._settings.clearance)
        shape = progress.shape
        swung, swing_velocity = swing(
            np.broadcast_to(start[:, None], (*shape, 3)),
            np.broadcast_to(footholds[:, None], (*shape, 3)),
            np.broadcast_to(clearance[:, None, None], shape),
            progress,
            np.broadcast_to(own[:, None], shape),
        )
        at_ceiling = (schedule.ceiling[:, None] < 1.0) & (progress == schedule.ceiling[:, None])
        swing_velocity = np.where(at_ceiling[..., None], 0.0, swing_velocity)
        stand = contacts[..., None]
        feet = np.where(stand, self._places(robots, schedule, footholds, times), swung)
        foot_velocity = np.where(stand, 0.0, swing_velocity)

        arms = feet - base[:, :, None]
        relative = foot_velocity - velocity[:, :, None] - np.cross(angular[:, :, None], arms)
        joints = model.legs.joints(arms @ turn - model.legs.hips)
        speeds = model.legs.joint_rates(joints, relative @ turn)
        torques = model.legs.torques(joints, np.where(stand, forces, 0.0) @ turn)
        inputs = np.stack([joints, speeds, torques], axis=-1).reshape(len(rows), count, 12, 3)
        plans.inputs[rows] = np.clip(inputs, -self._upper, self._upper).reshape(len(rows), count, 36)

        self._predict_states(rows, robots, joints, speeds, positions[:, count:], rates[:, count:], plans)

    def _predict_states(
        self,
        rows: IntArray,
        robots: Robots,
        joints: FloatArray,
        speeds: FloatArray,
        positions: FloatArray,
        rates: FloatArray,
        plans: PlanBatch,
    ) -> None:
        n, count = len(rows), self._settings.num_stages
        states = np.empty((n, count + 1, 37))
        states[:, 0, 0:3], states[:, 0, 3:7] = (
            robots.base,
            quaternion_of_attitude(attitude_of_matrix(robots.turn)),
        )
        states[:, 0, 7:19], states[:, 0, 25:37] = robots.joints.reshape(n, 12), robots.rates.reshape(n, 12)
        states[:, 0, 19:22] = robots.velocity
        states[:, 0, 22:25] = (robots.angular_velocity[:, None] @ robots.turn)[:, 0]
        turn = matrix_of_attitude(positions[..., :3])
        arm = turn @ self._model.centre
        half = 0.5 * self._settings.control_period
        states[:, 1:, 0:3] = positions[..., 3:] - arm
        states[:, 1:, 3:7] = quaternion_of_attitude(positions[..., :3])
        states[:, 1:, 7:19] = (joints + half * speeds).reshape(n, count, 12)
        states[:, 1:, 19:22] = rates[..., 3:] - np.cross(rates[..., :3], arm)
        states[:, 1:, 22:25] = (rates[..., None, :3] @ turn)[..., 0, :]
        states[:, 1:, 25:37] = speeds.reshape(n, count, 12)
        plans.states[rows] = states


def _turned(vectors: FloatArray, angles: FloatArray) -> FloatArray:
    """Horizontal vectors, (n, 2), turned by angles, (n, m): (n, m, 2)."""
    return _turned_each(np.broadcast_to(vectors[:, None], (*angles.shape, 2)), angles)


def _turned_each(vectors: FloatArray, angles: FloatArray) -> FloatArray:
    """Horizontal vectors, (n, m, 2), turned by angles, (n, m)."""
    cos, sin = np.cos(angles), np.sin(angles)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
