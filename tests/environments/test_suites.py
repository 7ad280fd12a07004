"""Every suite has its habits under any id, and a time limit is not terminal in any of them."""

import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wmlightning.environments.dummy import DummyCorridor
from wmlightning.environments.factory import EnvFactory

gym.register("tests/OwnPong-v0", entry_point="ale_py.env:AtariEnv", kwargs={"game": "pong", "frameskip": 4})
gym.register(
    "tests/OwnDoom-v0",
    entry_point="vizdoom.gymnasium_wrapper.gymnasium_env_defns:VizdoomScenarioEnv",
    kwargs={"scenario_config_file": "basic.cfg", "max_buttons_pressed": 1},
)
gym.register(
    "tests/OwnCup-v0",
    entry_point="wmlightning.environments.dm_control:DMControl",
    kwargs={"domain": "ball_in_cup", "task": "catch"},
)
gym.register("tests/OwnCar-v0", entry_point="gymnasium.envs.box2d.car_racing:CarRacing")


def nothing(env):
    """An action that does little: the middle, or the first choice."""
    space = env.action_space
    return np.zeros(space.shape, np.float32) if space.low.min() < 0 else np.eye(space.shape[0], dtype=np.float32)[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("id", "package", "options"),
    [
        ("Pendulum-v1", None, {"time_limit": 7}),
        ("CartPole-v1", None, {"time_limit": 3}),
        ("CarRacing-v3", "Box2D", {"time_limit": 7}),
        ("wmlightning/DummyPixels-v0", None, {"kwargs": {"steps": 7}}),
        ("MiniGrid-Empty-5x5-v0", "minigrid", {"kwargs": {"max_steps": 7}}),
        ("BabyAI-GoToRedBall-v0", "minigrid", {"time_limit": 7}),
        ("ALE/Pong-v5", "ale_py", {"time_limit": 7}),
        ("VizdoomTakeCover-v1", "vizdoom", {"time_limit": 7}),
        ("VizdoomBasic-v1", "vizdoom", {}),
        ("tests/OwnDoom-v0", "vizdoom", {"kwargs": {"treat_episode_timeout_as_truncation": False}}),
        ("dm_control/cartpole-balance-v0", "dm_control", {"time_limit": 7}),
        ("Hopper-v5", "imageio", {"time_limit": 4}),
        ("highway_env:highway-v0", "highway_env", {"kwargs": {"config": {"duration": 2}}}),
    ],
)
@pytest.mark.parametrize("action_repeat", [1, 4])
def test_a_time_limit_is_not_terminal(id, package, options, action_repeat):
    if package:
        pytest.importorskip(package)
    env = EnvFactory(id, action_repeat, size=16, **options).make()
    env.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, over, _ = env.step(nothing(env))
        assert not terminated
    env.close()


@pytest.mark.parametrize("id", ["ale_py:Pong-v4", "Pong-v4", "PongNoFrameskip-v4", "tests/OwnPong-v0"])
def test_atari_is_played_by_the_protocol_under_any_id(id):
    pytest.importorskip("ale_py")
    factory = EnvFactory(id, 4, size=16)
    with pytest.warns(UserWarning, match="is played by Dreamer V2's protocol"):
        env = factory.make()
    assert env.env.time_limit == 108_000
    assert env.action_space.shape == (18,)
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.25
    env.reset(seed=0)
    before = env.unwrapped.ale.getEpisodeFrameNumber()
    counted = sum(env.step(nothing(env))[4]["env_steps"] for _ in range(50))
    assert counted == env.unwrapped.ale.getEpisodeFrameNumber() - before == 200
    env.close()
    with pytest.raises(ValueError, match="frameskip.* set action_repeat"):
        EnvFactory(id, 4, kwargs={"frameskip": 4}).make()


def test_doom_and_the_control_suite_and_the_car_have_their_habits_under_any_id():
    for package in ("vizdoom", "dm_control", "Box2D"):
        pytest.importorskip(package)
    with pytest.raises(ValueError, match="set action_repeat"):
        EnvFactory("tests/OwnDoom-v0", kwargs={"frame_skip": 4}).make()
    cup = EnvFactory("tests/OwnCup-v0")
    assert cup.time_limit == 1000
    images = [
        EnvFactory(id, size=16, **options).make().reset(seed=3)[0]["image"]
        for id, options in (
            ("tests/OwnCup-v0", {}),
            ("dm_control/ball_in_cup-catch-v0", {}),
            ("tests/OwnCar-v0", {"time_limit": 9}),
            ("CarRacing-v3", {}),
        )
    ]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[2], images[3])


def test_a_death_in_doom_is_terminal_also_where_the_engine_has_a_time_limit():
    pytest.importorskip("vizdoom")
    env = EnvFactory("VizdoomDefendCenter-v1", action_repeat=8, size=16, pixels="screen").make()
    env.reset(seed=0)
    terminated = truncated = False
    while not (terminated or truncated):
        _, _, terminated, truncated, _ = env.step(nothing(env))
    assert (terminated, truncated) == (True, False)
    assert env.unwrapped.game.is_player_dead()
    env.close()


