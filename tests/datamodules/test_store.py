import errno
import multiprocessing
import os
import resource
import shutil
import signal

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datamodules.episode import Episode
from datamodules.files import DamagedEpisode
from datamodules.store import EpisodeStore, to_disk


def same(left: Episode, right: Episode) -> bool:
    def identical(a, b):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

    names = ("action", "reward", "is_first", "is_terminal")
    return (
        left.observation.keys() == right.observation.keys()
        and all(identical(left.observation[key], right.observation[key]) for key in left.observation)
        and all(identical(getattr(left, name), getattr(right, name)) for name in names)
        and left.metadata == right.metadata
    )


@st.composite
def episodes(draw):
    rows = draw(st.integers(2, 40))
    keys = draw(st.lists(st.sampled_from(["image", "vector", "mean", "logvar"]), min_size=1, unique=True))
    observation = {}
    for key in keys:
        dtype = draw(st.sampled_from(["uint8", "float16", "float32", "float64", "int64", "bool"]))
        shape = (rows, *draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
        observation[key] = draw(hnp.arrays(dtype, shape, elements={"allow_nan": True} if "float" in dtype else None))
    finite = {"allow_nan": False, "allow_infinity": False}
    within = {"min_value": -1, "max_value": 1}
    action = draw(hnp.arrays(np.float32, (rows, draw(st.integers(1, 4))), elements=within))
    reward = draw(hnp.arrays(np.float32, rows, elements=finite))
    is_terminal = np.arange(rows) == (rows - 1 if draw(st.booleans()) else rows)
    action[0], reward[0] = 0, 0
    plain = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text("aé ☃/", max_size=9)
    metadata = draw(st.dictionaries(st.text("abc_ 1é", min_size=1, max_size=9), plain, max_size=3))
    return Episode(observation, action, reward, np.arange(rows) == 0, is_terminal, metadata)


@settings(deadline=None, max_examples=25)
@given(episode=episodes(), compression=st.sampled_from([None, "gzip"]), data=st.data())
def test_an_episode_comes_back_from_disk_bit_for_bit(tmp_path_factory, episode, compression, data):
    store = EpisodeStore(tmp_path_factory.mktemp("store"), compression=compression)
    store.append(episode)
    assert same(store.read(0), episode)
    start = data.draw(st.integers(0, len(episode) - 1))
    rows = data.draw(st.integers(1, len(episode) - start))
    cut = slice(start, start + rows)
    observation = {key: value[cut] for key, value in episode.observation.items()}
    flags = (getattr(episode, name)[cut] for name in ("action", "reward", "is_first", "is_terminal"))
    assert same(EpisodeStore(store.path).read(0, start, rows), Episode(observation, *flags, episode.metadata))
    assert not store.verify()


def test_a_file_has_gymnasiums_names_and_one_observation_more_than_actions(store_of, episode):
    store = store_of([4])
    with h5py.File(f"{store.path}/{store.names[0]}") as file:
        memory = episode(0, 4, terminal=True)
        assert set(file) == {"observations", "actions", "rewards", "terminations", "truncations"}
        assert np.array_equal(file["observations/where"], memory.observation["where"])
        assert np.array_equal(file["actions"], memory.action[1:])
        assert file["rewards"][:].tolist() == [1.0, 2.0, 3.0]
        assert file["terminations"][:].tolist() == [False, False, True]
        assert file["truncations"][:].tolist() == [False, False, False]


def test_an_episode_that_ends_without_being_terminal_is_marked_as_truncated(episode):
    disk = to_disk(episode(0, 4))
    assert disk["truncations"].tolist() == [False, False, True]
    assert disk["terminations"].tolist() == [False, False, False]


def test_a_name_says_index_rank_birth_and_rows_and_a_listing_is_the_index(tmp_path, episode):
    store = EpisodeStore(tmp_path)
    assert store.append(episode(7, 5), index=7, rank=2, birth=40) == "ep-00000007-2-40-5.h5"
    store.append(episode(3, 9), index=3)
    other = EpisodeStore(tmp_path)
    assert other.indices.tolist() == [3, 7]
    assert other.lengths.tolist() == [9, 5]
    assert other.num_steps == 12
    assert other.read(1).observation["where"][0].tolist() == [7, 0]


def test_an_index_is_given_once_only_and_the_next_free_one_by_default(tmp_path, episode):
    store = EpisodeStore(tmp_path)
    store.append(episode(0, 5), index=4)
    assert store.append(episode(0, 5)) == "ep-00000005-0-0-5.h5"
    store.append(episode(0, 5), index=4, rank=1)
    with pytest.raises(ValueError, match="episode 4 of rank 0 is in .* already"):
        store.append(episode(0, 6), index=4)


def test_files_are_read_without_hdf5_and_leave_nothing_open(store_of, monkeypatch):
    store = store_of([30] * 20)
    for index in range(20):
        store.read(index)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(h5py, "File", None)
    for index in range(20):
        assert store.read(index, 3, 10).observation["where"][0].tolist() == [index, 3]
    assert len(os.listdir("/proc/self/fd")) == before


def test_gzip_makes_smaller_files_of_the_same_content(tmp_path):
    image = np.zeros((40, 16, 16, 3), np.uint8)
    flat = np.zeros(40, np.float32)
    drawn = Episode({"image": image}, np.zeros((40, 1), np.float32), flat, np.arange(40) == 0, np.zeros(40, np.bool_))
    raw, packed = EpisodeStore(tmp_path / "raw"), EpisodeStore(tmp_path / "packed", compression="gzip")
    raw.append(drawn)
    packed.append(drawn)
    assert packed.num_bytes < raw.num_bytes / 2
    assert same(packed.read(0, 17, 20), raw.read(0, 17, 20))


@pytest.mark.parametrize(("cap", "kept"), [({"cap_decisions": 20}, [3, 4]), ({"cap_decisions": 1}, [4])])
def test_the_oldest_episodes_leave_when_decisions_are_capped_but_never_the_newest(store_of, cap, kept):
    store = store_of([11] * 5, **cap)
    assert store.indices.tolist() == kept
    assert EpisodeStore(store.path).indices.tolist() == kept


def test_the_oldest_episodes_leave_when_bytes_are_capped(store_of):
    size = store_of([11]).num_bytes
    store = store_of([11] * 5, cap_bytes=int(2.5 * size))
    assert store.indices.tolist() == [3, 4]
    assert store.num_bytes == 2 * size


def test_the_oldest_is_the_one_born_first_whatever_its_index(tmp_path, episode):
    store = EpisodeStore(tmp_path, cap_decisions=20)
    store.append(episode(5, 11), index=5, birth=0)
    store.append(episode(2, 11), index=2, birth=10)
    store.append(episode(1, 11), index=1, birth=20)
    assert store.indices.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"observation": {"where": e.observation["where"][:, :1]}}, "observations are"),
        (lambda e: {"observation": {"where": e.observation["where"].astype(np.float64)}}, "observations are"),
        (lambda e: {"observation": {"other": e.observation["where"]}}, "observations are"),
        (lambda e: {"observation": {"a/b": e.observation["where"]}}, "a plain name"),
        (lambda e: {"observation": {"where": e.observation["where"].astype(str)}}, "a plain name"),
        (lambda e: {"observation": {}}, "no observation"),
        (lambda e: {"action": e.action[:, :1]}, "actions have size 1"),
        (lambda e: {"action": e.action.astype(np.float64)}, "action has dtype float64 but must be float32"),
        (lambda e: {"action": np.ones_like(e.action)}, "but is the reset: make them zero"),
        (lambda e: {"action": np.where(e.reward[:, None] > 2, np.nan, e.action)}, "action that is not finite"),
        (
            lambda e: {"action": np.where(e.reward[:, None] > 2, np.float32(7), e.action)},
            r"actions that reach 7 but lie in \[-1, 1\]",
        ),
        (lambda e: {"is_terminal": np.arange(5) == 2}, "ends after 2 of 4 steps but must end at the last one"),
        (lambda e: {"metadata": {"discrete": True}}, "actions are one-hot choices but those of the store are numbers"),
        (lambda e: {"reward": e.reward.astype(np.float64)}, "reward has dtype float64"),
        (lambda e: {"is_first": np.zeros(5, np.bool_)}, "not one whole episode"),
        (lambda e: {"is_first": np.ones(5, np.bool_)}, "not one whole episode"),
        (lambda e: {"metadata": {"shape": [1, 2]}}, r"metadata\['shape'\] cannot be kept"),
        (lambda e: {"metadata": {"name": "a\0b"}}, r"metadata\['name'\] cannot be kept"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_in_one_line_and_nothing_is_written(tmp_path, episode, change, message):
    store = EpisodeStore(tmp_path)
    store.append(episode(0, 5))
    good = episode(1, 5)
    fields = {name: getattr(good, name) for name in Episode.__dataclass_fields__}
    with pytest.raises(ValueError, match=message) as error:
        store.append(Episode(**(fields | change(good))))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == store.names


def test_a_folder_that_is_none_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot list .*file .*give the folder that holds episodes") as error:
        EpisodeStore(tmp_path / "file")
    assert "\n" not in str(error.value)


def test_a_folder_that_vanished_under_a_writer_gives_one_line(tmp_path, episode):
    store = EpisodeStore(tmp_path / "below")
    (tmp_path / "below").write_text("")
    with pytest.raises(OSError, match="cannot write episodes into .*below .* choose another"):
        store.append(episode(0, 5), index=0)


def test_a_full_disk_gives_one_line_and_leaves_whole_episodes_only(tmp_path, episode, monkeypatch):
    store = EpisodeStore(tmp_path)
    store.append(episode(0, 5))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="is full .* free some space, or store in another folder") as error:
            store.append(episode(1, 5))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["ep-00000000-0-0-5.h5"]
    store.append(episode(1, 5), index=1)
    assert not store.verify()


