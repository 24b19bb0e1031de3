"""Gymnasium environments in real time: what they were, plus time."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rt_lrhc import DEFAULT_CONFIG_DICT, ConfigurationError
from tests.test_environment import same

WALL, VIRTUAL = "rt_lrhc:rt-v0", "rt_lrhc:rt-sim-v0"


def make(
    env: Any, id: str = VIRTUAL, render_mode: str | None = None, duration: float = 0.05, **changes: Any
) -> Any:
    keys = ("control_period", "default_action", "env_kwargs")
    kwargs = {"env": env, **{key: changes.pop(key) for key in keys if key in changes}}
    config = {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": "rt_lrhc.interfaces.gymnasium_env:GymnasiumInterface",
        "interface_kwargs": kwargs,
        "time_step_duration": duration,
        "start_obs_capture": duration,
        **changes,
    }
    return gym.make(id, config=config, render_mode=render_mode, disable_env_checker=True).unwrapped


class Camera(gym.Env):
    """Pictures as observations, steps of 10 ms; it ends by itself after `ends` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(
        self, ends: int = 10**9, truncates: bool = False, space: Any = None, render_mode: Any = None
    ) -> None:
        self.observation_space = space or gym.spaces.Box(0, 255, (4, 6, 3), np.uint8)
        self.action_space = gym.spaces.Box(0.5, 2.0, (1,), np.float32)
        self.ends, self.truncates, self.render_mode = ends, truncates, render_mode
        self.steps = self.drawn = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((4, 6, 3), np.uint8), {"options": str(options)}

    def step(self, action):
        self.steps += 1
        over = self.steps >= self.ends
        picture = np.full((4, 6, 3), self.steps, np.uint8)
        return (
            picture,
            float(action[0]),
            over and not self.truncates,
            over and self.truncates,
            {"steps": self.steps},
        )

    def render(self):
        self.drawn += 1
        return np.full((4, 6, 3), self.steps, np.uint8)


def test_an_episode_is_the_one_that_the_same_steps_give_without_a_clock() -> None:
    """Two inner steps a time-step; the action handed over in one time-step acts in the next."""
    env = make("Pendulum-v1", duration=0.1)
    env.restart(7)
    plain = gym.make("Pendulum-v1")
    plain.reset(seed=7)
    given = [np.array([np.sin(k)], np.float32) for k in range(20)]
    acting = [np.zeros(1, np.float32), *given]
    for k in range(20):
        observation, reward, *_ = env.step(given[k])
        steps = [plain.step(acting[k]) for _ in range(2)]
        assert np.array_equal(observation[0], steps[-1][0])
        assert reward == pytest.approx(float(steps[0][1]) + float(steps[1][1]))
    env.close()


@pytest.mark.parametrize("name, duration", [("Pendulum-v1", 0.05), ("CartPole-v1", 0.02)])
@pytest.mark.filterwarnings("ignore:.*A Box observation space", "ignore:.*For Box action spaces")
def test_gymnasiums_checker_passes(name: str, duration: float) -> None:
    env = make(name, duration=duration, act_buf_len="auto", action_delay=0.03, observation_delay=0.02)
    check_env(env)
    env.close()


def test_the_highest_score_is_the_discrete_action() -> None:
    env = make("CartPole-v1", duration=0.02, default_action=1)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    env.restart(3)
    plain = gym.make("CartPole-v1")
    plain.reset(seed=3)
    acting = 1
    for k in range(8):
        observation, *_ = env.step(np.array([0.3, -0.3 if k % 3 else 0.9], np.float32))
        expected, *_ = plain.step(acting)
        acting = int(k % 3 == 0)
        assert np.array_equal(observation[0], expected)
    assert observation[1].tolist() == pytest.approx([0.3, -0.3])
    env.close()


def test_its_own_ends_end_the_episode_and_a_pole_that_falls_is_no_time_limit() -> None:
    env = make("CartPole-v1", duration=0.1)
    env.reset(seed=0)
    for _ in range(20):
        _, reward, terminated, truncated, info = env.step(np.array([0.0, 1.0], np.float32))
        if terminated:
            break
    assert terminated and not truncated and info["rt"]["end_reason"] == "terminated"
    assert 1.0 <= reward <= 5.0, "the rewards of the last control periods, until it fell"
    env.close()


@pytest.mark.parametrize("truncates", [False, True])
def test_an_end_within_a_time_step_is_reported_at_the_capture_and_the_world_stands_still(
    truncates: bool,
) -> None:
    env = make(Camera, env_kwargs={"ends": 7, "truncates": truncates})
    env.reset(seed=0)
    action = np.ones(1, np.float32)
    assert env.step(action)[2:4] == (False, False)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (terminated, truncated) == (not truncates, truncates)
    assert observation[0][0, 0, 0] == 7 and reward == pytest.approx(2.0)
    assert info["rt"]["end_reason"] == ("time_limit" if truncates else "terminated")
    env.reset()
    assert env.step(action)[0][0][0, 0, 0] == 5
    env.close()


def test_its_time_limit_counts_its_own_steps_and_can_be_switched_off() -> None:
    def length(**kwargs: Any) -> int:
        env = make("Pendulum-v1", duration=0.2, ep_max_length=80, env_kwargs=kwargs)
        env.reset(seed=0)
        steps = 1
        while not env.step(np.zeros(1, np.float32))[3]:
            steps += 1
        env.close()
        return steps

    assert (length(), length(max_episode_steps=-1)) == (50, 80)


