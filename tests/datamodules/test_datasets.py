import os
from itertools import pairwise

import numpy as np
import pytest
import torch

from datamodules.datasets import FrameDataset, WholeEpisode, WindowDataset
from datamodules.episode import Episode
from datamodules.samplers import ChainedWindows, ConsecutiveWindows, UniformWindows
from datamodules.store import EpisodeStore


def where(batch):
    """(episode, row) of every row of a batch, as the observations tell."""
    return [[tuple(row) for row in window] for window in batch.observation["where"].int().tolist()]


def test_a_batch_holds_the_rows_that_the_sampler_chose(store_of, episode):
    lengths = [20, 30, 25]
    store = store_of(lengths)
    sampler = UniformWindows(6)
    batch = WindowDataset(sampler).draw(store, store.listing, 1, 2, 16)
    windows = sampler.sample(np.array(lengths), 1, 2, 16)
    assert batch.shape == (16, 6)
    for row, window in enumerate(windows):
        ((index, start, rows),) = window.pieces
        source, cut = episode(index, lengths[index], terminal=index % 2 == 0), slice(start, start + rows)
        assert np.array_equal(batch.observation["where"][row], source.observation["where"][cut])
        assert np.array_equal(batch.action[row], source.action[cut])
        assert np.array_equal(batch.reward[row], source.reward[cut])
        assert np.array_equal(batch.is_first[row], source.is_first[cut])
        assert np.array_equal(batch.is_terminal[row], source.is_terminal[cut])
        assert np.array_equal(batch.cont[row], 1 - source.is_terminal[cut])


def test_a_batch_keeps_the_dtypes_of_the_store(tmp_path):
    store = EpisodeStore(tmp_path)
    rng, first = np.random.default_rng(0), np.arange(9) == 0
    codes = {key: rng.normal(size=(9, 4)).astype(np.float16) for key in ("mean", "logvar")}
    store.append(Episode(codes, np.zeros((9, 2), np.float32), np.zeros(9, np.float32), first, np.zeros(9, np.bool_)))
    batch = WindowDataset(UniformWindows(9)).draw(store, store.listing, 0, 0, 2)
    assert batch.observation["mean"].dtype == torch.float16
    assert batch.is_first.dtype == batch.is_terminal.dtype == torch.bool
    assert batch.action.dtype == batch.reward.dtype == batch.cont.dtype == torch.float32
    assert np.array_equal(batch.observation["logvar"][1].numpy(), codes["logvar"])


@pytest.mark.parametrize("flag", [False, True])
def test_is_first_marks_a_windows_start_only_where_asked(store_of, flag):
    store = store_of([40])
    batch = WindowDataset(UniformWindows(4, flag_window_start=flag)).draw(store, store.listing, 0, 0, 64)
    begins = batch.observation["where"][:, 0, 1] == 0
    assert torch.equal(batch.is_first[:, 0], begins | flag)
    assert not batch.is_first[:, 1:].any()
    assert not begins.all()


def test_is_first_stands_at_every_reset_of_a_chained_window(store_of):
    store = store_of([4, 5, 6])
    batch = WindowDataset(ChainedWindows(12)).draw(store, store.listing, 0, 0, 32)
    assert torch.equal(batch.is_first, batch.observation["where"][..., 1] == 0)
    resets = batch.is_first & (torch.arange(12) > 0)
    assert resets.any(1).all()
    assert not batch.action[batch.is_first].any()
    assert not batch.reward[batch.is_first].any()


def test_consecutive_batches_continue_each_row(store_of):
    store = store_of([11, 12, 13, 14])
    dataset = WindowDataset(ConsecutiveWindows(5))
    batches = [dataset.draw(store, store.listing, 0, b, 2) for b in range(5)]
    assert batches[0].is_first[:, 0].all()
    for row in range(2):
        rows = [at for batch in batches for at in where(batch)[row]]
        flags = [flag for batch in batches for flag in batch.is_first[row].tolist()]
        for ((episode, at), (other, then)), reset in zip(pairwise(rows), flags[1:], strict=True):
            assert ((other, then) == (episode, at + 1)) != reset


