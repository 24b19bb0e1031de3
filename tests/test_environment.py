"""What an agent sees of one robot: order of events, buffers, ends, errors; on both clocks."""

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rt_lrhc import (
    ConfigurationError,
    EnvironmentStateError,
    InterfaceError,
    InterfaceTimeout,
    RealTimeInterface,
)
from rt_lrhc.environment.captures import SingleCaptor
from rt_lrhc.environment.device_engine import DeviceEngine
from rt_lrhc.environment.engine import Durations
from rt_lrhc.testing.manual_time import ManualTime
from tests.worlds import Device, Integrator, Log, action, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"
RUNNERS = ("thread", "process")


def make(interface: Any, id: str = VIRTUAL, **changes: Any) -> Any:
    return gym.make(id, config=config(interface, **changes), disable_env_checker=True).unwrapped


def logged(tmp_path: Path, **kwargs: Any) -> dict[str, Any]:
    """Arguments of an interface that logs to `tmp_path / "log"`, wherever it runs."""
    return {"interface_kwargs": {"log_file": str(tmp_path / "log"), **kwargs}}


def device_engine(
    time: ManualTime, capture: float = 0.015, factor: float = 1.0, **kwargs: Any
) -> DeviceEngine:
    device = Device(**kwargs)
    return DeviceEngine(
        device,
        SingleCaptor(device, device.get_observation_space(), 100),
        Durations(0.02, capture, factor),
        device.get_default_action(),
        time,
        last_act_on_reset=False,
        wait_on_done=False,
        prepro=None,
        measured=True,
    )


def test_a_device_is_sent_to_and_captured_from_at_the_times_of_the_grid() -> None:
    time = ManualTime()
    engine = device_engine(time)
    engine.reset(0, None)
    for value in (0.1, 0.2):
        engine.finish()
        engine.hand_over(action(value), None)
    engine.finish()
    ms = [deadline / 1e6 for deadline in time.deadlines_ns]
    assert ms == [15, 20, 35, 40, 55]
    assert engine.interface.log == [
        ("reset", None),
        *[(what, pytest.approx(value)) for value in (0.0, 0.1, 0.2) for what in ("send", "capture")],
    ]


def test_a_device_gets_a_late_action_at_once_and_keeps_its_grid() -> None:
    time = ManualTime()
    engine = device_engine(time)
    engine.reset(0, None)
    engine.finish()
    time.advance(0.015)
    engine.hand_over(action(0.1), (0.0, 0.03))
    engine.finish()
    figures = engine.hand_over(action(0.2), None).info["rt"]
    assert (figures["lateness"], figures["time_step_duration"], figures["overruns"]) == (0.010, 0.010, 0)
    assert time.now_ns() == 40_000_000
    time.advance(0.041)
    engine.finish()
    engine.hand_over(action(0.3), None)
    assert engine.clock.overruns == 1


@pytest.mark.parametrize("cause", ["agent", "host", "capture", "sending"])
def test_a_step_that_is_late_names_who_made_it_late(cause: str) -> None:
    """Ten seconds: more than this test's process ever waits for a core, which would make it the host's."""
    time = ManualTime()
    engine = device_engine(time)
    device = engine.interface

    def slow(callback: Any) -> Any:
        def slowly(*args: Any) -> Any:
            time.advance(10.0)
            return callback(*args)

        return slowly

    engine.reset(0, None)
    engine.finish()
    if cause == "sending":
        device.send_control = slow(device.send_control)
    engine.hand_over(action(0.1), None)
    if cause == "capture":
        device.get_obs_rew_terminated_info = slow(device.get_obs_rew_terminated_info)
    engine.finish()
    handed_over = time.now_ns() / 1e9
    if cause in ("agent", "host"):
        time.advance(10.0)
    if cause == "agent":
        handed_over = time.now_ns() / 1e9
    engine.hand_over(action(0.2), (0.0, handed_over))
    engine.finish()
    figures = engine.hand_over(action(0.3), None).info["rt"]
    assert figures["cause"] == cause and figures["lateness"] == pytest.approx(10.0, abs=0.1)
    assert engine.measured()[1][cause] >= 1


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("id", [WALL, VIRTUAL])
def test_the_buffer_holds_the_last_actions_and_the_default_one_acts_first(
    id: str, runner: str, tmp_path: Path
) -> None:
    env = make(Integrator, id, act_buf_len=3, runner=runner, **logged(tmp_path))
    reused = action(0.0)
    observation, _ = env.reset(seed=1)
    assert [float(a[0]) for a in observation[1:]] == [0, 0, 0]
    for k in range(1, 6):
        reused[:] = k / 10
        observation, *_ = env.step(reused)
        reused[:] = np.nan
        expected = [max(0, j) / 10 for j in (k - 2, k - 1, k)]
        assert [float(a[0]) for a in observation[1:]] == pytest.approx(expected)
    env.close()
    log = Log.read(tmp_path / "log")
    sent = [value for what, value in log if what == "send"]
    captured = [value for what, value in log if what == "capture"]
    assert sent == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    # The observation that step k returns was captured under the action of step k - 1.
    assert captured[:5] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("capture, order", [(0.0, "sca a"), (0.01, "sa ca"), (0.02, "saa c")])
