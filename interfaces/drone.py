"""A point drone commanded over a slow radio link: the smallest world in which delay matters."""

import heapq
import math
import secrets
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interface import RealTimeInterface, TupleSpace
from rt_lrhc.randomness import stream
from rt_lrhc.timing.clock import NS, to_ns

FloatArray = npt.NDArray[np.float64]
Point = tuple[float, float]

WORLD_HALF_WIDTH = 1.0
"""The drone flies in a square room of walls at +- this, m; it slides along a wall."""
MAX_SPEED = 2.0
"""Largest commanded velocity along each axis, m/s."""
REPORT_PERIOD = 0.01
"""Time between two positions that the drone sends, s."""
LINK_DELAY = (0.02, 0.05)
"""Shortest and longest travel of a message, either way, s; uniform between them."""
TARGET_HALF_WIDTH = 0.5
"""Targets are drawn in a square of +- this, m."""
TARGET_RADIUS = 0.01
"""An episode terminates when the received position is closer to the target than this, m."""

_REPORT_PERIOD_NS = to_ns(REPORT_PERIOD)
_DELAY_NS = (to_ns(LINK_DELAY[0]), to_ns(LINK_DELAY[1]))


class DummyRCDrone:
    """The drone, its radio link and the ground station, on a time of its own that only `advance` moves.

    The station sends velocities; the drone flies at the one in force, from where it is, and stops at the walls. Every
    `REPORT_PERIOD` it sends its position. Each message travels for its own random time, so that one may overtake
    another: both ends ignore what is older than what they already have. What arrives at the time advanced to has
    arrived. Before the first report arrives, the station knows where the drone started.

    Equal roots and equal commands at equal times give bitwise equal trajectories, however `advance` is split.

    Args:
        root: Root of the random delays, at least 0.
        position: Where the drone starts, at rest, m.
    """

    def __init__(self, root: int, position: Point = (0.0, 0.0)) -> None:
        self._now_ns = 0
        self._uplink = stream(root, "drone: delay of commands")
        self._downlink = stream(root, "drone: delay of reports")
        # The motion since the last change of velocity. It is evaluated where it is asked for and never accumulated, so
        # that the rounding does not depend on how often.
        self._leg_start_ns = 0
        self._leg_position = position
        self._velocity = (0.0, 0.0)
        self._commands: list[tuple[int, int, Point]] = []  # heap of (arrival, number, velocity)
        self._commands_sent = 0
        self._command_in_force = 0
        self._reports: list[tuple[int, int, Point]] = []  # heap of (arrival, measured, position)
        self._next_report_ns = 0
        self._received = position
        self._received_ns = 0

    @property
    def time(self) -> float:
        """Time since the start, s."""
        return self._now_ns / NS

    @property
    def position(self) -> FloatArray:
        """Where the drone is, (2,), m. The station does not know it."""
        return np.array(self._position_at(self._now_ns))

    @property
    def velocity(self) -> FloatArray:
        """The velocity in force, (2,), m/s. The station does not know it. A wall may keep the drone from following."""
        return np.array(self._velocity)

    @property
    def received_position(self) -> FloatArray:
        """The newest position that the station has, (2,), m."""
        return np.array(self._received)

    @property
    def received_time(self) -> float:
        """When the drone was at `received_position`, s."""
        return self._received_ns / NS

    def send(self, velocity: npt.ArrayLike) -> None:
        """Send a velocity to the drone, now.

        Args:
            velocity: (2,), m/s; saturated at +- `MAX_SPEED`.

        Raises:
            ConfigurationError: If it is not two finite numbers.
        """
        command = np.asarray(velocity, dtype=np.float64)
        if command.shape != (2,) or not np.isfinite(command).all():
            raise ConfigurationError(f"a command must be two finite velocities in m/s, got {velocity!r}")
        x, y = np.clip(command, -MAX_SPEED, MAX_SPEED).tolist()
        self._commands_sent += 1
        arrival_ns = self._now_ns + _draw_delay_ns(self._uplink)
        heapq.heappush(self._commands, (arrival_ns, self._commands_sent, (x, y)))

    def advance(self, until: float) -> None:
        """Let the world run to `until`, s since the start.

        Raises:
            ConfigurationError: If `until` lies in the past.
        """
        until_ns = to_ns(until)
        if until_ns < self._now_ns:
            raise ConfigurationError(f"the drone's time is {self.time} s and does not go back to {until} s")
        while (event_ns := self._next_event_ns()) <= until_ns:
            self._now_ns = event_ns
            if self._commands and self._commands[0][0] == event_ns:
                self._accept_command(*heapq.heappop(self._commands))
            elif self._reports and self._reports[0][0] == event_ns:
                self._accept_report(*heapq.heappop(self._reports))
            else:
                report = (event_ns + _draw_delay_ns(self._downlink), event_ns, self._position_at(event_ns))
                heapq.heappush(self._reports, report)
                self._next_report_ns += _REPORT_PERIOD_NS
        self._now_ns = until_ns

    def _next_event_ns(self) -> int:
        event_ns = self._next_report_ns
        if self._commands:
            event_ns = min(event_ns, self._commands[0][0])
        if self._reports:
            event_ns = min(event_ns, self._reports[0][0])
        return event_ns

    def _accept_command(self, arrival_ns: int, number: int, velocity: Point) -> None:
        if number > self._command_in_force:
            self._leg_position = self._position_at(arrival_ns)
            self._leg_start_ns = arrival_ns
            self._velocity = velocity
            self._command_in_force = number

    def _accept_report(self, arrival_ns: int, measured_ns: int, position: Point) -> None:
        if measured_ns > self._received_ns:
            self._received_ns = measured_ns
            self._received = position

    def _position_at(self, time_ns: int) -> Point:
        """Position at a time in the running leg. Exact: on a straight line, clipping at the end is enough."""
        flown = (time_ns - self._leg_start_ns) / NS
        (x, y), (vx, vy) = self._leg_position, self._velocity
        return _within_walls(x + vx * flown), _within_walls(y + vy * flown)


