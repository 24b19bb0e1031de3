"""The mini cheetah's MPC: from twist, posture, gait and orders for the feet to joint targets and torques."""

from typing import Any

from rt_lrhc.controllers.quadruped.controller import QuadrupedController
from rt_lrhc.controllers.quadruped.model import mini_cheetah_model
from rt_lrhc.controllers.quadruped.settings import QuadrupedSettings


def make_mini_cheetah(num_robots: int, **settings: Any) -> QuadrupedController:
    """Build the controller of `num_robots` mini cheetahs: a factory for a cluster.

    Args:
        num_robots: B.
        **settings: Fields of `QuadrupedSettings`.

    Raises:
        ConfigurationError: If a setting is unknown or out of range.
    """
    return QuadrupedController(mini_cheetah_model(), num_robots, QuadrupedSettings.of(settings))
