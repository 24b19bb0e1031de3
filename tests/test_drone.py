import math
import random
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interfaces import drone as module
from rt_lrhc.interfaces.drone import DroneInterface, DummyRCDrone, drone_config
from rt_lrhc.randomness import stream

ROOTS = st.integers(0, 2**63)
SPEEDS = st.tuples(st.floats(-2.0, 2.0), st.floats(-2.0, 2.0))
# Commands in bursts as well as far apart, so that some overtake others.
COMMANDS = st.lists(st.tuples(st.integers(0, 80), SPEEDS), max_size=25)
END_MS = 1200


def fly(root: int, commands: list[tuple[int, Any]], stops_ms: list[int]) -> list[tuple[Any, ...]]:
    """Send each command `gap` ms after the one before; return all that there is to see, every 50 ms."""
    drone, seen, sent_ms = DummyRCDrone(root), [], 0
    schedule: list[tuple[int, Any]] = []
    for gap, velocity in commands:
        sent_ms += gap
        schedule.append((sent_ms, velocity))
    looks = range(0, END_MS + 1, 50)
    for now_ms in sorted({*looks, *stops_ms, *(t for t, _ in schedule if t <= END_MS)}):
        drone.advance(now_ms / 1000)
        if now_ms % 50 == 0:
            seen.append((*drone.position, *drone.received_position, drone.received_time, *drone.velocity))
        for t, velocity in schedule:
            if t == now_ms:
                drone.send(velocity)
    return seen


@settings(max_examples=60, deadline=None)
@given(root=ROOTS, commands=COMMANDS, stops=st.lists(st.integers(0, END_MS), max_size=40))
def test_a_trajectory_does_not_depend_on_how_advance_is_split(
    root: int, commands: Any, stops: list[int]
) -> None:
    """Bitwise; and so equal roots and commands give equal trajectories."""
    assert fly(root, commands, []) == fly(root, commands, stops)


def test_another_root_gives_other_delays() -> None:
    commands = [(50, (1.0, -1.0)), (50, (-1.0, 1.0))]
    assert fly(1, commands, []) != fly(2, commands, [])


@settings(max_examples=60, deadline=None)
@given(root=ROOTS, commands=COMMANDS)
def test_the_drone_follows_a_plain_model_of_link_and_walls(root: int, commands: Any) -> None:
    """The model sorts all messages at the end, drops the overtaken ones and sums up straight legs.

    It also shows that delays lie within bounds: they are drawn here, as whole nanoseconds from 20 to 50 ms.
    """
    seen = fly(root, commands, [])
    up, down = stream(root, "drone: delay of commands"), stream(root, "drone: delay of reports")
    arrivals, sent_ms = [], 0
    for number, (gap, velocity) in enumerate(commands):
        sent_ms += gap
        if sent_ms <= END_MS:
            delay = int(up.integers(20_000_000, 50_000_001))
            arrivals.append((sent_ms * 1_000_000 + delay, number, velocity))
    legs, newest = [(0, (0.0, 0.0))], -1
    for arrival, number, velocity in sorted(arrivals):
        if number > newest:  # one that was overtaken is never applied
            newest = number
            legs.append((arrival, velocity))

    def position(t_ns: int) -> np.ndarray:
        point = np.zeros(2)
        for (begin, velocity), (end, _) in zip(legs, [*legs[1:], (1 << 62, None)], strict=True):
            if begin < t_ns:
                point = np.clip(point + np.array(velocity) * (min(end, t_ns) - begin) / 1e9, -1.0, 1.0)
        return point

    reports = [
        (t + int(down.integers(20_000_000, 50_000_001)), t)
        for t in range(0, END_MS * 1_000_000 + 1, 10_000_000)
    ]
    for row, now_ns in zip(seen, range(0, END_MS * 1_000_000 + 1, 50_000_000), strict=True):
        newest_ns = max([0, *(measured for arrival, measured in reports if arrival <= now_ns)])
        assert row[:2] == pytest.approx(position(now_ns), abs=1e-12)
        assert row[2:4] == pytest.approx(position(newest_ns), abs=1e-12)
        assert row[4] == newest_ns / 1e9
        assert row[5:] == tuple(float(v) for v in [leg for leg in legs if leg[0] <= now_ns][-1][1])


