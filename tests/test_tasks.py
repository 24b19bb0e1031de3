"""Tasks made of terms: what a term does, what seeds decide, what is an error. No controller runs here."""

import copy
import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc.cluster.controller import Status
from rt_lrhc.errors import ConfigurationError
from rt_lrhc.interfaces.cluster import ClusterInterface, Moment
from rt_lrhc.tasks import (
    Action,
    Command,
    Event,
    Metric,
    Observation,
    Reward,
    Start,
    TaskConfig,
    Termination,
    change,
    description,
    make_config,
    register,
    task_config,
    task_names,
    unregister,
    with_terms,
)
from rt_lrhc.tasks import mini_cheetah as cheetah
from rt_lrhc.tasks import mini_cheetah_terms as cheetah_terms
from rt_lrhc.tasks.common import plan_cost, plan_failing, plan_status
from rt_lrhc.tasks.context import TaskContext
from rt_lrhc.tasks.draws import Draw, RobotStreams
from rt_lrhc.tasks.registry import CLUSTER_KEYS
from rt_lrhc.tasks.task import TermTask


def x(context: TaskContext) -> Any:
    return context.state("cart_position")


def clock(context: TaskContext) -> Any:
    return context.time[:, None].copy()


def speed(context: TaskContext) -> Any:
    return np.abs(context.state("cart_velocity")[:, 0])


def told(context: TaskContext) -> Any:
    return context.action[:, 0] - 10.0 * context.previous_action[:, 0]


def beyond(context: TaskContext, limit: float) -> Any:
    return context.state("cart_position")[:, 0] > limit


def anywhere(context: TaskContext, draw: Draw, scale: float) -> Any:
    return draw.uniform(-scale, scale, 4)


def shove(context: TaskContext, draw: Draw, scale: float) -> None:
    import torch

    velocities, rows = np.zeros((context.num_robots, 2)), np.zeros(context.num_robots, np.bool_)
    velocities[draw.rows, 0], rows[draw.rows] = scale * draw.normal()[:, 0], True
    context.plant.push(torch.from_numpy(velocities), torch.from_numpy(rows))


TASK = TaskConfig(
    plant="rt_lrhc.simulators.cart_pole:CartPoles",
    controller="rt_lrhc.controllers.cart_pole:make_cart_pole",
    references={"cart_position": 0.25},
    observations=(Observation(x, unit="m"), Observation(clock, unit="s")),
    actions=(Action("position", ("cart_position",), -1.0, 1.0),),
    rewards=(Reward(speed, 2.0),),
    start=Start(anywhere, 1.0),
)


@contextmanager
def running(config: TaskConfig, num_robots: int = 3, root: int = 5) -> Iterator["Drill"]:
    drill = Drill(config, num_robots, root)
    try:
        yield drill
    finally:
        drill.task.close()


class Drill:
    """Drives a task as its interface does, without controllers."""

    def __init__(self, config: TaskConfig, num_robots: int, root: int) -> None:
        self.task = TermTask(num_robots, config)
        self.root = root
        self.episodes = np.zeros(num_robots, np.int64)
        self.status = np.full(num_robots, int(Status.SOLVED))
        self.inputs = np.zeros((num_robots, len(self.task.plant.input_names)))
        self.begin(np.ones(num_robots, np.bool_))
        self.send(np.repeat(self.task.default_action[None], num_robots, axis=0))

    def begin(self, rows: Any, options: Any = ()) -> None:
        import torch

        states = self.task.begin(self.root, self.episodes, rows, dict(options))
        self.task.plant.reset(torch.from_numpy(states), torch.from_numpy(rows))
        self._follow(rows)

    def restart(self, *robots: int) -> None:
        rows = np.isin(np.arange(len(self.episodes)), robots)
        self.episodes[rows] += 1
        self.begin(rows)

    def send(self, actions: Any) -> Any:
        return self.task.references(np.asarray(actions, np.float32))

    def periods(self, count: int) -> None:
        import torch

        for _ in range(count):
            self.task.plant.step(torch.from_numpy(self.inputs), self.task.control_period)
            self.task.disturb()
            self._follow(np.zeros(len(self.episodes), np.bool_))

    def _follow(self, began: Any) -> None:
        count = len(self.episodes)
        self.task.follow(
            Moment(
                time=0.0,
                states=self.states,
                inputs=self.inputs,
                references=np.zeros((count, 1)),
                plan_age=np.ones(count, np.int64),
                plan_fresh=np.ones(count, np.bool_),
                plan_status=self.status.copy(),
                plan_cost=np.full(count, np.nan),
                began=began,
            )
        )

    @property
    def states(self) -> Any:
        return self.task.plant.state.numpy()

    def observe(self) -> dict[str, Any]:
        parts = self.task.observe(self.states, np.zeros(0, np.int64))
        return dict(zip(self.task.observation_names, parts, strict=True))

    def judge(self) -> tuple[Any, Any, dict[str, Any]]:
        rewards, ended = self.task.judge(self.states)
        return rewards, ended, self.task.figures()


