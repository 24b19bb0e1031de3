"""The drone of `rt_lrhc.interfaces.drone` as a task of the registry."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def drone() -> dict[str, Any]:
    """A point drone is steered to a target over a slow radio link; one robot, no MPC."""
    from rt_lrhc.interfaces.drone import drone_config

    return drone_config()


def fly_to_target(observation: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """An agent by hand: a velocity towards the target, slow enough for the delay of the radio."""
    return np.asarray(2.5 * (observation["target"] - observation["position"]))
