from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.hashing import mix, permuted, uniform_below
from datamodules.samplers import ChainedWindows, ConsecutiveWindows, EndWeightedWindows, ShuffledFrames, UniformWindows

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=12).map(np.array)
WEIGHTS = st.sampled_from(["episode", "step"])
SAMPLERS = {
    "uniform": UniformWindows,
    "end weighted": EndWeightedWindows,
    "chained": ChainedWindows,
    "consecutive": ConsecutiveWindows,
}
SEEDS = st.integers(0, 2**32)


def rows_of(windows):
    """All (episode, row) of some windows, in order."""
    return [(e, row) for window in windows for e, start, rows in window.pieces for row in range(start, start + rows)]


@settings(deadline=None)
@given(kind=st.sampled_from(list(SAMPLERS)), lengths=LENGTHS, length=st.integers(2, 12), seed=SEEDS)
def test_a_window_never_crosses_an_episode(kind, lengths, length, seed):
    sampler = SAMPLERS[kind](length)
    try:
        windows = sampler.sample(lengths, seed, batch=3, size=5)
    except ValueError:
        assert lengths.max() < length or lengths.sum() < 5 * length
        return
    assert len(windows) == 5
    for window in windows:
        assert sum(rows for _, _, rows in window.pieces) == length
        for number, (episode, start, rows) in enumerate(window.pieces):
            assert rows >= 1
            assert 0 <= start < start + rows <= lengths[episode]
            assert number == 0 or start == 0, "a piece that follows begins with a reset"
            assert number == len(window.pieces) - 1 or start + rows == lengths[episode], "and follows an end"


@settings(deadline=None)
@given(kind=st.sampled_from([*SAMPLERS, "frames"]), lengths=LENGTHS, seed=SEEDS, batch=st.integers(0, 10**9))
def test_the_same_seed_and_batch_give_the_same_windows(kind, lengths, seed, batch):
    lengths = lengths + 40

    def sample():
        sampler = ShuffledFrames() if kind == "frames" else SAMPLERS[kind](3)
        return sampler.sample(lengths, seed, batch, 4)

    assert sample() == sample()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_another_seed_or_batch_gives_other_windows(kind):
    lengths, sampler = np.full(50, 100), SAMPLERS[kind](10)
    drawn = [rows_of(sampler.sample(lengths, seed, batch, 8)) for seed, batch in ((0, 0), (1, 0), (0, 1))]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("sampler", [UniformWindows(4), EndWeightedWindows(4), ChainedWindows(4)])
def test_a_row_of_a_batch_does_not_depend_on_how_many_there_are(sampler):
    lengths = np.array([9, 30, 17])
    assert sampler.sample(lengths, 5, 7, 16)[:4] == sampler.sample(lengths, 5, 7, 4)


def test_every_start_is_equally_likely_and_the_last_row_of_an_episode_is_seen():
    sampler = UniformWindows(3)
    starts = [w.pieces[0][:2] for b in range(60) for w in sampler.sample(np.array([5, 4, 2]), 0, b, 100)]
    # Episode 0 has the starts 0, 1, 2, episode 1 has 0, 1, episode 2 is too short.
    expected = {(0, 0): 1000, (0, 1): 1000, (0, 2): 1000, (1, 0): 1500, (1, 1): 1500}
    assert set(starts) == set(expected)
    assert chi_square(starts, expected) < 18.5  # 4 degrees of freedom, one in a thousand


def test_weighted_by_step_every_window_of_the_store_is_equally_likely():
    sampler = UniformWindows(3, weight="step")
    starts = [w.pieces[0][:2] for b in range(50) for w in sampler.sample(np.array([5, 4, 2]), 0, b, 100)]
    assert chi_square(starts, dict.fromkeys([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], 1000)) < 18.5


def test_end_weighted_windows_see_the_end_as_often_as_it_has_rows():
    sampler = EndWeightedWindows(3)
    starts = [w.pieces[0][1] for b in range(50) for w in sampler.sample(np.array([5]), 0, b, 100)]
    assert chi_square(starts, {0: 1000, 1: 1000, 2: 3000}) < 13.8  # 2 degrees of freedom