def _draw_delay_ns(link: np.random.Generator) -> int:
    return int(link.integers(_DELAY_NS[0], _DELAY_NS[1], endpoint=True))


def _within_walls(value: float) -> float:
    return min(max(value, -WORLD_HALF_WIDTH), WORLD_HALF_WIDTH)


@dataclass(frozen=True)
class _View:
    """What `render` draws; replaced as a whole, since it is drawn on another thread than the world runs on."""

    position: Point
    received: Point
    target: Point
    command: Point


class DroneInterface(RealTimeInterface):
    """Reach a target: a `DummyRCDrone` as the environment sees it.

    - Observation: position received last, (2,) float32, m; target, (2,) float32, m.
    - Action: velocity, (2,) float32, m/s, in [-2, 2].
    - Reward: minus the distance from the position received last to the target, m. The agent is judged by what it can
      know; the true position is in `info`.
    - Terminated: that distance is under `TARGET_RADIUS`.
    - Info: `position`, the true one, (2,) float64, m; `position_age`, of the received one, s; `distance`, m.

    `reset(options={"target": (x, y)})` sets the target; otherwise it is drawn. The drone starts in the middle.
    """

    control_period = REPORT_PERIOD
    action_delay_bound = LINK_DELAY[1]
    # Captures lie on the grid of the reports: the one sent this long ago has arrived.
    observation_delay_bound = LINK_DELAY[1]
    observation_names = ("position", "target")

    def __init__(self) -> None:
        self._drone = DummyRCDrone(0)
        self._target: FloatArray = np.zeros(2)
        self._command: Point = (0.0, 0.0)
        self._view: _View | None = None

    def get_observation_space(self) -> TupleSpace:
        """Return the space of (position received last, target)."""
        return spaces.Tuple(
            (
                spaces.Box(-WORLD_HALF_WIDTH, WORLD_HALF_WIDTH, (2,), np.float32),
                spaces.Box(-TARGET_HALF_WIDTH, TARGET_HALF_WIDTH, (2,), np.float32),
            )
        )

    def get_action_space(self) -> spaces.Box:
        """Return the space of velocities."""
        return spaces.Box(-MAX_SPEED, MAX_SPEED, (2,), np.float32)

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the velocity zero."""
        return np.zeros(2, dtype=np.float32)

    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Send a velocity to the drone."""
        self._drone.send(control)
        self._command = (float(control[0]), float(control[1]))

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Put the drone in the middle, draw a target, and start the time at 0.

        Raises:
            ConfigurationError: If `options["target"]` is not a point where targets may lie.
        """
        root = secrets.randbits(63) if seed is None else seed
        self._drone = DummyRCDrone(root)
        self._command = (0.0, 0.0)
        self._target = (
            _checked_target(options["target"]) if options and "target" in options else _draw_target(root)
        )
        observation, _, _, info = self.get_obs_rew_terminated_info()
        return observation, info

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], float, bool, dict[str, Any]]:
        """Capture what the station knows now."""
        received, position = self._drone.received_position, self._drone.position
        distance = math.dist(received, self._target)
        x, y = self._target.tolist()
        self._view = _View((position[0], position[1]), (received[0], received[1]), (x, y), self._command)
        observation = [received.astype(np.float32), self._target.astype(np.float32)]
        age = self._drone.time - self._drone.received_time
        info = {"position": position, "position_age": age, "distance": distance}
        return observation, -distance, distance < TARGET_RADIUS, info

    def advance(self, until: float) -> None:
        """Let the world run to `until`, s since `reset()`."""
        self._drone.advance(until)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the world as it was captured last, (480, 480, 3) RGB; None before the first `reset()`."""
        return None if self._view is None else _draw(self._view)