def test_messages_travel_between_20_and_50_ms() -> None:
    """A thousand commands, one at a time: each takes effect within the bounds, and they spread over them."""
    delays = []
    for root in range(1000):
        drone = DummyRCDrone(root)
        drone.send((2.0, 0.0))
        drone.advance(0.0199)
        assert drone.velocity.tolist() == [0.0, 0.0]
        drone.advance(0.1)
        delays.append(0.1 - drone.position[0] / 2.0)
        assert 0.02 <= drone.time - drone.received_time <= 0.06  # reports leave every 10 ms
    assert 0.02 - 1e-9 <= min(delays) < 0.022
    assert 0.048 < max(delays) <= 0.05 + 1e-9
    assert np.mean(delays) == pytest.approx(0.035, abs=0.001)


def test_some_commands_are_overtaken_and_then_ignored() -> None:
    """Two commands at one instant: whichever arrives first, the second is in force once both are there."""
    first_seen = 0
    for root in range(100):
        drone = DummyRCDrone(root)
        drone.send((1.0, 0.0))
        drone.send((0.0, 1.0))
        velocities = set()
        for step in range(1, 61):
            drone.advance(step / 1000)
            velocities.add(tuple(drone.velocity.tolist()))
        assert drone.velocity.tolist() == [0.0, 1.0]
        first_seen += (1.0, 0.0) in velocities
    assert 20 < first_seen < 80


def test_the_received_position_never_goes_back_in_time() -> None:
    drone = DummyRCDrone(3)
    times = []
    for step in range(2000):
        drone.advance(step / 1000)
        times.append(drone.received_time)
    assert times == sorted(times)
    assert times[-1] > 1.9


def test_the_drone_saturates_commands_and_stops_at_walls_and_leaves_them() -> None:
    fast, allowed = DummyRCDrone(0), DummyRCDrone(0)
    fast.send((100.0, -3.0))
    allowed.send((2.0, -2.0))
    for drone in (fast, allowed):
        drone.advance(0.3)
    assert fast.position.tolist() == allowed.position.tolist()
    fast.advance(2.0)
    assert fast.position.tolist() == [1.0, -1.0]
    fast.send((-1.0, 0.0))
    fast.advance(2.5)
    assert 0.5 < fast.position[0] < 0.55 and fast.position[1] == -1.0


@pytest.mark.parametrize("command", [(math.nan, 0.0), (math.inf, 0.0), (1.0,), 3.0, ((1.0, 2.0),)])
def test_a_command_that_is_not_two_finite_numbers_is_refused(command: Any) -> None:
    with pytest.raises(ConfigurationError, match="two finite velocities"):
        DummyRCDrone(0).send(command)


def test_time_does_not_go_back() -> None:
    drone = DummyRCDrone(0)
    drone.advance(0.5)
    drone.advance(0.5)
    with pytest.raises(ConfigurationError, match=r"0\.5 s .* not go back to 0\.49 s"):
        drone.advance(0.49)


def episode(interface: DroneInterface, seed: int, steps: int = 40) -> list[Any]:
    observation, info = interface.reset(seed=seed)
    rng, trace = random.Random(seed), [observation, info]
    for step in range(1, steps + 1):
        interface.send_control(np.array([rng.uniform(-2, 2), rng.uniform(-2, 2)], dtype=np.float32))
        for period in range(5):
            interface.advance((5 * (step - 1) + period + 1) * interface.control_period)
        trace.append(interface.get_obs_rew_terminated_info())
    return trace


def test_observations_lie_in_their_space_and_equal_seeds_give_equal_episodes() -> None:
    used = DroneInterface()
    episode(used, 5)
    for seed in range(20):
        trace = episode(used, seed)
        np.testing.assert_equal(trace, episode(DroneInterface(), seed))
        space = used.get_observation_space()
        for entry in [(trace[0],), *trace[2:]]:
            assert space.contains(tuple(entry[0]))
            assert all(part.dtype == np.float32 for part in entry[0])
    default = used.get_default_action()
    assert used.get_action_space().contains(default) and not default.any()


