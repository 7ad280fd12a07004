"""Collecting fills a folder with episodes that depend on their number alone, and goes on where it was stopped."""

import numpy as np
import pytest

from datamodules.store import EpisodeStore
from wmlightning.environments.factory import EnvFactory
from wmlightning.policies.exploration import SmoothNoisePolicy
from wmlightning.seeds import derive_seed
from wmlightning.tools.collect import collect

ENVIRONMENT = EnvFactory("wmlightning/DummyPixels-v0", action_repeat=2, size=8, kwargs={"steps": 9})
POLICY = SmoothNoisePolicy(2)


def images(path):
    store = EpisodeStore(path)
    return {index: store.read(place).observation["image"] for place, index in enumerate(store.indices.tolist())}


def test_a_collection_is_summed_up(tmp_path):
    summary = collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=5, num_envs=2)
    store = EpisodeStore(tmp_path)
    returns = [store.read(place).total_reward for place in range(5)]
    assert (summary["episodes"], summary["new_episodes"]) == (5, 5)
    assert summary["decisions"] == store.num_steps == 25
    assert summary["env_steps"] == 45
    assert summary["mean_return"] == pytest.approx(np.mean(returns))


def test_an_interrupted_collection_goes_on_and_comes_out_the_same(tmp_path):
    whole, pieces = str(tmp_path / "whole"), str(tmp_path / "pieces")
    expected = collect(ENVIRONMENT, POLICY, whole, episodes=7, seed=3)
    collect(ENVIRONMENT, POLICY, pieces, episodes=3, seed=3, num_envs=2)
    next(iter((tmp_path / "pieces").glob("ep-00000001-*"))).unlink()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "pieces").iterdir()}
    summary = collect(ENVIRONMENT, POLICY, pieces, episodes=7, seed=3, num_envs=3, num_workers=1)
    assert (summary["episodes"], summary["new_episodes"]) == (7, 5)
    assert summary["mean_return"] == expected["mean_return"]
    assert all(file.stat().st_mtime_ns == time for file, time in files.items()), "Finished episodes are left alone."
    one, two = images(whole), images(pieces)
    assert one.keys() == two.keys() == set(range(7))
    for index in one:
        np.testing.assert_array_equal(one[index], two[index])


def test_a_finished_collection_is_not_played_again(tmp_path, monkeypatch):
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=2)
    monkeypatch.setattr(EnvFactory, "vector", None)
    summary = collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=2)
    assert (summary["episodes"], summary["new_episodes"], summary["env_steps"]) == (2, 0, 0)


def test_every_episode_knows_where_it_comes_from(tmp_path):
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=2, seed=9)
    store = EpisodeStore(tmp_path)
    for place in range(2):
        metadata = store.read(place).metadata
        assert metadata["seed"] == derive_seed(9, 0, place)
        assert (metadata["environment"], metadata["action_repeat"]) == (ENVIRONMENT.id, 2)


@pytest.mark.parametrize(
    ("environment", "seed", "says"),
    [
        (EnvFactory("wmlightning/DummyCounter-v0", size=8), 0, "environment"),
        (EnvFactory("wmlightning/DummyPixels-v0", size=8, kwargs={"steps": 9}), 0, "action_repeat"),
        (ENVIRONMENT, 1, "seed"),
    ],
)
def test_two_collections_are_not_mixed_in_one_folder(tmp_path, environment, seed, says):
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=1)
    with pytest.raises(ValueError, match=f"holds episodes with {says}"):
        collect(environment, POLICY, str(tmp_path), episodes=2, seed=seed)
    assert len(EpisodeStore(tmp_path)) == 1


def test_a_policy_of_the_wrong_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="action_size"):
        collect(ENVIRONMENT, SmoothNoisePolicy(5), str(tmp_path), episodes=1)


def test_car_racing_is_collected_as_pictures_of_the_track(tmp_path):
    environment = EnvFactory("CarRacing-v3", action_repeat=10, time_limit=100)
    collect(environment, SmoothNoisePolicy(3), str(tmp_path), episodes=1)
    episode = EpisodeStore(tmp_path).read(0)
    assert episode.observation["image"].shape == (11, 64, 64, 3)
    assert episode.observation["image"][5:].std() > 10
