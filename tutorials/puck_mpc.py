"""The MPC of tutorial 03: it lives in worker processes, so its file imports what it needs and nothing else."""

import casadi as ca
import numpy as np

from rt_lrhc.cluster.adapter import OneRobotController, RobotByRobot
from rt_lrhc.cluster.controller import ControllerSpec

LIMIT = 3.0  # N


class PuckMPC(OneRobotController):
    """Plans the forces on one puck by solving a QP."""

    def __init__(self, stages=20, stage_duration=0.05, effort=0.01):
        self.spec = ControllerSpec(
            state_names=("position", "velocity"),
            input_names=("force",),
            reference_names=("position",),
            state_units=("m", "m/s"),
            input_units=("N",),
            reference_units=("m",),
            num_stages=stages,
            stage_duration=stage_duration,
            input_lower=(-LIMIT,),
            input_upper=(LIMIT,),
            safe_input=(0.0,),
            backend="piqp",
        )
        forces, start, goal = ca.SX.sym("u", stages), ca.SX.sym("x", 2), ca.SX.sym("goal")
        x, cost = start, 0
        for k in range(stages):
            x = ca.vertcat(*move(x, forces[k], stage_duration))
            cost += (x[0] - goal) ** 2 + 0.1 * x[1] ** 2 + effort * forces[k] ** 2
        problem = {"x": forces, "p": ca.vertcat(start, goal), "f": cost}
        self.solver = ca.qpsol("mpc", "piqp", problem, {"error_on_fail": True})

    def solve_one(self, state, reference, input_in_force, act_delay):
        predicted = move(state, input_in_force[0], act_delay)  # where the puck will be when this plan acts
        return np.array(self.solver(p=[*predicted, reference[0]], lbx=-LIMIT, ubx=LIMIT)["x"])


def move(x, force, duration):
    """One kilogram under a constant force: position (m) and velocity (m/s) after `duration`."""
    return x[0] + x[1] * duration + force * duration**2 / 2, x[1] + force * duration


def make_mpc(num_robots):
    """Build the controllers of a worker: the factory that the task names."""
    return RobotByRobot([PuckMPC() for _ in range(num_robots)])
