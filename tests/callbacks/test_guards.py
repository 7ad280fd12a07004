"""A loss or gradient that is not finite stops a run before the update, and a collapsed world model gives a warning."""

import warnings

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from square_support import squares, trainer
from torch import nn
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.episode import Batch
from datamodules.samplers import UniformWindows
from wmlightning.callbacks.guards import StopOnNonFinite, WarnOfCollapse, latent_use
from wmlightning.cli.lightning import build
from wmlightning.distributions.latents import GaussianLatent, MeanLatent
from wmlightning.dynamics import RSSM
from wmlightning.pictures.book import undisturbed
from wmlightning.stages.checkpoints import load
from wmlightning.stages.stage import Stage
from wmlightning.stages.vae import VAE
from wmlightning.stages.world_model import WorldModel


class Carrier(Stage):
    """Learns a little, draws noise and carries a memory from batch to batch, which its checkpoints hold."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.layer, self.memory = nn.Linear(2, 2), torch.zeros(2)

    def training_step(self, batch, batch_idx):
        guess = self.layer(batch.action + self.memory + 0.1 * torch.randn(2))
        self.memory = guess.detach().mean((0, 1))
        parts = {"near": guess.square().mean(), "reward": (guess.sum(-1) - batch.reward).square().mean()}
        loss = torch.stack(list(parts.values())).sum()
        self.log_dict({f"carrier/{k}": v.detach() for k, v in (parts | {"loss": loss}).items()}, on_epoch=False)
        return loss

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["memory"] = self.memory

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        self.memory = checkpoint["memory"]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


class Poison(Callback):
    """Breaks one batch, on one process if a rank is given."""

    def __init__(self, number, where="reward", value=float("nan"), rank=None):
        self.number, self.where, self.value, self.rank = number, where, value, rank
        self.hook = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.hook is not None:
            self.hook.remove()
        hit = pl_module.batches_trained == self.number and self.rank in (None, trainer.global_rank)
        if hit and self.where == "reward":
            batch.reward[0, 0] = self.value
        if hit and self.where == "gradient":
            weight = next(pl_module.parameters())
            self.hook = weight.register_hook(lambda gradient: gradient * self.value)
        if hit and self.where == "weights":
            next(pl_module.parameters()).data[0] = self.value


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("store"), 8, episodes=3, pace=5)


def fit(folder, stage, store, callbacks=(), ckpt_path=None, steps=9, saving=True, **options):
    data = EpisodeDataModule(str(store), WindowDataset(UniformWindows(4)), 2, 4, validation_fraction=0.0)
    keeping = [ModelCheckpoint(folder / "kept", every_n_train_steps=100)] if saving else []
    options = {"logger": False, "enable_checkpointing": saving} | options
    run = trainer(folder, [*callbacks, *keeping], steps, **options)
    run.fit(stage, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return stage


def carrier():
    torch.manual_seed(0)
    return Carrier()


def broken(folder, store, poison, guard=None, **options):
    """The stage that the guard stopped, and the message of its error."""
    stage = carrier()
    with pytest.raises(RuntimeError) as caught:
        fit(folder, stage, store, [poison, guard or StopOnNonFinite()], **options)
    return stage, str(caught.value)


def tiny_model(latent=None, **options):
    torch.manual_seed(0)
    dynamics = RSSM(latent or GaussianLatent(4), 2, 64, deter_size=6, hidden_size=8)
    return WorldModel(dynamics, **({"depth": 2, "reward_layers": 1, "reward_units": 8} | options))


# --------------------------------------------------------------------------------------------------- StopOnNonFinite


@pytest.mark.parametrize("number", [0, 3, 4, 6])
def test_a_run_that_goes_on_from_before_a_broken_batch_ends_like_one_that_never_broke(tmp_path, store, number):
    """Before the first batch, at the end and the beginning of an epoch, and in the middle of one."""
    whole = fit(tmp_path / "whole", carrier(), store)
    broken(tmp_path, store, Poison(number))
    kept = tmp_path / "checkpoints" / f"before-batch-{number:06d}.ckpt"
    resumed = fit(tmp_path, carrier(), store, [StopOnNonFinite()], kept)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert_close(resumed.memory, whole.memory, rtol=0, atol=0)


def test_weights_are_never_updated_with_what_is_not_finite(tmp_path, store):
    stage, _ = broken(tmp_path, store, Poison(5))
    before = fit(tmp_path / "before", carrier(), store, steps=5)
    assert_close(stage.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert_close(load(tmp_path / "checkpoints/before-batch-000005.ckpt").state_dict(), before.state_dict())


def test_a_broken_batch_is_named_with_its_number_and_its_field(tmp_path, store):
    _, said = broken(tmp_path, store, Poison(5, value=float("inf")))
    assert said.startswith("batch 5 is not finite: the batch's own reward; the state before it is in ")
    assert "before-batch-000005.ckpt" in said
    assert "--trainer.detect_anomaly=true" in said
    assert "\n" not in said


def test_the_part_of_the_loss_that_broke_is_named_and_not_the_sum(tmp_path, store, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model, "reward_nats", lambda features, reward: features[..., 0] / 0 * 0)
    with pytest.raises(RuntimeError, match="batch 0 is not finite: world_model/reward is nan;"):
        fit(tmp_path, model, store, [StopOnNonFinite()])


def test_a_gradient_that_breaks_under_a_finite_loss_is_found_and_named(tmp_path, store):
    stage, said = broken(tmp_path, store, Poison(5, "gradient", float("inf")))
    assert said.startswith("batch 5 is not finite: the gradient of layer.weight;")
    assert all(weight.isfinite().all() for weight in stage.parameters())


def test_gradients_can_be_left_unchecked(tmp_path, store):
    stage = fit(tmp_path, carrier(), store, [Poison(5, "gradient"), StopOnNonFinite(gradients=False)], steps=6)
    assert not all(weight.isfinite().all() for weight in stage.parameters())


def test_weights_that_were_broken_before_are_distinguished_from_a_broken_batch_and_not_saved(tmp_path, store):
    _, said = broken(tmp_path, store, Poison(5, "weights"))
    assert said.startswith("batch 5 met weights that are not finite (layer.weight)")
    assert not list(tmp_path.rglob("before-batch*"))


def test_of_accumulated_batches_the_one_that_broke_is_named(tmp_path, store):
    _, said = broken(tmp_path, store, Poison(5), accumulate_grad_batches=4)
    assert said.startswith("batch 5 is not finite")


def test_a_run_without_checkpoints_is_stopped_without_saving_one(tmp_path, store):
    _, said = broken(tmp_path, store, Poison(2), saving=False)
    assert said.endswith("the batch's own reward; resume from an earlier checkpoint")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_does_not_hide_what_broke(tmp_path, store):
    (tmp_path / "checkpoints").touch()
    _, said = broken(tmp_path, store, Poison(2))
    assert "the batch's own reward" in said
    assert "cannot be written" in said


def test_all_processes_stop_when_one_breaks_and_name_it(tmp_path, store):
    forked = {"devices": 2, "strategy": "ddp_fork"}
    with pytest.raises(Exception, match="batch 2 is not finite: process 1: the batch's own reward; "):
        fit(tmp_path, carrier(), store, [Poison(2, rank=1), StopOnNonFinite()], **forked)
    kept = load(tmp_path / "checkpoints/before-batch-000002.ckpt")
    assert all(weight.isfinite().all() for weight in kept.parameters())


# ---------------------------------------------------------------------------------------------------- WarnOfCollapse


class Scalars(Logger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    name, version = "scalars", 0

    def log_metrics(self, metrics, step=None):
        self.seen |= metrics

    def log_hyperparams(self, *args, **kwargs):
        pass


def blind(model):
    """The model with a decoder that draws the same grey for all features."""
    for weight in model.decoder.parameters():
        nn.init.zeros_(weight)
    return model


def ignorant(model):
    """The model with a posterior that equals the prior."""
    for name, weight in model.dynamics.named_parameters():
        if "prior" in name or "posterior" in name or "embed" in name:
            nn.init.zeros_(weight)
    return model


def moving(rows=3, time=5):
    image = torch.zeros(rows, time, 64, 64, 3, dtype=torch.uint8)
    for row in range(rows):
        for t in range(time):
            image[row, t, 20 * row : 20 * row + 20, 8 * t : 8 * t + 20] = 255
    flags = torch.zeros(rows, time, dtype=torch.bool)
    return Batch({"image": image}, torch.randn(rows, time, 2), torch.zeros(rows, time), 1 - flags.float(), flags, flags)


def test_explained_variance_is_one_for_perfect_pictures_and_none_for_the_mean_one(monkeypatch):
    model, batch = tiny_model(), moving()
    truth = batch.observation["image"].float() / 255
    for picture, share in ((truth, 1.0), (truth.mean((0, 1)).expand_as(truth), 0.0)):
        monkeypatch.setattr(model, "decode", lambda features, picture=picture: picture)
        with undisturbed(model):
            assert latent_use(model, batch)[1] == pytest.approx(share, abs=1e-6)


def test_the_kl_that_is_checked_is_the_raw_one_of_the_batch():
    model, batch = tiny_model(), moving()
    with undisturbed(model):
        posterior, prior = model.dynamics.observe(
            model.encode(batch.observation["image"]), batch.action, batch.is_first
        )
        nats = model.dynamics.latent.kl(posterior.params, prior.params).mean()
    with undisturbed(model):
        assert latent_use(model, batch)[0] == pytest.approx(float(nats), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "warned"),
    [
        (lambda: blind(ignorant(tiny_model())), True),
        (lambda: blind(tiny_model()), False),
        (lambda: blind(tiny_model(MeanLatent(GaussianLatent(4)))), True),
    ],
    ids=["ignorant", "blind but informed", "blind without noise"],
)
def test_a_model_that_ignores_its_latents_is_warned_of_and_no_other(tmp_path, store, make, warned):
    model = make()
    model.learning_rate = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, model, store, [WarnOfCollapse(every=2, nats=1e-3)], steps=4, saving=False)
    said = [str(one.message) for one in caught if "ignores its latents" in str(one.message)]
    assert len(said) == warned, "once, however often it is checked"
    assert all(part in "".join(said) for part in ("after 2 batches", "explain 0%")) or not warned


def test_a_check_logs_how_much_is_explained_and_changes_nothing_else(tmp_path, store):
    with_it, without, scalars = tiny_model(), tiny_model(), Scalars()
    fit(tmp_path, with_it, store, [WarnOfCollapse(every=2)], steps=4, saving=False, logger=scalars)
    fit(tmp_path, without, store, steps=4, saving=False)
    assert_close(with_it.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert scalars.seen["world_model/explained"] < 1


def test_constant_images_give_no_warning():
    batch = moving()
    batch.observation["image"][:] = 100
    with undisturbed(model := tiny_model()):
        assert latent_use(model, batch)[1] == 1.0


def test_a_stage_without_such_latents_is_not_checked(tmp_path, store):
    fit(tmp_path, VAE(4, depth=2), store, [WarnOfCollapse(every=1)], steps=1, saving=False)


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize("named", [[], [{"class_path": "WarnOfCollapse", "init_args": {"every": 7}}]])
def test_the_command_line_adds_both_guards_by_default_and_once(tmp_path, named):
    settings = {"data.path": str(tmp_path / "episodes"), "trainer.default_root_dir": str(tmp_path / "run")}
    line = build("world_models/vae.yaml", **settings, **{"trainer.callbacks": named})
    guards = [c for c in line.trainer.callbacks if isinstance(c, StopOnNonFinite | WarnOfCollapse)]
    assert sorted(type(guard).__name__ for guard in guards) == ["StopOnNonFinite", "WarnOfCollapse"]
    assert next(guard.every for guard in guards if isinstance(guard, WarnOfCollapse)) == (7 if named else 500)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"nats": 0.0}, {"explained": -1.0}])
def test_limits_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WarnOfCollapse(**wrong)