# Terms.


def test_a_term_is_scaled_and_scale_0_removes_it() -> None:
    config = change(
        with_terms(TASK, observations=Observation(x, -2.0, low=-1.0, high=3.0)), {"observations.clock": 0.0}
    )
    with running(config) as drill:
        assert drill.task.observation_names == ("x",)
        (space,) = drill.task.observation_space.spaces
        assert (space.low, space.high) == (-6.0, 2.0)
        np.testing.assert_allclose(drill.observe()["x"][:, 0], -2.0 * drill.states[:, 0], rtol=1e-6)


def test_what_a_term_returns_lies_within_its_bounds() -> None:
    with running(with_terms(TASK, observations=Observation(x, low=-0.1, high=0.1, noise=1.0))) as drill:
        values = drill.observe()["x"]
        assert values.dtype == np.float32 and np.abs(values).max() <= np.float32(0.1)


def test_rewards_are_means_over_the_control_periods_of_a_transition() -> None:
    with running(TASK) as drill:
        seen = []
        for _ in range(4):
            drill.periods(1)
            seen.append(np.abs(drill.states[:, 2]))
        rewards, _, figures = drill.judge()
        np.testing.assert_allclose(rewards, 2.0 * np.mean(seen, axis=0))
        np.testing.assert_allclose(figures["reward_terms"]["speed"], rewards)
        drill.periods(1)
        np.testing.assert_allclose(drill.judge()[0], 2.0 * np.abs(drill.states[:, 2]))


def test_rewards_at_the_capture_are_those_of_that_moment() -> None:
    with running(replace(TASK, reward_time="capture")) as drill:
        drill.periods(3)
        np.testing.assert_allclose(drill.judge()[0], 2.0 * np.abs(drill.states[:, 2]))


def test_the_reward_is_the_sum_of_its_terms_and_metrics_stay_out_of_it() -> None:
    config = with_terms(TASK, rewards=Reward(told, -1.0), metrics=Metric(told, 3.0))
    with running(config) as drill:
        drill.send([[0.5], [0.0], [-1.0]])
        drill.periods(2)
        rewards, _, figures = drill.judge()
        np.testing.assert_allclose(figures["reward_terms"]["told"], [-0.5, 0.0, 1.0])
        np.testing.assert_allclose(rewards, sum(figures["reward_terms"].values()))
        np.testing.assert_allclose(figures["metrics"]["told"], [1.5, 0.0, -3.0])


def test_a_robot_that_begins_anew_leaves_the_others_actions_alone() -> None:
    with running(with_terms(TASK, metrics=Metric(told))) as drill:
        drill.send([[0.1], [0.2], [0.3]])
        drill.send([[0.5], [0.6], [0.7]])
        drill.restart(1)
        drill.send([[0.5], [0.0], [0.7]])
        context = drill.task.context
        np.testing.assert_allclose(context.previous_action[:, 0], [0.1, 0.0, 0.3], rtol=1e-6)
        np.testing.assert_allclose(context.action[:, 0], [0.5, 0.0, 0.7], rtol=1e-6)
        np.testing.assert_array_equal(context.time, 0.0)


def test_a_termination_that_must_last_is_interrupted_by_a_moment_without_it() -> None:
    config = with_terms(TASK, terminations=Termination(plan_failing, lasting=0.06))
    with running(config) as drill:
        ended = []
        for failing in (1, 1, 0, 1, 1, 1, 1):
            drill.status[:2] = Status.DIVERGED if failing else Status.SOLVED
            drill.periods(1)
            ended.append(drill.judge()[1].tolist())
        assert [row[0] for row in ended] == [False] * 5 + [True] * 2
        assert not any(row[2] for row in ended)
        drill.restart(0)
        assert drill.judge()[1].tolist() == [False, True, False]