def test_the_capture_lies_where_start_obs_capture_says(
    capture: float, order: str, runner: str, tmp_path: Path
) -> None:
    env = make(Integrator, start_obs_capture=capture, runner=runner, **logged(tmp_path))
    env.reset(seed=0)
    _, _, _, _, info = env.step(action(0.5))
    _, _, _, _, info = env.step(action(0.5))
    what = "".join(name[0] for name, _ in Log.read(tmp_path / "log") if name != "reset")
    assert what.startswith(order.replace(" ", "") * 2)
    assert info["time"] == pytest.approx(0.02 + capture)
    assert info["rt"]["observation_age"] == pytest.approx(0.02 - capture)
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("id", [WALL, VIRTUAL])
def test_the_last_action_is_appended_but_not_sent_and_the_world_stops(
    id: str, runner: str, tmp_path: Path
) -> None:
    env = make(
        Integrator, id, act_buf_len=2, ep_max_length=3, wait_on_done=True, runner=runner, **logged(tmp_path)
    )
    env.reset(seed=0)
    for k in range(3):
        observation, _, terminated, truncated, info = env.step(action((k + 1) / 10))
    assert (terminated, truncated, info["rt"]["end_reason"]) == (False, True, "time_limit")
    assert [float(a[0]) for a in observation[1:]] == pytest.approx([0.2, 0.3])
    log = Log.read(tmp_path / "log")
    assert max(value for what, value in log if what == "send") == pytest.approx(0.2)
    assert log[-1] == ("wait", None)
    with pytest.raises(EnvironmentStateError, match="time_limit"):
        env.step(action(0.0))
    assert Log.read(tmp_path / "log") == log
    env.reset()
    env.step(action(0.0))
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_termination_overrides_truncation(runner: str) -> None:
    env = make(Integrator, interface_kwargs={"terminate_at": 3}, ep_max_length=3, runner=runner)
    env.reset(seed=0)
    ends = [env.step(action(0.0))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (True, False)]
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("last, first_sent", [(False, 0.0), (True, 0.4)])
def test_reset_sends_the_default_or_the_last_action(
    last: bool, first_sent: float, runner: str, tmp_path: Path
) -> None:
    env = make(
        Integrator,
        last_act_on_reset=last,
        reset_act_buf=False,
        act_buf_len=2,
        runner=runner,
        **logged(tmp_path),
    )
    env.reset(seed=0)
    env.step(action(0.4))
    observation, _ = env.reset()
    assert [float(a[0]) for a in observation[1:]] == pytest.approx([0.4, first_sent])
    sends = [value for what, value in Log.read(tmp_path / "log") if what == "send"]
    assert sends == pytest.approx([0.0, 0.4, first_sent])
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_buffer_holds_the_agents_actions_and_the_interface_gets_the_prepared_ones(
    runner: str, tmp_path: Path
) -> None:
    env = make(
        Integrator,
        act_prepro_func=lambda a: a / 2 + 0.25,
        obs_prepro_func=lambda o: (*o, "seen"),
        runner=runner,
        **logged(tmp_path),
    )
    env.reset(seed=0)
    observation, *_ = env.step(action(0.8))
    env.step(action(0.0))
    assert (float(observation[1][0]), observation[2]) == (pytest.approx(0.8), "seen")
    sent = [value for what, value in Log.read(tmp_path / "log") if what == "send"]
    assert sent[:2] == pytest.approx([0.25, 0.65])
    env.close()


