"""Pictures of the stages: what is drawn, where it goes, and that drawing leaves no trace in training."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from square_support import events_in, squares, trainer

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import FrameDataset, WindowDataset
from datamodules.episode import Batch, Episode
from datamodules.samplers import UniformWindows
from datamodules.store import EpisodeStore
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.dream import DreamRules
from wmlightning.environments.factory import EnvFactory
from wmlightning.pictures.book import LogPictures, PictureBook, undisturbed
from wmlightning.pictures.dreams import LogDreams, horizon_curves
from wmlightning.pictures.driving import LogDreamDriving, LogDriving, drive
from wmlightning.pictures.open_loop import open_loop
from wmlightning.pictures.reconstructions import LogReconstructions, traversal
from wmlightning.stages.controller import CMAESController
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

ROWS = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("store"), ROWS, pace=2)


def data_of(store, dataset, **arguments):
    return EpisodeDataModule(
        str(store), dataset, batch_size=4, updates_per_epoch=4, validation_fraction=0.4, **arguments
    )


def tiny_vae():
    return VAE(latent_size=4, depth=4)


def tiny_model():
    return MDNRNN(tiny_vae(), MDNLSTM(latent_size=4, action_size=2, hidden_size=8))


def fit(folder, stage, data=None, callbacks=(), steps=2, checkpoint=None, **options):
    """Trains a few steps and returns the Trainer."""
    run = trainer(folder, callbacks, steps, num_sanity_val_steps=0, **options)
    run.fit(stage, data, ckpt_path=checkpoint)
    return run


def gif_length(encoded):
    return Image.open(io.BytesIO(encoded)).n_frames


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_a_picture_becomes_a_dated_file_and_the_latest_one(tmp_path):
    book = PictureBook(tmp_path / "pictures")
    for step in (5, 10):
        book.add("vae/samples", noise(4, 4, 3) + step, step)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["samples-000005.png", "samples-000010.png", "samples.png"]
    assert (tmp_path / "pictures/samples.png").read_bytes() == (tmp_path / "pictures/samples-000010.png").read_bytes()


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_more(tmp_path):
    (tmp_path / "pictures").write_text("a file stands in the way")
    with pytest.warns(UserWarning, match="takes no picture"):
        PictureBook(tmp_path / "pictures").add("vae/samples", noise(4, 4, 3), 0)


def test_drawing_keeps_every_mode_and_the_random_state():
    model = tiny_model().train()
    model.vae.encoder.train()
    modes, before = {name: part.training for name, part in model.named_modules()}, torch.get_rng_state()
    with undisturbed(model):
        assert not any(part.training for part in model.modules())
        first = torch.rand(3)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), before)
    with undisturbed(model):
        assert torch.equal(torch.rand(3), first), "pictures drawn at different times see the same noise"


def test_v_shows_reconstructions_samples_traversal_and_kl_in_files_and_tensorboard(tmp_path, store):
    fit(tmp_path, tiny_vae(), data_of(store, FrameDataset()), [LogReconstructions(every=1, frames=4, samples=12)])
    names = ["reconstructions", "samples", "traversal", "kl_per_dimension"]
    events = events_in(tmp_path)
    assert set(events.Tags()["images"]) == {f"vae/{name}" for name in names}
    for name in names:
        shown = events.Images(f"vae/{name}")
        assert [image.step for image in shown] == [1, 2]
        assert (tmp_path / f"pictures/{name}-000002.png").read_bytes() == shown[1].encoded_image_string
        assert Image.open(tmp_path / f"pictures/{name}.png").size == (shown[1].width, shown[1].height)


@pytest.mark.parametrize(
    ("make", "dataset", "callback"),
    [
        (tiny_vae, FrameDataset(), LogReconstructions(every=1)),
        (tiny_model, WindowDataset(UniformWindows(14)), LogDreams(every=1, context=4, horizon=4)),
    ],
    ids=["V", "M"],
)
def test_pictures_change_nothing_in_training(tmp_path, store, make, dataset, callback):
    stages = []
    for number, callbacks in enumerate([[], [callback]]):
        torch.manual_seed(1)
        stages.append(make())
        fit(tmp_path / str(number), stages[-1], data_of(store, dataset), callbacks, steps=3)
    assert (tmp_path / "1/pictures").exists()
    for plain, drawn in zip(*(stage.parameters() for stage in stages), strict=True):
        assert torch.equal(plain, drawn)


def test_every_zero_draws_only_the_finished_stage(tmp_path, store):
    fit(tmp_path, tiny_vae(), data_of(store, FrameDataset()), [LogReconstructions(every=0)])
    assert sorted(path.name for path in (tmp_path / "pictures").glob("samples-*")) == ["samples-000002.png"]


def test_a_run_without_held_out_data_trains_on_with_one_warning(tmp_path, store):
    data = EpisodeDataModule(str(store), FrameDataset(), 4, 4, validation_fraction=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, tiny_vae(), data, [LogReconstructions(every=1)])
    assert len([warning for warning in caught if "draws nothing" in str(warning.message)]) == 1
    assert not (tmp_path / "pictures").exists()


def test_a_traversal_moves_one_number_a_row():
    class Echo(torch.nn.Module):
        def decode(self, codes):
            self.codes = codes
            return torch.zeros(*codes.shape[:-1], 8, 8, 3)

    vae, mean = Echo(), torch.tensor([0.1, 0.2, 0.3])
    traversal(vae, mean, torch.tensor([0.5, 2.0, 1.0]), dimensions=2, reach=2.0, columns=5)
    assert torch.equal(vae.codes[0, :, 1], torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])), "most informative first"
    assert torch.equal(vae.codes[1, :, 2], torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    assert (vae.codes[0, :, [0, 2]] == mean[[0, 2]]).all()


def windows(batch=3, rows=12):
    torch.manual_seed(0)
    zeros = torch.zeros(batch, rows)
    image = torch.randint(0, 256, (batch, rows, 64, 64, 3), dtype=torch.uint8)
    return Batch({"image": image}, torch.rand(batch, rows, 2), zeros, zeros + 1, zeros > 0, zeros > 0)


def test_a_dream_begins_where_watching_ended_and_takes_the_recorded_actions():
    model, batch = tiny_model().eval(), windows()
    with undisturbed(model):
        loop = open_loop(model, batch, context=4, horizon=6)
    assert (loop.context, loop.dream.deter.shape[:2], loop.posterior.deter.shape[:2]) == (4, (3, 6), (3, 10))
    start = loop.posterior[:, 3]
    after = model.dynamics.imagine_step(start, batch.action[:, 4])
    assert torch.allclose(loop.dream.deter[:, 0], after.deter, atol=1e-6), "action[t] led to row t"
    assert not torch.allclose(loop.dream.deter[:, 0], model.dynamics.imagine_step(start, batch.action[:, 3]).deter)


def test_one_decision_ahead_dreaming_is_watching():
    model, batch = tiny_model().eval(), windows()
    with undisturbed(model):
        curves = horizon_curves(model, batch, context=4, horizon=6)
    assert {name: len(curve) for name, curve in curves.items()} == dict.fromkeys(curves, 6)
    assert float(curves["nll"][0]) == pytest.approx(float(curves["watching_nll"][0]), rel=1e-4)


def test_m_shows_strips_a_film_and_curves_in_files_and_tensorboard(tmp_path, store):
    callback = LogDreams(every=2, context=4, horizon=8, columns=3)
    fit(tmp_path, tiny_model(), data_of(store, WindowDataset(UniformWindows(14))), [callback])
    events = events_in(tmp_path)
    assert set(events.Tags()["images"]) == {"mdn_rnn/dreams", "mdn_rnn/dreams_moving", "mdn_rnn/horizons"}
    assert gif_length(events.Images("mdn_rnn/dreams_moving")[0].encoded_image_string) == 12
    assert {"mdn_rnn/dream_nll_h1", "mdn_rnn/dream_nll_h5", "mdn_rnn/dream_error_h5"} <= set(events.Tags()["scalars"])
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"dreams.png", "dreams_moving.gif", "horizons.png", "dreams-000002.png"} <= names


def test_m_on_codes_finds_the_pixels_of_held_out_episodes(tmp_path, store):
    codes, pixels = EpisodeStore(tmp_path / "codes"), EpisodeStore(store)
    for position in range(len(pixels)):
        episode = pixels.read(position)
        code = {key: np.zeros((ROWS, 4), np.float16) for key in ("mean", "logvar")}
        codes.append(
            Episode(code, episode.action, episode.reward, episode.is_first, episode.is_terminal),
            int(pixels.indices[position]),
        )
    callback = LogDreams(every=0, pixels=str(store), context=4, horizon=100, columns=3)
    data = data_of(tmp_path / "codes", WindowDataset(UniformWindows(14)))
    fit(tmp_path, tiny_model(), data, [callback])
    drawn = callback._held_out
    assert drawn is not None
    assert drawn.observation["image"].shape[1:] == (ROWS, 64, 64, 3), "shorter episodes are dreamt to their end"
    held = {name.index for name in data.episodes(validation=True)}
    heights = {int(window[0].any(-1).any(-1).nonzero()[0]) // 8 for window in drawn.observation["image"]}
    assert heights <= held, "only held-out episodes are drawn"


def test_m_on_codes_without_pixels_draws_reconstruction_and_dream_alone(tmp_path, store):
    model, batch = tiny_model().eval(), windows()
    with undisturbed(model):
        mean, logvar = model.encode(batch.observation["image"]).chunk(2, -1)
        codes = Batch({"mean": mean, "logvar": logvar}, batch.action, batch.reward, batch.cont, *[batch.is_first] * 2)
        loop = open_loop(model, codes, 4, 6)
    assert loop.truth is None


@pytest.fixture
def tiny_controller():
    return CMAESController(
        tiny_model(),
        EnvFactory("wmlightning/DummyPixels-v0", time_limit=6),
        population=4,
        episodes=1,
        evaluate_every=2,
        evaluation_episodes=2,
        num_envs=4,
        num_workers=0,
    )


def test_a_film_shows_every_decision_or_as_many_as_wanted(tiny_controller):
    policy, environment = tiny_controller.policy(explore=True), tiny_controller.environment
    assert len(drive(policy, environment, seed=3)) == 7
    assert len(drive(policy, environment, seed=3, frames=4)) == 4


def test_c_shows_fitness_and_a_film_against_environment_steps(tmp_path, tiny_controller):
    callback = LogDriving(every=2)
    fit(tmp_path, tiny_controller, callbacks=[callback], steps=4)
    events = events_in(tmp_path)
    assert [image.step for image in events.Images("controller/driving")] == [2 * 4 * 6, 4 * 4 * 6]
    assert [image.step for image in events.Images("controller/fitness")] == [2 * 4 * 6, 4 * 4 * 6]
    assert (tmp_path / "pictures/driving-000004.gif").exists()
    assert [generation for generation, _ in callback.history["best"]] == [1, 2, 3, 4]
    assert [generation for generation, _ in callback.history["evaluated"]] == [2, 4]
    logged = [event.value for event in events.Scalars("controller/fitness_best")]
    assert [value for _, value in callback.history["best"]] == pytest.approx(logged)


def test_c_shows_what_it_does_in_its_dream_against_dreamt_steps(tmp_path):
    dream = DreamRules(temperature=1.5, max_steps=3, reward="alive")
    environment = EnvFactory("wmlightning/DummyPixels-v0", time_limit=6)
    stage = CMAESController(tiny_model(), environment, dream, population=4, episodes=2, evaluate_every=0)
    stage.fitness.starts = torch.randn(2, 8)
    fit(tmp_path, stage, callbacks=[LogDreamDriving(every=0)], steps=2)
    events = events_in(tmp_path)
    assert [image.step for image in events.Images("controller/dream")] == [2 * 4 * 2 * 3]
    assert Image.open(tmp_path / "pictures/dream.gif").n_frames > 1


def test_a_film_of_a_dream_is_refused_where_there_is_none(tmp_path, tiny_controller):
    with pytest.raises(ValueError, match="use LogDriving, or set dream"):
        fit(tmp_path, tiny_controller, callbacks=[LogDreamDriving()], steps=1)


def test_a_resumed_controller_goes_on_with_its_curve(tmp_path, tiny_controller):
    first, second = LogDriving(every=0), LogDriving(every=0)
    fit(tmp_path, tiny_controller, callbacks=[first], steps=2).save_checkpoint(tmp_path / "c.ckpt")
    fit(tmp_path, tiny_controller, callbacks=[second], steps=3, checkpoint=str(tmp_path / "c.ckpt"))
    assert [generation for generation, _ in second.history["mean"]] == [1, 2, 3]
    assert second.history["mean"][:2] == first.history["mean"]


def test_only_rank_zero_draws(tmp_path, store):
    class Other(LogPictures):
        def draw(self, trainer, stage, book, step):
            raise AssertionError("drawn")

    class Rank:
        is_global_zero, fast_dev_run, global_step = False, False, 1

    Other()._draw(Rank(), tiny_vae())