def test_a_robot_that_waits_for_its_cold_start_is_not_failing() -> None:
    with running(TASK) as drill:
        drill.status[:] = Status.INITIALISING, Status.INFEASIBLE, Status.ITERATION_LIMIT
        drill.periods(1)
        context = drill.task.context
        assert plan_failing(context).tolist() == [False, True, False]
        assert plan_status(context).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
        assert plan_cost(context).tolist() == [[0.0]] * 3


def test_a_simulation_that_diverges_ends_its_robot_and_no_number_is_lost(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there that it diverged
    with running(with_terms(TASK, terminations=Termination(beyond, parameters={"limit": 5.0}))) as drill:
        drill.task.plant._qpos[1, 0] = np.nan
        drill.periods(2)
        rewards, ended, figures = drill.judge()
        assert np.isfinite(rewards).all() and all(
            np.isfinite(part).all() for part in drill.observe().values()
        )
        assert ended.tolist() == figures["termination_terms"]["diverged"].tolist() == [False, True, False]
        drill.restart(1)
        drill.periods(1)
        assert not drill.judge()[1].any()


def test_what_no_action_commands_keeps_the_tasks_reference() -> None:
    with running(cheetah.mini_cheetah_flat()) as drill:
        actions = np.repeat(drill.task.default_action[None], 3, axis=0)
        actions[:, 0] = 0.5
        references = dict(zip(drill.task.reference_names, drill.send(actions).T, strict=True))
        assert references["velocity_x_in_heading"].tolist() == [0.5] * 3
        assert references["height"].tolist() == [0.29] * 3 and references["gait"].tolist() == [1.0] * 3


def test_an_action_group_is_switched_on_by_its_scale() -> None:
    config = change(cheetah.mini_cheetah_flat(), {"actions.gait": 0.1, "actions.contacts": 0.0})
    with running(config) as drill:
        space = drill.task.action_space
        assert space.shape == (6,)
        np.testing.assert_allclose(space.low[3:], [3.0, 4.5, 0.3], rtol=1e-6)
        references = drill.send(np.repeat(space.low[None], 3, axis=0))
        assert references[0, drill.task.reference_names.index("gait_period")] == pytest.approx(0.3)


# Noise and delay.


def test_a_delay_in_seconds_shows_the_value_of_that_long_ago() -> None:
    config = with_terms(TASK, observations=Observation(clock, delay=0.06))
    with running(config) as drill:
        for period in range(1, 8):
            drill.periods(1)
            np.testing.assert_allclose(drill.observe()["clock"], max(0.0, 0.02 * (period - 3)), atol=1e-6)
        drill.restart(1)
        drill.periods(2)
        np.testing.assert_allclose(drill.observe()["clock"][:, 0], [0.12, 0.0, 0.12], atol=1e-6)
    assert drill.task.observation_delay_bound == pytest.approx(0.06)


def test_drawn_delays_cover_their_range_and_stay_for_an_episode() -> None:
    config = with_terms(TASK, observations=Observation(clock, delay=(0.02, 0.08)))
    with running(config, num_robots=64) as drill:
        drill.periods(10)
        first = drill.observe()["clock"][:, 0]
        assert set(np.rint((0.2 - first) / 0.02).tolist()) == {1.0, 2.0, 3.0, 4.0}
        drill.periods(1)
        np.testing.assert_allclose(drill.observe()["clock"][:, 0], first + 0.02, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_noise_has_its_size_and_is_the_same_however_often_one_looks(kind: Any) -> None:
    config = with_terms(TASK, observations=Observation(clock, 2.0, noise=0.5, noise_kind=kind))
    with running(config, num_robots=400) as drill:
        samples = []
        for _ in range(50):
            drill.periods(1)
            seen = drill.observe()["clock"]
            np.testing.assert_array_equal(seen, drill.observe()["clock"])
            samples.append(seen / 2.0 - drill.task.context.time[:, None])
        errors = np.array(samples)[..., 0]
        deviation = 0.5 if kind == "gaussian" else 0.5 / np.sqrt(3.0)
        assert abs(errors.mean()) < 0.02 and errors.std() == pytest.approx(deviation, rel=0.03)
        # Neither between robots nor between moments is there a correlation.
        assert abs(np.corrcoef(errors[:-1].ravel(), errors[1:].ravel())[0, 1]) < 0.03
        assert abs(np.corrcoef(errors[:, :-1].ravel(), errors[:, 1:].ravel())[0, 1]) < 0.03


# Seeds.


NOISY = with_terms(
    TASK,
    observations=Observation(x, noise=0.1, delay=(0.0, 0.06)),
    commands=Command("target", (-1.0, 0.0), (1.0, 2.0), period=(0.04, 0.1), zero=0.3),
    events=Event(shove, 0.5, period=(0.02, 0.06)),
)


def story(num_robots: int, robot: int, restarts: tuple[int, ...] = ()) -> Any:
    with running(NOISY, num_robots) as drill:
        told = []
        for period in range(12):
            drill.periods(1)
            if period in restarts:
                drill.restart(*(other for other in range(num_robots) if other != robot))
            commands = drill.task.context.command("target")
            told.append([*drill.observe()["x"][robot], *commands[robot], *drill.states[robot]])
        return np.array(told)


def test_what_happens_to_a_robot_depends_on_no_other_robot() -> None:
    alone = story(1, 0)
    np.testing.assert_array_equal(story(5, 0), alone)
    np.testing.assert_array_equal(story(5, 0, restarts=(3, 4, 8)), alone)
    assert not np.array_equal(story(5, 1), alone)


def test_an_episode_differs_from_the_next_one_and_repeats_under_its_seed() -> None:
    starts = []
    for _ in range(2):
        with running(NOISY) as drill:
            first = drill.states
            drill.restart(0, 1, 2)
            starts.append((first, drill.states))
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.isclose(*starts[0]).any()


def test_commands_keep_to_their_range_rest_and_change_in_time() -> None:
    with running(NOISY, num_robots=100) as drill:
        seen = []
        for _ in range(40):
            drill.periods(1)
            seen.append(drill.task.context.command("target").copy())
        values = np.array(seen)
        resting = (values == 0.0).all(axis=2)
        assert 0.2 < resting.mean() < 0.4
        moving = values[~resting]
        assert (moving >= [-1.0, 0.0]).all() and (moving <= [1.0, 2.0]).all()
        assert moving.min(axis=0) == pytest.approx([-1.0, 0.0], abs=0.05)
        # A draw lasts 2 to 5 control periods, 3.5 on average.
        changes = (values[1:] != values[:-1]).any(axis=2).mean()
        assert changes == pytest.approx((1 - 0.3**2) / 3.5, rel=0.1)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 3))
