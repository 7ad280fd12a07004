"""What a decision is: rewards summed, steps counted, ends kept apart, one picture looked at."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wmlightning.environments.dummy import DummyCorridor, DummyCounter
from wmlightning.environments.wrappers import Decisions, OneHotActions, Pixels, SymmetricActions


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
