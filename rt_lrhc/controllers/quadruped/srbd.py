r"""The quadruped as one rigid body under the forces of the ground on its feet, and the QP of its convex MPC.

With the position p and velocity v of the centre of mass, the attitude Theta (roll, pitch, yaw), the angular velocity
omega, all in the world, forces f_i on feet at levers r_i from the centre of mass, and small roll and pitch,

    m dv/dt = sum_i f_i + m g            dp/dt = v
    I domega/dt = sum_i r_i x f_i        dTheta/dt = Rz(yaw)' omega

without the gyroscopic term, yaw and I held over the horizon. Source: Di Carlo et al. (2018), Dynamic locomotion in the
MIT Cheetah 3 through convex model-predictive control, IROS.

Two integrators in a row, under inputs that are constant over each stage, have a closed form:

    velocity_k = velocity_0 + sum_{j<k} h_j a_j
    position_k = position_0 + t_k velocity_0 + sum_{j<k} h_j (t_k - t_j - h_j / 2) a_j

Its weights depend on the lengths of the stages alone. So the condensed QP needs no powers of matrices: its Hessian is

    H[(j,i), (l,i')] = Wv[j,l] Gv_ji' Qv Gv_li' + Wp[j,l] Gp_ji' Qp Gp_li'  (+ a regularisation)

with Gv, Gp what a force does to the accelerations, and W the sums of products of those weights: two batched products
for all robots. Its variables are the forces of feet that stand; feet in the air have none.
"""

from dataclasses import dataclass

import numpy as np

from rt_lrhc.cluster.controller import BoolArray, FloatArray, IntArray

GRAVITY = 9.81
"""m/s^2."""

_WIDTH = 10  # QPs are padded to a multiple of this number of pairs


@dataclass(frozen=True)
class Body:
    """State of n bodies in the world: attitude (roll, pitch, yaw), position of the centre of mass, and their rates.

    Each is (n, 3), in rad, m, rad/s, m/s.
    """

    attitude: FloatArray
    position: FloatArray
    angular_velocity: FloatArray
    velocity: FloatArray


@dataclass(frozen=True)
class ForceQps:
    """Condensed QPs of n robots: minimise u' H u / 2 + g' u over the forces of feet that stand.

    Each robot's variables are its first `3 pairs[n]`: (stage, foot) pairs in order, x, y, z. The rest is padding.

    Attributes:
        hessian: H, (n, 3 P, 3 P).
        gradient: g, (n, 3 P).
        pairs: Number of pairs of each robot, (n,).
        index: Place of each pair in a (stages, 4) array, flat, (n, P).
    """

    hessian: FloatArray
    gradient: FloatArray
    pairs: IntArray
    index: IntArray


@dataclass(frozen=True)
class _Task:
    """What the QPs of n robots are formed from, (n, ...); errors are summed over the stages that a force acts on."""

    flat: BoolArray
    index: IntArray
    levers: FloatArray
    nominal: FloatArray
    inertia_inverse: FloatArray
    turn_back: FloatArray
    state_weights: FloatArray
    position_errors: FloatArray
    rate_errors: FloatArray