def test_drawn_numbers_are_those_of_the_key_however_they_are_drawn(
    root: int, columns: int, robot: int
) -> None:
    def streams() -> RobotStreams:
        made = RobotStreams(4, "test")
        made.begin(root, np.zeros(4, np.int64), np.arange(4))
        return made

    together, rows = streams().next(np.arange(4), 2 * columns), np.array([robot])
    pieces = streams()
    parts = [pieces.next(rows, columns), pieces.next(rows, columns)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1)[0], together[robot])
    assert (together >= 0.0).all() and (together < 1.0).all()


# Configurations.


def test_tasks_inherit_and_stay_as_they_were() -> None:
    base = task_config("mini_cheetah_flat")
    child = replace(
        with_terms(base, rewards=(Reward(speed), Reward(cheetah_terms.yaw_tracking, 9.0))), episode_length=1.0
    )
    assert [term.name for term in child.rewards] == [*(term.name for term in base.rewards), "speed"]
    scales = {term.name: term.scale for term in child.rewards}
    assert scales["yaw_tracking"] == 9.0 and child.ep_max_length == 50
    assert {term.name: term.scale for term in base.rewards}["yaw_tracking"] == 0.5
    with pytest.raises(FrozenInstanceError):
        base.episode_length = 2.0  # type: ignore[misc]
    assert task_config("mini_cheetah_flat") == base and task_config("mini_cheetah_flat") is not base


def test_a_configuration_can_be_copied_and_sent_to_a_process() -> None:
    for name in task_names():
        config = make_config(name)
        for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
            assert twin == config