def test_the_reward_and_the_end_are_of_the_position_received_last() -> None:
    interface = DroneInterface()
    (received, target), info = interface.reset(seed=1, options={"target": (0.3, -0.4)})
    assert target.tolist() == pytest.approx([0.3, -0.4]) and received.tolist() == [0.0, 0.0]
    assert info["distance"] == pytest.approx(0.5)
    interface.send_control(np.array([0.6, -0.8], dtype=np.float32))
    ends = []
    for period in range(1, 60):
        interface.advance(period / 100)
        (received, target), reward, terminated, info = interface.get_obs_rew_terminated_info()
        assert isinstance(reward, float) and isinstance(terminated, bool)
        assert reward == pytest.approx(-math.dist(received, target), abs=1e-6)
        assert terminated == (info["distance"] < module.TARGET_RADIUS)
        behind = math.dist(received, info["position"])
        assert behind <= info["position_age"] * 1.0 + 1e-6  # it flies at 1 m/s at most
        ends.append(terminated)
    assert any(ends) and not ends[0]


def test_what_is_returned_is_never_overwritten() -> None:
    interface = DroneInterface()
    observation, info = interface.reset(seed=1)
    kept = [part.copy() for part in observation], info["position"].copy()
    interface.send_control(np.ones(2, dtype=np.float32))
    interface.advance(0.5)
    again, _, _, later = interface.get_obs_rew_terminated_info()
    np.testing.assert_equal((observation, info["position"]), kept)
    for old, new in zip([*observation, info["position"]], [*again, later["position"]], strict=True):
        assert not np.shares_memory(old, new)


def test_targets_are_drawn_all_over_their_square() -> None:
    interface = DroneInterface()
    targets = np.array([interface.reset(seed=seed)[0][1] for seed in range(300)])
    assert (np.abs(targets) <= 0.5).all()
    assert (targets.min(axis=0) < -0.45).all() and (targets.max(axis=0) > 0.45).all()
    assert (
        interface.reset()[0][1].tolist() != interface.reset()[0][1].tolist()
    )  # no seed: another target each time


@pytest.mark.parametrize("target", [(0.6, 0.0), (math.nan, 0.0), (0.1,), ((0.1, 0.2),)])
def test_a_target_outside_its_square_is_an_error_that_names_the_option(target: Any) -> None:
    with pytest.raises(ConfigurationError, match=r'options\["target"\]'):
        DroneInterface().reset(seed=0, options={"target": target})


def test_the_picture_shows_drone_target_and_received_position_in_their_places() -> None:
    interface = DroneInterface()
    assert interface.render() is None
    interface.reset(seed=0, options={"target": (0.5, 0.5)})
    interface.send_control(np.array([-2.0, 0.0], dtype=np.float32))
    interface.advance(0.4)
    (received, _), _, _, info = interface.get_obs_rew_terminated_info()
    picture = interface.render()
    assert picture is not None and picture.dtype == np.uint8 and picture.shape == (480, 480, 3)

    def colours(x: float, y: float, radius: int) -> set[tuple[int, ...]]:
        column, row = round(240 + x * 480 / 2.2), round(240 - y * 480 / 2.2)
        patch = picture[row - radius : row + radius + 1, column - radius : column + radius + 1]
        return {tuple(pixel) for pixel in patch.reshape(-1, 3).tolist()}

    x, y = info["position"]
    assert x < received[0] < 0.0
    assert colours(0.5, 0.5, 0) == {module._TARGET}
    assert colours(x, y, 0) <= {module._DRONE, module._COMMAND}
    assert module._RECEIVED in colours(*received, 11)
    assert module._COMMAND in colours(x - 0.2, y, 4)
    assert colours(0.8, -0.8, 3) == {module._BACKGROUND}


def test_the_configuration_is_a_new_dictionary_each_time_and_covers_the_delay() -> None:
    config = drone_config()
    config["act_buf_len"] = 99
    assert drone_config()["act_buf_len"] == 3
    step = drone_config()["time_step_duration"]
    longest_delay = module.LINK_DELAY[1] + step + module.LINK_DELAY[1]  # report, inference, command
    assert drone_config()["act_buf_len"] * step >= longest_delay
    assert isinstance(DroneInterface().get_observation_space(), spaces.Tuple)