def test_chained_windows_begin_at_any_row_and_go_on_in_any_episode():
    sampler = ChainedWindows(4)
    windows = [w for b in range(50) for w in sampler.sample(np.array([2, 2, 2]), 0, b, 20)]
    starts = [window.pieces[0][:2] for window in windows]
    assert chi_square(starts, dict.fromkeys([(e, s) for e in range(3) for s in range(2)], 1000 / 6)) < 20.6
    pairs = [(window.pieces[0][0], window.pieces[1][0]) for window in windows]
    assert chi_square(pairs, dict.fromkeys([(a, b) for a in range(3) for b in range(3)], 1000 / 9)) < 26.2


def chi_square(seen, expected):
    counts = {value: seen.count(value) for value in set(seen)}
    assert set(counts) <= set(expected)
    return sum((counts.get(value, 0) - wanted) ** 2 / wanted for value, wanted in expected.items())


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, length=st.integers(1, 6), size=st.integers(1, 4), seed=SEEDS)
def test_consecutive_windows_go_on_where_the_batch_before_ended(lengths, length, size, seed):
    stream = int(lengths.sum()) // size
    per_pass = stream // length
    if not per_pass:
        return
    sampler = ConsecutiveWindows(length)
    batches = [sampler.sample(lengths, seed, b, size) for b in range(2 * per_pass)]
    for number in range(2):
        seen = []
        for row in range(size):
            windows = [batch[row] for batch in batches[number * per_pass : (number + 1) * per_pass]]
            assert [window.is_start for window in windows] == [True] + [False] * (per_pass - 1)
            rows = rows_of(windows)
            for (episode, at), (other, then) in pairwise(rows):
                assert (other, then) == (episode, at + 1) or (then == 0 and at == lengths[episode] - 1)
            seen += rows
        assert len(seen) == len(set(seen)) == size * per_pass * length, "a pass shows no row twice"


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, size=st.integers(7, 30), seed=SEEDS)
def test_shuffled_frames_show_every_frame_once_a_pass(lengths, size, seed):
    total = int(lengths.sum())
    everything = sorted((episode, row) for episode, rows in enumerate(lengths.tolist()) for row in range(rows))
    batches = [ShuffledFrames().sample(lengths, seed, b, size) for b in range(2 * total // size + 1)]
    rows = rows_of([window for batch in batches for window in batch])
    assert sorted(rows[:total]) == sorted(rows[total : 2 * total]) == everything


def test_shuffled_frames_come_in_another_order_in_each_pass():
    lengths = np.full(10, 30)
    first, second, other = (ShuffledFrames().sample(lengths, *at, 300) for at in ((0, 0), (0, 1), (1, 0)))
    assert first != second
    assert first != other


def test_shuffled_frames_take_no_memory_for_a_long_store():
    lengths = np.full(100_000, 100_000)
    windows = ShuffledFrames().sample(lengths, 0, 12_345, 100)
    assert len(set(rows_of(windows))) == 100


@pytest.mark.parametrize("sampler", [UniformWindows(50), EndWeightedWindows(50)])
def test_a_window_longer_than_every_episode_is_one_clear_line(sampler):
    with pytest.raises(
        ValueError, match=r"the longest of 2 episodes has 38 rows \(37 steps\) but windows need 50: coll"
    ):
        sampler.sample(np.array([38, 20]), 0, 0, 4)


def test_streams_longer_than_the_store_are_one_clear_line():
    with pytest.raises(ValueError, match="have 58 rows but 4 streams of windows of 20 need 80: collect more"):
        ConsecutiveWindows(20).sample(np.array([38, 20]), 0, 0, 4)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="length is 0 but must be at least 1"):
        UniformWindows(0)
    with pytest.raises(ValueError, match="weight is 'steps'"):
        UniformWindows(5, weight="steps")


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097])
def test_a_computed_permutation_is_one(total):
    assert sorted(permuted(np.arange(total), total, 3, 9).tolist()) == list(range(total))


def test_a_computed_permutation_is_close_to_random():
    place = np.arange(20_000)
    order = permuted(place, len(place), 1)
    assert abs(np.corrcoef(place, order)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03


def test_hashes_are_the_same_on_every_machine():
    assert mix(0).tolist() == [16294208416658607535]  # splitmix64's first number from state 0
    assert mix(1, np.array([2, 3])).tolist() == [int(mix(1, 2)[0]), int(mix(1, 3)[0])]
    assert uniform_below(10, 7, np.arange(8)).tolist() == uniform_below(np.full(8, 10), 7, np.arange(8)).tolist()
