"""V: its loss, what it learns, resumed runs, runs of several processes, and its tests against a baseline."""

import inspect

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_support import CUTS, assert_resumes, assert_two_processes_are_one, episode, trainer
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import FrameDataset
from datamodules.episode import Batch
from datamodules.store import EpisodeStore
from wmlightning.networks import normalize
from wmlightning.stages.checkpoints import load
from wmlightning.stages.vae import VAE


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(latent_size=4, depth=2, **options)


def images(rows=3, time=2, seed=0):
    shape = (rows, time, 64, 64, 3)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    zeros, flags = torch.zeros(rows, time), torch.zeros(rows, time, dtype=torch.bool)
    return Batch({"image": image}, torch.zeros(rows, time, 2), zeros, 1 - zeros, flags, flags)


def data(store, **options):
    options = {"batch_size": 3, "updates_per_epoch": 4, "validation_fraction": 0.5, "validation_batches": 2} | options
    return EpisodeDataModule(store.path, FrameDataset(), **options)


@pytest.mark.parametrize(("latent_size", "expected"), [(32, 4_348_547), (64, 4_446_915)], ids=["CarRacing", "Doom"])
def test_parameter_counts_are_the_papers(latent_size, expected):
    assert sum(p.numel() for p in VAE(latent_size).parameters()) == expected


def test_the_loss_is_summed_over_pixels_and_averaged_over_images_without_a_half():
    vae, batch, noise = tiny(), images(), torch.randn(6, 4)
    image = batch.observation["image"].flatten(0, 1)
    mean, logvar = vae.encode(image).chunk(2, -1)
    error = image / 255 - vae.decode(mean + (logvar / 2).exp() * noise)
    assert_close(vae.learn(batch, noise)["reconstruction"], error.square().sum((1, 2, 3)).mean())


def test_the_kl_of_each_image_is_floored_before_the_mean_over_images():
    vae, batch = tiny(kl_tolerance=0.5), images(rows=2, time=1)
    # One image gets a KL of 4 * 3^2 / 2 = 18 nats, the other none: (18 + 0) / 2 = 9, (18 + floor 2) / 2 = 10.
    vae.code = Constant(torch.tensor([[3.0] * 4 + [0.0] * 4, [0.0] * 8]))
    parts = vae.learn(batch)
    assert_close(parts["kl_nats"], torch.tensor(9.0))
    assert_close(parts["kl_floored"], torch.tensor(10.0))
    assert_close(parts["loss"], parts["reconstruction"] + parts["kl_floored"])