class RigidBodyMpc:
    """Forms the QPs of many robots in one pass, and turns forces into motions."""

    def __init__(self, stage_durations: FloatArray, mass: float, regularisation: float) -> None:
        """Prepare a horizon.

        Args:
            stage_durations: Length of each stage, s, (N,).
            mass: Mass, kg.
            regularisation: Cost of a force's square, 1/N^2.
        """
        self.stage_durations = stage_durations
        self.mass = mass
        self._regularisation = regularisation
        self.times = np.concatenate([[0.0], np.cumsum(stage_durations)])
        self._velocity_weights, self._position_weights = self.weights(self.times[1:])
        self._velocity_gram = self._velocity_weights.T @ self._velocity_weights
        self._position_gram = self._position_weights.T @ self._position_weights

    @property
    def num_stages(self) -> int:
        """N."""
        return len(self.stage_durations)

    def weights(self, times: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What the acceleration of each stage has added to velocity and position at `times`, (m,): (m, N) twice."""
        spent = np.clip(times[:, None] - self.times[:-1], 0.0, self.stage_durations)
        return spent, spent * np.maximum(times[:, None] - self.times[:-1] - 0.5 * spent, 0.0)

    def form(
        self,
        body: Body,
        reference: FloatArray,
        inertia_inverse: FloatArray,
        levers: FloatArray,
        contacts: BoolArray,
        state_weights: FloatArray,
        nominal: FloatArray,
    ) -> ForceQps:
        """Form the QPs of n robots.

        Args:
            body: Their states at the beginning of stage 0.
            reference: Attitude, position, angular velocity and velocity at the end of each stage, (n, N, 12).
            inertia_inverse: Inverse of the inertia in the world, (n, 3, 3), 1/(kg m^2).
            levers: Feet less centre of mass, (n, N, 4, 3), m.
            contacts: Which feet stand in which stage, (n, N, 4).
            state_weights: Weights of the squared errors, in the order of `reference`, (n, 12).
            nominal: Forces from which deviations cost, (n, N, 4, 3), N.
        """
        n, stages = len(contacts), self.num_stages
        flat = contacts.reshape(n, 4 * stages)
        pairs = flat.sum(axis=1)
        # Rounded up by a robot's own pairs alone: sums then round in the same way, whoever its neighbours are.
        widths = np.minimum(-(-pairs // _WIDTH) * _WIDTH, 4 * stages)
        width = int(widths.max(initial=0))
        index = np.argsort(~flat, axis=1, kind="stable")[:, :width]
        position_error, rate_error = self._free(body)
        position_error -= reference[..., :6]
        rate_error -= reference[..., 6:]
        position_weights, rate_weights = state_weights[:, None, :6], state_weights[:, None, 6:]
        task = _Task(
            flat=flat,
            index=index,
            levers=levers.reshape(n, 4 * stages, 3),
            nominal=nominal.reshape(n, 4 * stages, 3),
            inertia_inverse=inertia_inverse,
            turn_back=_yaw(body.attitude[:, 2], transpose=True),
            state_weights=state_weights,
            position_errors=self._position_weights.T @ (position_error * position_weights),
            rate_errors=self._velocity_weights.T @ (rate_error * rate_weights),
        )
        groups = np.unique(widths)
        if len(groups) == 1:
            return ForceQps(*self._condense(task, np.arange(n), width), pairs, index)
        hessian, gradient = np.zeros((n, 3 * width, 3 * width)), np.zeros((n, 3 * width))
        for own in groups:
            rows = np.flatnonzero(widths == own)
            size = 3 * int(own)
            hessian[rows, :size, :size], gradient[rows, :size] = self._condense(task, rows, int(own))
        return ForceQps(hessian, gradient, pairs, index)

    def _condense(self, task: "_Task", robots: IntArray, width: int) -> tuple[FloatArray, FloatArray]:
        """Hessian (k, 3 width, 3 width) and gradient (k, 3 width) of the chosen robots, (k,)."""
        k = len(robots)
        rows, index = robots[:, None], task.index[robots, :width]
        valid = task.flat[rows, index]
        stage = index // 4
        # What a force does to the angular (first) and linear accelerations: (k, 3, 3 P).
        angular = (
            task.inertia_inverse[robots][:, None] @ _skew(task.levers[rows, index]) * valid[..., None, None]
        )
        angular = angular.transpose(0, 2, 1, 3).reshape(k, 3, 3 * width)
        linear = np.broadcast_to((np.eye(3) / self.mass)[:, None], (3, width, 3)).reshape(3, 3 * width)
        linear = linear * np.repeat(valid, 3, axis=1)[:, None]
        rates = np.concatenate([angular, linear], axis=1)
        positions = np.concatenate([task.turn_back[robots] @ angular, linear], axis=1)
        weights = task.state_weights[robots]
        hessian = _weighted(_gram(rates, weights[:, 6:]), self._velocity_gram, stage)
        hessian += _weighted(_gram(positions, weights[:, :6]), self._position_gram, stage)
        diagonal = np.arange(3 * width)
        hessian[:, diagonal, diagonal] += self._regularisation
        gradient = _project(positions, task.position_errors[rows, stage])
        gradient += _project(rates, task.rate_errors[rows, stage])
        nominal = task.nominal[rows, index] * valid[..., None]
        gradient -= self._regularisation * nominal.reshape(k, 3 * width)
        return hessian, gradient

    def motion(
        self,
        body: Body,
        inertia_inverse: FloatArray,
        levers: FloatArray,
        forces: FloatArray,
        times: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Where forces take the bodies.

        Args:
            body: States at the beginning of stage 0.
            inertia_inverse: As in `form`.
            levers: As in `form`.
            forces: Forces on the feet in each stage, (n, N, 4, 3), N.
            times: When to tell, (m,), s.

        Returns:
            Attitude and position, (n, m, 6), and angular velocity and velocity, (n, m, 6).
        """
        accelerations = np.concatenate(
            [
                np.cross(levers, forces).sum(axis=2) @ inertia_inverse.transpose(0, 2, 1),
                forces.sum(axis=2) / self.mass,
            ],
            axis=2,
        )
        velocity_weights, position_weights = self.weights(times)
        positions, rates = self._free(body, times)
        rates += velocity_weights @ accelerations
        turned = accelerations.copy()
        turned[..., :3] = accelerations[..., :3] @ _yaw(body.attitude[:, 2])
        positions += position_weights @ turned
        return positions, rates

    def _free(self, body: Body, times: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Where the bodies go by themselves: positions (n, m, 6) and rates (n, m, 6)."""
        at = (self.times[1:] if times is None else times)[:, None]
        turn_rates = (body.angular_velocity[:, None] @ _yaw(body.attitude[:, 2]))[:, 0]
        rates = np.concatenate([body.angular_velocity, body.velocity], axis=1)[:, None] + 0.0 * at
        positions = (
            np.concatenate([body.attitude, body.position], axis=1)[:, None]
            + at * np.concatenate([turn_rates, body.velocity], axis=1)[:, None]
        )
        rates[..., 5] -= GRAVITY * at[:, 0]
        positions[..., 5] -= 0.5 * GRAVITY * at[:, 0] ** 2
        return positions, rates


def _skew(vectors: FloatArray) -> FloatArray:
    """Matrices of the cross products with `vectors`, (..., 3): (..., 3, 3)."""
    matrix = np.zeros((*vectors.shape, 3))
    matrix[..., 0, 1], matrix[..., 0, 2], matrix[..., 1, 2] = (
        -vectors[..., 2],
        vectors[..., 1],
        -vectors[..., 0],
    )
    matrix[..., 1, 0], matrix[..., 2, 0], matrix[..., 2, 1] = (
        vectors[..., 2],
        -vectors[..., 1],
        vectors[..., 0],
    )
    return matrix


def _yaw(yaw: FloatArray, *, transpose: bool = False) -> FloatArray:
    """Rotation about z, or its transpose, (n, 3, 3)."""
    matrix = np.zeros((len(yaw), 3, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(yaw)
    matrix[:, 1, 0] = np.sin(yaw) * (-1.0 if transpose else 1.0)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, 2, 2] = 1.0
    return matrix


def _gram(columns: FloatArray, weights: FloatArray) -> FloatArray:
    return columns.transpose(0, 2, 1) @ (columns * weights[:, :, None])


def _weighted(products: FloatArray, gram: FloatArray, stage: IntArray) -> FloatArray:
    """Multiply the 3 x 3 blocks of `products`, (n, 3 P, 3 P), by the entries of `gram` for their stages."""
    n, width = stage.shape
    blocks = products.reshape(n, width, 3, width, 3)
    blocks *= gram[stage[:, :, None], stage[:, None, :]][:, :, None, :, None]
    return products


def _project(columns: FloatArray, errors: FloatArray) -> FloatArray:
    """Products of each variable's column, (n, 6, 3 P), with its pair's errors, (n, P, 6)."""
    n, width = errors.shape[:2]
    products: FloatArray = np.einsum("nipc,npi->npc", columns.reshape(n, 6, width, 3), errors)
    return products.reshape(n, 3 * width)
