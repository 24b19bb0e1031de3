"""A Gymnasium environment whose world does not wait.

Importing it registers `rt_lrhc:rt-v0` (wall clock) and `rt_lrhc:rt-sim-v0` (virtual time) and loads neither torch nor
casadi.
"""

import gymnasium

from rt_lrhc.config import DEFAULT_CONFIG_DICT, RealTimeConfig
from rt_lrhc.environment.engine import Schedule
from rt_lrhc.errors import (
    ClusterError,
    ClusterLost,
    ClusterTimeout,
    ConfigurationError,
    ControllerError,
    EnvironmentStateError,
    InterfaceError,
    InterfaceTimeout,
    LayoutError,
    NamespaceBusy,
    RealTimeError,
    RenderError,
    SharedMemoryError,
)
from rt_lrhc.interface import RealTimeInterface, VectorInterface
from rt_lrhc.timing.realtime import RealTimeOptions

__version__ = "0.1.0"

for _id, _clock in (("rt-v0", "wall"), ("rt-sim-v0", "virtual")):
    gymnasium.register(
        id=_id,
        entry_point="rt_lrhc.environment.env:RealTimeEnv",
        vector_entry_point="rt_lrhc.environment.vector_env:RealTimeVectorEnv",
        kwargs={"default_clock": _clock},
        nondeterministic=_clock == "wall",
    )

__all__ = [
    "DEFAULT_CONFIG_DICT",
    "ClusterError",
    "ClusterLost",
    "ClusterTimeout",
    "ConfigurationError",
    "ControllerError",
    "EnvironmentStateError",
    "InterfaceError",
    "InterfaceTimeout",
    "LayoutError",
    "NamespaceBusy",
    "RealTimeConfig",
    "RealTimeError",
    "RealTimeInterface",
    "RealTimeOptions",
    "RenderError",
    "Schedule",
    "SharedMemoryError",
    "VectorInterface",
]
