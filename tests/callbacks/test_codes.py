"""Codes are written once, with the actions and flags of their images, and never those of two V in one folder."""

import os

import numpy as np
import pytest
import torch
from lightning import Trainer

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import FrameDataset, WindowDataset
from datamodules.episode import Episode
from datamodules.samplers import UniformWindows
from datamodules.store import EpisodeStore
from wmlightning.callbacks.codes import CodeWriter
from wmlightning.dynamics import MDNLSTM
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

STEPS = (6, 9, 7)


@pytest.fixture
def episodes(tmp_path):
    """Three episodes numbered 3, 5 and 8, as when some were lost."""
    store, rng = EpisodeStore(tmp_path / "episodes"), np.random.default_rng(0)
    for index, steps in zip((3, 5, 8), STEPS, strict=True):
        image = rng.integers(0, 256, (steps + 1, 64, 64, 3), np.uint8)
        action, reward = rng.uniform(-1, 1, (steps + 1, 2)).astype(np.float32), rng.normal(size=steps + 1)
        action[0], reward[0] = 0, 0
        first, terminal = np.arange(steps + 1) == 0, np.arange(steps + 1) == steps
        metadata = {"seed": index}
        episode = Episode({"image": image}, action, reward.astype(np.float32), first, terminal, metadata)
        store.append(episode, index, rank=1, birth=4)
    return store


def tiny(seed=0):
    torch.manual_seed(seed)
    return VAE(4, depth=1)


def write(episodes, path, vae, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", callbacks=[CodeWriter(str(path), **options)], use_distributed_sampler=False, **quiet
    )
    trainer.predict(vae, EpisodeDataModule(episodes.path, FrameDataset(), 1, 1), return_predictions=False)
    return EpisodeStore(path)


def test_codes_have_the_actions_rewards_and_flags_of_their_images(tmp_path, episodes):
    vae = tiny()
    codes = write(episodes, tmp_path / "codes", vae)
    assert codes.names == episodes.names
    for place in range(3):
        code, source = codes.read(place), episodes.read(place)
        embeds = vae.encode(torch.from_numpy(source.observation["image"])).detach().numpy()
        for name, part in zip(("mean", "logvar"), (embeds[:, :4], embeds[:, 4:]), strict=True):
            assert code.observation[name].dtype == np.float16
            np.testing.assert_allclose(code.observation[name], part, rtol=1e-3, atol=1e-4)
        for name in ("action", "reward", "is_first", "is_terminal"):
            np.testing.assert_array_equal(getattr(code, name), getattr(source, name))
        assert code.metadata["seed"] == source.metadata["seed"]


def test_codes_say_which_v_wrote_them(tmp_path, episodes):
    vae = tiny()
    assert write(episodes, tmp_path / "codes", vae).read(0).metadata["vae"] == vae.fingerprint()


def test_an_interrupted_writing_goes_on_where_it_stopped(tmp_path, episodes):
    codes = write(episodes, tmp_path / "codes", tiny())
    paths = [f"{codes.path}/{name}" for name in codes.names]
    os.unlink(paths[1])
    before = [os.stat(paths[k]).st_mtime_ns for k in (0, 2)]
    vae, encoded = tiny(), []
    encode = vae.encode
    vae.encode = lambda image: encoded.append(len(image)) or encode(image)
    write(episodes, tmp_path / "codes", vae)
    assert encoded == [STEPS[1] + 1], "codes that exist are not computed again"
    assert [os.stat(paths[k]).st_mtime_ns for k in (0, 2)] == before
    assert os.path.exists(paths[1])


def test_codes_of_two_v_never_share_a_folder(tmp_path, episodes):
    write(episodes, tmp_path / "codes", tiny())
    with pytest.raises(ValueError, match="write to another folder"):
        write(episodes, tmp_path / "codes", tiny(seed=1))


def test_only_the_new_episodes_of_a_store_that_has_grown_are_read(tmp_path, episodes, monkeypatch):
    write(episodes, tmp_path / "codes", tiny())
    episodes.append(episodes.read(0), 11)
    read, read_into = [], EpisodeStore.read_into
    monkeypatch.setattr(
        EpisodeStore, "read_into", lambda self, name, *at: read.append(name.index) or read_into(self, name, *at)
    )
    assert write(episodes, tmp_path / "codes", tiny()).indices.tolist() == [3, 5, 8, 11]
    assert set(read) == {11}


def test_codes_of_another_v_are_replaced_if_stale_is_replace(tmp_path, episodes):
    old, new = tiny(), tiny(seed=1)
    codes = write(episodes, tmp_path / "codes", old)
    before = codes.read(0).observation["mean"]
    codes = write(episodes, tmp_path / "codes", new, stale="replace")
    assert codes.names == episodes.names
    assert {codes.read(place).metadata["vae"] for place in range(3)} == {new.fingerprint()}
    assert not np.array_equal(codes.read(0).observation["mean"], before)


@pytest.mark.parametrize("killed_while", ["deleting", "writing"])
def test_a_replacement_that_was_killed_never_leaves_codes_of_two_v(tmp_path, episodes, killed_while, monkeypatch):
    codes, new = write(episodes, tmp_path / "codes", tiny()), tiny(seed=1)
    left = {"deleting": 2, "writing": 4}[killed_while]

    def work(do):
        def done(*args, **options):
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            return do(*args, **options)

        return done

    with monkeypatch.context() as patch:
        patch.setattr("wmlightning.callbacks.codes.os.unlink", work(os.unlink))
        patch.setattr(EpisodeStore, "append", work(EpisodeStore.append))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            write(episodes, tmp_path / "codes", new, stale="replace")
    codes.refresh()
    assert len({codes.read(place).metadata["vae"] for place in range(len(codes))}) <= 1
    codes = write(episodes, tmp_path / "codes", new, stale="replace")
    assert {codes.read(place).metadata["vae"] for place in range(3)} == {new.fingerprint()}


def test_codes_are_not_written_among_images(tmp_path, episodes):
    with pytest.raises(ValueError, match="holds episodes of images: write codes to a folder of their own"):
        write(episodes, episodes.path, tiny())


def test_only_v_writes_codes(tmp_path):
    with pytest.raises(ValueError, match="predict with a VAE"):
        CodeWriter(str(tmp_path)).on_predict_start(Trainer(accelerator="cpu"), MDNRNN(tiny(), MDNLSTM(4, 2, 3)))


def test_a_model_trains_on_the_codes_it_reads(tmp_path, episodes):
    vae = tiny()
    codes = write(episodes, tmp_path / "codes", vae)
    batch = WindowDataset(UniformWindows(5)).draw(codes, codes.listing, seed=0, batch=0, size=2)
    assert torch.isfinite(MDNRNN(vae, MDNLSTM(4, 2, 3)).learn(batch)["loss"])
