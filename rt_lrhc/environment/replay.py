"""A recorded episode, run again under virtual time, and compared with the record value by value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rt_lrhc.environment.env import RealTimeEnv
from rt_lrhc.environment.recording import Recording
from rt_lrhc.environment.vector_env import RealTimeVectorEnv


@dataclass(frozen=True)
class Difference:
    """Where a replay first differs from its record.

    Attributes:
        step: The time-step; 0 is the reset.
        what: The observation's leaf, or the outcome.
        index: Place in that array.
        recorded: The value on record.
        replayed: The value of the replay.
    """

    step: int
    what: str
    index: tuple[int, ...]
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        where = f"{self.what}{list(self.index) if self.index else ''}"
        return f"time-step {self.step}: {where} was {self.recorded!r}, is {self.replayed!r}"


def replay(recording: Recording) -> Difference | None:
    """Run a recorded episode again under virtual time.

    Returns:
        The first difference; None if every observation, reward and end is the same.

    Raises:
        ConfigurationError: If the recorded configuration does not give an environment here.
    """
    config = {**recording.environment_config(), "clock": "virtual"}
    config.pop("runner", None)  # the same values on each, and this one starts no process
    robots = recording.num_envs
    env = RealTimeEnv(config) if robots is None else RealTimeVectorEnv(robots, config)
    try:
        return _compare(recording, _run(env, recording))
    finally:
        env.close()


def _run(env: RealTimeEnv | RealTimeVectorEnv, recording: Recording) -> Recording:
    calls = list(recording.calls)

    def make_calls(step: int) -> None:
        while calls and calls[0].step <= step:
            call = calls.pop(0)
            getattr(env, call.method)(*call.arguments)

    make_calls(-1)
    env.start_recording()
    env.restart(recording.root, {**recording.options, "schedule": recording.schedule})
    for step, action in enumerate(recording.actions):
        make_calls(step)
        env.step(action)
    return env.recording()


def _compare(recorded: Recording, replayed: Recording) -> Difference | None:
    differences = [
        *(
            _first(f"observation_{index}", 0, old, new)
            for index, (old, new) in enumerate(zip(recorded.observations, replayed.observations, strict=True))
        ),
        *(_first(name, 1, old, replayed.outcomes[name]) for name, old in recorded.outcomes.items()),
    ]
    return min((one for one in differences if one is not None), key=lambda one: one.step, default=None)


def _first(what: str, first_step: int, old: npt.NDArray[Any], new: npt.NDArray[Any]) -> Difference | None:
    """Return the first place where two arrays, stacked over time-steps, differ; NaN equals NaN."""
    same = (old == new) | ((old != old) & (new != new))
    if same.all():
        return None
    step, *index = (int(place[0]) for place in np.nonzero(~same))
    where = (step, *index)
    return Difference(step + first_step, what, tuple(index), old[where].item(), new[where].item())
