"""A game that is played in parts is the game that is played at a stretch, whoever does what in between."""

import numpy as np
import pytest
import torch

from datamodules.datasets import WindowDataset
from datamodules.episode import Batch
from datamodules.samplers import UniformWindows
from datamodules.segments import SegmentedEpisodes
from datamodules.store import EpisodeStore
from datamodules.writer import EpisodeWriter
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.parts import PartedVectorEnv, PartsPolicy, PartsWriter, games_of
from wmlightning.environments.rollout import rollout
from wmlightning.policies.exploration import row_generator


class Mindful:
    """Acts by what it has seen since is_first, by its seed and by how often it was asked: it betrays every slip."""

    def initial(self, n, seeds=None):
        return {"seed": torch.tensor(seeds), "step": torch.zeros(n, dtype=torch.long), "sum": torch.zeros(n)}

    def __call__(self, observation, is_first, carry):
        seen = torch.from_numpy(observation["image"].astype(np.float32)).mean((1, 2, 3)) / 255
        total = torch.where(torch.from_numpy(is_first), torch.zeros_like(seen), carry["sum"]) + seen
        rows = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
        noise = np.stack([row_generator(*row).uniform(-0.3, 0.3, 2) for row in rows])
        action = np.clip(noise + np.sin(total.numpy())[:, None] / 2, -1, 1).astype(np.float32)
        return action, carry | {"step": carry["step"] + 1, "sum": total}


class Held:
    """Another player, who keeps another memory."""

    def initial(self, n, seeds=None):
        return {"left": torch.zeros(n)}

    def __call__(self, observation, is_first, carry):
        return np.zeros((len(is_first), 2), np.float32), carry


def factory(steps=23, **kwargs):
    return EnvFactory("wmlightning/DummyCounter-v0", 2, size=8, kwargs={"steps": steps, **kwargs})


def seed_of(index):
    return 100 + index


def play(envs, store, decisions, policy=None, forget=False):
    """One collection of so many decisions; returns its results and what they came to in games."""
    first = envs.next_index
    player, writer = PartsPolicy(policy or Mindful(), envs), PartsWriter(envs, store)
    results = rollout(envs, player, range(1000), writer=writer, may_begin=lambda done: done < decisions)
    player.leave(forget)
    return results, games_of(envs, results, first)


def whole_of(store, index):
    """One episode from all its parts."""
    joined = SegmentedEpisodes(store.listing)
    episode = next(k for k in range(len(joined)) if joined.parts(k)[0].index == index)
    return WindowDataset(UniformWindows(int(joined.lengths[episode]))).draw(store, joined.parts(episode), 0, 0, 1)


def same(one: Batch, other: Batch):
    for name in ("action", "reward", "is_first", "is_terminal"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.observation["image"], other.observation["image"])


@pytest.mark.parametrize(("num_envs", "workers", "max_segment"), [(1, 0, 5), (3, 0, 4), (3, 0, 12), (2, 2, 1)])
def test_the_parts_of_a_game_make_the_game(tmp_path, num_envs, workers, max_segment):
    with factory().vector(1) as envs:
        rollout(envs, Mindful(), range(100, 106), writer=EpisodeWriter(EpisodeStore(tmp_path / "whole")))
    whole, parted = EpisodeStore(tmp_path / "whole"), EpisodeStore(tmp_path / "parts")
    with factory().parted(num_envs, workers, max_segment, seed_of) as envs:
        for decisions in (7, 1, 20, 13, 40):
            results, _ = play(envs, parted, decisions)
            assert all(result.decisions <= max_segment for result in results)
            over = sum(result.decisions for result in results) - decisions
            assert 0 <= over < num_envs * max_segment, "A part that has begun is finished, and no further one begins."
        paused = {game.index: game.part for game in envs.games.values()}
    assert max(name.rows - 1 for name in parted.listing) <= max_segment
    for index in range(4):
        expected, got = whole_of(whole, index), whole_of(parted, index)
        if index in paused:
            rows = got.shape[1]
            expected = expected.map(lambda tensor, n=rows: tensor[:, :n])
        same(got, expected)
    seeds = {parted.contents(name).metadata["seed"] for name in parted.listing if name.index == 1}
    assert seeds == {101}


