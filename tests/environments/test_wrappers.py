"""What a decision is: rewards summed, steps counted, ends kept apart, one picture looked at."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wmlightning.environments import wrappers
from wmlightning.environments.dummy import DummyCorridor, DummyCounter
from wmlightning.environments.wrappers import Decisions, IntegerActions, OneHotActions, Pixels, SymmetricActions


class Box(gym.Env):
    """Remembers the action it got."""

    def __init__(self, low, high):
        self.action_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)

    def step(self, action):
        self.got = action
        return np.zeros(1, np.float32), 0.0, False, False, {}


RIGHT = 2


def test_rewards_are_summed_over_a_repeat_and_raw_steps_are_counted():
    env = Decisions(DummyCounter(steps=99), action_repeat=4)
    env.reset(seed=0)
    first, second = (env.step(np.zeros(2)) for _ in range(2))
    assert (first[1], second[1]) == (1 + 2 + 3 + 4, 5 + 6 + 7 + 8)
    assert first[4]["env_steps"] == second[4]["env_steps"] == 4


def test_a_time_limit_counts_raw_steps_cuts_the_last_repeat_short_and_truncates():
    env = Decisions(DummyCounter(steps=99), action_repeat=4, time_limit=6)
    env.reset(seed=0)
    assert env.step(np.zeros(2))[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info["env_steps"]) == (5 + 6, False, True, 2)
    env.reset(seed=0)
    assert env.step(np.zeros(2))[2:4] == (False, False), "The limit must count anew in every episode."


def test_repeating_stops_where_the_world_ends():
    env = Decisions(DummyCorridor(), action_repeat=20)
    env.reset(seed=0)
    start = env.unwrapped.cell
    _, reward, terminated, truncated, info = env.step(RIGHT)
    assert (terminated, truncated, info["env_steps"]) == (True, False, 9 - start)
    assert reward == pytest.approx(1 - 0.01 * (8 - start))


def test_termination_can_be_ignored_until_the_time_limit():
    env = Decisions(DummyCorridor(steps=999), action_repeat=5, time_limit=20, ignore_termination=True)
    env.reset(seed=0)
    outcomes = [env.step(RIGHT) for _ in range(4)]
    assert [outcome[2:4] for outcome in outcomes] == [(False, False)] * 3 + [(False, True)]
    assert sum(outcome[4]["env_steps"] for outcome in outcomes) == 20


def test_continuous_actions_are_stretched_to_the_environments_bounds_and_clipped():
    env = SymmetricActions(Box([[-2.0, 0.0]], [[2.0, 10.0]]))
    assert env.action_space == spaces.Box(-1, 1, (2,), np.float32)
    for sent, wanted in (([-1, -1], [[-2, 0]]), ([0, 0.5], [[0, 7.5]]), ([9, -9], [[2, 0]])):
        env.step(np.array(sent, np.float32))
        np.testing.assert_allclose(env.unwrapped.got, wanted)


def test_actions_without_bounds_are_refused():
    with pytest.raises(ValueError, match="finite low and high"):
        SymmetricActions(Box([-np.inf], [1.0]))


def test_discrete_actions_are_one_hot():
    env = OneHotActions(DummyCorridor())
    assert env.action_space.shape == (3,)
    assert [env.action(row) for row in np.eye(3, dtype=np.float32)] == [0, 1, 2]


def test_one_picture_is_looked_at_per_decision():
    looked = []

    def look(observation):
        looked.append(1)
        return observation

    env = Pixels(Decisions(DummyCounter(size=64, steps=99), action_repeat=5), look)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2))
    assert len(looked) == 1 + 3


def test_pictures_are_cropped_then_averaged_down():
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[:84:2] = 200
    picture[84:] = 77
    env = Pixels(DummyCounter(size=8), lambda _: picture, size=42, crop=[0, 84])
    image = env.reset(seed=0)[0]["image"]
    assert image.shape == (42, 42, 3)
    np.testing.assert_array_equal(image, np.full((42, 42, 3), 100))


def test_a_crop_of_four_keeps_rows_and_columns():
    picture = np.arange(96 * 80, dtype=np.uint32).reshape(96, 80, 1).astype(np.uint8).repeat(3, 2)
    env = Pixels(DummyCounter(size=8), lambda _: picture, size=40, crop=[10, 50, 20, 60])
    np.testing.assert_array_equal(env.reset(seed=0)[0]["image"], picture[10:50, 20:60])


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1)])
def test_grey_pictures_become_three_equal_channels(shape):
    grey = np.arange(64 * 64).reshape(shape).astype(np.uint8)
    image = Pixels(DummyCounter(size=8), lambda _: grey).reset(seed=0)[0]["image"]
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], grey.reshape(64, 64))


def test_what_was_seen_does_not_change_when_the_environment_draws_again():
    canvas = np.zeros((64, 64, 3), np.uint8)
    image = Pixels(DummyCounter(size=8), lambda _: canvas).reset(seed=0)[0]["image"]
    canvas[:] = 255
    assert image.max() == 0


@pytest.mark.parametrize(("crop", "end"), [([0, 84], "row 84"), ([0, 60, 5, 90], "column 90")])
def test_a_crop_beyond_the_picture_is_refused(crop, end):
    env = Pixels(DummyCounter(size=64), lambda observation: observation, crop=crop)
    with pytest.raises(ValueError, match=f"ends at {end} but the picture has 64"):
        env.reset(seed=0)


@pytest.mark.parametrize("other", [np.zeros((64, 64, 3), np.float32), np.zeros((32, 32, 3), np.uint8)])
def test_a_picture_that_changes_its_kind_within_an_episode_is_refused_not_resized(other):
    pictures = iter([np.zeros((64, 64, 3), np.uint8), other])
    env = Pixels(Decisions(DummyCounter(size=64, steps=9)), lambda _: next(pictures), size=16)
    env.reset()
    with pytest.raises(ValueError, match="but uint8 .* is wanted"):
        env.step(np.zeros(2, np.float32))


class Whole(Box):
    """Takes whole numbers."""

    def __init__(self, low, high, dtype, shape=(1,)):
        self.action_space = spaces.Box(low, high, shape, dtype)
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 1, np.int8), (-1, 1, np.int64), (0, 20, np.int32), (-10, 10, np.int16), (0, 255, np.uint8), (0, 1, np.bool_)],
)
def test_every_whole_number_is_played_and_each_gets_an_equal_share(low, high, dtype):
    env = IntegerActions(Whole(low, high, dtype))
    grid = np.linspace(-1, 1, 100 * (high - low + 1), endpoint=False, dtype=np.float64) + 1e-9
    played = [env.action(np.array([part]))[0] for part in grid]
    values, counts = np.unique(np.array(played).astype(int), return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    assert counts.min() >= 99
    assert counts.max() <= 101
    ends = [env.action(np.array([end], np.float32))[0] for end in (-1, 1, -9, 9)]
    assert [int(end) for end in ends] == [low, high, low, high]
    assert {end.dtype for end in ends} == {np.dtype(dtype)}


def test_whole_numbers_of_a_matrix_are_each_stretched_to_their_own_bounds():
    env = Whole(np.array([[0, -5], [3, 7]]), np.array([[9, 5], [3, 8]]), np.int64, (2, 2))
    wrapped = IntegerActions(env)
    assert wrapped.action_space == spaces.Box(-1, 1, (4,), np.float32)
    for sent, wanted in (
        ([-1, -1, -1, -1], [[0, -5], [3, 7]]),
        ([1, 1, 1, 1], [[9, 5], [3, 8]]),
        ([0.05, 0, 0, 0.1], [[5, 0], [3, 8]]),
    ):
        got = wrapped.action(np.array(sent, np.float32))
        np.testing.assert_array_equal(got, wanted)
        assert env.action_space.contains(got)


def test_the_widest_whole_numbers_do_not_overflow():
    limits = np.iinfo(np.int64)
    env = IntegerActions(Whole(limits.min, limits.max, np.int64))
    assert [int(env.action(np.array([a]))[0]) for a in (-1.0, 0.0, 1.0)] == [limits.min, 0, limits.max]


def test_a_dimension_that_is_fixed_stays_so():
    env = SymmetricActions(Box([2.0, 0.0], [2.0, 1.0]))
    for action in ([-1, -1], [0, 0], [1, 1]):
        assert env.action(np.array(action, np.float32))[0] == 2
    assert {int(IntegerActions(Whole(4, 4, np.uint8)).action(np.array([a]))[0]) for a in (-1.0, 0.2, 1.0)} == {4}


def test_real_numbers_cover_their_range_evenly():
    env = SymmetricActions(Box([-3.0], [5.0]))
    drawn = np.array([env.action(np.array([a]))[0] for a in np.linspace(-1, 1, 8000)])
    counts, _ = np.histogram(drawn, bins=8, range=(-3, 5))
    assert (abs(counts - 1000) <= 1).all()


@pytest.mark.parametrize("start", [0, 1, -3])
def test_choices_are_counted_from_where_the_space_starts(start):
    corridor = DummyCorridor()
    corridor.action_space = spaces.Discrete(4, start=start)
    env = OneHotActions(corridor)
    assert [env.action(row) for row in np.eye(4, dtype=np.float32)] == list(range(start, start + 4))


class Answers(gym.Env):
    """Gives a step and a reset as they are given to it."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, step=None, reset=None):
        self.given = step, reset

    def step(self, action):
        return self.given[0]

    def reset(self, *, seed=None, options=None):
        return self.given[1]


