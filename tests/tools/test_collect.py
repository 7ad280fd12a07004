"""Collecting fills a folder with episodes that depend on their number alone, and goes on where it was stopped."""

import lightning
import numpy as np
import pytest
import torch

from datamodules.store import EpisodeStore
from wmlightning.dynamics import MDNLSTM
from wmlightning.environments.factory import EnvFactory
from wmlightning.policies.exploration import ConstantPolicy, SmoothNoisePolicy
from wmlightning.seeds import derive_seed
from wmlightning.stages.controller import CMAESController
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE
from wmlightning.tools.collect import collect, described

ENVIRONMENT = EnvFactory("wmlightning/DummyPixels-v0", action_repeat=2, size=8, kwargs={"steps": 9})
SHORT = EnvFactory("wmlightning/DummyPixels-v0", action_repeat=2, size=8, kwargs={"steps": 9}, time_limit=3)
CROPPED = EnvFactory("wmlightning/DummyPixels-v0", action_repeat=2, size=8, kwargs={"steps": 9}, crop=[0, 4])
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


def test_a_repeat_that_the_time_limit_cuts_short_is_counted_as_what_was_made(tmp_path):
    pendulum = EnvFactory("Pendulum-v1", action_repeat=4, size=8, time_limit=101)
    for new, made in ((3, 303), (0, 0)):
        summary = collect(pendulum, SmoothNoisePolicy(1), str(tmp_path), episodes=3)
        assert (summary["new_episodes"], summary["env_steps"]) == (new, made)
        assert summary["collected_env_steps"] == 303, "26 decisions an episode, the last one of a single step."


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


@pytest.mark.parametrize(
    ("environment", "policy", "says"),
    [
        (ENVIRONMENT, ConstantPolicy([0.0, 0.0]), "policy"),
        (ENVIRONMENT, SmoothNoisePolicy(2, scale=0.25), "policy"),
        (SHORT, POLICY, "settings"),
        (CROPPED, POLICY, "settings"),
    ],
)
def test_a_collection_goes_on_as_it_was_begun(tmp_path, environment, policy, says):
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=1)
    with pytest.raises(ValueError, match=f"holds episodes with {says} .* is asked for"):
        collect(environment, policy, str(tmp_path), episodes=2)
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=2)
    collect(ENVIRONMENT, ConstantPolicy([0.0, 0.0]), str(tmp_path), episodes=1, iteration=1)
    assert len(EpisodeStore(tmp_path)) == 3, "Another iteration may have another policy."


def test_a_collection_does_not_go_on_where_actions_meant_something_else(tmp_path, monkeypatch):
    """As with a folder from before whole numbers had equal shares."""
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=1)
    monkeypatch.setattr(EnvFactory, "conventions", "integer actions of equal shares")
    with pytest.raises(ValueError, match="holds episodes with conventions None but integer actions of equal shares is"):
        collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=2)
    collect(ENVIRONMENT, POLICY, str(tmp_path / "new"), episodes=1)
    collect(ENVIRONMENT, POLICY, str(tmp_path / "new"), episodes=2)


def test_every_policy_can_be_put_into_words_for_an_episode():
    class Told(SmoothNoisePolicy):
        def __init__(self, told):
            super().__init__(2)

    def words(told):
        return described(ENVIRONMENT, Told(told), None, None)["policy"]

    assert words([1, 2]) == words([1.0, 2.0]) != words([1, 3])
    assert words(np.float32(0.5)).endswith("Told"), "Its class, where it has no recipe."
    assert len(words([0.25] * 9999)) == 64, "A digest: HDF5 takes no attribute beyond 64 KB."


def test_a_policy_of_the_wrong_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="action_size"):
        collect(ENVIRONMENT, SmoothNoisePolicy(5), str(tmp_path), episodes=1)


def test_car_racing_is_collected_as_pictures_of_the_track(tmp_path):
    environment = EnvFactory("CarRacing-v3", action_repeat=10, time_limit=100)
    collect(environment, SmoothNoisePolicy(3), str(tmp_path), episodes=1)
    episode = EpisodeStore(tmp_path).read(0)
    assert episode.observation["image"].shape == (11, 64, 64, 3)
    assert episode.observation["image"][5:].std() > 10


# -------------------------------------------------------------------------------------- short episodes are discarded

CORRIDOR = EnvFactory("wmlightning/DummyCorridor-v0", size=8)
RIGHT = ConstantPolicy([0.0, 0.0, 1.0])
"""Arrives after 5 to 9 decisions, as the seed has it."""


def corridor(path, **options):
    return collect(CORRIDOR, RIGHT, str(path), **{"episodes": 6, "seed": 1, "min_decisions": 8} | options)


def test_short_episodes_are_played_and_counted_but_not_stored(tmp_path):
    everything = collect(CORRIDOR, RIGHT, str(tmp_path / "all"), episodes=40, seed=1)
    lengths = (EpisodeStore(tmp_path / "all").lengths - 1).tolist()
    result, store = corridor(tmp_path / "long"), EpisodeStore(tmp_path / "long")
    long = [index for index, steps in enumerate(lengths) if steps >= 8][:6]
    assert store.indices.tolist() == long, "The first six episodes that are long enough are those that are kept."
    assert (result["episodes"], result["collected"]) == (6, 6)
    played = max(long) + 1
    assert result["discarded"] == played - 6
    assert result["collected_env_steps"] == sum(lengths[:played]) == result["env_steps"]
    assert everything["discarded"] == 0


