"""Any Gymnasium environment in real time: its steps run on the elastic clock, as a world with control periods."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interface import BoolArray, FloatArray, RealTimeInterface, TupleSpace, VectorInterface
from rt_lrhc.randomness import stream

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)


class GymnasiumInterface(RealTimeInterface):
    """An environment that goes on by itself: one of its steps a control period, under the action in force.

    - Observation: its own. A `Tuple` or a `Dict` becomes one component an entry, a `Dict`'s under their names.
    - Action: its own `Box`. `Discrete(n)` becomes a `Box` of n scores in [-1, 1], of which the largest decides, the
      first one of equals; other spaces are refused.
    - Reward: the sum over the control periods since the last capture.
    - Ends: its own. One that comes within a time-step is reported at the capture; until then its world stands still.
      Its time limit (`gymnasium.make` adds most of them) counts its own steps and truncates, as `ep_max_length` does,
      which counts time-steps. `env_kwargs={"max_episode_steps": -1}` switches it off.
    - Info: that of its last step.
    - `reset(options=...)`: passed on.

    Args:
        env: Id of a registered environment, or a function that returns one.
        control_period: Time that one of its steps stands for, s; None takes its attribute `dt`, or else
            1 / `metadata["render_fps"]`.
        default_action: The action that acts at first; None: zeros, or as close to them as the bounds allow. For
            `Discrete` its number, or None for the first.
        env_kwargs: Keyword arguments for `env`. Pictures need `{"render_mode": "rgb_array"}`.

    Raises:
        ConfigurationError: If the environment cannot be made, or its spaces or its control period cannot be used.
    """

    def __init__(
        self,
        env: str | Callable[..., gymnasium.Env[Any, Any]],
        *,
        control_period: float | None = None,
        default_action: Any = None,
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._env = _make(env, dict(env_kwargs or {}))
        self._name = env if isinstance(env, str) else getattr(env, "__qualname__", repr(env))
        try:
            self.control_period = _control_period(self._env, control_period, self._name)
            self.observation_names, self._spaces = _components(self._env.observation_space, self._name)
            self._action_space = _action_space(self._env.action_space, self._name)
            self._default_action = self._as_default(default_action)
            self.draws = self._env.render_mode == "rgb_array"
        except BaseException:
            self._env.close()
            raise
        self._action: npt.NDArray[Any] = self._default_action
        self._observation: Any = None
        self._reward = 0.0
        self._terminated = False
        self._info: dict[str, Any] = {}
        self._frame: npt.NDArray[np.uint8] | None = None
        self._frame_is_wanted = False

    def _as_default(self, action: Any) -> npt.NDArray[Any]:
        space, inner = self._action_space, self._env.action_space
        if isinstance(inner, spaces.Discrete):
            number = int(inner.start) if action is None else action
            if not inner.contains(number):
                raise ConfigurationError(
                    f"default_action must be one of {inner} of {self._name}, got {action!r}"
                )
            scores = np.full(space.shape, -1.0, dtype=np.float32)
            scores[int(number) - int(inner.start)] = 1.0
            return scores
        default = np.clip(np.zeros(space.shape), space.low, space.high) if action is None else action
        return np.array(default, dtype=space.dtype)

    def get_observation_space(self) -> TupleSpace:
        """Return the space of its observation's components."""
        return spaces.Tuple(self._spaces)

    def get_action_space(self) -> spaces.Box:
        """Return the space of its actions, or of scores."""
        return self._action_space

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the action that acts at first."""
        return self._default_action

    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Let `control` act from the next of its steps on."""
        self._action = control

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Reset it, with the root of the episode as its seed."""
        options = {key: value for key, value in (options or {}).items() if key != "schedule"}
        self._observation, self._info = self._env.reset(seed=seed, options=options or None)
        self._reward, self._terminated, self.truncated = 0.0, False, False
        self._draw()
        return self.observe(), dict(self._info)

    def advance(self, until: float) -> None:
        """Step it once, unless it has ended."""
        if self._terminated or self.truncated:
            return
        action: Any = self._action
        inner = self._env.action_space
        if isinstance(inner, spaces.Discrete):
            action = inner.start + np.argmax(action)
        self._observation, reward, terminated, truncated, self._info = self._env.step(action)
        self._reward += float(reward)
        self._terminated, self.truncated = bool(terminated), bool(truncated)

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], float, bool, dict[str, Any]]:
        """Capture what its last step returned, and the reward since the last capture."""
        reward, self._reward = self._reward, 0.0
        if self._frame_is_wanted:
            self._draw()
        return self.observe(), reward, self._terminated, dict(self._info)

    def observe(self) -> list[Any]:
        """Return the components of the last observation."""
        if isinstance(self._observation, dict):
            return [self._observation[name] for name in self.observation_names or ()]
        return list(self._observation) if isinstance(self._observation, tuple) else [self._observation]

    def _draw(self) -> None:
        self._frame_is_wanted = False
        if self.draws:
            frame: Any = self._env.render()
            self._frame = np.array(frame, dtype=np.uint8)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return the picture of a capture before, and have the next capture draw one.

        It draws on the thread that steps it, and only where somebody looks: a picture is one time-step old.
        """
        self._frame_is_wanted = True
        return self._frame

    def close(self) -> None:
        """Close it."""
        self._env.close()