def test_actions_are_clipped_to_their_space_and_checked() -> None:
    env = make(Integrator)
    env.reset(seed=0)
    observation, *_ = env.step(np.array([7.0]))
    assert float(observation[1][0]) == 1.0
    for bad, said in (
        (np.zeros(2), "shape"),
        (np.array([np.nan]), "finite"),
        ("fast", "array"),
        (None, "finite|shape"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            env.step(bad)
    env.step(action(0.0))  # a refused action is no end
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_parameters_changed_while_running_hold_from_the_next_step_on(runner: str) -> None:
    env = make(Integrator, start_obs_capture=0.0, runner=runner)
    env.reset(seed=0)
    env.set_time_step_duration(0.05)
    env.set_start_obs_capture(0.05)
    ages = [env.step(action(0.0))[4]["rt"] for _ in range(3)]
    assert [figures["time"] for figures in ages] == pytest.approx([0.0, 0.07, 0.12])
    env.set_ep_max_length(5)
    assert [env.step(action(0.0))[3] for _ in range(2)] == [False, True]
    env.set_default_action(action(0.3))
    observation, _ = env.reset()
    assert float(observation[1][0]) == pytest.approx(0.3)
    for name, value in (("time_step_duration", 0.015), ("start_obs_capture", 0.06), ("ep_max_length", 0)):
        with pytest.raises(ConfigurationError, match=name):
            getattr(env, f"set_{name}")(value)
    with pytest.raises(ConfigurationError, match="action space"):
        env.set_default_action(action(3.0))
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_pause_stops_the_world_and_is_no_overrun(runner: str, tmp_path: Path) -> None:
    env = make(Integrator, WALL, runner=runner, **logged(tmp_path))
    env.reset(seed=0)
    env.step(action(0.1))
    env.wait()
    before = Log.read(tmp_path / "log")
    time.sleep(0.1)
    assert Log.read(tmp_path / "log") == before and before[-1] == ("wait", None)
    info = env.step(action(0.2))[4]
    assert info["rt"]["overruns"] == 0 and info["rt"]["inference"] < 0.05
    env.close()


def run_episode(
    id: str, late_at: int | None = None, schedule: Any = None, seed: int = 3, **changes: Any
) -> Any:
    env = make(Integrator, id, act_buf_len=2, ep_max_length=12, **changes)
    options = None if schedule is None else {"schedule": schedule}
    history = [env.reset(seed=seed, options=options)]
    for k in range(12):
        if k == late_at:
            time.sleep(0.07)
        history.append(env.step(action(np.sin(k))))
    recorded = env.schedule()
    env.close()
    for *_, info in history:
        info.pop("rt")
    return history, recorded


def same(a: Any, b: Any) -> bool:
    return gym.utils.env_checker.data_equivalence(a, b)


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_episode_in_which_nothing_was_late_is_the_same_on_both_clocks(runner: str) -> None:
    virtual, on_time = run_episode(VIRTUAL)
    for _ in range(5):
        wall, schedule = run_episode(WALL, runner=runner)
        if schedule == on_time:
            break
    assert schedule == on_time, "five episodes on the wall clock were all late"
    assert same(wall, virtual)
    assert same(run_episode(VIRTUAL, overlap="on")[0], virtual)
    assert same(run_episode(VIRTUAL, runner="process"), (virtual, on_time))


@pytest.mark.parametrize("runner, other", [RUNNERS, RUNNERS[::-1]])
@pytest.mark.parametrize("factor", [0.5, 5.0])
def test_a_late_episode_replays_on_virtual_time(factor: float, runner: str, other: str) -> None:
    late, schedule = run_episode(WALL, late_at=5, time_step_timeout_factor=factor, runner=runner)
    assert schedule != run_episode(VIRTUAL)[1]
    replayed, again = run_episode(VIRTUAL, schedule=schedule, time_step_timeout_factor=factor, runner=other)
    assert same(replayed, late) and again == schedule


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_world_goes_on_while_the_agent_is_late(runner: str) -> None:
    env = make(Integrator, WALL, runner=runner)
    env.reset(seed=0)
    env.step(action(1.0))
    time.sleep(0.1)
    position = float(env.step(action(0.0))[0][0][0])
    later = float(env.step(action(0.0))[0][0][0])
    env.close()
    assert later - position > 0.05  # some 80 ms more than a time-step under the action 1.0


def test_seeds_decide_everything_on_virtual_time() -> None:
    assert same(run_episode(VIRTUAL, seed=1)[0], run_episode(VIRTUAL, seed=1)[0])
    assert not same(run_episode(VIRTUAL, seed=1)[0], run_episode(VIRTUAL, seed=2)[0])


@pytest.mark.parametrize("form", ["tuple", "dict", "flat"])
@pytest.mark.parametrize("overlap", ["off", "on", "process"])
@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_gymnasiums_checker_passes(form: str, overlap: str) -> None:
    # "process" stands for the overlap that the process runner always has.
    runs = {"runner": "process"} if overlap == "process" else {"overlap": overlap}
    env = gym.make(VIRTUAL, config=config(Integrator, observation_form=form, act_buf_len=2, **runs))
    check_env(env.unwrapped)
    env.close()


class Faulty(Integrator):
    """Raises in the callback and at the call that it is told."""

    def __init__(self, fault: str, at: int, log_file: str) -> None:
        super().__init__(log_file=log_file)
        self.fault, self.at, self.calls = fault, at, 0


def _faulty(name: str) -> Any:
    def callback(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fault == name:
            self.calls += 1
            if self.calls == self.at:
                raise RuntimeError("the plug was pulled")
        return getattr(Integrator, name)(self, *args, **kwargs)

    return callback


CALLBACKS = ("reset", "send_control", "advance", "get_obs_rew_terminated_info", "wait")
for _name in CALLBACKS:
    setattr(Faulty, _name, _faulty(_name))


@pytest.mark.parametrize(
    "id, overlap, runner",
    [
        (WALL, "auto", "thread"),
        (VIRTUAL, "on", "thread"),
        (VIRTUAL, "off", "thread"),
        (WALL, "auto", "process"),
    ],
)
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("fault", CALLBACKS)
def test_a_callback_that_raises_raises_in_the_caller_and_close_still_works(
    fault: str, at: int, id: str, overlap: str, runner: str, tmp_path: Path
) -> None:
    env = make(
        Faulty,
        id,
        overlap=overlap,
        runner=runner,
        ep_max_length=3,
        wait_on_done=True,
        **logged(tmp_path, fault=fault, at=at),
    )

    def episode() -> None:
        env.reset(seed=0)
        for _ in range(3):
            env.step(action(0.1))

    with pytest.raises(
        InterfaceError, match=rf"Faulty\.{fault} raised RuntimeError: the plug was pulled"
    ) as caught:
        for _ in range(3):
            episode()
    if runner == "thread":
        assert isinstance(caught.value.__cause__, RuntimeError)
    else:
        assert (
            "the plug was pulled" in caught.value.__notes__[0]
            and "test_environment.py" in caught.value.__notes__[0]
        )
    if not (fault == "wait" and at == 2):
        with pytest.raises(EnvironmentStateError):
            env.step(action(0.0))
    episode()  # a reset starts afresh
    env.close()
    env.close()
    assert Log.read(tmp_path / "log").count(("close", None)) == 1


@pytest.mark.parametrize(
    "bad, said",
    [
        (lambda self: ([np.zeros(2)], 0.0, False, {}), r"component 0 must have shape \(1,\), got \(2,\)"),
        (lambda self: ([], 0.0, False, {}), "list of 1 observation components"),
        (lambda self: ([["a"]], 0.0, False, {}), "component 0 is not an array of float32"),
        (lambda self: ([np.zeros(1)], None, False, {}), "reward must be a number"),
        (lambda self: ([np.zeros(1)], np.nan, False, {}), "reward is NaN"),
        (lambda self: ([np.zeros(1)], 0.0, "no", {}), "terminated must be a bool"),
        (lambda self: ([np.zeros(1)], 0.0, False, None), "info as a dictionary"),
        (lambda self: ([np.zeros(1)], 0.0, False, {"rt": 1}), "'rt' belongs"),
        (lambda self: None, "tuple of 4 values"),
    ],
)
def test_a_callback_that_returns_something_unusable_is_named(bad: Any, said: str) -> None:
    interface = type("Odd", (Integrator,), {"get_obs_rew_terminated_info": bad})
    env = make(interface)
    env.reset(seed=0)
    with pytest.raises(InterfaceError, match=f"get_obs_rew_terminated_info.*{said}"):
        env.step(action(0.0))
    env.close()


def test_a_callback_that_hangs_is_an_error_that_names_it() -> None:
    release = threading.Event()

    class Hanging(Integrator):
        def advance(self, until: float) -> None:
            if until > 0.02:
                release.wait(timeout=30.0)
            super().advance(until)

    env = make(Hanging, WALL, callback_timeout=0.2)
    env.reset(seed=0)
    with pytest.raises(InterfaceTimeout, match=r"Hanging\.advance did not return within"):
        for _ in range(3):
            env.step(action(0.0))
    release.set()
    env.close()


def test_an_environment_that_is_dropped_closes_itself() -> None:
    env = make(Integrator, WALL)
    env.reset(seed=0)
    env.step(action(0.0))
    interface, dropped = env.interface, weakref.ref(env)
    del env
    gc.collect()
    assert dropped() is None and interface.closed == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "rt_lrhc-clock"]


class Incomplete(RealTimeInterface):
    """Lacks send_control and reset."""

    def get_observation_space(self):
        return gym.spaces.Tuple([])

    get_action_space = get_default_action = get_obs_rew_terminated_info = get_observation_space


class BadDefault(Integrator):
    def get_default_action(self):
        return np.array([2.0])


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"time_step_durration": 0.1},
            "unknown configuration key 'time_step_durration'; did you mean 'time_step_duration'",
        ),
        ({"time_step_duration": "fast"}, "time_step_duration must be a number, got 'fast'"),
        ({"act_buf_len": 2.5}, "act_buf_len must be a whole number"),
        ({"start_obs_capture": 0.03}, r"start_obs_capture must lie in \[0, 0.02\] s"),
        (
            {"start_obs_capture": 0.015},
            "start_obs_capture must be a multiple of the control period of Integrator, 0.01 s",
        ),
        ({"ep_max_length": 0}, "ep_max_length"),
        ({"clock": "sundial"}, "clock must be one of None, 'wall', 'virtual', got 'sundial'"),
        ({"overlap": "off", "id": WALL}, "the world does not wait"),
        ({"clock": "wall"}, "id says clock='virtual', its configuration clock='wall'"),
        ({"array_backend": "torch"}, "make_vec"),
        ({"act_in_obs": 1}, "act_in_obs must be True or False"),
        ({"realtime": {"spinn": 1}}, "unknown realtime option 'spinn'; did you mean 'spin'"),
        ({"interface": None}, r"config\[\"interface\"\] is missing"),
        ({"interface": "nowhere:Class"}, "cannot import 'nowhere'"),
        ({"interface": "tests.worlds:Klass"}, "has no 'Klass'"),
        ({"interface": Incomplete}, r"Incomplete lacks reset\(\), send_control\(\)"),
        ({"interface": BadDefault}, "default action must lie in the action space"),
        ({"interface": dict}, "must give a RealTimeInterface or a VectorInterface, got dict"),
        ({"interface": Device}, r"Device has no advance\(\).*cannot run on virtual time"),
        ({"interface_kwargs": {"colour": 1}}, "Integrator cannot be built"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(**{"interface": Integrator, **changes})


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_device_runs_on_the_wall_clock(runner: str) -> None:
    env = make(Device, WALL, start_obs_capture=0.01, runner=runner)
    env.reset(seed=0)
    steps = [env.step(action(k / 10)) for k in range(5)]
    assert [float(step[0][0][0]) for step in steps] == pytest.approx([0, 0, 0.1, 0.2, 0.3])
    summary = env.timing.summary()
    assert summary.send_lateness.n >= 4 and summary.step.p50 == pytest.approx(0.02, rel=0.5)
    env.close()


@pytest.mark.parametrize("runner", RUNNERS)
def test_calls_after_close_are_errors(runner: str) -> None:
    env = make(Integrator, runner=runner)
    env.close()
    for call in (env.reset, env.wait, lambda: env.step(action(0.0))):
        with pytest.raises(EnvironmentStateError, match="closed"):
            call()
