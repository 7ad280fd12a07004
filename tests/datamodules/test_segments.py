"""Episodes written in parts are read as if they had been written whole."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, lists

from datamodules.datasets import FrameDataset, WholeEpisode, WindowDataset
from datamodules.episode import Episode
from datamodules.files import EpisodeName
from datamodules.samplers import ChainedWindows, ConsecutiveWindows, EndWeightedWindows, UniformWindows
from datamodules.segments import SegmentedEpisodes
from datamodules.store import EpisodeStore

MAKERS = [
    lambda: WindowDataset(UniformWindows(4)),
    lambda: WindowDataset(EndWeightedWindows(4, flag_window_start=True)),
    lambda: WindowDataset(UniformWindows(4, weight="step")),
    lambda: WindowDataset(ChainedWindows(12)),
    lambda: WindowDataset(ConsecutiveWindows(3)),
    FrameDataset,
]


def pieces_of(episode, steps):
    """The parts that a writer would have made of an episode, `steps` decisions each."""
    parts, rows = [], len(episode)
    for first in range(0, rows - 1, steps):
        row = slice(first, min(first + steps, rows - 1) + 1)
        observation = {key: value[row] for key, value in episode.observation.items()}
        columns = [getattr(episode, name)[row].copy() for name in ("action", "reward", "is_first", "is_terminal")]
        for column in columns:
            column[0] = column is columns[2]
        parts.append(Episode(observation, *columns))
    return parts


@pytest.fixture(scope="module")
def stores(tmp_path_factory, episode):
    """The same episodes, whole and in parts of 5 steps."""
    whole, parted = (EpisodeStore(tmp_path_factory.mktemp(name)) for name in ("whole", "parted"))
    for index, rows in enumerate((13, 6, 4, 22, 11)):
        whole_episode = episode(index, rows, terminal=index % 2 == 0)
        whole.append(whole_episode, index)
        for number, part in enumerate(pieces_of(whole_episode, 5)):
            parted.append(part, index, birth=number // 2, part=number)
    return whole, parted


@pytest.mark.parametrize("make", MAKERS)
def test_batches_of_parts_are_those_of_the_whole(stores, make):
    whole, parted = stores
    assert len(parted) > len(whole)
    for batch in range(6):
        expected, got = (make().draw(store, store.listing, 3, batch, 8) for store in stores)
        for name in ("action", "reward", "cont", "is_first", "is_terminal"):
            torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=0, atol=0, msg=name)
        torch.testing.assert_close(got.observation["where"], expected.observation["where"], rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(lengths=lists(integers(2, 40), min_size=1, max_size=4), steps=integers(1, 9), rank=integers(0, 2))
def test_every_row_of_every_episode_is_in_one_file_only(lengths, steps, rank):
    names = []
    for index, rows in enumerate(lengths):
        for part, first in enumerate(range(0, rows - 1, steps)):
            names.append(EpisodeName(index, rank, part, min(steps, rows - 1 - first) + 1, part))
    episodes_of_parts = SegmentedEpisodes(names)
    assert episodes_of_parts.lengths.tolist() == lengths
    assert [name for episode in range(len(episodes_of_parts)) for name in episodes_of_parts.parts(episode)] == names
    for episode, rows in enumerate(lengths):
        for start in range(rows):
            where = [
                (name.part * steps + row)
                for name, first, n in episodes_of_parts.files(episode, start, rows - start)
                for row in range(first, first + n)
            ]
            assert where == list(range(start, rows))


def test_a_missing_part_begins_an_episode_in_the_middle_without_its_first_row():
    names = [
        EpisodeName(0, 0, 0, 6),
        EpisodeName(0, 0, 0, 6, 1),
        EpisodeName(0, 0, 0, 6, 3),
        EpisodeName(1, 0, 0, 4, 2),
    ]
    episodes_of_parts = SegmentedEpisodes(names)
    assert episodes_of_parts.lengths.tolist() == [11, 5, 3]
    assert list(episodes_of_parts.files(1, 0, 5)) == [(names[2], 1, 5)]
    assert SegmentedEpisodes([]).lengths.tolist() == []


def test_a_window_that_begins_in_a_later_part_has_the_true_action_and_reward_and_no_reset(stores):
    whole, parted = stores
    name = EpisodeName(3, 0, 0, 6, 1)
    assert name in parted.listing
    rows = WindowDataset(UniformWindows(5)).draw(parted, [name], 0, 0, 1)
    expected = whole.read(3, start=6, rows=5)
    np.testing.assert_array_equal(rows.action[0].numpy(), expected.action)
    np.testing.assert_array_equal(rows.reward[0].numpy(), expected.reward)
    assert not rows.is_first.any()


def test_a_damaged_part_leaves_the_parts_around_it(tmp_path, episode):
    store = EpisodeStore(tmp_path)
    for number, part in enumerate(pieces_of(episode(0, 16), 5)):
        store.append(part, 0, part=number)
    os.truncate(f"{store.path}/{store.names[1]}", 200)
    store = EpisodeStore(tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 episodes"):
        batches = [WindowDataset(UniformWindows(5)).draw(store, store.listing, 0, b, 8) for b in range(8)]
    seen = {tuple(window) for batch in batches for window in batch.observation["where"][..., 1].int().tolist()}
    assert seen == {(0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (11, 12, 13, 14, 15)}


def test_the_name_holds_the_part_and_a_listing_is_in_the_order_of_the_episode(tmp_path, episode):
    assert str(EpisodeName(7, 1, 30, 6)) == "ep-00000007-1-30-6.h5"
    assert str(EpisodeName(7, 1, 30, 6, 2)) == "ep-00000007-1-30-6-2.h5"
    for name in (EpisodeName(7, 1, 30, 6), EpisodeName(7, 1, 30, 6, 12)):
        assert EpisodeName.parse(str(name)) == name
    assert EpisodeName.parse("ep-00000007-1-30-6-0.h5") is None, "one name a file"
    store = EpisodeStore(tmp_path)
    for number, rows in ((1, 9), (2, 3), (0, 9)):
        store.append(episode(0, rows), 0, part=number)
    assert [name.part for name in store.listing] == [0, 1, 2]
    assert [name.part for name in EpisodeStore(tmp_path).listing] == [0, 1, 2]
    with pytest.raises(ValueError, match="part 2 of episode 0 of rank 0 is in .* already"):
        store.append(episode(0, 5), 0, birth=4, part=2)
    assert store.verify() == []
    assert WholeEpisode.read(store, store.listing[2]).place == (0, 0, 2)


def test_the_parts_that_came_first_leave_first(tmp_path, episode):
    store = EpisodeStore(tmp_path, cap_decisions=12)
    for index, part, birth in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 2, 4), (0, 3, 8)):
        store.append(episode(0, 6), index, birth=birth, part=part)
    assert [name.place for name in store.listing] == [(0, 0, 2), (0, 0, 3)]