class GymnasiumRows(VectorInterface):
    """N copies of an environment, one a row: what `GymnasiumInterface` is, for `gymnasium.make_vec`.

    They are stepped one after the other. Each row's episodes have seeds of their own. There is no info, since rows may
    differ in what they tell, and pictures are those of the first row.

    Args:
        env: Id of a registered environment, or a function that returns one.
        num_envs: Number of copies N.
        **settings: Keyword arguments of `GymnasiumInterface`.

    Raises:
        ConfigurationError: As from `GymnasiumInterface`.
    """

    def __init__(
        self, env: str | Callable[..., gymnasium.Env[Any, Any]], num_envs: int, **settings: Any
    ) -> None:
        self.num_envs = num_envs
        self._rows: list[GymnasiumInterface] = []
        try:
            for _ in range(num_envs):
                self._rows.append(GymnasiumInterface(env, **settings))
        except BaseException:
            self.close()
            raise
        first = self._rows[0]
        self.control_period, self.observation_names = first.control_period, first.observation_names
        self.draws = first.draws
        self._root = 0
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._options: dict[str, Any] | None = None

    def get_observation_space(self) -> TupleSpace:
        """Return the space of one row's observation."""
        return self._rows[0].get_observation_space()

    def get_action_space(self) -> spaces.Box:
        """Return the space of one row's actions."""
        return self._rows[0].get_action_space()

    def get_default_action(self) -> npt.NDArray[Any]:
        """Return the action that acts at first."""
        return self._rows[0].get_default_action()

    def send_control(self, control: npt.NDArray[Any]) -> None:
        """Let `control` act from the next steps on."""
        for row, action in zip(self._rows, control, strict=True):
            row.send_control(action)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Reset every row."""
        self._root, self._options = seed or 0, options
        self._episodes[:] = -1
        return self.reset_rows(np.ones(self.num_envs, dtype=np.bool_))

    def reset_rows(self, mask: BoolArray) -> tuple[list[Any], dict[str, Any]]:
        """Reset the rows in the mask."""
        self._episodes[mask] += 1
        for index in np.flatnonzero(mask):
            draws = stream(self._root, "seed", robot=int(index), episode=int(self._episodes[index]))
            self._rows[index].reset(int(draws.integers(2**31)), self._options)
        return self.observe(), {}

    def advance(self, until: float) -> None:
        """Step every row once, but those that have ended."""
        for row in self._rows:
            row.advance(until)

    def get_obs_rew_terminated_info(self) -> tuple[list[Any], FloatArray, BoolArray, dict[str, Any]]:
        """Capture every row."""
        captured = [row.get_obs_rew_terminated_info() for row in self._rows]
        self.truncated = np.array([row.truncated for row in self._rows])
        rewards, terminated = np.array([one[1] for one in captured]), np.array([one[2] for one in captured])
        return _stacked([one[0] for one in captured]), rewards, terminated, {}

    def observe(self) -> list[Any]:
        """Return the components of the last observations."""
        return _stacked([row.observe() for row in self._rows])

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture of the first row."""
        return self._rows[0].render()

    def close(self) -> None:
        """Close every row."""
        for row in self._rows:
            row.close()


def _stacked(rows: list[list[Any]]) -> list[Any]:
    return [np.stack([np.asarray(part) for part in parts]) for parts in zip(*rows, strict=True)]


def _make(env: Any, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    if not (isinstance(env, str) or callable(env)):
        raise ConfigurationError(
            f"env must be the id of an environment or a function that makes one, got {env!r}"
        )
    try:
        made = (
            gymnasium.make(env, disable_env_checker=True, **kwargs) if isinstance(env, str) else env(**kwargs)
        )
    except Exception as error:
        raise ConfigurationError(f"env={env!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, gymnasium.Env):
        raise ConfigurationError(f"env={env!r} must make a gymnasium.Env, got {type(made).__name__}")
    return made


def _control_period(env: gymnasium.Env[Any, Any], given: float | None, name: str) -> float:
    period = given
    if period is None:
        period = getattr(env.unwrapped, "dt", None)
    if period is None and env.metadata.get("render_fps"):
        period = 1.0 / env.metadata["render_fps"]
    if period is None:
        raise ConfigurationError(
            f"{name} says neither dt nor render_fps: give control_period, the time that one of its steps stands for, s"
        )
    if isinstance(period, bool) or not isinstance(period, (int, float)) or not 0.0 < period < math.inf:
        raise ConfigurationError(f"control_period must be positive and finite, in s, got {period!r}")
    return float(period)


def _components(
    space: spaces.Space[Any], name: str
) -> tuple[tuple[str, ...] | None, list[spaces.Space[Any]]]:
    """Return names and spaces of the components of an observation."""
    names: tuple[str, ...] | None = None
    if isinstance(space, spaces.Dict):
        names, parts = tuple(space.spaces), list(space.spaces.values())
    else:
        parts = list(space.spaces) if isinstance(space, spaces.Tuple) else [space]
    for index, part in enumerate(parts):
        if not isinstance(part, _LEAVES):
            where = names[index] if names else index
            raise ConfigurationError(
                f"{name}: part {where!r} of the observation is {part}; expected Box, Discrete, MultiBinary or "
                "MultiDiscrete: flatten it (gymnasium.wrappers.FlattenObservation)"
            )
    return names, parts


def _action_space(space: spaces.Space[Any], name: str) -> spaces.Box:
    if isinstance(space, spaces.Discrete):
        return spaces.Box(-1.0, 1.0, (int(space.n),), np.float32)
    if not isinstance(space, spaces.Box):
        raise ConfigurationError(
            f"{name}: its actions are {space}; expected Box or Discrete: wrap it (gymnasium.wrappers.TransformAction)"
        )
    return space
