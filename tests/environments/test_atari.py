"""Atari by Dreamer V2's protocol: single frames, sticky ones, the brighter of the last two, idle ones at the start."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from datamodules.episode import Spec
from wmlightning.environments.factory import EnvFactory

atari = pytest.importorskip("wmlightning.environments.atari", reason="needs the extra [atari]", exc_type=ImportError)

PONG = "ALE/Pong-v5"


@pytest.fixture
def make():
    made = []

    def build(id=PONG, action_repeat=4, **options):
        made.append(EnvFactory(id, action_repeat, **({"gray": True} | options)).make())
        return made[-1]

    yield build
    for env in made:
        env.close()


def press(number, size=18):
    return np.eye(size, dtype=np.float32)[number]


def emulator(env):
    return env.unwrapped.ale


def play(env, seed, actions):
    """Pictures, and what each decision led to, of an episode's beginning."""
    images, told = [env.reset(seed=seed)[0]["image"]], []
    for action in actions:
        observation, *rest, info = env.step(press(action))
        images.append(observation["image"])
        told.append((*rest, info["env_steps"]))
    return np.stack(images), told


def test_all_18_actions_one_gray_channel_and_half_an_hour_are_the_habit(make):
    assert EnvFactory(PONG, 4, gray=True).spec == Spec({"image": ((64, 64, 1), "uint8")}, 18, True)
    assert EnvFactory(PONG, 4).spec.observation == {"image": ((64, 64, 3), "uint8")}
    assert make().env.time_limit == 108_000
    assert make(kwargs={"full_action_space": False}).action_space.shape == (6,)


def test_a_decision_is_four_frames_and_the_idle_ones_are_no_steps(make):
    env = make()
    idle = set()
    for seed in range(8):
        env.reset(seed=seed)
        before = emulator(env).getEpisodeFrameNumber()
        idle.add(before)
        *_, info = env.step(press(0))
        assert info["env_steps"] == 4
        assert emulator(env).getEpisodeFrameNumber() - before == 4, "The id's own skip must be off."
    assert len(idle) > 3, "How many frames idle is drawn."
    assert max(idle) <= 30
    assert min(idle) >= 1


def test_a_time_limit_in_frames_truncates_and_is_no_end(make):
    env = make(time_limit=10)
    _, told = play(env, 0, [0, 0, 0])
    assert [steps for *_, steps in told] == [4, 4, 2]
    assert [(terminated, truncated) for _, terminated, truncated, _ in told] == 2 * [(False, False)] + [(False, True)]


@pytest.mark.parametrize("gray", [True, False])
def test_a_picture_is_the_brighter_of_the_last_two_frames(make, gray):
    env = make("ALE/SpaceInvaders-v5", size=160, crop=[0, 160], gray=gray)
    env.reset(seed=1)
    game, ale = env.env.env.env, emulator(env)
    assert isinstance(game, atari.AtariGame)
    screens = []
    step = game.env.step

    def watched(action):
        answer = step(action)
        screens.append(ale.getScreenGrayscale() if gray else ale.getScreenRGB())
        return answer

    game.env.step = watched
    for number in range(30):
        image = env.step(press(number % 18))[0]["image"]
        expected = np.maximum(*screens[-2:])[:160]
        np.testing.assert_array_equal(image[..., 0] if gray else image, expected)
    assert len(screens) == 120


def test_stickiness_is_drawn_in_every_frame_and_comes_from_the_seed(make):
    """With it two seeds part although they press the same; without it they do not."""
    actions = [2, 5, 3, 4] * 30

    def differ(**kwargs):
        env = make(kwargs={"noops": 0, **kwargs})
        first, second, again = (play(env, seed, actions)[0] for seed in (3, 4, 3))
        np.testing.assert_array_equal(first, again)
        return bool((first != second).any())

    assert differ()
    assert not differ(repeat_action_probability=0.0)


class Lives(gym.Env):
    """An emulator that loses a life in every second frame; its pictures tell the frame."""

    frame = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frame = 0
        return np.zeros((2, 2), np.uint8), {"lives": 3}

    def step(self, action):
        self.frame += 1
        return np.full((2, 2), self.frame, np.uint8), 1.0, self.frame == 6, False, {"lives": 3 - self.frame // 2}


@pytest.mark.parametrize(("ends", "lasts"), [(False, 6), (True, 2)])
def test_a_lost_life_is_no_end_unless_asked_for(ends, lasts):
    game = atari.AtariGame(Lives(), noops=0, life_loss_ends=ends)
    game.reset(seed=0)
    steps = 1
    while not game.step(0)[2]:
        steps += 1
    assert steps == lasts


def test_a_game_that_ends_while_it_idles_begins_again():
    game = atari.AtariGame(Lives(), noops=30)
    image, info = game.reset(seed=0)
    idle = int(np.random.default_rng(0).integers(1, 31))
    assert idle > 6
    assert image.max() == idle % 6
    assert info["lives"] == 3 - idle % 6 // 2
    np.testing.assert_array_equal(game.look(), image)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kwargs": {"frameskip": 4}}, "set action_repeat and gray"),
        ({"kwargs": {"obs_type": "ram"}}, "set action_repeat and gray"),
        ({"kwargs": {"noops": -1}}, "noops is -1"),
        ({"kwargs": {"nops": 3}}, "nops"),
        ({"pixels": "screen"}, "leave pixels out"),
        ({"id": "ALE/Pnog-v5"}, "did you mean ALE/Pong-v5"),
    ],
)
def test_what_atari_cannot_do_is_said_in_one_line(make, arguments, says):
    with pytest.raises(ValueError, match=says) as raised:
        make(**arguments)
    assert "\n" not in str(raised.value)


def test_the_emulator_greets_nobody():
    code = """
from wmlightning.environments.factory import EnvFactory
with EnvFactory("ALE/Pong-v5", 4, gray=True).vector(1, 1) as envs:
    envs.reset(seed=0)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
