"""`wmlightning data`: what a folder of episodes holds, and which of its files are damaged."""

import json

import numpy as np
import pytest

from datamodules.episode import Episode
from datamodules.store import EpisodeStore
from wmlightning.__main__ import main


@pytest.fixture
def folder(tmp_path):
    """Three episodes of 4, 5 and 6 rows with rewards of 1."""
    store = EpisodeStore(str(tmp_path / "episodes"))
    for rows in (4, 5, 6):
        flag = np.zeros(rows, bool)
        reward = np.ones(rows, np.float32)
        reward[0] = 0
        image = np.zeros((rows, 8, 8, 3), np.uint8)
        store.append(
            Episode({"image": image}, np.zeros((rows, 2), np.float32), reward, flag | (np.arange(rows) == 0), flag)
        )
    return tmp_path / "episodes"


def test_info_counts_episodes_steps_bytes_returns_and_shapes(folder, capsys):
    assert main(["data", "info", str(folder)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["episodes"], info["steps"], info["damaged"]) == (3, 12, 0)
    assert info["returns"] == {"mean": 4.0, "min": 3.0, "max": 5.0}
    assert info["shapes"] == {"image": "uint8 [8, 8, 3]", "action": "float32 [2]"}
    assert info["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_a_whole_store_is_verified_with_status_0(folder, capsys):
    assert main(["data", "verify", str(folder)]) == 0
    assert "every episode is whole" in capsys.readouterr().out


def test_each_damaged_file_is_named_with_a_status_other_than_0(folder, capsys):
    names = sorted(file.name for file in folder.iterdir())
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:700])
    (folder / "holiday.jpg").write_bytes(b"")
    assert main(["data", "verify", str(folder)]) != 0
    out = capsys.readouterr().out
    assert names[0] in out
    assert "holiday.jpg" in out
    assert names[1] not in out


def test_a_killed_writers_unfinished_file_is_mentioned_and_no_damage(folder, capsys):
    (folder / ".ep-00000009-0-0-4.h5.1.tmp").write_bytes(b"")
    assert main(["data", "verify", str(folder)]) == 0
    assert ".ep-00000009-0-0-4.h5.1.tmp: unfinished" in capsys.readouterr().out


def test_an_empty_folder_is_not_called_whole(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path)]) != 0
    said = capsys.readouterr()
    assert "holds no episodes" in said.err
    assert "whole" not in said.out


def test_info_goes_on_past_a_damaged_file_and_counts_it(folder, capsys):
    names = sorted(file.name for file in folder.iterdir())
    (folder / names[0]).write_bytes(b"not HDF5")
    with pytest.warns(UserWarning, match="1 of 3 episodes"):
        assert main(["data", "info", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == 1


@pytest.mark.parametrize("what", ["info", "verify"])
def test_a_folder_that_is_not_there_is_one_line_and_status_2(what, tmp_path, capsys):
    assert main(["data", what, str(tmp_path / "nowhere")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
