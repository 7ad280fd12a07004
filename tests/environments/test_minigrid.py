"""MiniGrid is rendered, not read, and its short episodes fill windows in a row."""

import numpy as np
import pytest

from datamodules.datasets import WindowDataset
from datamodules.episode import Spec
from datamodules.samplers import ChainedWindows
from datamodules.store import EpisodeStore
from datamodules.writer import EpisodeWriter
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies import HeldActionsPolicy

pytest.importorskip("minigrid", reason="needs the extra [minigrid]")

ROOM = "MiniGrid-Empty-Random-5x5-v0"
LEFT, RIGHT, FORWARD = np.eye(7, dtype=np.float32)[:3]


def test_the_room_is_seen_from_above_and_its_goal_is_terminal():
    factory = EnvFactory(ROOM, kwargs={"tile_size": 16})
    assert factory.spec == Spec({"image": ((64, 64, 3), "uint8")}, 7, True)
    env = factory.make()
    image = env.reset(seed=0)[0]["image"]
    green = (image[..., 1].astype(int) - image[..., 0]) > 100
    assert green.any(), "the goal"
    assert green.nonzero()[0].mean() > 32, "below and at the right of the middle"
    # Along the walls, turning at each: every cell next to a wall is passed, the goal among them.
    total, terminated, steps = 0.0, False, 0
    while not terminated and steps < 60:
        for action in (FORWARD, FORWARD, FORWARD, RIGHT):
            _, reward, terminated, truncated, _ = env.step(action)
            total, steps = total + reward, steps + 1
            assert not truncated
            if terminated:
                break
    assert terminated
    assert total == pytest.approx(1 - 0.009 * steps)
    env.close()


def test_a_hundred_steps_are_a_time_limit_and_no_end():
    env = EnvFactory(ROOM).make()
    env.reset(seed=1)
    for step in range(1, 101):
        _, reward, terminated, truncated, _ = env.step(LEFT)
        assert (reward, terminated, truncated) == (0.0, False, step == 100)
    env.close()


def test_episodes_shorter_than_a_window_follow_each_other_in_it(tmp_path):
    store = EpisodeStore(tmp_path)
    with EnvFactory(ROOM, size=32, time_limit=7).vector(2) as envs:
        rollout(envs, HeldActionsPolicy(7, 1, discrete=True), range(6), writer=EpisodeWriter(store))
    assert store.lengths.max() == 8
    batch = WindowDataset(ChainedWindows(16, flag_window_start=True)).draw(store, store.listing, 0, 0, 4)
    assert batch.shape == (4, 16)
    assert (batch.is_first.sum(1) >= 2).all()
    assert set(batch.action.sum(-1).flatten().tolist()) == {0.0, 1.0}, "one-hot, or the dummy of a reset"
