"""WorldModel: its loss, what it learns, and that runs resume and split over processes as they should."""

import inspect
import math

import pytest
import torch
from lightning import Callback
from stage_support import CUTS, assert_resumes, assert_two_processes_are_one, trainer
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.episode import Batch, Spec
from datamodules.samplers import UniformWindows
from wmlightning.distributions import GaussianLatent
from wmlightning.dynamics import RNN, RSSM, SSM
from wmlightning.interfaces import LatentModel
from wmlightning.networks import quantize
from wmlightning.objectives import FreeNatsKL, LatentOvershooting, ObservationOvershooting
from wmlightning.stages import world_model
from wmlightning.stages.checkpoints import load
from wmlightning.stages.world_model import WorldModel

OVERSHOOTING = {
    "standard": lambda: None,
    "latent": lambda: LatentOvershooting(3, reward_scale=2.0),
    "observation": lambda: ObservationOvershooting(2),
}


def tiny(kind=RSSM, seed=0, **options):
    torch.manual_seed(seed)
    dynamics = kind(GaussianLatent(3), 2, 64, hidden_size=8)
    options = {"depth": 2, "reward_units": 8, "kl": FreeNatsKL(0.0)} | options
    return WorldModel(dynamics, **options)


def windows(rows=3, time=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, time, 64, 64, 3), dtype=torch.uint8, generator=generator)
    action, reward = (torch.randn(rows, time, n, generator=generator) for n in (2, 1))
    flags = torch.zeros(rows, time, dtype=torch.bool)
    return Batch({"image": image}, action, reward[..., 0], torch.ones(rows, time), flags, flags)


def noise(rows=3, time=4):
    return torch.rand(rows, time, 64, 64, 3), torch.randn(rows, time, 3)


def data(store, **options):
    options = {"batch_size": 3, "updates_per_epoch": 4, "validation_fraction": 0.5, "validation_batches": 2} | options
    return EpisodeDataModule(store.path, WindowDataset(UniformWindows(4)), **options)


def test_parameter_counts_at_planets_sizes():
    """Encoder and decoder are Dreamer V1's to the number, which PlaNet shares; the heads and the GRU are PlaNet's."""
    model = WorldModel(RSSM(GaussianLatent(30), 6))
    parts = model.encoder, model.decoder, model.dynamics, model.reward_head
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [690_144, 3_795_555, 557_320, 250_201]


def test_it_is_a_latent_model():
    model = tiny()
    assert isinstance(model, LatentModel)
    embeds = model.encode(windows().observation["image"])
    assert embeds.shape == (3, 4, 64)
    features = torch.randn(5, 7, model.dynamics.feature_size)
    assert model.decode(features).shape == (5, 7, 64, 64, 3)
    assert 0 <= model.decode(9 * features).min() <= model.decode(9 * features).max() <= 1
    assert model.reward(features).mean.shape == model.cont(features).mean.shape == (5, 7)
    assert model.cont(features).mean.min() == 1
    assert model.encode(torch.zeros(64, 64, 3, dtype=torch.uint8)).shape == (64,)


def test_what_is_encoded_is_the_quantised_image_with_its_noise():
    model, image, (uniform, _) = tiny(), windows().observation["image"], noise()
    expected = model.encoder(quantize(image, uniform)).unflatten(0, (3, 4))
    assert_close(model.encode(image, uniform), expected)
    assert not torch.equal(model.encode(image), model.encode(image))


@pytest.mark.parametrize("pixels", ["five_bits", "centred"])
def test_float_images_are_refused_and_not_encoded_as_black(pixels):
    model = tiny(pixels=pixels)
    model.pixels = inspect.unwrap(WorldModel.pixels).__get__(model)  # without the check of annotations of the tests
    with pytest.raises(ValueError, match=r"images are float32 but uint8 0..255 is wanted"):
        inspect.unwrap(WorldModel.encode)(model, torch.rand(2, 64, 64, 3))