class Endless(gym.Env):
    """No limit of its own."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    action_space = spaces.Box(0, 20, (2,), np.int64)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return np.zeros((40, 40, 3), np.uint8), {}


gym.register("tests/Endless-v0", entry_point=Endless)


def test_an_environment_without_a_time_limit_is_named_at_the_start():
    with pytest.warns(UserWarning, match="tests/Endless-v0 has no time limit: .* played for ever; set time_limit"):
        _ = EnvFactory("tests/Endless-v0").spec
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = EnvFactory("tests/Endless-v0", time_limit=10).spec
        _ = EnvFactory("wmlightning/DummyPixels-v0").spec


def test_the_map_of_whole_numbers_is_recorded_and_others_record_nothing():
    assert EnvFactory("tests/Endless-v0", time_limit=9).conventions == "integer actions of equal shares"
    for id in ("Pendulum-v1", "CartPole-v1", "CarRacing-v3", "wmlightning/DummyPixels-v0"):
        assert EnvFactory(id, time_limit=9).conventions is None


def by_function(steps=9, render_mode=None):
    return DummyCorridor(40, steps, render_mode)


def by_function_that_forgets(steps=9):
    return DummyVector()


class DummyVector(DummyCorridor):
    """Observes a number, so that it has to be rendered."""

    def __init__(self, size=40, steps=9, render_mode=None):
        super().__init__(size, steps, render_mode)
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)


def by_function_rendered(render_mode=None):
    return DummyVector(render_mode=render_mode)


for function in (by_function, by_function_that_forgets, by_function_rendered):
    gym.register(f"tests/{function.__name__}-v0", entry_point=function)


@pytest.mark.parametrize("name", ["by_function", "by_function_rendered"])
def test_an_entry_point_may_be_a_function(name):
    env = EnvFactory(f"tests/{name}-v0", time_limit=5).make()
    assert env.reset(seed=0)[0]["image"].std() > 0


def test_a_function_that_takes_no_render_mode_is_told_to():
    with pytest.raises(ValueError, match="can render rgb_array but .* take render_mode as an argument"):
        EnvFactory("tests/by_function_that_forgets-v0", time_limit=5).make()


@pytest.mark.parametrize(
    ("id", "package", "says"),
    [
        ("Pong-v5", "ale_py", "did you mean ALE/Pong-v5[?]"),
        ("ball_in_cup-catch", "dm_control", "did you mean dm_control/ball_in_cup-catch-v0[?]"),
        ("Zyxwvut-v0", None, "an environment of your own needs the module that registers it, as in module:id"),
        ("BabyAI-GoToRedBal-v0", "minigrid", "did you mean BabyAI-GoToRedBall-v0"),
    ],
)
def test_an_unknown_id_is_answered_with_what_was_meant(id, package, says):
    if package:
        pytest.importorskip(package)
    with pytest.raises(ValueError, match=says) as raised:
        EnvFactory(id).make()
    assert "\n" not in str(raised.value)


def test_babyai_comes_with_minigrid(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(ValueError, match=r'pip install "wmlightning\[minigrid\]"'):
        EnvFactory("BabyAI-GoToRedBall-v0").make()


RUNNERS = ["HalfCheetah", "Ant", "Hopper", "Walker2d", "Swimmer", "Humanoid", "HumanoidStandup"]


@pytest.mark.parametrize("name", RUNNERS)
def test_the_camera_follows_a_body_that_runs(name):
    pytest.importorskip("imageio", reason="needs gymnasium[mujoco]")
    mujoco = pytest.importorskip("mujoco")
    factory = EnvFactory(f"{name}-v5", size=16)
    assert factory.conventions == "camera that follows"
    env = factory.make()
    env.reset(seed=0)
    camera = env.unwrapped.mujoco_renderer.camera_id
    assert mujoco.mj_id2name(env.unwrapped.model, mujoco.mjtObj.mjOBJ_CAMERA, camera) == "track"
    assert env.unwrapped.model.cam_mode[camera] == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    env.close()


def test_a_camera_that_was_chosen_stays_and_a_model_without_one_keeps_its_default():
    pytest.importorskip("imageio", reason="needs gymnasium[mujoco]")
    pytest.importorskip("mujoco")
    assert EnvFactory("Hopper-v5", size=16, kwargs={"camera_id": -1}).conventions is None
    assert EnvFactory("Reacher-v5", size=16).conventions is None


def test_highway_env_is_drawn_without_a_screen():
    pytest.importorskip("highway_env")
    env = EnvFactory("highway_env:highway-v0", size=32).make()
    first = env.reset(seed=0)[0]["image"]
    assert first.std() > 0
    assert (env.step(nothing(env))[0]["image"] != first).any()
    env.close()
