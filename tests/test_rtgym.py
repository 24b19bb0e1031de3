"""rtgym's documented behaviour, and rtgym itself beside us: one device, one configuration, the same events."""

import logging
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rt_lrhc import DEFAULT_CONFIG_DICT, ConfigurationError, RealTimeInterface
from tests.worlds import Device, Integrator, Rows, action, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"


def make(interface: Any, id: str = VIRTUAL, **changes: Any) -> Any:
    return gym.make(id, config=config(interface, **changes), disable_env_checker=True).unwrapped


def device(base: type) -> type:
    """One device, written once, on either project's base class."""

    class Machine(base):  # type: ignore[misc]
        def __init__(self, ends: int) -> None:
            self.events: list[Any] = []
            self.ends, self.captures, self.in_force = ends, 0, np.zeros(1, np.float32)

        def get_observation_space(self):
            return gym.spaces.Tuple(
                [gym.spaces.Box(-1.0, 1.0, (1,), np.float32), gym.spaces.Box(0, 99, (1,), np.float32)]
            )

        def get_action_space(self):
            return gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def get_default_action(self):
            return np.full(1, 0.5, np.float32)

        def send_control(self, control):
            self.events.append(("send", float(control[0])))
            self.in_force = control.copy()

        def _observation(self):
            return [self.in_force.copy(), np.full(1, self.captures, np.float32)]

        def reset(self, seed=None, options=None):
            self.events.append(("reset", options))
            self.captures = 0
            return self._observation(), {"began": True}

        def get_obs_rew_terminated_info(self):
            self.captures += 1
            self.events.append(("capture", float(self.in_force[0])))
            return (
                self._observation(),
                0.5 * self.captures,
                self.captures >= self.ends,
                {"captures": self.captures},
            )

        def wait(self):
            self.events.append(("wait", None))

    return Machine


def session(env: Any, wait_between: bool) -> list[Any]:
    """Two episodes: what the agent saw, as plain numbers."""
    seen: list[Any] = []
    for episode in range(2):
        observation, info = env.reset(seed=0, options={"episode": episode})
        seen.append(([float(part[0]) for part in observation], info["began"]))
        for k in range(1, 20):
            observation, reward, terminated, truncated, info = env.step(action(0.1 * k * (-1) ** episode))
            seen.append(
                (
                    [float(part[0]) for part in observation],
                    float(reward),
                    terminated,
                    truncated,
                    info["captures"],
                )
            )
            if terminated or truncated:
                break
            if wait_between and k == 2:
                env.unwrapped.wait()
    return seen


@pytest.mark.filterwarnings("ignore:Time-step timed out", "ignore:.*not within the observation space")
@pytest.mark.parametrize("theirs", ["real-time-gym-v1", "real-time-gym-ts-v1"])
@pytest.mark.parametrize(
    "changes, ends, wait_between",
    [
        ({}, 4, False),
        ({"ep_max_length": 3}, 4, False),
        ({"ep_max_length": 4, "wait_on_done": True, "act_buf_len": 3}, 4, True),
        ({"reset_act_buf": False, "act_buf_len": 2, "ep_max_length": 5}, 99, False),
        (
            {"reset_act_buf": False, "last_act_on_reset": True, "act_buf_len": 3, "ep_max_length": 3},
            99,
            False,
        ),
        ({"act_in_obs": False, "start_obs_capture": 0.004, "ep_max_length": 4}, 99, True),
        ({"act_prepro_func": lambda control: control / 2, "ep_max_length": 3}, 99, False),
    ],
)
def test_one_device_lives_through_the_same_events(
    theirs: str, changes: dict[str, Any], ends: int, wait_between: bool
) -> None:
    rtgym = pytest.importorskip("rtgym")
    common = {
        "time_step_duration": 0.01,
        "start_obs_capture": 0.01,
        **changes,
    }
    logs, views = [], []
    for id, base, default in (
        (theirs, rtgym.RealTimeGymInterface, rtgym.DEFAULT_CONFIG_DICT),
        (WALL, RealTimeInterface, DEFAULT_CONFIG_DICT),
    ):
        machine = device(base)(ends)
        env = gym.make(
            id,
            config={**default, **common, "interface": lambda machine=machine: machine},
            disable_env_checker=True,
        )
        views.append(session(env, wait_between))
        env.unwrapped.stop()
        env.close()
        if theirs == id == "real-time-gym-ts-v1":
            env.unwrapped.__del__()  # nothing else ends its thread, which keeps it alive
        logs.append(machine.events)
    assert _close(views[0], views[1])
    assert _close(logs[0], logs[1])


