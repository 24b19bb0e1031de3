"""Plants on MuJoCo's batched CPU simulation (`mujoco.batch`): N copies of one model on a thread pool."""

import copy
import math
from collections.abc import Sequence
from itertools import chain

import mujoco
import numpy as np
import numpy.typing as npt
import torch
from mujoco import batch

from rt_lrhc.errors import ConfigurationError, EnvironmentStateError
from rt_lrhc.simulators.plant import Plant, simulation_steps

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_JOINT_POSITIONS = {
    mujoco.mjtJoint.mjJNT_FREE: 7,
    mujoco.mjtJoint.mjJNT_BALL: 4,
    mujoco.mjtJoint.mjJNT_SLIDE: 1,
    mujoco.mjtJoint.mjJNT_HINGE: 1,
}
_JOINT_VELOCITIES = {
    mujoco.mjtJoint.mjJNT_FREE: 6,
    mujoco.mjtJoint.mjJNT_BALL: 3,
    mujoco.mjtJoint.mjJNT_SLIDE: 1,
    mujoco.mjtJoint.mjJNT_HINGE: 1,
}


class MujocoBatchPlant(Plant):
    """N copies of an MJCF model, stepped in one call with the global interpreter lock released.

    A robot's state is the positions of the named joints, then their velocities, in the order in which they are named,
    whatever their order in the model. Equal states and inputs give bitwise equal trajectories, whatever the number of
    robots and threads. A robot whose simulation diverges keeps its non-finite state until it is reset.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_robots: int,
        *,
        joint_names: Sequence[str],
        actuator_names: Sequence[str],
        state_names: Sequence[str],
        input_names: Sequence[str] | None = None,
        input_lower: npt.ArrayLike | None = None,
        input_upper: npt.ArrayLike | None = None,
        simulation_timestep: float | None = None,
        threads: int = 1,
    ) -> None:
        """Build the simulations, all at the model's default state.

        Args:
            model: The compiled model of one robot; the plant keeps a copy.
            num_robots: N, at least 1.
            joint_names: Joints that make up the state.
            actuator_names: Actuators whose controls, one or more each, make up the inputs. The others get zero.
            state_names: Names of the nx states: positions, then velocities, of `joint_names`.
            input_names: Names of the nu inputs; None for the actuators' names, where each has one control.
            input_lower: Lower bounds of the inputs, (nu,); None for the actuators' control ranges.
            input_upper: Upper bounds of the inputs, (nu,); None for the actuators' control ranges.
            simulation_timestep: Integration step, s; None for the model's.
            threads: Threads that share the robots, the caller's included. More than one competes with the workers.

        Raises:
            ConfigurationError: If a name or a number does not fit the model.
        """
        for name, value in (("num_robots", num_robots), ("threads", threads)):
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")
        model = copy.copy(model)
        if simulation_timestep is not None:
            if not 0.0 < simulation_timestep < math.inf:
                raise ConfigurationError(
                    f"simulation_timestep must be positive, in s, got {simulation_timestep}"
                )
            model.opt.timestep = simulation_timestep
        # MuJoCo would put a diverged robot back at its default state in the middle of a step, unseen.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        joints = [_object_id(model, mujoco.mjtObj.mjOBJ_JOINT, "joint", name) for name in joint_names]
        actuators = [
            _object_id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, "actuator", name) for name in actuator_names
        ]
        self._controls = np.concatenate(
            [model.actuator_ctrladr[a] + np.arange(model.actuator_ctrlnum[a]) for a in actuators]
        ).astype(np.intp)
        if input_lower is None or input_upper is None:
            for name, actuator in zip(actuator_names, actuators, strict=True):
                if not model.actuator_ctrllimited[model.actuator_ctrladr[actuator]]:
                    raise ConfigurationError(
                        f"actuator {name!r} must have a ctrlrange in the model, and has none"
                    )
        self._position_columns = _columns(model.jnt_qposadr, model, joints, _JOINT_POSITIONS)
        self._velocity_columns = _columns(model.jnt_dofadr, model, joints, _JOINT_VELOCITIES)
        self._nq, self._nv = len(self._position_columns), len(self._velocity_columns)
        if len(state_names) != self._nq + self._nv:
            raise ConfigurationError(
                f"state_names must name {self._nq} positions and {self._nv} velocities of the joints "
                f"{', '.join(joint_names)}, got {len(state_names)} names"
            )
        self.num_robots = num_robots
        self.simulation_timestep = float(model.opt.timestep)
        self.state_names = tuple(state_names)
        self.velocity_names = self.state_names[self._nq :]
        self.input_names = tuple(actuator_names if input_names is None else input_names)
        limits = model.actuator_ctrlrange[self._controls]
        self._lower: FloatArray = np.array(
            limits[:, 0] if input_lower is None else input_lower, dtype=np.float64
        )
        self._upper: FloatArray = np.array(
            limits[:, 1] if input_upper is None else input_upper, dtype=np.float64
        )
        for field, length in (
            ("input_names", len(self.input_names)),
            ("input_lower", len(self._lower)),
            ("input_upper", len(self._upper)),
        ):
            if length != len(self._controls):
                raise ConfigurationError(
                    f"{field} must have {len(self._controls)} entries, one for each control of the actuators "
                    f"{', '.join(actuator_names)}, got {length}"
                )
        self.input_lower = torch.from_numpy(self._lower.copy())
        self.input_upper = torch.from_numpy(self._upper.copy())
        self._batch: batch.Batch | None = batch.Batch(model, num_robots, threads)
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        # Live views of the rows that MuJoCo loads at its next call.
        self._qpos: FloatArray = self._batch.bind("qpos")
        self._qvel: FloatArray = self._batch.bind("qvel")
        self._ctrl: FloatArray = self._batch.bind("ctrl")
        self._sensors: FloatArray | None = self._batch.bind("sensordata") if model.nsensor else None
        self._history: FloatArray | None = self._batch.bind("history") if model.nhistory else None

    @property
    def state(self) -> torch.Tensor:
        """States of all robots now, (N, nx) float64: a copy, which later steps do not change."""
        self._open_batch()
        parts = (self._qpos[:, self._position_columns], self._qvel[:, self._velocity_columns])
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def reset(self, state: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Put robots at given states, with inputs at zero and no memory of what they did before."""
        simulations = self._open_batch()
        rows = self._rows(mask)
        chosen = self._matrix("state", state, self.state_names)[rows]
        _check_finite("state", chosen, rows)
        simulations.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self._qpos[np.ix_(rows, self._position_columns)] = chosen[:, : self._nq]
        self._qvel[np.ix_(rows, self._velocity_columns)] = chosen[:, self._nq :]
        self._hold(self.initial_inputs(chosen), rows)
        if self._sensors is not None:
            simulations.forward(rows)

    def step(self, inputs: torch.Tensor, duration: float) -> None:
        """Hold `inputs`, saturated, for `duration`, in one call for all robots."""
        simulations = self._open_batch()
        steps = simulation_steps(duration, self.simulation_timestep)
        values = self._matrix("inputs", inputs, self.input_names)
        _check_finite("inputs", values, None)
        self._ctrl[:, self._controls] = self.apply_inputs(np.clip(values, self._lower, self._upper))
        simulations.step(nstep=steps)

    def initial_inputs(self, states: FloatArray) -> FloatArray:
        """Return the inputs, (k, nu), that act after a reset to `states`, (k, nx), until others arrive: zeros."""
        return np.zeros((len(states), len(self._controls)))

    def apply_inputs(self, inputs: FloatArray) -> FloatArray:
        """Return the controls, (N, nu), that `inputs`, (N, nu), become: what lies between them goes here."""
        return inputs

    def push(self, velocity: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Change velocities at once, as an impulse would."""
        self._open_batch()
        rows = self._rows(mask)
        chosen = self._matrix("velocity", velocity, self.velocity_names)[rows]
        _check_finite("velocity", chosen, rows)
        self._qvel[np.ix_(rows, self._velocity_columns)] += chosen

    def apply_wrench(self, body: str, wrench: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Let a force and a torque act at the centre of mass of a body, until changed or reset.

        Args:
            body: Name of the body.
            wrench: Force (N) and torque (N m) in the frame of the world, (N, 6); only the rows in `mask` are read.
            mask: Robots that are meant, (N,) bool; None for all.

        Raises:
            ConfigurationError: If the body is unknown, a shape is wrong, or a value that is read is not finite.
        """
        simulations = self._open_batch()
        rows = self._rows(mask)
        chosen = self._matrix("wrench", wrench, ("fx", "fy", "fz", "tx", "ty", "tz"))[rows]
        _check_finite("wrench", chosen, rows)
        identifier = _object_id(simulations.model, mujoco.mjtObj.mjOBJ_BODY, "body", body)
        simulations.bind("xfrc_applied")[rows, identifier] = chosen

    def sensor(self, name: str) -> torch.Tensor:
        """What a sensor of the model read in the last integration step, (N, its dimension) float64: a copy.

        After a reset it is what it reads with inputs at zero.

        Raises:
            ConfigurationError: If the model has no such sensor.
        """
        model = self._open_batch().model
        identifier = _object_id(model, mujoco.mjtObj.mjOBJ_SENSOR, "sensor", name)
        assert self._sensors is not None
        start, width = model.sensor_adr[identifier], model.sensor_dim[identifier]
        return torch.from_numpy(self._sensors[:, start : start + width].copy())

    def model_field(self, name: str) -> FloatArray:
        """Give each robot values of its own of a field of the model, and return them, (N, ...): write to change them.

        They outlast resets. After a change of masses, inertias, centres of mass or armatures call `update_constants`.

        Args:
            name: As in `mujoco.MjModel`, such as `"geom_friction"`, or `"opt.gravity"`.

        Raises:
            ConfigurationError: If the model has no such field, or it cannot differ between robots.
        """
        try:
            field: FloatArray = self._open_batch().expand(name)
        except (AttributeError, KeyError, ValueError) as error:
            raise ConfigurationError(
                f"field {name!r} of the model cannot differ between robots: {error}"
            ) from error
        return field

    def update_constants(self, mask: torch.Tensor | None = None) -> None:
        """Recompute what the model derives from masses and inertias that `model_field` changed."""
        self._open_batch().set_const(self._rows(mask))

    def save(self) -> FloatArray:
        """All that the next steps depend on, (N, size): states, inputs in delay, solver's warm start, applied wrenches.

        Fields that `model_field` changed are not part of it.
        """
        return np.array(self._open_batch().state)

    def restore(self, saved: FloatArray, mask: torch.Tensor | None = None) -> None:
        """Put robots back where they were at a `save`, so that they go on bitwise as they did then.

        Args:
            saved: What `save` of a plant of this model returned, (N, size); only the rows in `mask` are read.
            mask: Robots to put back, (N,) bool; None for all.

        Raises:
            ConfigurationError: If the shape is wrong.
        """
        state = self._open_batch().state
        if saved.shape != state.shape:
            raise ConfigurationError(
                f"saved must have shape {state.shape}, got {saved.shape}: save this plant first"
            )
        rows = self._rows(mask)
        state[rows] = saved[rows]

    def physics(self, robot: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """A robot's own model and its data at its state now, as `mj_forward` leaves them: to draw or to examine it.

        Both are copies. Write nothing to the model's assets (meshes, textures), which are shared.

        Raises:
            ConfigurationError: If there is no such robot.
        """
        simulations = self._open_batch()
        if not 0 <= robot < self.num_robots:
            raise ConfigurationError(f"robot must lie in [0, {self.num_robots - 1}], got {robot}")
        model, data = simulations.get_model(robot), simulations.get_data(robot)
        mujoco.mj_forward(model, data)
        return model, data

    def _hold(self, controls: FloatArray, rows: npt.NDArray[np.int32]) -> None:
        """Let the robots in `rows` have had `controls`, (k, nu), all the time, also on their way through delays."""
        self._ctrl[np.ix_(rows, self._controls)] = controls
        if self._history is None:
            return
        model = self._open_batch().model
        data = mujoco.MjData(model)
        for row in rows:
            mujoco.mj_resetData(model, data)
            for actuator in range(len(model.actuator_ctrlnum)):
                samples, first = model.actuator_history[actuator, 0], model.actuator_ctrladr[actuator]
                if samples > 0:
                    held = self._ctrl[row, first : first + model.actuator_ctrlnum[actuator]]
                    mujoco.mj_initCtrlHistory(model, data, actuator, None, np.tile(held, (samples, 1)))
            self._history[row] = data.history

    def close(self) -> None:
        """Free the simulations and their threads."""
        self._batch = None
        self._qpos = self._qvel = self._ctrl = np.empty((0, 0))
        self._sensors = self._history = None

    def _open_batch(self) -> batch.Batch:
        if self._batch is None:
            raise EnvironmentStateError(f"this {type(self).__name__} is closed; build another one")
        return self._batch

    def _rows(self, mask: torch.Tensor | None) -> npt.NDArray[np.int32]:
        """The chosen robots as sorted indices, (k,)."""
        if mask is None:
            return np.arange(self.num_robots, dtype=np.int32)
        if mask.dtype != torch.bool or tuple(mask.shape) != (self.num_robots,):
            raise ConfigurationError(
                f"mask must be a bool tensor of shape ({self.num_robots},), got {mask.dtype} {tuple(mask.shape)}"
            )
        return np.flatnonzero(mask.numpy(force=True)).astype(np.int32)

    def _matrix(self, name: str, tensor: torch.Tensor, columns: tuple[str, ...]) -> FloatArray:
        expected = (self.num_robots, len(columns))
        if tuple(tensor.shape) != expected:
            raise ConfigurationError(
                f"{name} must have shape {expected} ({', '.join(columns)}), got {tuple(tensor.shape)}"
            )
        return np.asarray(tensor.numpy(force=True), dtype=np.float64)


def _object_id(model: mujoco.MjModel, kind: mujoco.mjtObj, label: str, name: str) -> int:
    identifier = int(mujoco.mj_name2id(model, kind, name))
    if identifier < 0:
        count = {
            mujoco.mjtObj.mjOBJ_JOINT: model.njnt,
            mujoco.mjtObj.mjOBJ_ACTUATOR: len(model.actuator_ctrlnum),
            mujoco.mjtObj.mjOBJ_BODY: model.nbody,
            mujoco.mjtObj.mjOBJ_SENSOR: model.nsensor,
        }[kind]
        known = ", ".join(repr(mujoco.mj_id2name(model, kind, i)) for i in range(count))
        raise ConfigurationError(f"the model has no {label} {name!r}; it has {known}")
    return identifier


def _columns(
    addresses: npt.NDArray[np.int32],
    model: mujoco.MjModel,
    joints: list[int],
    widths: dict[mujoco.mjtJoint, int],
) -> npt.NDArray[np.intp]:
    ranges = (range(addresses[j], addresses[j] + widths[mujoco.mjtJoint(model.jnt_type[j])]) for j in joints)
    return np.fromiter(chain.from_iterable(ranges), dtype=np.intp)


def _check_finite(name: str, values: FloatArray, rows: npt.NDArray[np.int32] | None) -> None:
    if np.isfinite(values).all():
        return
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    robots = (bad if rows is None else rows[bad]).tolist()
    raise ConfigurationError(
        f"{name} must be finite, got {values[bad[0]].tolist()} for robot {robots[0]} (of {robots})"
    )