def test_the_loss_on_paper():
    model, batch, drawn = tiny(kl_scale=3.0, reward_scale=10.0, global_prior=0.5), windows(), noise()
    learned = model.learn(batch, drawn)
    posterior, prior = model.dynamics.observe(
        model.encode(batch.observation["image"], drawn[0]), batch.action, batch.is_first, noise=drawn[1]
    )
    assert_close(learned.posterior.features, posterior.features)
    error = quantize(batch.observation["image"], drawn[0]) - model.decoder(posterior.features.flatten(0, 1))
    image = 0.5 * error.square().sum((1, 2, 3)).mean() + 11_291.92
    off = model.reward(posterior.features).mean - batch.reward
    reward = 0.5 * off.square().mean() + 0.5 * math.log(2 * math.pi)
    kl = model.dynamics.latent.kl(posterior.params, prior.params).mean()
    standard = model.dynamics.latent.kl_to_standard(posterior.params).mean()
    found = learned.metrics
    expected = {"image": image, "reward": reward, "kl": kl, "kl_clipped": kl, "global_kl": standard}
    assert_close({name: found[name] for name in expected}, expected, rtol=1e-5, atol=1e-4)
    assert_close(learned.loss, image + 10 * reward + 3 * kl + 0.5 * standard, rtol=1e-6, atol=1e-4)
    assert torch.equal(found["loss"], learned.loss)


def test_the_constant_of_an_images_likelihood():
    model, pixels = tiny(), torch.zeros(1, 3, 64, 64)
    model.decoder.draw = lambda maps: pixels
    assert model.image_nats(torch.randn(1, model.dynamics.feature_size), pixels).item() == pytest.approx(11_291.92)


def test_the_raw_kl_is_logged_beside_what_it_costs():
    found = tiny(kl=FreeNatsKL(50.0)).learn(windows()).metrics
    assert found["kl_clipped"] == 50 > found["kl"] > 0


def test_images_go_through_the_convolutions_some_at_a_time(monkeypatch):
    model, batch, drawn = tiny(), windows(), noise()
    losses = []
    for chunk in (5, 100):
        monkeypatch.setattr(world_model, "CHUNK", chunk)
        losses.append(model.learn(batch, drawn).loss)
    assert_close(losses[0], losses[1])


@pytest.mark.parametrize("overshooting", OVERSHOOTING.values(), ids=OVERSHOOTING.keys())
@pytest.mark.parametrize("kind", [RNN, SSM, RSSM])
def test_every_design_learns_by_every_objective_and_every_weight_has_a_gradient(kind, overshooting):
    model = tiny(kind, overshooting=overshooting())
    learned = model.learn(windows())
    learned.loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    # Nothing in the standard bound says what a certain prior should be.
    untaught = {name for name, _ in model.named_parameters() if name.startswith("dynamics.prior")}
    assert still == (untaught if kind is RNN and model.overshooting is None else set())
    assert all(parameter.grad is not None for parameter in model.parameters()), "or two processes wait for it for ever"
    assert ("standard" if model.overshooting is None else "overshooting") in " ".join([*learned.metrics, "standard"])


def test_overshooting_adds_its_named_parts_to_the_loss():
    batch, drawn, found = windows(), noise(), {}
    for name, make in OVERSHOOTING.items():
        torch.manual_seed(1)
        found[name] = tiny(overshooting=make()).learn(batch, drawn).metrics
    plain = found["standard"]["loss"]
    latent = found["latent"]["overshooting_kl"] + found["latent"]["overshooting_reward"]
    assert_close(found["latent"]["loss"] - plain, latent, rtol=1e-3, atol=1e-2)
    extra = found["observation"]["loss"] - plain
    assert_close(extra, found["observation"]["overshooting_observation"], rtol=1e-4, atol=1e-2)