def test_discarded_episodes_count_the_steps_that_they_made(tmp_path):
    twice = EnvFactory("wmlightning/DummyCorridor-v0", action_repeat=2, size=8)
    result = collect(twice, RIGHT, str(tmp_path), episodes=3, seed=1, min_decisions=5)
    assert result["discarded"] > 0
    # It arrives after 5 to 9 steps, and so with the first of two: where five decisions were made, nine steps were.
    assert result["collected_env_steps"] == result["env_steps"] + 3, "No file tells that the last repeat was short."


def test_a_collection_with_short_episodes_goes_on_and_counts_the_same(tmp_path):
    whole = corridor(tmp_path / "whole")
    corridor(tmp_path / "pieces", episodes=2)
    result = corridor(tmp_path / "pieces", num_envs=3)
    assert EpisodeStore(tmp_path / "pieces").names == EpisodeStore(tmp_path / "whole").names
    for name in ("episodes", "discarded", "collected_return", "collected_env_steps"):
        assert result[name] == whole[name], name
    assert result["new_episodes"] == 4


def test_a_policy_that_never_lasts_is_named_instead_of_played_for_ever(tmp_path):
    with pytest.raises(ValueError, match="lower min_decisions"):
        corridor(tmp_path, episodes=1, min_decisions=10)


# ------------------------------------------------------------------------------------------------ an agent's episodes

DOTS = EnvFactory("wmlightning/DummyPixels-v0", time_limit=6)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """The checkpoint of a controller that goes right, and down a little, wherever it is."""
    torch.manual_seed(0)
    stage = CMAESController(MDNRNN(VAE(4, depth=1), MDNLSTM(4, 2, 8, 2)), DOTS, features="z")
    stage.controller.theta.data[-2:] = torch.tensor([1.0, -0.2])
    trainer = lightning.Trainer(max_steps=0, logger=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(stage)
    path = tmp_path_factory.mktemp("agent") / "agent.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


def test_an_agent_collects_with_its_own_actions(tmp_path, agent):
    result = collect(DOTS, None, str(tmp_path), episodes=2, agent=agent)
    action = EpisodeStore(tmp_path).read(0).action[1:]
    np.testing.assert_allclose(action, np.tile(np.tanh([1.0, -0.2]), (6, 1)), atol=1e-6)
    assert (result["collected"], result["collected_env_steps"]) == (2, 12)


def test_noise_is_added_to_an_agents_actions_and_recorded(tmp_path, agent):
    collect(DOTS, None, str(tmp_path), episodes=2, agent=agent, noise=SmoothNoisePolicy(2, scale=0.1))
    one, two = (EpisodeStore(tmp_path).read(place).action[1:] for place in range(2))
    assert 0 < np.abs(one - np.tanh([1.0, -0.2])).max() < 0.6
    assert not np.array_equal(one, two), "Every episode has noise of its own."


def test_every_iteration_adds_episodes_that_none_had_before(tmp_path, agent):
    noise = SmoothNoisePolicy(2)
    collect(DOTS, noise, str(tmp_path), episodes=3)
    for iteration in (1, 2):
        result = collect(DOTS, None, str(tmp_path), episodes=2, agent=agent, noise=noise, iteration=iteration)
        assert (result["episodes"], result["collected"]) == (3 + 2 * iteration, 2)
    store = EpisodeStore(tmp_path)
    assert [(name.index, name.birth) for name in store.listing] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 2),
    ]
    assert len({store.read(place).metadata["seed"] for place in range(7)}) == 7


def test_an_interrupted_iteration_goes_on_and_comes_out_the_same(tmp_path, agent):
    def iterate(path, *counts):
        collect(DOTS, POLICY, str(path), episodes=3)
        for episodes in counts:
            result = collect(DOTS, None, str(path), episodes=episodes, agent=agent, noise=POLICY, iteration=1)
        return result, images(path)

    (whole, one), (pieces, two) = iterate(tmp_path / "whole", 4), iterate(tmp_path / "pieces", 1, 4)
    assert one.keys() == two.keys() == set(range(7))
    assert all(np.array_equal(one[index], two[index]) for index in one)
    assert (pieces["new_episodes"], pieces["collected_return"]) == (3, whole["collected_return"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a policy or an agent"),
        ({"policy": POLICY, "agent": "somewhere.ckpt"}, "either a policy or an agent"),
        ({"policy": POLICY, "noise": POLICY}, "leave it out beside a policy"),
        ({"agent": "nowhere.ckpt"}, "there is no checkpoint at nowhere.ckpt"),
    ],
)
def test_who_acts_must_be_clear(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        collect(ENVIRONMENT, path=str(tmp_path), **options)


def test_an_iteration_before_one_that_was_played_is_refused(tmp_path):
    collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=1, iteration=2)
    with pytest.raises(ValueError, match="episodes of iteration 2"):
        collect(ENVIRONMENT, POLICY, str(tmp_path), episodes=1, iteration=1)
