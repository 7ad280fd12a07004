"""Doom: one number steers, the engine repeats, no picture shows death, and nobody's folder is touched."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies import HeldActionsPolicy

vizdoom = pytest.importorskip("vizdoom", reason="needs the extra [doom]")

TAKE_COVER = "VizdoomTakeCover-v1"
LEFT, STAY, RIGHT = (np.array([a], np.float32) for a in (-1.0, 0.0, 1.0))


@pytest.fixture
def env():
    env = EnvFactory(TAKE_COVER).make()
    yield env
    env.close()


def play(env, seed, actions):
    """Pictures, rewards, flags and env steps of an episode."""
    seen = [env.reset(seed=seed)[0]["image"]]
    told = []
    for action in actions:
        observation, *rest, info = env.step(action)
        seen.append(observation["image"])
        told.append((*rest, info["env_steps"]))
        if rest[1] or rest[2]:
            break
    return np.stack(seen), told


def held(seed, steps, hold=10):
    return np.repeat(np.random.default_rng(seed).uniform(-1, 1, (steps // hold, 1)), hold, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("action", "side"), [(-1.0, 1), (-0.34, 1), (-0.33, 0), (0.0, 0), (0.33, 0), (0.34, -1), (1.0, -1)]
)
def test_below_a_third_is_left_above_is_right_between_one_stays(env, action, side):
    """One looks along the x axis, so left is where y grows."""
    game, y = env.unwrapped.game, vizdoom.GameVariable.POSITION_Y
    env.reset(seed=0)
    before = game.get_game_variable(y)
    for _ in range(15):
        env.step(np.array([action], np.float32))
    assert np.sign(game.get_game_variable(y) - before) == side


def test_it_is_one_continuous_action_a_64x64_picture_and_2100_steps():
    factory = EnvFactory(TAKE_COVER, action_repeat=300)
    assert (factory.spec.action_size, factory.spec.discrete) == (1, False)
    assert factory.spec.observation == {"image": ((64, 64, 3), "uint8")}
    env = factory.make()
    assert env.env.time_limit == 2100
    env.close()


def test_a_time_limit_truncates_on_the_step_and_is_no_end():
    short = EnvFactory(TAKE_COVER, action_repeat=4, time_limit=10).make()
    _, told = play(short, 0, [STAY] * 5)
    assert told == [(4.0, False, False, 4), (4.0, False, False, 4), (2.0, False, True, 2)]
    short.close()


def test_death_looks_like_the_moment_before_it(env, tmp_path, monkeypatch):
    """The stock environment gives zeros when the game is over, and a model would learn them."""
    monkeypatch.chdir(tmp_path)  # the stock engine writes into it
    stock = gym.make(TAKE_COVER)
    screens, terminated = [stock.reset(seed=3)[0]["screen"]], False
    while not terminated:
        observation, _, terminated, _, _ = stock.step(0)
        screens.append(observation["screen"])
    stock.close()
    assert screens[-1].max() == 0, "ViZDoom has changed: the wrapper may no longer be needed."
    seen, told = play(env, 3, [STAY] * 2100)
    assert told[-1][1:3] == (True, False)
    np.testing.assert_array_equal(seen[-1], seen[-2])
    assert seen[-1].max() > 0
    np.testing.assert_array_equal(env.render(), screens[-2])


def test_the_engines_own_repeat_is_the_same_as_single_steps(env):
    """Until the end: the last repeat is short, and single steps see a later last picture."""
    repeated = EnvFactory(TAKE_COVER, action_repeat=4).make()
    for seed in range(2):
        actions = held(seed, 520)
        seen, told = play(repeated, seed, actions)
        ones, singles = play(env, seed, np.repeat(actions, 4, 0))
        np.testing.assert_array_equal(seen[:-1], ones[::4][: len(seen) - 1])
        assert sum(steps for *_, steps in told) == len(singles)
        assert sum(reward for reward, *_ in told) == sum(reward for reward, *_ in singles) == len(singles)
    repeated.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_is_an_episode_bit_for_bit_in_any_process_and_any_order(env, workers):
    actions = held(7, 100, 20)
    expected = {seed: play(env, seed, actions)[0] for seed in (4, 5)}
    with EnvFactory(TAKE_COVER).vector(2, workers) as envs:
        for seeds in ([4, 5], [5, 4]):
            seen = [envs.reset(seed=seeds)[0]["image"]]
            for action in actions[:90]:
                seen.append(envs.step(np.tile(action, (2, 1)))[0]["image"])
            for row, seed in enumerate(seeds):
                np.testing.assert_array_equal(np.stack(seen)[:, row], expected[seed][:91])


def test_nothing_is_written_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with EnvFactory(TAKE_COVER, action_repeat=8).vector(2, 2) as envs:
        results = rollout(envs, HeldActionsPolicy(1, 2), [0, 1])
    assert all(result.terminated for result in results)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_its_own_goes_with_the_environment():
    env = EnvFactory(TAKE_COVER).make()
    layer = env
    while not hasattr(layer, "folder"):
        layer = layer.env
    env.reset(seed=0)
    folder = layer.folder.name
    env.close()
    assert not Path(folder).exists()


def test_other_scenarios_have_their_own_buttons_as_choices():
    env = EnvFactory("VizdoomBasic-v1", action_repeat=4).make()
    assert env.action_space.shape == (4,)
    image = env.reset(seed=0)[0]["image"]
    assert image.std() > 0
    env.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ignore_termination": True}, "set ignore_termination to false"),
        ({"kwargs": {"frame_skip": 4}}, "set action_repeat"),
        ({"pixels": "sky"}, "no observation 'sky'"),
    ],
)
def test_what_doom_cannot_do_is_said_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnvFactory(TAKE_COVER, **arguments).make()


def test_without_the_extra_its_name_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom.gymnasium_wrapper", None)
    with pytest.raises(ValueError, match=r'pip install "wmlightning\[doom\]"'):
        EnvFactory(TAKE_COVER).make()


def engines(folder):
    """Processes of engines whose launchers lie in a folder, by what they hold as working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder) in os.readlink(process / "cwd") and b"vizdoom" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes through /proc")
@pytest.mark.filterwarnings("ignore:environment worker")
def test_a_killed_worker_is_noticed_at_once_and_its_engine_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for the workers, so that only their engines are counted
    with EnvFactory(TAKE_COVER, action_repeat=4).vector(1, 1, timeout=60.0) as envs:
        envs.reset(seed=[1])
        before = engines(tmp_path)
        os.kill(envs.workers.processes[0].pid, signal.SIGKILL)
        started = time.monotonic()
        *_, infos = envs.step(np.zeros((1, 1), np.float32))
        assert infos["crashed"].tolist() == [True]
        assert time.monotonic() - started < 30, "The dead worker's connection must not look alive through its engine."
        while time.monotonic() - started < 40 and set(engines(tmp_path)) & set(before):
            time.sleep(0.2)
        assert before
        assert not set(engines(tmp_path)) & set(before)