def test_latent_overshooting_draws_no_image_more():
    counts = {}
    for name in ("standard", "latent", "observation"):
        model, drawn = tiny(overshooting=OVERSHOOTING[name]()), []
        draw = model.decoder.draw
        model.decoder.draw = lambda maps, draw=draw, drawn=drawn: drawn.append(len(maps)) or draw(maps)
        model.learn(windows())
        counts[name] = sum(drawn)
    assert counts == {"standard": 12, "latent": 12, "observation": 12 + 12 + 9}


def test_a_reset_in_a_window_cuts_what_is_learnt_from_it():
    model, batch, drawn = tiny(), windows(), noise()
    batch.is_first[:, 2] = True
    other = batch.map(torch.clone)
    other.action[:, 2] = 99.0
    assert torch.equal(model.learn(batch, drawn).loss, model.learn(other, drawn).loss)


def test_it_overfits_one_batch_and_its_reward_is_in_the_environments_units():
    model, batch = tiny(learning_rate=3e-3), windows(1, 4)
    image = torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)
    for k in range(4):
        image[0, k, 16 * k : 16 * k + 16] = 255
    batch.observation["image"], batch.reward = image, torch.tensor([[0.0, 50.0, -50.0, 100.0]])
    optimizer, first = model.configure_optimizers(), model.learn(batch).metrics
    for _ in range(200):
        optimizer.zero_grad()
        model.learn(batch).loss.backward()
        optimizer.step()
    learned = model.learn(batch)
    floor = 11_291.92
    assert learned.metrics["image"] - floor < 0.25 * (first["image"] - floor)
    assert_close(model.reward(learned.posterior.features).mean, batch.reward, rtol=0.0, atol=15.0)


@pytest.mark.parametrize("kind", [RNN, SSM, RSSM])
def test_it_learns_in_mixed_precision_nearly_the_same(episodes, kind):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        run = trainer(max_steps=1, precision=precision)
        run.fit(tiny(kind), data(episodes))
        losses.append(run.callback_metrics["world_model/loss"] - 11_291.92)
    assert_close(losses[1], losses[0], rtol=0.01, atol=0)


def test_precision_with_scaled_gradients_is_refused_with_the_cure(episodes):
    model, run = tiny(), trainer(max_steps=1)
    run.fit(model, data(episodes))
    model.trainer = type("Trainer", (), {"precision": "16-mixed"})()
    with pytest.raises(ValueError, match="use bf16-mixed or 32-true"):
        model.configure_gradient_clipping(run.optimizers[0])


def test_the_gradient_is_clipped_to_its_norm_without_any_flag_of_the_trainer(episodes):
    norms = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            norms.append(torch.stack([p.grad.norm() for p in pl_module.parameters()]).norm().item())

    for max_norm in (1e-3, 1e9):
        trainer([Look()], max_steps=1).fit(tiny(max_norm=max_norm), data(episodes))
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1] > 1


def test_the_learning_rate_warms_up():
    assert isinstance(tiny().configure_optimizers(), torch.optim.AdamW)
    chosen = tiny(warmup=4, learning_rate=1.0).configure_optimizers()
    optimizer, schedule, seen = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"], []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["eps"], group["max_norm"]) == (0.0, 1e-4, 1000.0)


def test_a_checkpoint_rebuilds_it_alone(tmp_path, episodes):
    model, run = tiny(SSM, overshooting=LatentOvershooting(2), global_prior=0.1), trainer(max_steps=1)
    run.fit(model, data(episodes))
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt")
    assert isinstance(again, WorldModel)
    assert isinstance(again.dynamics, SSM)
    assert (again.overshooting.distance, again.global_prior, again.kl.free_nats) == (2, 0.1, 0.0)
    torch.manual_seed(0)
    one = model.eval().learn(windows())
    torch.manual_seed(0)
    assert torch.equal(again.learn(windows()).loss, one.loss)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("cut", CUTS)
def test_a_run_cut_and_resumed_is_the_uninterrupted_run(tmp_path, episodes, cut):
    def make():
        return tiny(overshooting=LatentOvershooting(3), warmup=6)

    assert_resumes(tmp_path, make, lambda: data(episodes), cut, {"world_model/loss"})