class OldReset(Answers):
    def reset(self):
        return np.zeros(1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((0, 1.0, False, {}), "step of Answers gives 4 values, not five: follow gymnasium.Env"),
        (None, "step of Answers gives a NoneType, not five"),
        ((0, None, False, False, {}), "the reward of Answers is None, but one number is wanted"),
        ((0, np.zeros(3), False, False, {}), r"is an array of shape \(3,\), but one number .* weighted sum"),
        ((0, [1.0, 2.0], False, False, {}), r"is an array of shape \(2,\)"),
    ],
)
def test_a_step_of_another_form_is_refused_in_one_line(answer, says):
    with pytest.raises(ValueError, match=says) as raised:
        Decisions(Answers(answer)).step(0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("reward", [2, 2.0, np.float32(2), np.array(2), np.array([2.0]), True + True])
def test_any_one_number_is_a_reward(reward):
    _, got, *_ = Decisions(Answers((0, reward, False, False, {}))).step(0)
    assert type(got) is float
    assert got == 2


def test_four_values_are_named_also_where_gymnasiums_wrappers_unpack_them():
    with pytest.raises(ValueError, match="step of Answers does not give five values"):
        Decisions(gym.wrappers.TransformReward(Answers((0, 1.0, False, {})), lambda reward: reward)).step(0)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (OldReset(), "must take seed and options: follow gymnasium.Env"),
        (Answers(reset=np.zeros(1)), r"gives a ndarray, not \(observation, info\)"),
    ],
)
def test_a_reset_of_another_form_is_refused_in_one_line(env, says):
    with pytest.raises(ValueError, match=says):
        Decisions(env).reset(seed=1)


def test_a_very_long_episode_without_a_limit_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(wrappers, "LONG_EPISODE", 5)
    env = Decisions(DummyCounter(steps=99), action_repeat=2)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="has lasted 5 decisions and there is no time limit") as said:
        _ = [env.step(np.zeros(2)) for _ in range(8)]
    assert len(said) == 1
    limited = Decisions(DummyCounter(steps=99), time_limit=90)
    limited.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            limited.step(np.zeros(2))


def test_an_episode_whose_pictures_are_all_equal_is_warned_of():
    def play(look, steps=12):
        env = Pixels(Decisions(DummyCounter(size=8, steps=steps)), look, size=8)
        for seed in range(2):
            env.reset(seed=seed)
            for _ in range(steps):
                env.step(np.zeros(2))

    black = np.zeros((8, 8, 3), np.uint8)
    with pytest.warns(
        UserWarning, match=r"all 13 pictures of an episode of DummyCounter are equal \(mean 0 of"
    ) as said:
        play(lambda _: black)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(lambda observation: observation)
        play(lambda _: black, steps=5)
