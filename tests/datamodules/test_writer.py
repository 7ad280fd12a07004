"""Steps become whole episodes in a store, in the caller's thread or in another one."""

import numpy as np
import pytest

from datamodules.store import EpisodeStore
from datamodules.writer import BackgroundWriter, EpisodeWriter


def frame(value):
    return {"image": np.full((2, 2, 3), value, np.uint8)}


def test_interleaved_rows_become_whole_aligned_episodes(tmp_path):
    store = EpisodeStore(tmp_path)
    writer = EpisodeWriter(store, rank=2, birth=30)
    writer.begin(0, frame(10), 4, {"seed": 9})
    writer.begin(1, frame(20), 5)
    assert writer.step(0, np.array([0.5]), 1.0, False, False, frame(11)) is None
    assert writer.step(1, np.array([-0.5]), 2.0, True, False, frame(21)) == "ep-00000005-2-30-2.h5"
    assert writer.step(0, np.array([0.25]), 3.0, False, True, frame(12)) == "ep-00000004-2-30-3.h5"
    episode = store.read(0)
    assert episode.observation["image"][:, 0, 0, 0].tolist() == [10, 11, 12]
    assert episode.action.tolist() == [[0.0], [0.5], [0.25]]
    assert episode.reward.tolist() == [0.0, 1.0, 3.0]
    assert episode.is_first.tolist() == [True, False, False]
    assert episode.is_terminal.tolist() == [False, False, False], "a time limit is not terminal"
    assert episode.metadata == {"seed": 9}
    assert store.read(1).is_terminal.tolist() == [False, True]


def test_an_observation_is_copied_when_it_is_recorded(tmp_path):
    store = EpisodeStore(tmp_path)
    writer, shared = EpisodeWriter(store), frame(1)
    writer.begin(0, shared, 0)
    shared["image"][:] = 2
    writer.step(0, np.zeros(1), 0.0, False, True, shared)
    assert store.read(0).observation["image"][:, 0, 0, 0].tolist() == [1, 2]


def test_a_dropped_row_leaves_no_episode_and_may_begin_again(tmp_path):
    store = EpisodeStore(tmp_path)
    writer = EpisodeWriter(store)
    writer.begin(0, frame(1), 0)
    writer.step(0, np.zeros(1), 1.0, False, False, frame(2))
    writer.drop(0)
    writer.drop(0)
    writer.begin(0, frame(3), 0)
    writer.step(0, np.zeros(1), 1.0, True, False, frame(4))
    assert store.read(0).observation["image"][:, 0, 0, 0].tolist() == [3, 4]
    assert len(store) == 1


def test_misuse_and_nan_rewards_are_refused_in_one_line(tmp_path):
    writer = EpisodeWriter(EpisodeStore(tmp_path))
    with pytest.raises(ValueError, match="row 0 steps but has not begun"):
        writer.step(0, np.zeros(1), 0.0, False, False, frame(0))
    writer.begin(0, frame(0), 7)
    with pytest.raises(ValueError, match="row 0 begins an episode but its last one has not ended"):
        writer.begin(0, frame(0), 8)
    with pytest.raises(ValueError, match="step 1 of episode 7 has reward nan"):
        writer.step(0, np.zeros(1), float("nan"), False, False, frame(0))


@pytest.mark.parametrize("other", [np.float32(frame(1)["image"]), frame(1)["image"][:1]], ids=["dtype", "shape"])
def test_an_observation_that_changes_its_kind_within_an_episode_is_refused(tmp_path, other):
    writer = EpisodeWriter(EpisodeStore(tmp_path))
    writer.begin(0, frame(0), 7)
    with pytest.raises(ValueError, match="step 1 of episode 7 observes .* but the episode began with"):
        writer.step(0, np.zeros(1), 0.0, False, False, {"image": other})


def write_episode(writer, index, steps, reward=1.0):
    """One episode of `steps` steps in row 0."""
    writer.begin(0, {"vector": np.full(2, index, np.float32)}, index, {"seed": index})
    for step in range(steps):
        end = step == steps - 1
        writer.step(0, np.zeros(1, np.float32), reward, end, False, {"vector": np.full(2, step, np.float32)})


def test_the_files_are_those_that_the_writer_itself_would_write(tmp_path):
    for name in ("plain", "background"):
        (tmp_path / name).mkdir()
    plain = EpisodeWriter(EpisodeStore(tmp_path / "plain"))
    with BackgroundWriter(EpisodeWriter(EpisodeStore(tmp_path / "background"))) as background:
        for writer in (plain, background):
            for index in range(5):
                write_episode(writer, index, 3 + index)
    files = [sorted((tmp_path / name).glob("*.h5")) for name in ("plain", "background")]
    assert len(files[0]) == 5
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_what_is_finished_is_on_disk_when_an_exception_ends_the_block(tmp_path):
    def interrupted():
        with BackgroundWriter(EpisodeWriter(EpisodeStore(tmp_path))) as writer:
            write_episode(writer, 0, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert EpisodeStore(tmp_path).lengths.tolist() == [5]


def test_an_error_of_the_writer_is_raised_in_the_callers_thread(tmp_path):
    with pytest.raises(ValueError, match="rewards must be finite"):
        with BackgroundWriter(EpisodeWriter(EpisodeStore(tmp_path))) as writer:
            write_episode(writer, 0, 2, reward=float("nan"))