class ModeModel(WorldModel):
    """A world model without noise, so that two processes see the same numbers as one."""

    def learn(self, batch, noise=None):
        rows, time = batch.shape
        return super().learn(batch, (torch.zeros(rows, time, 64, 64, 3), torch.zeros(rows, time, 3)))


@pytest.mark.parametrize("kind", [RNN, RSSM])
def test_two_processes_stay_equal_and_have_the_gradient_of_one_with_the_double_batch(tmp_path, episodes, kind):
    def make():
        torch.manual_seed(0)
        dynamics = kind(GaussianLatent(3), 2, 64, hidden_size=8)
        return ModeModel(dynamics, FreeNatsKL(0.01, per_element=False), depth=2, reward_units=8, max_norm=1e9)

    assert_two_processes_are_one(tmp_path, make, lambda size: data(episodes, batch_size=size))


def test_two_validations_of_one_model_are_equal_and_in_decibels(episodes):
    model, found = tiny(), []
    for _ in range(2):
        found.append(trainer().validate(model, data(episodes), verbose=False)[0])
    assert found[0] == found[1]
    assert set(found[0]) == {"world_model/val_loss", "world_model/val_psnr"}
    assert 3 < found[0]["world_model/val_psnr"] < 20


def test_parts_that_do_not_fit_are_named_with_the_cure(episodes):
    with pytest.raises(ValueError, match="depth 32 gives 1024 numbers .* give dynamics embed_size=1024"):
        WorldModel(RSSM(GaussianLatent(3), 2, 64))
    model = tiny()
    model.dynamics.action_size = 5
    with pytest.raises(ValueError, match="actions have 2 numbers .* expect 5: give dynamics action_size=2"):
        model.learn(windows())
    with pytest.raises(ValueError, match=r"the episodes in .*: actions have 2 numbers"):
        trainer(max_steps=1).fit(model, data(episodes))


@pytest.mark.parametrize(
    ("observation", "found"),
    [
        ({"image": ((96, 96, 3), "uint8")}, r"uint8 images of \(96, 96, 3\) .* record images of 64x64"),
        ({"image": ((64, 64, 1), "uint8")}, r"uint8 images of \(64, 64, 1\) .* set world_model.channels to 1"),
        ({"mean": ((32,), "float16")}, "mean but no image .* folder of episodes"),
    ],
)
def test_a_store_of_other_shapes_is_refused_with_the_cure(observation, found):
    with pytest.raises(ValueError, match=f"the episodes in here have {found}"):
        tiny().check_spec(Spec(observation, 2), "the episodes in here")


def test_a_resumed_max_norm_that_differs_from_the_configured_one_gives_a_warning(tmp_path, episodes):
    run = trainer(max_steps=1)
    run.fit(tiny(), data(episodes))
    run.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.warns(UserWarning, match=r"max_norm is \[5.0\] but the checkpoint's optimizer keeps \[1000.0\]"):
        trainer(max_steps=2).fit(tiny(max_norm=5.0), data(episodes), ckpt_path=tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {name: -1.0}
            for name in ("learning_rate", "max_norm", "epsilon", "reward_scale", "kl_scale", "global_prior")
        ),
        *(
            {"decay": 2.0},
            {"warmup": -1},
            {"reward_layers": -1},
            {"cont_layers": -1},
            {"reward_units": 0},
            {"depth": 0},
        ),
        {"learning_rate": float("nan")},
    ],
    ids=str,
)
def test_numbers_that_would_unlearn_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .* but must be"):
        tiny(**wrong)


def test_overshooting_beyond_the_windows_is_refused_before_the_first_batch(episodes):
    with pytest.raises(ValueError, match="the overshooting distance is 9 but windows have 4 rows: take 1 to 4"):
        trainer(max_steps=1).fit(tiny(overshooting=LatentOvershooting(9)), data(episodes))