def test_pictures_are_observations_and_delays_apply_to_them() -> None:
    env = make(Camera, observation_delay=0.03, observation_form="dict", act_buf_len="auto")
    observation, info = env.reset(seed=0, options={"hello": 1})
    assert info["options"] == "{'hello': 1}"
    assert observation["observation_0"].dtype == np.uint8 and observation in env.observation_space
    assert [int(env.step(np.ones(1))[0]["observation_0"][0, 0, 0]) for _ in range(3)] == [2, 7, 12]
    env.close()


def test_wall_equals_virtual_time_with_delays() -> None:
    def episode(id: str) -> Any:
        delays = {"action_delay": {"kind": "uniform", "low": 0.0, "high": 0.1}, "observation_delay": 0.05}
        env = make("Pendulum-v1", id, act_buf_len="auto", **delays)
        history = [env.reset(seed=1), *(env.step(np.array([np.sin(k)])) for k in range(8))]
        schedule = env.schedule()
        env.close()
        for *_, info in history:
            info.pop("rt")
        return history, schedule

    virtual, on_time = episode(VIRTUAL)
    for _ in range(5):
        wall, schedule = episode(WALL)
        if schedule == on_time:
            break
    assert schedule == on_time, "five episodes on the wall clock were all late"
    assert same(wall, virtual)


def test_a_picture_is_drawn_only_where_somebody_looks() -> None:
    env = make(Camera, render_mode="rgb_array", env_kwargs={"render_mode": "rgb_array"})
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.ones(1))
    inner = env.interface._env
    assert inner.drawn == 1 and env.render()[0, 0, 0] == 0
    env.step(np.ones(1))
    assert inner.drawn == 2 and env.render()[0, 0, 0] == 25
    env.close()
    with pytest.raises(ConfigurationError, match="GymnasiumInterface makes no pictures"):
        make(Camera, render_mode="rgb_array")


@pytest.mark.parametrize("truncates", [False, True])
def test_copies_end_and_begin_each_on_its_own(truncates: bool) -> None:
    made: list[Camera] = []

    def build() -> Camera:
        made.append(Camera(ends=7 + 5 * len(made), truncates=truncates))
        return made[-1]

    config = {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": "rt_lrhc.interfaces.gymnasium_env:GymnasiumRows",
        "interface_kwargs": {"env": build},
    }
    env = gym.make_vec(VIRTUAL, num_envs=2, config=config)
    env.reset(seed=0)
    ends, seen = [], []
    for _ in range(4):
        observation, _, *flags, info = env.step(np.ones((2, 1), np.float32))
        ends.append((flags[truncates].tolist(), flags[not truncates].any()))
        seen.append(observation[0][:, 0, 0, 0].tolist())
    env.close()
    assert ends == [
        ([False, False], False),
        ([True, False], False),
        ([False, True], False),
        ([True, False], False),
    ]
    assert seen == [[5, 5], [0, 10], [5, 0], [0, 5]]


def test_copies_have_seeds_of_their_own_and_one_runs_alone() -> None:
    config = {
        **DEFAULT_CONFIG_DICT.copy(),
        "interface": "rt_lrhc.interfaces.gymnasium_env:GymnasiumRows",
        "interface_kwargs": {"env": "Pendulum-v1"},
        "action_delay": {"kind": "uniform", "low": 0.0, "high": 0.1},
        "act_buf_len": "auto",
    }
    many, one = gym.make_vec(VIRTUAL, num_envs=3, config=config), gym.make(VIRTUAL, config=config)
    rows, row = many.reset(seed=0)[0], one.reset(seed=0)[0]
    assert len({float(value) for value in rows[0][:, 0]}) == 3
    for k in range(10):
        assert np.array_equal(rows[0][0], row[0])
        rows = many.step(np.full((3, 1), np.sin(k), np.float32))[0]
        row = one.step(np.full(1, np.sin(k), np.float32))[0]
    many.close()
    one.close()


def names(space: Any) -> type:
    return type("Odd", (Camera,), {"__init__": lambda self: Camera.__init__(self, space=space)})


def binary() -> gym.Env:
    env = Camera()
    env.action_space = gym.spaces.MultiBinary(3)
    return env


BOX = gym.spaces.Box(0.0, 1.0, (2,))


def test_dictionaries_and_tuples_become_components() -> None:
    for space, form in (
        (gym.spaces.Dict({"a": BOX, "b": gym.spaces.Discrete(3)}), "dict"),
        (gym.spaces.Tuple([BOX, BOX]), "tuple"),
    ):
        env = make(names(space), observation_form=form)
        parts = env.observation_space.spaces
        assert (set(parts) == {"a", "b", "action_buffer"}) if form == "dict" else len(parts) == 3
        env.close()


@pytest.mark.parametrize(
    "env, changes, said",
    [
        ("Nowhere-v9", {}, "env='Nowhere-v9' cannot be made: NameNotFound"),
        (3, {}, "env must be the id of an environment or a function"),
        (dict, {}, "must make a gymnasium.Env, got dict"),
        (names(gym.spaces.Text(3)), {}, "part 0 of the observation is Text.*FlattenObservation"),
        (names(gym.spaces.Dict({"a": gym.spaces.Dict({"b": BOX})})), {}, "part 'a' of the observation"),
        (binary, {}, "its actions are MultiBinary.*expected Box or Discrete"),
        ("CartPole-v1", {"default_action": 5}, "default_action must be one of Discrete"),
        ("Pendulum-v1", {"default_action": [5.0]}, "default action must lie in the action space"),
        ("Pendulum-v1", {"control_period": -1}, "control_period must be positive"),
        ("Pendulum-v1", {"control_period": 0.03}, "multiple of the control period of GymnasiumInterface"),
        ("FrozenLake-v1", {"env_kwargs": {"size": 3}}, "cannot be made"),
    ],
)
def test_what_cannot_run_in_real_time_is_named(env: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(env, **changes)