def test_frames_are_windows_of_one_row(store_of):
    store = store_of([3, 4])
    batches = [FrameDataset().draw(store, store.listing, 0, b, 7) for b in range(2)]
    assert batches[0].shape == (7, 1)
    everything = {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)}
    assert all({window[0] for window in where(batch)} == everything for batch in batches)


@pytest.mark.parametrize("make", [lambda: WindowDataset(UniformWindows(5)), FrameDataset])
def test_processes_share_one_global_batch(store_of, make):
    store = store_of([20, 30, 25])
    whole = where(make().draw(store, store.listing, 3, 4, 8))
    halves = [where(make().draw(store, store.listing, 3, 4, 8, slice(4 * r, 4 * r + 4))) for r in range(2)]
    assert halves[0] + halves[1] == whole


@pytest.mark.parametrize("make", [lambda: WindowDataset(UniformWindows(5)), FrameDataset])
def test_a_damaged_file_is_replaced_by_the_same_windows_whenever_it_is_noticed(store_of, make):
    store = store_of([20] * 6)
    for index in (1, 4):
        os.truncate(f"{store.path}/{store.names[index]}", 300)
    runs = []
    for order in (range(12), reversed(range(12))):
        fresh = EpisodeStore(store.path)
        with pytest.warns(UserWarning, match=r"2 of 6 episodes .* are skipped"):
            runs.append({b: where(make().draw(fresh, fresh.listing, 0, b, 4)) for b in order})
        assert fresh.damaged == 2
    assert runs[0] == runs[1]
    assert {at[0] for batch in runs[0].values() for window in batch for at in window} == {0, 2, 3, 5}


def test_a_store_of_nothing_but_damaged_files_is_one_clear_line(store_of):
    store = store_of([20] * 3)
    store.read(0)
    for name in store.names:
        os.truncate(f"{store.path}/{name}", 300)
    with (
        pytest.warns(UserWarning, match="3 of 3"),
        pytest.raises(ValueError, match="3 of 3 episodes .* cannot be read: .*verify"),
    ):
        WindowDataset(UniformWindows(5)).draw(store, store.listing, 0, 0, 4)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("sampler", [UniformWindows(5), ConsecutiveWindows(20), ChainedWindows(60)])
def test_one_whole_file_is_enough_however_windows_are_chosen(store_of, sampler):
    store = store_of([20] * 4)
    for name in store.names[1:]:
        os.truncate(f"{store.path}/{name}", 300)
    batch = WindowDataset(sampler).draw(store, store.listing, 0, 0, 1)
    assert (batch.observation["where"][..., 0] == 0).all()


def test_memory_is_used_again_only_when_it_is_no_longer_referenced(tmp_path):
    store = EpisodeStore(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    flat = np.zeros(200, np.float32)
    store.append(
        Episode({"image": image}, np.zeros((200, 1), np.float32), flat, np.arange(200) == 0, np.zeros(200, np.bool_))
    )
    dataset = WindowDataset(UniformWindows(100))

    def draw(number):
        return dataset.draw(store, store.listing, 0, number, 20).observation["image"]

    kept = [draw(number) for number in range(6)]
    copies = [image.clone() for image in kept]
    pieces = [draw(6)[3], draw(7).float().mean(), draw(8).numpy()[5], draw(9).view(-1)[:10]]
    before = [np.array(torch.as_tensor(piece).tolist()) for piece in pieces]
    for number in range(10, 20):
        draw(number)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(pieces, before, strict=True))
    del kept, pieces
    addresses = {draw(number).data_ptr() for number in range(20, 40)}
    assert len(addresses) <= 3


def test_a_whole_episode_carries_its_name_and_metadata(tmp_path, episode):
    store = EpisodeStore(tmp_path)
    store.append(episode(7, 12, terminal=True, seed=5), index=7, rank=1, birth=3)
    whole = WholeEpisode.read(store, store.listing[0]).to("cpu")
    assert (whole.index, whole.rank, whole.birth, whole.metadata) == (7, 1, 3, {"seed": 5})
    assert whole.batch.shape == (1, 12)
    assert where(whole.batch) == [[(7, row) for row in range(12)]]
    assert whole.batch.is_terminal[0].tolist() == [False] * 11 + [True]