def test_what_a_rollout_came_to_is_told_in_games(tmp_path):
    store = EpisodeStore(tmp_path)
    with factory().parted(2, 0, 5, seed_of, first=3) as envs:
        results, (begun, ended, total, *paused) = play(envs, store, 11)
        assert (begun, ended, total) == (2, 0, 0)
        assert sorted(paused[::2]) == [3, 4]
        assert sum(paused[1::2]) == len(results) == len(store)
        results, (begun, ended, total, *paused) = play(envs, store, 20)
        assert ended >= 1
        assert total == ended * sum(range(1, 24)), "The return is the whole game's."
        assert envs.finished == []
    with factory().vector(2) as envs:
        results = rollout(envs, Held(), [0, 1, 2])
        assert games_of(envs, results, 0) == [3, 3, 3.0 * sum(range(1, 24))]


def test_a_row_without_a_game_is_told_as_such(tmp_path):
    store = EpisodeStore(tmp_path)
    with factory().parted(3, 0, 12, seed_of) as envs:
        _, (begun, ended, _, *paused) = play(envs, store, 1)
        assert (begun, ended, paused) == (3, 3, [-1] * 6), "A game of 12 decisions is over with its first part."


def test_who_plays_on_after_another_begins_with_an_empty_memory(tmp_path):
    seen = []

    class Watching(Mindful):
        def __call__(self, observation, is_first, carry):
            seen.append(is_first.copy())
            return super().__call__(observation, is_first, carry)

    with factory().parted(1, 0, 4, seed_of) as envs:
        play(envs, EpisodeStore(tmp_path), 4, Held(), forget=True)
        play(envs, EpisodeStore(tmp_path), 4, Watching())
        assert [bool(first) for first in seen] == [True] + [False] * (len(seen) - 1)
        assert (envs.games[0].index, envs.games[0].part) == (0, 2), "and it is the same game"


@pytest.mark.filterwarnings("ignore:environment worker")
@pytest.mark.parametrize(("max_segment", "found"), [(3, [[3, 1], [4, 4], [5, 1]]), (8, [[4, 2], [5, 1]])])
def test_a_game_whose_worker_dies_ends_with_its_last_part_and_the_next_is_begun(tmp_path, max_segment, found):
    """Games of ten steps. The accident comes with the sixth: in the second part of three, or in the first of eight."""
    marker = tmp_path / "marker"
    accident = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs={"kind": "kill", "marker": str(marker)})
    store = EpisodeStore(tmp_path / "episodes")
    with accident.parted(1, 1, max_segment, lambda index: index, first=3) as envs:
        play(envs, store, 15)
    assert marker.exists()
    joined = SegmentedEpisodes(store.listing)
    assert [[parts[0].index, len(parts)] for parts in map(joined.parts, range(len(joined)))] == found
    # What a worker did before it died is played for nothing, but it was played.
    assert sum(name.rows - 1 for name in store.listing) == 18 - 2 * (max_segment == 3)


def test_parts_of_nothing_are_refused():
    with pytest.raises(ValueError, match="max_segment is 0"):
        factory().parted(1, 0, 0, seed_of)


def test_the_face_of_gymnasium_plays_in_parts_too():
    with factory(steps=6).parted(1, 0, 2, seed_of) as envs:
        assert isinstance(envs, PartedVectorEnv)
        envs.reset(seed=0)
        told, times = [], []
        for _ in range(5):
            observation, _, terminated, truncated, _ = envs.step(np.zeros((1, 2), np.float32))
            told.append((bool(terminated[0]), bool(truncated[0])))
            times.append(int(observation["image"][0, 0, 0, 0]))
            if truncated[0]:
                envs.reset(seed=0)
    assert times == [2, 4, 6, 2, 4]
    assert told == [(False, False), (False, True), (False, True), (False, False), (False, True)]


def test_a_reset_in_the_middle_of_a_part_begins_another_game():
    with factory(steps=40).parted(1, 0, 3, seed_of) as envs:
        envs.reset(seed=0)
        envs.step(np.zeros((1, 2), np.float32))
        observation, _ = envs.reset(seed=0)
    assert observation["image"][0, 0, 0, 0] == 0
    assert (envs.games[0].index, envs.next_index) == (1, 2)
