"""Any registered id looks alike, and what cannot be made says in one line what to do."""

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

from datamodules.episode import Spec
from datamodules.store import EpisodeStore
from datamodules.writer import EpisodeWriter
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.environments.wrappers import Pixels
from wmlightning.policies import HeldActionsPolicy
from wmlightning.recipes import build_recipe, recipe_of


@pytest.mark.parametrize(
    ("id", "size", "discrete"),
    [
        ("Pendulum-v1", 1, False),
        ("CartPole-v1", 2, True),
        ("CarRacing-v3", 3, False),
        ("wmlightning/DummyPixels-v0", 2, False),
        ("wmlightning/DummyCorridor-v0", 3, True),
    ],
)
def test_any_id_gives_64x64_pictures_and_actions_of_one_kind(id, size, discrete):
    factory = EnvFactory(id, time_limit=50)
    assert factory.spec == Spec({"image": ((64, 64, 3), "uint8")}, size, discrete)
    env = factory.make()
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["image"].std() > 0, "The picture must show something."
    assert info["env_steps"] == 0
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
    assert info["env_steps"] == 1
    env.close()


def test_the_registered_time_limit_is_kept_unless_another_is_given():
    def length(**kwargs):
        env, steps, truncated = EnvFactory("Pendulum-v1", size=8, action_repeat=10, **kwargs).make(), 0, False
        env.reset(seed=0)
        while not truncated:
            _, _, terminated, truncated, info = env.step(np.zeros(1, np.float32))
            steps += info["env_steps"]
            assert not terminated, "A time limit must never look like an end."
        return steps

    assert gym.spec("Pendulum-v1").max_episode_steps == 200
    assert length() == 200
    assert length(time_limit=33) == 33


def test_a_factory_is_rebuilt_from_its_recipe():
    factory = EnvFactory("wmlightning/DummyPixels-v0", 2, 16, 40, [8, 40], True, "render", {"steps": 30}, True)
    again = build_recipe(recipe_of(factory))
    images = [f.make().reset(seed=4)[0]["image"] for f in (factory, again)]
    np.testing.assert_array_equal(*images)
    assert recipe_of(again) == recipe_of(factory)


def test_seven_by_seven_ids_are_no_picture_so_the_environment_is_rendered():
    image = EnvFactory("tests/Tiny-v0", time_limit=5).make().reset(seed=0)[0]["image"]
    assert (image == 50).all()


def test_the_only_picture_among_several_observations_is_found_and_another_can_be_named():
    found, named = (
        EnvFactory("tests/Several-v0", time_limit=5, size=32, pixels=key).make().reset(seed=0)[0]["image"]
        for key in (None, "map")
    )
    assert (found == 10).all()
    assert (named == 20).all()


class Tiny(gym.Env):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return np.zeros((7, 7, 3), np.uint8), {}

    def render(self):
        return np.full((80, 80, 3), 50, np.uint8)


class Several(Tiny):
    observation_space = spaces.Dict(
        {
            "speed": spaces.Box(0, 1, (2,), np.float32),
            "screen": spaces.Box(0, 255, (64, 80, 3), np.uint8),
            "map": spaces.Box(0, 255, (9, 9, 3), np.uint8),
        }
    )

    def reset(self, *, seed=None, options=None):
        screen, chart = np.full((64, 80, 3), 10, np.uint8), np.full((9, 9, 3), 20, np.uint8)
        return {"speed": np.zeros(2, np.float32), "screen": screen, "map": chart}, {}


class Blind(gym.Env):
    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)


class Odd(Tiny):
    action_space = spaces.MultiDiscrete([2, 3])


for kind in (Tiny, Several, Blind, Odd):
    gym.register(f"tests/{kind.__name__}-v0", entry_point=kind)


@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"id": "CarRacing-v2"}, "did you mean CarRacing-v3"),
        ({"id": "CarRacng-v3"}, "did you mean CarRacing-v3"),
        ({"id": "no_such_module:Env-v0"}, "no_such_module"),
        ({"id": "CarRacing-v3", "kwargs": {"laps": 3}}, "laps"),
        ({"id": "CarRacing-v3", "crop": [0, 97]}, "has 96"),
        ({"id": "CarRacing-v3", "pixels": "screen"}, "leave pixels out"),
        ({"id": "Pendulum-v1", "pixels": "screen"}, "no observation 'screen'"),
        ({"id": "wmlightning/DummyPixels-v0", "ignore_termination": True}, "set time_limit"),
        ({"id": "tests/Blind-v0"}, "rgb_array"),
        ({"id": "tests/Odd-v0"}, "only Box and Discrete"),
    ],
)
def test_what_cannot_be_made_says_in_one_line_what_to_do(arguments, says):
    with pytest.raises(ValueError, match=says) as raised:
        EnvFactory(**arguments).make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("id", "module", "extra"), [("ALE/Pong-v5", "ale_py", "atari"), ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid")]
)
def test_a_missing_package_is_named(monkeypatch, id, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'pip install "wmlightning\[{extra}\]"'):
        EnvFactory(id).make()