class Constant(torch.nn.Module):
    """Has the same output for every input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, _):
        return self.answer


def test_the_kl_has_no_gradient_below_its_floor():
    vae = tiny(kl_tolerance=100.0)
    parts = vae.learn(images())
    grads = torch.autograd.grad(parts["kl_floored"], list(vae.parameters()), materialize_grads=True, allow_unused=True)
    assert all(grad.abs().max() == 0 for grad in grads)


def test_the_loss_moves_every_weight():
    vae = tiny(kl_tolerance=0.0)
    vae.learn(images())["loss"].backward()
    assert not [name for name, p in vae.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]


def test_windows_of_any_length_are_single_images():
    vae, batch, noise = tiny(), images(rows=3, time=2), torch.randn(6, 4)
    flat = batch.map(lambda tensor: tensor.flatten(0, 1).unsqueeze(1))
    assert_close(vae.learn(batch, noise), vae.learn(flat, noise))


def test_encoding_and_decoding_keep_leading_axes():
    vae = tiny()
    embeds = vae.encode(images(rows=3, time=2).observation["image"])
    assert embeds.shape == (3, 2, 8)
    assert vae.decode(embeds[..., :4]).shape == (3, 2, 64, 64, 3)
    assert vae.encode(torch.zeros(64, 64, 3, dtype=torch.uint8)).shape == (8,)
    assert 0 <= vae.decode(torch.randn(4)).min() <= vae.decode(torch.randn(4)).max() <= 1


def test_float_images_are_refused_and_not_encoded_as_black():
    encode = inspect.unwrap(VAE.encode)  # without the check of annotations, which only tests have
    with pytest.raises(ValueError, match=r"images are float32 but uint8 0..255 is wanted"):
        encode(tiny(), torch.rand(2, 64, 64, 3))


def test_codes_are_drawn_anew_for_every_batch():
    vae, batch = tiny(), images()
    assert vae.learn(batch)["reconstruction"] != vae.learn(batch)["reconstruction"]


def test_it_overfits_one_batch():
    vae, image = tiny(learning_rate=3e-3), torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)
    for k in range(4):
        image[0, k, 16 * k : 16 * k + 16] = 255
    batch = images(rows=1, time=4)
    batch.observation["image"] = image
    optimizer = vae.configure_optimizers()
    first = vae.learn(batch)["reconstruction"].item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = vae.learn(batch)["loss"]
        loss.backward()
        optimizer.step()
    assert vae.learn(batch)["reconstruction"] < 0.25 * first


def test_it_learns_in_mixed_precision_nearly_the_same(episodes):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        run = trainer(max_steps=1, precision=precision)
        run.fit(tiny(), data(episodes))
        losses.append(run.callback_metrics["vae/loss"])
    assert_close(losses[1], losses[0], rtol=0.01, atol=0)


def test_a_checkpoint_rebuilds_it_alone(tmp_path, episodes):
    vae, run = tiny(kl_tolerance=0.25), trainer(max_steps=1)
    run.fit(vae, data(episodes))
    run.save_checkpoint(tmp_path / "vae.ckpt")
    again = load(tmp_path / "vae.ckpt")
    assert isinstance(again, VAE)
    assert again.kl_tolerance == 0.25
    assert not again.training
    image = images().observation["image"]
    assert torch.equal(again.encode(image), vae.eval().encode(image))
    assert again.fingerprint() == vae.fingerprint() != tiny(seed=1).fingerprint()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("cut", CUTS)
def test_a_run_cut_and_resumed_is_the_uninterrupted_run(tmp_path, episodes, cut):
    assert_resumes(tmp_path, tiny, lambda: data(episodes), cut, {"vae/loss"})


class ModeVAE(VAE):
    """V without noise, so that two processes see the same numbers as one."""

    def learn(self, batch, noise=None):
        return super().learn(batch, torch.zeros(batch.reward.numel(), self.latent_size))


def test_two_processes_stay_equal_and_have_the_gradient_of_one_with_the_double_batch(tmp_path, episodes):
    def make():
        torch.manual_seed(0)
        return ModeVAE(latent_size=4, depth=2, kl_tolerance=0.0)

    assert_two_processes_are_one(tmp_path, make, lambda size: data(episodes, batch_size=size))


def test_a_test_compares_with_the_mean_image_of_the_training_data(episodes):
    source = data(episodes, batch_size=2, updates_per_epoch=12)
    train = [
        episodes.read(k).observation["image"] for k, n in enumerate(episodes.listing) if n in source.episodes(False)
    ]
    assert sum(map(len, train)) == 24, "the loader must show each training frame once for this test to be exact"
    got = trainer().test(tiny(), source, verbose=False)[0]
    mean = normalize(torch.from_numpy(np.concatenate(train))).mean(0)
    errors = []
    for batch in source.test_dataloader():
        frames = normalize(batch.observation["image"])
        errors.append((frames - mean).square().mean((1, 2, 3)))
    assert got["vae/test_baseline_psnr"] == pytest.approx((-10 * torch.cat(errors).log10()).mean().item(), rel=1e-4)
    assert set(got) == {"vae/test_psnr", "vae/test_ssim", "vae/test_baseline_psnr", "vae/test_baseline_ssim"}


def test_a_test_gives_the_same_every_time(episodes):
    vae = tiny()
    assert trainer().test(vae, data(episodes), verbose=False) == trainer().test(vae, data(episodes), verbose=False)


def test_a_test_without_a_datamodule_is_refused_with_the_cure(episodes):
    with pytest.raises(ValueError, match="pass the Trainer a datamodule"):
        trainer().test(tiny(), data(episodes).test_dataloader(), verbose=False)


def test_a_resumed_learning_rate_that_differs_from_the_stages_is_warned_of(tmp_path, episodes):
    run = trainer(max_steps=1)
    run.fit(tiny(), data(episodes))
    run.save_checkpoint(tmp_path / "vae.ckpt")
    with pytest.warns(UserWarning, match="keeps 0.0001"):
        trainer(max_steps=2).fit(tiny(learning_rate=1e-3), data(episodes), ckpt_path=tmp_path / "vae.ckpt")


# --------------------------------------------------------------------------------------------------- where it begins


def white_paper(folder):
    """Frames that are white but for a black square, somewhere."""
    store, rng = EpisodeStore(folder), np.random.default_rng(0)
    for number in range(4):
        image = np.full((13, 64, 64, 3), 255, np.uint8)
        for frame, (x, y) in zip(image, rng.integers(20, 36, (13, 2)), strict=True):
            frame[y : y + 8, x : x + 8] = 0
        store.append(episode(12, {"image": image}, number))
    return store


def test_the_untrained_decoder_can_draw_the_training_images_mean_colour(tmp_path):
    store, drawn = white_paper(tmp_path / "white"), []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            drawn.append(torch.sigmoid(pl_module.decoder.last.bias.detach()).clone())

    run = trainer([Look()], max_steps=2)
    run.fit(tiny(mean_colour=True, learning_rate=1e-3), data(store))
    assert_close(drawn[0], torch.full((3,), 1 - 64 / 4096), rtol=0.01, atol=0)
    assert not torch.equal(drawn[0], drawn[1]), "Only the beginning is set."


def test_a_v_that_is_resumed_keeps_the_colour_it_has_learnt(tmp_path):
    store = white_paper(tmp_path / "white")

    def fit(steps, ckpt_path=None):
        model = tiny(mean_colour=True, learning_rate=1e-3)
        saving = ModelCheckpoint(tmp_path, f"{steps}", every_n_train_steps=steps)
        trainer([saving], max_steps=steps).fit(model, data(store), ckpt_path=ckpt_path)
        return dict(model.state_dict())

    whole = fit(6)
    fit(2)
    assert_close(fit(6, tmp_path / "2.ckpt"), whole, rtol=0, atol=0)


def test_it_begins_with_the_weights_of_an_earlier_v(tmp_path, episodes):
    run = trainer(max_steps=1)
    run.fit(earlier := tiny(seed=1), data(episodes))
    run.save_checkpoint(tmp_path / "v.ckpt")
    model = tiny(seed=2, start=str(tmp_path / "v.ckpt"), mean_colour=True)
    assert model.fingerprint() == earlier.fingerprint()
    assert not model.mean_colour, "An earlier V knows its colours."
    with pytest.raises(ValueError, match=r"encoder\..* in start .* here: give both the same parts and sizes"):
        VAE(4, depth=3, start=str(tmp_path / "v.ckpt"))
