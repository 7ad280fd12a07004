"""The dummies are deterministic, end as they say, and are worth learning."""

import numpy as np
import pytest

from wmlightning.environments.dummy import DummyCorridor, DummyCounter, DummyFork, DummyPixels


def play(env, action_of, seed):
    image, _ = env.reset(seed=seed)
    images, total, ended = [image], 0.0, False
    while not ended:
        image, reward, terminated, truncated, _ = env.step(action_of(env))
        images.append(image)
        total, ended = total + reward, terminated or truncated
    return np.stack(images), total, terminated, truncated


@pytest.mark.parametrize("kind", [DummyPixels, DummyCorridor, DummyFork, DummyCounter])
def test_an_episode_is_a_function_of_its_seed(kind):
    env = kind(size=16, steps=12)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(12)]
    first, again, other = (play(env, lambda env: actions[env.time], seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert kind is DummyCounter or not np.array_equal(first[0][0], other[0][0])


def test_chasing_the_green_dot_beats_going_right_which_beats_standing_still():
    def chase(env):
        return np.clip(5 * (env.target - env.agent), -1, 1)

    env = DummyPixels()
    policies = chase, lambda _: np.array([1, 0]), lambda _: np.zeros(2)
    chased, right, still = (np.mean([play(env, policy, seed)[1] for seed in range(20)]) for policy in policies)
    assert chased > right + 3
    assert right > still + 3


def test_both_dots_are_where_they_say():
    env = DummyPixels(size=64)
    image, _ = env.reset(seed=1)
    for channel, (x, y) in ((0, env.agent), (1, env.target)):
        rows, columns = np.nonzero(image[:, :, channel] == 255)
        assert abs(columns.mean() - 3.5 - 56 * x) < 1
        assert abs(rows.mean() - 3.5 - 56 * y) < 1


def test_the_goal_of_the_corridor_is_terminal_and_a_time_limit_is_not():
    _, total, terminated, truncated = play(DummyCorridor(), lambda _: 2, seed=0)
    assert (terminated, truncated) == (True, False)
    assert total > 0.9
    _, _, terminated, truncated = play(DummyCorridor(steps=7), lambda _: 0, seed=0)
    assert (terminated, truncated) == (False, True)


def test_the_ball_takes_every_lane_and_nothing_before_the_fork_foretells_which():
    env = DummyFork(size=8)
    episodes = [(*play(env, lambda _: [0.0], seed), env.lane, env.paddle) for seed in range(60)]
    assert {lane for *_, lane, _ in episodes} == {0.0, 0.5, 1.0}
    for images, total, terminated, truncated, lane, paddle in episodes:
        assert len(images) == 8
        assert (terminated, truncated) == (True, False)
        assert total == 1 - 2 * abs(lane - paddle)
        white = [np.argwhere((image == 255).all(-1))[0].tolist() for image in images]
        assert white == [[4 if t < 3 else round(7 * lane), t] for t in range(8)]


def test_waiting_in_the_middle_catches_what_a_guess_before_the_fork_misses():
    def wait(env):
        goal = env.lane if env.time >= env.fork else 0.5
        return [np.clip((goal - env.paddle) / 0.15, -1, 1)]

    def guess(env):
        return [np.clip((env.lane if env.time >= env.fork else 0.0) - env.paddle, -0.15, 0.15) / 0.15]

    waited, guessed, still = (
        np.mean([play(DummyFork(size=8), policy, seed)[1] for seed in range(60)])
        for policy in (wait, guess, lambda _: [0.0])
    )
    assert waited > 0.99
    assert guessed < 0.85
    assert still < 0.5


def test_the_counter_spells_out_its_history():
    images, total, *_ = play(DummyCounter(size=8, steps=3), lambda env: np.array([0.5, -0.25 * env.time]), seed=0)
    assert images[:, 0, 0].tolist() == [[0, 0, 0], [1, 178, 128], [2, 178, 103], [3, 178, 78]]
    assert total == 1 + 2 + 3


def test_a_dummy_too_small_to_draw_says_so():
    with pytest.raises(ValueError, match="size is 4"):
        DummyPixels(size=4)