class ShortPendulum(PendulumEnv):
    """Somebody's own, under another id."""


gym.register("tests/ShortPendulum-v0", entry_point=ShortPendulum, max_episode_steps=10)


@pytest.mark.parametrize("id", ["Pendulum-v1", "CartPole-v1", "FrozenLake-v1", "tests/ShortPendulum-v0"])
def test_a_missing_pygame_is_named_before_anything_is_played(monkeypatch, id):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ValueError, match=rf'^{id} needs pygame to be drawn: pip install "wmlightning\[box2d\]"$'):
        EnvFactory(id, time_limit=10).make()
    assert EnvFactory("wmlightning/DummyPixels-v0").spec, "What is drawn without it does not need it."


@pytest.mark.parametrize("id", ["LunarLander-v3", "CarRacing-v3"])
@pytest.mark.parametrize("module", ["pygame", "Box2D"])
def test_a_missing_box2d_is_named_as_this_projects_extra(id, module):
    code = f"""
import sys
sys.modules[{module!r}] = None
from wmlightning.environments.factory import EnvFactory
try:
    EnvFactory({id!r}).make()
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [f'{id} needs Box2D and pygame: pip install "wmlightning[box2d]"']


def test_gray_is_the_luminance_in_one_channel_wherever_a_picture_comes_from():
    pictures = {
        gray: EnvFactory("wmlightning/DummyPixels-v0", size=16, gray=gray).make().reset(seed=1)[0]["image"]
        for gray in (False, True)
    }
    red, green, blue = np.moveaxis(pictures[False].astype(float), -1, 0)
    np.testing.assert_allclose(pictures[True][..., 0], 0.299 * red + 0.587 * green + 0.114 * blue, atol=1)
    rendered = EnvFactory("Pendulum-v1", size=64, gray=True)
    assert rendered.spec.observation == {"image": ((64, 64, 1), "uint8")}
    assert rendered.make().reset(seed=0)[0]["image"].shape == (64, 64, 1)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (16, 16), (16, 16, 1)])
@pytest.mark.parametrize("gray", [False, True])
def test_a_picture_of_one_channel_is_kept_or_repeated_as_asked(shape, gray):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seen = Pixels(Tiny(), lambda _: picture, 16, gray=gray).observe(None)["image"]
    assert seen.shape == (16, 16, 1 if gray else 3)
    assert seen.dtype == np.uint8
    assert (seen == seen[..., :1]).all()
    if shape[0] == 16:
        np.testing.assert_array_equal(seen[..., 0], picture.reshape(16, 16))
        assert not np.shares_memory(seen, picture), "The environment may draw into the same array again."


@pytest.mark.parametrize("workers", [0, 1])
def test_gray_pictures_come_through_the_board_and_into_the_store(workers, tmp_path):
    factory = EnvFactory("wmlightning/DummyPixels-v0", size=16, gray=True, kwargs={"steps": 3})
    store = EpisodeStore(tmp_path)
    with factory.vector(2, workers) as envs:
        assert envs.look()["image"].shape == (2, 16, 16, 1)
        rollout(envs, HeldActionsPolicy(2, 1), [5, 6], writer=EpisodeWriter(store))
    assert EpisodeStore(tmp_path).spec == factory.spec
    np.testing.assert_array_equal(store.read(1).observation["image"][0], factory.make().reset(seed=6)[0]["image"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"action_repeat": 0},
        {"size": 0},
        {"time_limit": 0},
        {"crop": [5, 5]},
        {"crop": "x"},
        {"crop": [0, 9, 4]},
        {"crop": [0, 9, 4, 4]},
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EnvFactory("wmlightning/DummyPixels-v0", **wrong)


def test_drawing_needs_no_screen_and_says_nothing():
    code = """
from wmlightning.environments.factory import EnvFactory
with EnvFactory("Pendulum-v1").vector(1) as envs:
    envs.reset(seed=0)
"""
    silent = {key: value for key, value in os.environ.items() if key not in ("SDL_VIDEODRIVER", "DISPLAY")}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=silent)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
