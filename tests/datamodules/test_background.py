"""Written by a thread: the same files, in the same order, and no error goes unheard."""

import numpy as np
import pytest

from datamodules.store import EpisodeStore
from datamodules.writer import BackgroundWriter, EpisodeWriter


def play(writer, index, steps, reward=1.0):
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
                play(writer, index, 3 + index)
    files = [sorted((tmp_path / name).glob("*.h5")) for name in ("plain", "background")]
    assert len(files[0]) == 5
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_what_is_finished_is_on_disk_when_an_exception_ends_the_block(tmp_path):
    def interrupted():
        with BackgroundWriter(EpisodeWriter(EpisodeStore(tmp_path))) as writer:
            play(writer, 0, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert EpisodeStore(tmp_path).lengths.tolist() == [5]


def test_an_error_of_the_writer_is_raised_in_the_callers_thread(tmp_path):
    with pytest.raises(ValueError, match="rewards must be finite"):
        with BackgroundWriter(EpisodeWriter(EpisodeStore(tmp_path))) as writer:
            play(writer, 0, 2, reward=float("nan"))