def drone_config() -> dict[str, Any]:
    """Return a configuration of the drone, yours to change: `gym.make("rt_lrhc:rt-v0", config=drone_config())`.

    A command begins to act 70 to 100 ms after the capture that it answers, which shows a position 30 to 50 ms old
    (captures and reports share their grid): three actions of 50 ms cover these 150 ms.
    """
    return {
        "interface": "rt_lrhc.interfaces.drone:DroneInterface",
        "time_step_duration": 0.05,
        "start_obs_capture": 0.05,
        "time_step_timeout_factor": 1.0,
        "ep_max_length": 100,
        "act_buf_len": 3,
        "reset_act_buf": True,
        "wait_on_done": True,
    }


def _draw_target(root: int) -> FloatArray:
    return stream(root, "drone: target").uniform(-TARGET_HALF_WIDTH, TARGET_HALF_WIDTH, 2)


def _checked_target(value: Any) -> FloatArray:
    target = np.array(value, dtype=np.float64)
    if target.shape != (2,) or not (np.abs(target) <= TARGET_HALF_WIDTH).all():
        raise ConfigurationError(
            f'options["target"] must be a point (x, y), both in [-{TARGET_HALF_WIDTH}, {TARGET_HALF_WIDTH}] m, '
            f"got {value!r}"
        )
    return target


_SIZE = 480
_SCALE = _SIZE / (2.2 * WORLD_HALF_WIDTH)
_BACKGROUND = (250, 250, 248)
_WALL = (150, 150, 145)
_TARGET = (39, 150, 92)
_DRONE = (52, 73, 94)
_RECEIVED = (170, 180, 192)
_COMMAND = (192, 103, 42)


def _draw(view: _View) -> npt.NDArray[np.uint8]:
    picture = np.full((_SIZE, _SIZE, 3), _BACKGROUND, dtype=np.uint8)
    cv2.rectangle(picture, _pixel((-1.0, 1.0)), _pixel((1.0, -1.0)), _WALL, 1)
    cv2.drawMarker(picture, _pixel(view.target), _TARGET, cv2.MARKER_CROSS, 22, 3)
    cv2.circle(picture, _pixel(view.received), 9, _RECEIVED, 2, cv2.LINE_AA)
    tip = (view.position[0] + 0.15 * view.command[0], view.position[1] + 0.15 * view.command[1])
    cv2.arrowedLine(picture, _pixel(view.position), _pixel(tip), _COMMAND, 2, cv2.LINE_AA, tipLength=0.25)
    cv2.circle(picture, _pixel(view.position), 7, _DRONE, cv2.FILLED, cv2.LINE_AA)
    legend = (("drone", _DRONE), ("position received", _RECEIVED), ("target", _TARGET), ("command", _COMMAND))
    left = 28
    for text, colour in legend:
        cv2.putText(picture, text, (left, _SIZE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
        left += 24 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0]
    return picture


def _pixel(point: Point) -> tuple[int, int]:
    return round(_SIZE / 2 + point[0] * _SCALE), round(_SIZE / 2 - point[1] * _SCALE)