def _close(a: Any, b: Any) -> bool:
    """Equality of nested lists, numbers to six digits."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_close(x, y) for x, y in zip(a, b, strict=True))
    return abs(a - b) < 1e-6 if isinstance(a, float) else a == b


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("refill", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_the_newest_action_in_the_buffer_is_always_the_one_that_acts_next(
    last: bool, refill: bool, ended: bool
) -> None:
    env = make(
        Integrator,
        act_buf_len=3,
        reset_act_buf=refill,
        last_act_on_reset=last,
        ep_max_length=4 if ended else 99,
    )
    env.set_default_action(action(0.9))
    env.reset(seed=0)
    for k in range(1, 5):
        env.step(action(k / 10))
    observation, _ = env.reset()
    first = 0.4 if last else 0.9
    # An action that ended an episode was never sent; one that a reset interrupts was.
    older = [0.9, 0.9] if refill else [0.2, 0.3] if ended else [0.3, 0.4]
    assert [float(part[0]) for part in observation[1:]] == pytest.approx([*older, first])
    assert [value for what, value in env.interface.log if what == "send"][-1] == pytest.approx(first)
    env.close()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("refill", [False, True])
def test_a_robot_that_is_reset_in_between_has_in_its_buffer_what_acts(last: bool, refill: bool) -> None:
    env = gym.make_vec(
        VIRTUAL,
        num_envs=2,
        config=config(
            Rows,
            act_buf_len=2,
            reset_act_buf=refill,
            last_act_on_reset=last,
            interface_kwargs={"limit": 0.025},
        ),
    )
    env.reset(seed=0)
    for k in range(1, 9):
        observation, _, terminated, _, _ = env.step(np.array([[1.0 - k / 10], [0.1]], np.float32))
        if terminated[0]:
            break
    in_force = env.unwrapped.interface.in_force[0, 0]
    buffer = [float(part[0, 0]) for part in observation[1:]]
    assert buffer[-1] == pytest.approx(in_force)
    assert buffer[-1] == pytest.approx(1.0 - (k - 1) / 10 if last else 0.0)
    assert buffer[0] == pytest.approx(0.0 if refill else 1.0 - (k - 1) / 10)
    env.step(np.array([[0.7], [0.1]], np.float32))
    env.close()


def test_a_prepared_observation_is_prepared_alike_at_reset_and_in_steps() -> None:
    env = make(Integrator, act_buf_len=2, obs_prepro_func=len)
    assert env.reset(seed=0)[0] == env.step(action(0.0))[0] == 3
    env.close()


def test_the_elasticity_changes_with_the_duration() -> None:
    env = make(Device, WALL, start_obs_capture=0.0, realtime={})
    env.reset(seed=0)
    env.set_time_step_duration(0.03, 100.0)
    env.step(action(0.0))
    time.sleep(0.1)
    assert env.step(action(0.0))[4]["rt"]["overruns"] == 0
    assert env.step(action(0.0))[4]["rt"]["overruns"] == 0
    with pytest.raises(ConfigurationError, match="time_step_timeout_factor must be a number"):
        env.set_time_step_duration(0.03, "long")
    env.close()


KEYS = {
    "time_step_duration",
    "step_duration",
    "join_duration",
    "inference_duration",
    "send_control_duration",
    "get_obs_duration",
}
OURS = {"observation_age", "action_age", "send_lateness"}


@pytest.mark.parametrize("many", [False, True])
def test_running_averages_are_those_of_what_was_measured(many: bool) -> None:
    if many:
        env = gym.make_vec(
            WALL, num_envs=2, config=config(Rows, benchmark=True, benchmark_polyak=0.2)
        ).unwrapped
    else:
        env = make(Integrator, WALL, benchmark=True, benchmark_polyak=0.2)
    given = np.zeros((2, 1) if many else 1, np.float32)
    env.reset(seed=0)
    for _ in range(15):
        time.sleep(0.004)
        env.step(given)
    benchmarks = env.benchmarks()
    env.close()
    assert set(benchmarks) == KEYS | OURS | {"act_buf_len"}
    mean, deviation = benchmarks["inference_duration"]
    assert mean > 0.004 and deviation >= 0.0
    assert benchmarks["step_duration"][0] >= benchmarks["join_duration"][0] > 0.0
    assert benchmarks["time_step_duration"][0] > 0.01
    assert benchmarks["observation_age"] == (0.0, 0.0) and benchmarks["action_age"][0] > 0.0


def test_traces_are_arrays_that_belong_together() -> None:
    env = make(Device, WALL, benchmark=True, benchmark_type="trace")
    env.reset(seed=0)
    for _ in range(6):
        env.step(action(0.0))
    benchmarks = env.benchmarks()
    env.close()
    clock, deltas = benchmarks["clock"], benchmarks["deltas"]
    assert set(deltas) == KEYS and set(benchmarks["delays"]) == OURS
    assert (clock["start_step"] <= clock["end_step_join"]).all() and (
        clock["end_step_join"] <= clock["end_step"]
    ).all()
    assert (clock["start_send_control"] <= clock["end_send_control"]).all()
    assert deltas["step_duration"] == pytest.approx(clock["end_step"] - clock["start_step"])
    for name, times in (
        ("step_duration", clock["end_step"]),
        ("get_obs_duration", clock["end_get_obs"]),
        ("send_control_duration", clock["end_send_control"]),
        ("time_step_duration", clock["start_step"][1:]),
        ("inference_duration", clock["start_step"][1:]),
    ):
        assert deltas[name].shape == times.shape, name


def test_the_trace_is_summed_up_and_saved(tmp_path: Path) -> None:
    env = make(Device, WALL)
    env.reset(seed=0)
    for _ in range(6):
        env.step(action(0.0))
    summary, columns = env.timing.summary(), env.timing.columns()
    env.timing.save(tmp_path / "trace.npz")
    env.close()
    assert summary.send.n == summary.capture.n == len(columns["sent"]) == 6 and summary.inference.n == 5
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as archive:
        assert set(archive) == set(columns)
        for name, values in columns.items():
            assert np.array_equal(archive[name], values, equal_nan=True)


def test_measured_lateness_says_that_the_buffer_is_too_short(caplog: pytest.LogCaptureFixture) -> None:
    """An agent that is late by half a time-step lets each action act beyond the capture."""
    env = make(Device, WALL, benchmark=True)
    env.reset(seed=0)
    assert env.benchmarks()["act_buf_len"] == (1, 1)
    with caplog.at_level(logging.WARNING, logger="rt_lrhc"):
        for _ in range(25):
            time.sleep(0.03)
            env.step(action(0.0))
    assert env.benchmarks()["act_buf_len"] == (2, 1)
    env.close()
    (warning,) = [message for message in caplog.messages if "too small" in message]
    assert "the delays with the measured lateness of sending of Device" in warning
    assert "need 2 actions" in warning and "give act_buf_len=2, or a faster agent" in warning


def test_on_virtual_time_there_is_nothing_of_the_clock_to_measure() -> None:
    env = make(Integrator, benchmark=True)
    env.reset(seed=0)
    env.step(action(0.0))
    benchmarks = env.benchmarks()
    env.close()
    assert benchmarks["step_duration"][0] > 0.0 and np.isnan(benchmarks["get_obs_duration"]).all()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"benchmark": 1}, "benchmark must be True or False"),
        ({"benchmark_polyak": 0.0}, r"benchmark_polyak must lie in \(0, 1\]"),
        ({"benchmark_polyak": "slow"}, "benchmark_polyak must be a number"),
        ({"benchmark_type": "Trace"}, "benchmark_type must be one of 'polyak', 'trace', got 'Trace'"),
        (
            {"act_buf_len": "long"},
            "act_buf_len must be a whole number of actions, at least 1, or \"auto\", got 'long'",
        ),
    ],
)
def test_what_is_wrong_with_a_key_of_rtgyms_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(Integrator, **changes)


def test_benchmarks_need_to_be_asked_for() -> None:
    env = make(Integrator)
    with pytest.raises(ConfigurationError, match=r'benchmarks\(\) needs config\["benchmark"\] = True'):
        env.benchmarks()
    env.close()


def test_the_defaults_are_rtgyms_and_cannot_be_changed_by_accident() -> None:
    rtgym = pytest.importorskip("rtgym")
    for key, value in rtgym.DEFAULT_CONFIG_DICT.items():
        assert key == "interface" or DEFAULT_CONFIG_DICT[key] == value, key
    with pytest.raises(
        ConfigurationError, match=r"read-only; take a copy: config = DEFAULT_CONFIG_DICT.copy\(\)"
    ):
        DEFAULT_CONFIG_DICT["interface"] = Device