def test_a_write_that_really_stops_half_way_leaves_no_file(tmp_path, episode):
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            EpisodeStore(tmp_path).append(episode(0, 1000))
        except OSError as error:
            os._exit(0 if "cannot write episodes into" in str(error) else 1)
        os._exit(2)

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert os.listdir(tmp_path) == []


def test_a_writer_killed_at_any_moment_loses_no_finished_episode(tmp_path, episode):
    def write_forever(folder):
        store = EpisodeStore(folder)
        for index in range(10_000):
            store.append(episode(index, 200), index)

    for pause in (0.02, 0.1, 0.25):
        folder = tmp_path / str(pause)
        child = multiprocessing.get_context("fork").Process(target=write_forever, args=(folder,))
        child.start()
        child.join(pause)
        child.kill()
        child.join()
        store = EpisodeStore(folder)
        assert store.indices.tolist() == list(range(len(store)))
        for index in range(len(store)):
            assert same(store.read(index), episode(index, 200))


def test_ranks_append_side_by_side_and_a_reader_sees_them_after_refresh(tmp_path, episode):
    reader = EpisodeStore(tmp_path)

    def write(rank):
        store = EpisodeStore(tmp_path)
        for index in range(5):
            store.append(episode(index, 6), index, rank)

    children = [multiprocessing.get_context("fork").Process(target=write, args=(rank,)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert len(reader) == 0
    reader.refresh()
    assert [(name.index, name.rank) for name in reader.listing] == [(i, r) for i in range(5) for r in (0, 1)]


def test_a_warning_with_numbers_comes_before_the_disk_is_full(tmp_path, episode, monkeypatch):
    store = EpisodeStore(tmp_path)
    size = 10 * 1024
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4 * size))
    with pytest.warns(UserWarning, match=r"MB are free under .* about \d+ more fit"):
        store.append(episode(0, 5))


def test_rows_beyond_the_end_are_an_index_error(store_of):
    store = store_of([5])
    for start, rows in ((0, 6), (5, 1), (-1, 2), (2, 0)):
        with pytest.raises(IndexError, match="it has 5"):
            store.read(0, start, rows)


def test_an_empty_store_says_what_to_do(tmp_path):
    store = EpisodeStore(tmp_path / "nothing")
    assert len(store) == store.num_steps == 0
    with pytest.raises(ValueError, match="holds no episodes: collect some"):
        _ = store.spec


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="compression is 'lzf'"):
        EpisodeStore(tmp_path, compression="lzf")
    with pytest.raises(ValueError, match="cap_bytes is 0"):
        EpisodeStore(tmp_path, 0)


def test_a_file_that_is_cut_after_it_was_first_read_is_noticed(store_of):
    store = store_of([50, 50])
    store.read(0)
    os.truncate(f"{store.path}/{store.names[0]}", 2100)
    with pytest.warns(UserWarning, match="1 of 2 episodes in .* cannot be read and are skipped"):
        with pytest.raises(DamagedEpisode, match="is truncated: "):
            store.read(0, 10)
    assert store.damaged == 1