def test_settings_reach_every_value() -> None:
    config = change(
        task_config("mini_cheetah_flat"),
        {
            "rewards.action_rate": 0.0,
            "rewards.velocity_tracking.parameters": {"width": 0.5},
            "events.push.parameters.speed": 2.0,
            "references.height": 0.27,
            "plant_kwargs.threads": 2,
            "commands.twist.zero": 1.0,
            "start.scale": 0.0,
        },
    )
    assert {term.name: term.scale for term in config.rewards}["action_rate"] == 0.0
    assert (
        config.references["height"] == 0.27
        and config.plant_kwargs == {"threads": 2}
        and config.start.scale == 0.0
    )
    assert dict(next(term for term in config.events if term.name == "push").parameters) == {"speed": 2.0}


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: change(TASK, {"reward.speed": 0.0}), "did you mean 'rewards'"),
        (lambda: change(TASK, {"rewards.sped": 0.0}), "did you mean 'speed'"),
        (lambda: change(TASK, {"rewards.speed.scal": 0.0}), "did you mean 'scale'"),
        (lambda: change(TASK, {"control_period.x": 0.0}), "nothing lies below"),
        (lambda: change(TASK, {"references.cart_positon": 0.0}), None),
        (lambda: change(TASK, {"rewards.speed": float("nan")}), "scale must be a number"),
        (lambda: with_terms(TASK, reward=Reward(speed)), "did you mean 'rewards'"),
        (lambda: with_terms(TASK, rewards=Observation(x)), "rewards must hold Reward"),
        (
            lambda: replace(TASK, rewards=(Reward(speed), Reward(told, name="speed"))),
            "two terms named 'speed'",
        ),
        (lambda: Reward("speed"), "must be a function"),
        (lambda: Reward(lambda context: 0.0, name="a.b"), "without dots"),
        (lambda: Termination(beyond, parameters={"limt": 1.0}), "did you mean 'limit'"),
        (lambda: Termination(beyond), "limit"),
        (lambda: Observation(x, low=1.0, high=0.0), "low must not exceed high"),
        (lambda: Observation(x, delay=(0.2, 0.1)), "in order"),
        (lambda: Observation(x, noise=-1.0), "at least 0"),
        (lambda: Observation(x, noise_kind="pink"), "'gaussian', 'uniform'"),
        (lambda: Command("c", (0.0,), (1.0, 2.0)), "of one length"),
        (lambda: Command("c", (0.0,), (1.0,), zero=2.0), "probability"),
        (lambda: Action("a", ("cart_position",), -1.0, 1.0, default=2.0), "default"),
        (
            lambda: replace(TASK, actions=(Action("a", ("cart_postion",), -1.0, 1.0),)),
            "did you mean 'cart_position'",
        ),
        (lambda: replace(TASK, actions=()), "at least one term"),
        (lambda: replace(TASK, control_period=0.0), "control_period must be positive"),
        (lambda: make_config("cart_poel"), "did you mean 'cart_pole'"),
        (lambda: make_config("cart_pole", time_step=0.1), "did you mean 'time_step_duration'"),
        (lambda: make_config("drone", mode="blocking"), "unknown key"),
        (lambda: make_config("drone", {"rewards.x": 1.0}), "not made of terms"),
        (lambda: task_config("drone"), "not made of terms"),
        (lambda: task_config("rt_lrhc.nowhere:task"), "cannot import"),
        (lambda: task_config("rt_lrhc.tasks.cart_pole:cart_pol"), "did you mean 'cart_pole'"),
        (lambda: register("cart_pole", lambda: TASK), "registered already"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_close(make: Any, said: str | None) -> None:
    if said is None:
        # A reference of its own is not the task's to forbid: the controller's names are compared where they meet.
        assert list(make().references) == ["cart_position", "cart_positon"]
        return
    with pytest.raises(ConfigurationError, match=said):
        make()


@pytest.mark.parametrize(
    "terms, said",
    [
        ({"observations": Observation(speed)}, "observation 'speed' must return finite numbers"),
        ({"rewards": Reward(x)}, "Reward 'x' must return"),
        ({"terminations": Termination(speed)}, "Termination 'speed' must return"),
        ({"observations": Observation(x, low=(0.0, 1.0))}, "low must be a number or 1 of them"),
    ],
)
def test_a_term_of_the_wrong_shape_is_an_error_before_anything_runs(terms: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        TermTask(2, with_terms(TASK, **terms))


def test_an_unknown_option_of_reset_is_an_error() -> None:
    with running(TASK) as drill, pytest.raises(ConfigurationError, match="unknown option 'target'"):
        drill.begin(np.ones(3, np.bool_), {"target": 1.0})


def test_the_registry_gives_each_task_anew_and_says_what_it_is() -> None:
    assert task_names() == ["cart_pole", "drone", "mini_cheetah_flat", "mini_cheetah_ref"]
    assert all(description(name) for name in task_names())
    calls = []

    def mine() -> TaskConfig:
        """A task of one's own.

        With more to say.
        """
        calls.append(1)
        return TASK

    register("mine", mine)
    try:
        assert description("mine") == "A task of one's own." and not calls
        first, second = make_config("mine"), make_config("mine", time_step_duration=0.1)
        assert len(calls) == 2 and (first["ep_max_length"], second["ep_max_length"]) == (1000, 200)
        assert second["start_obs_capture"] == 0.1
    finally:
        unregister("mine")
    assert "mine" not in task_names()


def test_every_argument_of_the_cluster_is_a_key() -> None:
    arguments = inspect.signature(ClusterInterface).parameters
    assert set(CLUSTER_KEYS) == set(arguments) - {"task", "num_envs", "task_kwargs"}


def test_a_task_is_found_in_a_file(tmp_path: Any) -> None:
    path = tmp_path / "task_of_a_file.py"
    path.write_text(
        "from rt_lrhc.tasks import task_config\n\n\ndef mine():\n    return task_config('cart_pole')\n"
    )
    assert task_config(f"{path}:mine") == task_config("cart_pole")


# The mini cheetah's terms, by hand.


def cheetah_state(yaw: float, **values: float) -> Any:
    from rt_lrhc.simulators.mini_cheetah import STATE_NAMES

    state = np.zeros(37)
    state[2], state[3], state[6] = 0.3, np.cos(yaw / 2), np.sin(yaw / 2)
    state[7:19] = cheetah_terms.HOME_JOINTS
    for name, value in values.items():
        state[STATE_NAMES.index(name)] = value
    return state


def test_the_terms_of_the_mini_cheetah_are_what_they_say() -> None:
    """A robot that looks along y, moves at 0.5 m/s along y and 0.2 m/s to its left, and one on its side."""
    with running(cheetah.mini_cheetah_flat(), 2) as drill:
        context = drill.task.context
        moving = cheetah_state(
            np.pi / 2,
            base_velocity_y_in_world=0.5,
            base_velocity_x_in_world=-0.2,
            base_angular_velocity_z_in_base=0.7,
        )
        lying = cheetah_state(0.0)
        lying[3], lying[4], lying[6] = (
            np.cos(np.pi / 4),
            np.sin(np.pi / 4),
            0.0,
        )  # rolled to the right by 90 degrees
        context.moment = replace(context.moment, states=np.stack([moving, lying]))
        context.command("twist")[:] = [0.5, 0.2, 0.7]
        np.testing.assert_allclose(cheetah_terms.twist_in_heading(context)[0], [0.5, 0.2, 0.7], atol=1e-12)
        np.testing.assert_allclose(cheetah_terms.base_velocity(context)[0], [0.5, 0.2, 0.0], atol=1e-12)
        np.testing.assert_allclose(
            cheetah_terms.gravity(context), [[0.0, 0.0, -1.0], [0.0, -1.0, 0.0]], atol=1e-12
        )
        assert cheetah_terms.capsized(context).tolist() == [False, True]
        np.testing.assert_allclose(cheetah_terms.tilt(context), [0.0, np.pi / 2], atol=1e-7)
        np.testing.assert_allclose(cheetah_terms.velocity_tracking(context), [1.0, np.exp(-4.64)])
        np.testing.assert_allclose(cheetah_terms.yaw_tracking(context), [1.0, np.exp(-1.96)])
        np.testing.assert_allclose(cheetah_terms.joint_positions(context), 0.0, atol=1e-12)


def test_randomisation_reaches_the_robots_models_and_scale_0_leaves_them() -> None:
    def fields(scale: float) -> tuple[Any, ...]:
        settings = {f"events.randomise_{name}": scale for name in ("friction", "payload", "motors")}
        with running(change(cheetah.mini_cheetah_flat(), settings), 6) as drill:
            plant: Any = drill.task.plant
            names = ("geom_friction", "body_mass", "body_ipos", "actuator_gainprm")
            return tuple(np.array(plant.model_field(name)) for name in names)

    friction, mass, centre, gains = fields(1.0)
    for field in (friction[:, -1, 0], mass.sum(axis=1), gains[:, 0].sum(axis=1)):
        assert len(np.unique(field)) == 6
    assert (np.abs(mass.sum(axis=1) - 8.912) <= 1.0).all() and np.ptp(centre, axis=0).any()
    for field in fields(0.0):
        assert (field == field[0]).all()
