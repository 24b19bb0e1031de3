"""Delays of messages and solves: their distributions, what they do to actions and observations, what covers them."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc import ConfigurationError, InterfaceError
from rt_lrhc.delays import (
    ConstantDelay,
    Delay,
    DelayDraws,
    EmpiricalDelay,
    LogNormalDelay,
    UniformDelay,
    delay_from,
    delay_to_dict,
    required_buffer_length,
)
from rt_lrhc.environment.captures import SingleCaptor
from rt_lrhc.environment.device_engine import DeviceEngine
from rt_lrhc.environment.engine import Durations
from rt_lrhc.environment.links import ActionLink, ObservationLink
from rt_lrhc.testing.manual_time import ManualTime
from tests.test_environment import same
from tests.worlds import Device, Integrator, Rows, action, config

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"
MS = 1_000_000

DISTRIBUTIONS: list[Delay] = [
    ConstantDelay(0.02),
    UniformDelay(0.01, 0.03),
    LogNormalDelay(0.02, 0.8, 0.06),
    EmpiricalDelay((0.01, 0.02, 0.05)),
]


def make(interface: Any, id: str = VIRTUAL, **changes: Any) -> Any:
    return gym.make(id, config=config(interface, **changes), disable_env_checker=True).unwrapped


@pytest.mark.parametrize("delay", DISTRIBUTIONS, ids=lambda delay: type(delay).__name__)
def test_no_delay_exceeds_the_bound_or_goes_back_in_time(delay: Delay) -> None:
    drawn = delay.draw(np.random.default_rng(0), 10_000)
    assert drawn.shape == (10_000,) and (drawn >= 0.0).all() and drawn.max() <= delay.bound
    assert drawn.max() > 0.9 * delay.bound
    assert delay_from("action_delay", json.loads(json.dumps(delay_to_dict(delay)))) == delay


def test_a_log_normal_delay_has_its_median_and_its_tail() -> None:
    drawn = LogNormalDelay(0.02, 0.5, 1.0).draw(np.random.default_rng(0), 100_000)
    assert np.median(drawn) == pytest.approx(0.02, rel=0.02)
    assert np.mean(drawn > 2.8 * 0.02) == pytest.approx(0.02, abs=0.003)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json"])
def test_recorded_delays_are_read_from_files(suffix: str, tmp_path: Path) -> None:
    path, samples = tmp_path / f"trace{suffix}", [0.01, 0.03, np.nan]
    if suffix == ".npy":
        np.save(path, samples)
    elif suffix == ".npz":
        np.savez(path, uplink=samples, downlink=[0.5])
    else:
        path.write_text(json.dumps({"uplink": samples[:2], "downlink": [0.5]}))
    column = {} if suffix == ".npy" else {"column": "uplink"}
    assert delay_from("action_delay", {"kind": "empirical", "file": path, **column}) == EmpiricalDelay(
        (0.01, 0.03)
    )


@pytest.mark.parametrize(
    "value, said",
    [
        (-0.1, r"action_delay: duration must be a number, at least 0 s.*got -0.1"),
        ("fast", "action_delay: expected None, seconds"),
        (True, "action_delay: expected None"),
        (
            {"kind": "unifrom", "low": 0, "high": 1},
            "action_delay: unknown kind of delay 'unifrom'; did you mean 'uniform'",
        ),
        ({"kind": "uniform", "low": 0.1}, "a uniform delay needs high"),
        (
            {"kind": "uniform", "low": 0.1, "hihg": 0.2},
            "unknown field of a uniform delay 'hihg'; did you mean 'high'",
        ),
        ({"kind": "uniform", "low": 0.2, "high": 0.1}, "low <= high"),
        ({"kind": "lognormal", "median": 0.2, "sigma": 1, "high": 0.1}, "0 < median <= high"),
        ({"kind": "constant", "duration": float("inf")}, "finite"),
        ({"kind": "empirical", "samples": []}, "at least one"),
        ({"kind": "empirical", "file": "nowhere.npy"}, "cannot read delays from nowhere.npy"),
        ({"kind": "empirical", "file": "delays.csv"}, "expected a .npy, .npz or .json file"),
    ],
)
def test_what_is_wrong_with_a_delay_is_named(value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(Integrator, action_delay=value)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "trace.npz", uplink=[0.1], downlink=[0.2])
    with pytest.raises(ConfigurationError, match=r"downlink, uplink: name one of them as column, got None"):
        EmpiricalDelay.from_file(tmp_path / "trace.npz")


def test_a_robots_draws_depend_on_nobody_else() -> None:
    delay = UniformDelay(0.0, 1.0)
    three, one = DelayDraws(delay, "actions", 3), DelayDraws(delay, "actions", 1)
    for draws in (three, one):
        draws.restart(7)
    first = [(three.next_ns(), one.next_ns()) for _ in range(300)]
    assert all(many[0] == single[0] for many, single in first)
    assert len({int(value) for many, _ in first for value in many}) == 900
    three.restart_rows(np.array([False, True, False]))
    again = DelayDraws(delay, "actions", 3)
    again.restart(7)
    for _ in range(300):
        again.next_ns()
    mine, theirs = three.next_ns(), again.next_ns()
    assert mine[[0, 2]].tolist() == theirs[[0, 2]].tolist() and mine[1] != theirs[1]
    other = DelayDraws(delay, "observations", 3)
    other.restart(7)
    assert (other.next_ns() != first[0][0]).all()


def test_what_a_robot_meets_after_its_reset_does_not_depend_on_how_long_it_lived() -> None:
    rows, met = np.array([True]), []
    for lived in (3, 40):
        actions = ActionLink(DelayDraws(UniformDelay(0.0, 1.0), "actions", 1), 1, batched=True)
        draws = DelayDraws(UniformDelay(0.0, 1.0), "observations", 1)
        observations = ObservationLink(draws, 1, MS, batched=True)
        for link in (actions, observations):
            link.restart(5, *([[np.zeros(1)]] if link is observations else []))
        actions.put(np.zeros(1), 0)
        for k in range(lived):
            actions.send(np.zeros(1), k * MS, k * MS)
            observations.sample(k * MS + MS, [np.zeros(1)])
            observations.take(k * MS + MS)
        actions.put_rows(np.zeros(1), lived * MS, rows)
        observations.restart_rows(rows, lived * MS, [np.zeros(1)])
        actions.send(np.zeros(1), lived * MS, lived * MS)
        met.append((actions.next_due_ns - lived * MS, draws.next_ns().tolist()))
    assert met[0] == met[1]


class Scripted(DelayDraws):
    """Delays that a test wrote down, in ms, one row a message."""

    def __init__(self, script: list[list[int]]) -> None:
        super().__init__(ConstantDelay(max(map(max, script)) / 1e3), "script", len(script[0]))
        self.script = [np.array(row) * MS for row in script]

    def next_ns(self) -> Any:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_an_action_acts_from_its_arrival_on_until_a_newer_one_has_arrived(
    script: list[tuple[int, int]],
) -> None:
    """Against a model: at each ms, in each robot, the newest action of those that have arrived is in force."""
    link = ActionLink(Scripted([list(row) for row in script]), 2, batched=True)
    link.restart(0)
    in_force = link.put(np.zeros(2), 0)
    sent: list[tuple[int, tuple[int, int]]] = []
    for now in range(2 * len(script) + 10):
        if now % 2 == 0 and len(sent) < len(script):
            sent.append((now, script[len(sent)]))
            link.send(np.full(2, len(sent), dtype=float), now * MS, now * MS)
        changed = link.arrived(now * MS)
        in_force = in_force if changed is None else changed
        for robot in range(2):
            there = [k + 1 for k, (begun, delay) in enumerate(sent) if begun + delay[robot] <= now]
            newest = max(there, default=0)
            assert in_force[robot] == newest
            assert link.age(now * MS)[robot] == pytest.approx(
                (now - (sent[newest - 1][0] if newest else 0)) / 1e3
            )
    assert link.next_due_ns is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_an_observation_holds_the_newest_state_as_old_as_its_delay_and_never_an_older_one(
    script: list[tuple[int, int]],
) -> None:
    link = ObservationLink(Scripted([list(row) for row in script]), 2, 2 * MS, batched=True)
    link.restart(0, [np.zeros(2)])
    last, count = np.zeros(2), 0
    for now in range(2, 2 * len(script) + 2, 2):
        link.sample(now * MS, [np.full(2, float(now))])
        if now % 4:
            continue
        (seen,) = link.take(now * MS)
        delays = np.array(script[min(count, len(script) - 1)])
        count += 1
        last = np.maximum(np.maximum(now - delays, 0) // 2 * 2, last)
        assert seen.tolist() == last.tolist()
        assert link.age(now * MS) == pytest.approx((now - last) / 1e3)


@pytest.mark.parametrize("delay, acts_from", [(None, 2), (0.01, 3), (0.015, 4), (0.05, 7)])
def test_a_delayed_action_acts_from_the_first_control_period_not_before_its_time(
    delay: Any, acts_from: int
) -> None:
    """Time-steps of two control periods of 10 ms: the first action is sent at period 2."""
    env = make(Integrator, action_delay=delay, act_buf_len="auto")
    env.reset(seed=0)
    for _ in range(5):
        env.step(action(0.5))
    env.close()
    order = [what for what in env.interface.log if what[0] == "advance" or what == ("send", 0.5)]
    assert order.index(("send", 0.5)) == acts_from


def test_the_age_of_what_is_seen_and_of_what_acts_is_said() -> None:
    env = make(Integrator, action_delay=0.03, observation_delay=0.025, act_buf_len="auto")
    env.reset(seed=0)
    figures = [env.step(action(0.0))[4] for _ in range(6)]
    env.close()
    # The state is captured at the end of a time-step; the action in force then was handed over for the one before.
    assert [round(one["rt"]["observation_age"], 6) for one in figures] == [0.02, 0.03, 0.03, 0.03, 0.03, 0.03]
    assert [round(one["rt"]["action_age"], 6) for one in figures] == [0.02, 0.04, 0.04, 0.04, 0.04, 0.04]


def test_a_delayed_observation_is_an_earlier_one_and_reward_and_end_are_the_present_ones() -> None:
    plain, late = make(Integrator), make(Integrator, observation_delay=0.02, act_buf_len="auto")
    seen = {}
    for name, env in (("plain", plain), ("late", late)):
        env.reset(seed=3)
        seen[name] = [env.step(action(np.sin(k))) for k in range(8)]
        env.close()
    for k in range(1, 8):
        assert seen["late"][k][0][0] == seen["plain"][k - 1][0][0]
        assert seen["late"][k][4]["time"] == seen["plain"][k][4]["time"]


def history(id: str, interface: Any = Integrator, **changes: Any) -> Any:
    delays = {
        "action_delay": {"kind": "uniform", "low": 0.0, "high": 0.045},
        "observation_delay": {"kind": "lognormal", "median": 0.01, "sigma": 1.0, "high": 0.05},
        "act_buf_len": "auto",
    }
    late_at, schedule = changes.pop("late_at", None), changes.pop("schedule", None)
    if interface is Rows:
        env = gym.make_vec(
            id, num_envs=3, config=config(Rows, interface_kwargs={"limit": 0.06}, **delays, **changes)
        )
    else:
        env = make(interface, id, **delays, **changes)
    steps = [env.reset(seed=5, options=None if schedule is None else {"schedule": schedule})]
    for k in range(14):
        if k == late_at:
            time.sleep(0.07)
        given = (
            action(np.sin(k))
            if interface is Integrator
            else np.array([[1.0], [np.sin(k)], [0.3]], np.float32)
        )
        steps.append(env.step(given))
    recorded = env.unwrapped.schedule()
    env.close()
    for *_, info in steps:
        for part in (info, info.get("final_info", {})):
            part.pop("rt", None)
        if "final_obs" in info:
            info["final_obs"] = [row for row in info["final_obs"] if row is not None]
    return steps, recorded


@pytest.mark.parametrize("runner", ["thread", "process"])
@pytest.mark.parametrize("interface", [Integrator, Rows])
def test_wall_equals_virtual_time_with_random_delays(interface: Any, runner: str) -> None:
    virtual, on_time = history(VIRTUAL, interface)
    assert same(virtual, history(VIRTUAL, interface, overlap="on", runner=runner)[0])
    if interface is Rows:
        assert any("final_obs" in info for *_, info in virtual), "one autoreset inside"
    for _ in range(5):
        wall, schedule = history(WALL, interface, runner=runner)
        if schedule == on_time:
            break
    assert schedule == on_time, "five episodes on the wall clock were all late"
    assert same(wall, virtual)


def test_a_late_episode_with_random_delays_replays() -> None:
    late, schedule = history(WALL, late_at=5)
    replayed, again = history(VIRTUAL, schedule=schedule)
    assert again == schedule and same(replayed, late)


def test_a_reset_robots_delays_begin_anew_and_nothing_old_reaches_it() -> None:
    env = gym.make_vec(
        VIRTUAL,
        num_envs=2,
        config=config(
            Rows, interface_kwargs={"limit": 0.035}, action_delay=0.05, observation_delay=0.03, act_buf_len=6
        ),
    )
    env.reset(seed=0)
    for _ in range(12):
        observation, _, terminated, _, info = env.step(np.array([[1.0], [0.0]], np.float32))
        if terminated[0]:
            break
    assert terminated.tolist() == [True, False]
    assert info["final_obs"][0][0][0] < env.unwrapped.interface.limit, "what was seen last is 30 ms old"
    assert observation[0][0, 0] == 0.0 and info["rt"]["observation_age"][1] == pytest.approx(0.03)
    steps = [env.step(np.array([[1.0], [0.0]], np.float32)) for _ in range(4)]
    env.close()
    positions = [info["position"][0] for *_, info in steps]
    assert [seen[0][0, 0] for seen, *_ in steps] == [0.0] * 4, (
        "nothing from before the reset is seen after it"
    )
    assert [info["rt"]["observation_age"][0] for *_, info in steps] == pytest.approx([0.02, 0.03, 0.03, 0.03])
    # Handed over 20 ms after the reset, and 50 ms under way: until then the default action acts.
    assert positions == pytest.approx([0.0, 0.0, 0.0, 0.01])


def test_one_robot_meets_the_delays_that_it_meets_among_many() -> None:
    delays = {
        "action_delay": {"kind": "uniform", "low": 0.0, "high": 0.045},
        "observation_delay": {"kind": "uniform", "low": 0.0, "high": 0.045},
        "act_buf_len": 6,
    }
    many = gym.make_vec(VIRTUAL, num_envs=3, config=config(Rows, **delays))
    one = gym.make(VIRTUAL, config=config(Rows, **delays), disable_env_checker=True)
    many.reset(seed=0)
    one.reset(seed=0)
    for k in range(20):
        row = many.step(np.full((3, 1), np.sin(k), np.float32))
        single = one.step(np.full(1, np.sin(k), np.float32))
        assert row[0][0][0] == single[0][0]
        for age in ("observation_age", "action_age"):
            assert row[4]["rt"][age][0] == single[4]["rt"][age]
    many.close()
    one.close()


def test_an_observe_that_fails_is_named() -> None:
    class Blind(Integrator):
        def observe(self):
            return [np.zeros(3)]

    class Broken(Integrator):
        def observe(self):
            raise RuntimeError("lens cap")

    for interface, said in (
        (Blind, r"observe: component 0 must have shape \(1,\)"),
        (Broken, r"Broken.observe raised"),
    ):
        env = make(interface, observation_delay=0.01, act_buf_len="auto")
        env.reset(seed=0)
        with pytest.raises(InterfaceError, match=said):
            env.step(action(0.0))
        env.close()


def test_a_device_is_sent_to_later_and_captured_earlier() -> None:
    clock, device = ManualTime(), Device()
    engine = DeviceEngine(
        device,
        SingleCaptor(device, device.get_observation_space(), 100),
        Durations(0.02, 0.02, 1.0),
        device.get_default_action(),
        clock,
        last_act_on_reset=False,
        wait_on_done=False,
        prepro=None,
        measured=True,
        action_delay=ConstantDelay(0.013),
        observation_delay=ConstantDelay(0.005),
    )
    engine.reset(0, None)
    engine.finish()
    engine.hand_over(action(0.5), None)
    engine.finish()
    figures = engine.hand_over(action(0.6), None).info["rt"]
    assert [deadline / 1e6 for deadline in clock.deadlines_ns] == [15, 20, 33, 35, 40]
    assert [value for what, value in device.log if what == "capture"] == pytest.approx([0.0, 0.5])
    assert figures["observation_age"] == pytest.approx(0.005) and figures["time"] == pytest.approx(0.035)


def test_a_device_cannot_be_captured_before_its_time_step() -> None:
    with pytest.raises(
        ConfigurationError, match=r"observation_delay is up to 0.03 s.*start_obs_capture = 0.02 s"
    ):
        make(Device, WALL, observation_delay=0.03)


@pytest.mark.parametrize(
    "capture, action_delay, observation_delay, needed",
    [
        (0.05, 0, 0, 1),
        (0.0, 0, 0, 2),
        (0.02, 0, 0, 2),
        (0.05, 0.05, 0.05, 3),
        (0.05, 0.05, 0.051, 4),
        (0.05, 0.0, 0.05, 2),
    ],
)
def test_the_buffer_covers_every_action_that_the_state_has_not_seen_yet(
    capture: float, action_delay: float, observation_delay: float, needed: int
) -> None:
    assert required_buffer_length(0.05, capture, action_delay, observation_delay) == needed


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 30), st.integers(0, 30))
def test_the_length_is_what_counting_finds(
    period: int, capture: int, action_delay: int, observation_delay: int
) -> None:
    """Count, on a grid of ms, the actions that act at or after the state's time, up to the one that is handed over."""
    capture = min(capture, period)
    captured = 100 * period + capture
    state = captured - observation_delay
    replaced = [(k + 1) * period + action_delay for k in range(100 + 2)]
    acting_after = [k for k in range(101) if replaced[k] > state]
    assert required_buffer_length(period, capture, action_delay, observation_delay) == max(
        1, len(acting_after) + 1
    )


class Slow(Integrator):
    action_delay_bound = 0.03
    observation_delay_bound = 0.01


def test_auto_covers_what_the_configuration_and_the_interface_declare() -> None:
    for changes, needed in (({}, 3), ({"action_delay": 0.015}, 4), ({"observation_delay": 0.02}, 4)):
        env = make(Slow, act_buf_len="auto", **changes)
        observation, _ = env.reset(seed=0)
        assert len(observation) == 1 + needed
        env.close()


def test_a_buffer_that_is_too_short_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rt_lrhc"):
        env = make(Slow, act_buf_len=2)
        env.reset(seed=0)
        env.step(action(0.0))
        env.close()
    (warning,) = caplog.messages
    assert "act_buf_len = 2 is too small: the declared delays of Slow (actions up to 30.0 ms" in warning
    assert "need 3 actions" in warning
    caplog.clear()
    make(Slow, act_buf_len=2, act_in_obs=False).close()
    make(Slow, act_buf_len=3).close()
    assert not caplog.messages


def test_an_interface_that_declares_nonsense_is_named() -> None:
    class Odd(Integrator):
        action_delay_bound = -1.0

    with pytest.raises(ConfigurationError, match=r"Odd.action_delay_bound must be at least 0 s"):
        make(Odd)
