import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from datamodules.checks import unfinished_files
from datamodules.files import DamagedEpisode
from datamodules.store import EpisodeStore


def rewrite(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(file, name, value):
    del file[name]
    file[name] = value


DAMAGE = {
    "truncated": (lambda path: os.truncate(path, os.path.getsize(path) - 1), "truncated file"),
    "empty": (lambda path: os.truncate(path, 0), "cannot be read as an HDF5 file"),
    "foreign content": (lambda path: Path(path).write_text("hello" * 1000), "cannot be read as an HDF5 file"),
    "no observations": (lambda path: rewrite(path, lambda f: f.__delitem__("observations")), "is no episode"),
    "no rewards": (lambda path: rewrite(path, lambda f: f.__delitem__("rewards")), "no dataset rewards"),
    "missing rows": (
        lambda path: rewrite(path, lambda f: replace(f, "rewards", np.zeros(7, np.float32))),
        r"rewards has shape \(7,\) but the file's name says 9 rows",
    ),
    "wrong dtype": (
        lambda path: rewrite(path, lambda f: replace(f, "rewards", np.zeros(9))),
        "rewards has dtype float64 but must be float32",
    ),
    "NaN reward": (
        lambda path: rewrite(path, lambda f: f["rewards"].__setitem__(3, np.nan)),
        "rewards holds a value that is not finite",
    ),
    "another environment": (
        lambda path: rewrite(path, lambda f: replace(f, "observations/where", np.zeros((10, 3), np.float32))),
        "but those of the store are",
    ),
    "words for numbers": (
        lambda path: rewrite(path, lambda f: replace(f, "observations/where", ["a"] * 10)),
        "must be a plain number",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_a_damaged_file_says_why_and_deletes_nothing(store_of, kind):
    store = store_of([10, 10, 10])
    hurt, message = DAMAGE[kind]
    hurt(f"{store.path}/{store.names[1]}")
    problems = EpisodeStore(store.path).verify()
    assert len(problems) == 1
    assert problems[0].startswith("ep-00000001-0-0-10.h5: ")
    assert re.search(message, problems[0])
    assert len(os.listdir(store.path)) == 3


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_cannot_be_read_and_is_counted_once(store_of, kind):
    store = store_of([10, 10, 10])
    DAMAGE[kind][0](f"{store.path}/{store.names[1]}")
    store = EpisodeStore(store.path)
    with pytest.warns(UserWarning, match="1 of 3 episodes"):
        with pytest.raises(DamagedEpisode, match="ep-00000001"):
            store.read(1)
    with pytest.raises(DamagedEpisode, match="ep-00000001"):
        store.read(1)
    assert store.damaged == 1
    assert len(store.read(2)) == 10


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("actions", 7.0, r"has actions that reach 7 but lie in \[-1, 1\]"),
        ("terminations", True, "ends after 4 of 9 steps"),
        ("truncations", True, "ends after 4 of 9 steps"),
    ],
)
def test_verify_names_what_no_episode_can_hold(store_of, name, value, says):
    store = store_of([10, 10])
    rewrite(f"{store.path}/{store.names[1]}", lambda file: file[name].__setitem__(3, value))
    (problem,) = store.verify()
    assert re.search(f"ep-00000001-0-0-10.h5: {says}", problem)


def test_verify_unpacks_what_is_packed(tmp_path, episode):
    store = EpisodeStore(tmp_path, compression="gzip")
    for number in range(2):
        store.append(episode(number, 40))
    path = tmp_path / store.names[1]
    with h5py.File(path) as file:
        where = file["observations/where"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[where : where + 8] = b"\xff" * 8
    path.write_bytes(content)
    (problem,) = store.verify()
    assert re.match("ep-00000001-0-0-40.h5: observations/where cannot be unpacked .*: record it again", problem)


def test_verify_names_what_does_not_belong_there(store_of):
    store = store_of([10, 10])
    folder = store.path
    shutil.copy(f"{folder}/{store.names[0]}", f"{folder}/ep-00000001-0-7-10.h5")
    shutil.copy(f"{folder}/{store.names[0]}", f"{folder}/ep-1-0-0-10.h5")
    shutil.copy(f"{folder}/{store.names[0]}", f"{folder}/ep-00000005-0-0-10.h5.123.tmp")
    os.mkdir(f"{folder}/superseded")
    problems = store.verify()
    assert len(problems) == 2
    assert unfinished_files(folder) == ["ep-00000005-0-0-10.h5.123.tmp"]
    assert problems[0].startswith("ep-00000001-0-7-10.h5: has the same index and rank as ep-00000001-0-0-10.h5")
    assert problems[1].startswith("ep-1-0-0-10.h5: is foreign")


def test_a_folder_named_like_an_episode_is_one_line(store_of):
    store = store_of([10])
    os.mkdir(f"{store.path}/ep-00000001-0-0-10.h5")
    (problem,) = store.verify()
    assert problem == "ep-00000001-0-0-10.h5: cannot be read as an HDF5 file (it is a folder)"


def test_a_healthy_store_has_no_problems(store_of):
    assert store_of([5, 10, 15]).verify() == []
    assert store_of([5, 10, 15], compression="gzip").verify() == []


def test_a_damaged_first_file_does_not_decide_what_a_store_looks_like(store_of, episode):
    store = store_of([10, 10])
    os.truncate(f"{store.path}/{store.names[0]}", 100)
    store = EpisodeStore(store.path)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert store.spec == episode(0, 5).spec
    store.append(episode(2, 5))
    assert len(store) == 3
