"""Controllers that take as long as they are told, for `benchmarks/cluster.py`."""

import time

from rt_lrhc.cluster.controller import PlanBatch, SolveRequest
from rt_lrhc.testing.echo import EchoController


class Burning(EchoController):
    """Burns thread CPU time for each active row, then plans as an `EchoController`."""

    def __init__(self, num_robots: int, burn: float) -> None:
        super().__init__(num_robots, num_inputs=4, num_stages=10)
        self._burn = burn

    def solve(self, request: SolveRequest, plans: PlanBatch) -> None:
        """Burn, then plan."""
        end = time.thread_time() + self._burn * int(request.active.sum())
        while time.thread_time() < end:
            pass
        super().solve(request, plans)


def make(num_robots: int, burn: float) -> Burning:
    """Build the controllers of a worker that take `burn` s of CPU time a robot."""
    return Burning(num_robots, burn)
