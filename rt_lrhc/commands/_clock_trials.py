"""How punctual sending and capturing are, measured the same way for whatever keeps the time.

The interface takes the stamps, on entry of `send_control` and of the capture; lateness is a stamp minus the time on the
absolute grid at which that was due. A *floor* is a bare loop of absolute sleeps in a process of its own: what this
machine grants anybody at that moment.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from rt_lrhc.config import DEFAULT_CONFIG_DICT
from rt_lrhc.interface import RealTimeInterface, TupleSpace
from rt_lrhc.timing.realtime import SWITCH_INTERVAL, RealTimeOptions, apply_to_thread, sleep_until

FloatArray = npt.NDArray[np.float64]

CAPTURE = 0.5
"""Place of the capture in a time-step: in its middle, so that sending and capture do not wait for each other."""

SIZE = 4
_NS = 1_000_000_000


@dataclass(frozen=True)
class Trial:
    """What one run gave.

    Attributes:
        send: Lateness of each sending, s.
        capture: Lateness of each capture, s.
        overruns: Restarts of the grid, by cause where known.
        cpu: CPU time of a time-step, s: of this process, and of the interface's where there is one.
    """

    send: FloatArray
    capture: FloatArray
    overruns: dict[str, int]
    cpu: float


class StampingDevice(RealTimeInterface):
    """A device that does nothing but look at the clock."""

    def __init__(self) -> None:
        self._observation = np.zeros(SIZE, dtype=np.float32)
        self._sent = 0

    def get_observation_space(self) -> TupleSpace:
        """Return the space of four numbers."""
        return gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1.0, 1.0, (SIZE,), np.float32)])

    def get_action_space(self) -> gymnasium.spaces.Box:
        """Return the space of one number."""
        return gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return zero."""
        return np.zeros(1, dtype=np.float32)

    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Look at the clock."""
        self._sent = time.monotonic_ns()

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Do nothing."""
        return [self._observation], {}

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], float, bool, dict[str, Any]]:
        """Look at the clock, and tell both stamps."""
        captured = time.monotonic_ns()
        return [self._observation], 0.0, False, {"sent_at": self._sent, "captured_at": captured}


class Agent:
    """Infers nothing, at once."""

    action = np.zeros(1, dtype=np.float32)

    def act(self, observation: Any) -> npt.NDArray[Any]:
        """Return the next action."""
        return self.action

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Do what is done beside the steps."""
        yield


class PythonLearner(Agent):
    """An agent with a learner beside it, in a thread of pure Python that never lets go of the interpreter by itself."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Learn until the end."""
        stop = threading.Event()

        def learn() -> None:
            total = 0
            while not stop.is_set():
                for k in range(1000):
                    total += k * k % 7

        thread = threading.Thread(target=learn, name="learner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10.0)


def run_environment(
    agent: Agent, time_step_duration: float, steps: int, runner: str = "thread", spin: float = 0.0
) -> Trial:
    """Run `steps` time-steps of rt_lrhc."""
    config = {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": "rt_lrhc.commands._clock_trials:StampingDevice",
        "time_step_duration": time_step_duration,
        "start_obs_capture": CAPTURE * time_step_duration,
        "act_buf_len": 2,
        "runner": runner,
        "realtime": {"spin": spin},
    }
    # Lateness is what is measured here; it need not be warned of.
    log = logging.getLogger("rt_lrhc")
    level = log.level
    log.setLevel(logging.ERROR)
    env: Any = gymnasium.make("rt_lrhc:rt-v0", config=config, disable_env_checker=True).unwrapped
    try:
        process = getattr(env.interface, "process", None)
        stamps = []
        with agent.at_work():
            observation, _ = env.reset(seed=0)
            begin = _cpu_ns(process)
            for _ in range(steps):
                observation, _, _, _, info = env.step(agent.act(observation))
                stamps.append((info["sent_at"], info["captured_at"]))
            cpu = _cpu_ns(process) - begin
        trace = env.timing.columns()
        overruns = env.timing.summary().overruns_by_cause
    finally:
        env.close()
        log.setLevel(level)
    sent, captured = (np.array(stamps, dtype=np.float64) / _NS).T
    # The first time-step begins when the reset happens to end.
    return Trial(
        (sent - trace["grid"][-steps:])[1:],
        (captured - trace["capture_due"][-steps:])[1:],
        overruns,
        cpu / _NS / steps,
    )


def _cpu_ns(process: Any) -> int:
    total = time.process_time_ns()
    if process is not None:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total


def run_floor(agent: Agent, time_step_duration: float, steps: int) -> Trial:
    """Run a bare sleeper beside the agent's learner, which it shares no interpreter with."""
    period_ns = round(CAPTURE * time_step_duration * _NS)
    arguments = [sys.executable, "-c", _FLOOR, str(period_ns), str(round(steps / CAPTURE))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before = sys.getswitchinterval()
    with agent.at_work():
        # As while an environment runs, so that the learner is the same.
        sys.setswitchinterval(min(before, SWITCH_INTERVAL))
        try:
            done = subprocess.run(
                arguments,
                capture_output=True,
                env=environment,
                check=True,
                timeout=60.0 + 4 * steps * time_step_duration,
            )
        finally:
            sys.setswitchinterval(before)
    late = np.frombuffer(done.stdout, dtype=np.int64) / _NS
    return Trial(late[0::2], late[1::2], {}, 0.0)


_FLOOR = (
    "import sys; from rt_lrhc.commands._clock_trials import sleep_barely; "
    "sleep_barely(int(sys.argv[1]), int(sys.argv[2]))"
)


def sleep_barely(period_ns: int, ticks: int) -> None:
    """Be the floor: sleep to each point of a grid, and write how late that was to stdout, int64, ns."""
    apply_to_thread(RealTimeOptions())
    late = np.zeros(ticks, dtype=np.int64)
    start_ns = time.monotonic_ns() + period_ns
    for tick in range(ticks):
        late[tick] = sleep_until(start_ns + tick * period_ns)
    sys.stdout.buffer.write(late.tobytes())
