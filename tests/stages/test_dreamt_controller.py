"""C inside M: evolves without an environment, resumes exactly, and dreams again from its checkpoint alone."""

import numpy as np
import pytest
import torch
from controller_support import CUTS, AskToStop, Notes, WriteDown, assert_same, everything, tiny_model, trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.episode import Episode
from datamodules.store import EpisodeStore
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.dream import DreamRules
from wmlightning.environments.factory import EnvFactory
from wmlightning.stages.checkpoints import load
from wmlightning.stages.controller import CMAESController
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def dreaming_model():
    torch.manual_seed(0)
    return MDNRNN(VAE(4, depth=2), MDNLSTM(4, 2, 8, 2), reward_head=True, done_head=True)


@pytest.fixture
def starts(tmp_path):
    """A store of three episodes of codes, in a folder of its own."""
    store, rng = EpisodeStore(tmp_path / "codes"), np.random.default_rng(0)
    for _ in range(3):
        codes = {name: rng.normal(size=(2, 4)).astype(np.float16) for name in ("mean", "logvar")}
        blank = np.zeros((2, 2), np.float32)
        flags = np.array([True, False])
        metadata = {"vae": dreaming_model().vae.fingerprint()}
        store.append(Episode(codes, blank, blank[:, 0].copy(), flags, ~flags, metadata))
    return str(tmp_path / "codes")


def make(starts, model=None, **changes):
    settings = {
        "population": 70,  # more dreams than one batch holds
        "episodes": 8,
        "evaluate_every": 3,
        "evaluation_episodes": 6,
        "generations_per_epoch": 4,
        "num_workers": 0,
        "sigma": 0.5,
        "seed": 3,
    }
    dream = DreamRules(starts, temperature=1.15, max_steps=6)
    environment = EnvFactory("wmlightning/DummyPixels-v0", time_limit=4)
    return CMAESController(model or dreaming_model(), environment, dream, **(settings | changes))


class NothingReal(Callback):
    """Makes every real environment an error."""

    def on_fit_start(self, trainer, stage):
        stage.environment.vector = lambda *_: pytest.fail("the real environment was played")


def test_c_learns_in_its_dream_and_plays_nothing_real(tmp_path, starts):
    stage, notes = make(starts, population=32, episodes=8, weight_decay=0.0), Notes()
    fitted = trainer(tmp_path, 12, NothingReal(), logger=notes)
    fitted.fit(stage)
    generations = [metrics for _, metrics in notes.lines if "controller/sigma" in metrics]
    assert generations[-1]["controller/return_mean"] > generations[0]["controller/return_mean"] + 0.05
    evaluations = [metrics["controller/evaluated_return"] for _, metrics in notes.lines if len(metrics) == 1]
    assert evaluations[-1] > evaluations[0]
    assert fitted.callback_metrics["controller/dream_return"] == pytest.approx(evaluations[-1])
    assert float(stage.return_best) == pytest.approx(max(evaluations))


def test_c_dreams_in_half_precision_too(tmp_path, starts):
    stage = make(starts, population=8, episodes=2, evaluate_every=1)
    trainer(tmp_path, 2, precision="bf16-mixed").fit(stage)
    assert torch.isfinite(stage.return_best)


def test_dreamt_steps_are_on_the_x_axis_and_real_ones_are_none(tmp_path, starts):
    stage, notes = make(starts, evaluate_every=0), Notes()
    trainer(tmp_path, 2, logger=notes).fit(stage)
    steps = [step for step, _ in notes.lines]
    assert steps == [metrics["controller/dream_steps"] for _, metrics in notes.lines]
    assert 0 < steps[0] < steps[1] <= 2 * 70 * 8 * 6
    assert int(stage.env_steps) == notes.lines[-1][1]["controller/env_steps"] == 0


@pytest.mark.parametrize("cut", CUTS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, starts, cut):
    generations, saving = CUTS[cut]
    whole, uninterrupted = make(starts), trainer(tmp_path, 7)
    uninterrupted.fit(whole)
    saver = ModelCheckpoint(tmp_path / "checkpoints", filename="cut", save_top_k=1, **saving)
    trainer(tmp_path, generations, saver).fit(make(starts))
    # The store is gone: what dreams begin at is in the checkpoint.
    resumed, second = make(str(tmp_path / "gone")), trainer(tmp_path, 7)
    second.fit(resumed, ckpt_path=tmp_path / "checkpoints" / "cut.ckpt", weights_only=True)
    assert_same(everything(resumed, second), everything(whole, uninterrupted))


def test_an_interrupted_generation_leaves_no_trace_and_is_played_again(tmp_path, starts):
    whole, uninterrupted = make(starts), trainer(tmp_path, 5)
    uninterrupted.fit(whole)
    saver = ModelCheckpoint(tmp_path / "stopped", save_on_exception=True, every_n_train_steps=99)
    stopped = trainer(tmp_path, 5, AskToStop(2), saver)
    with pytest.raises(SIGTERMException):
        stopped.fit(make(starts))
    (file,) = (tmp_path / "stopped").iterdir()
    resumed, second = make(starts), trainer(tmp_path, 5)
    second.fit(resumed, ckpt_path=file, weights_only=True)
    assert_same(everything(resumed, second), everything(whole, uninterrupted))


@pytest.mark.parametrize("seeds", ["shared", "independent"])
def test_two_processes_find_exactly_what_one_finds(tmp_path, starts, seeds):
    alone, one = make(starts, seeds=seeds), trainer(tmp_path, 3)
    one.fit(alone)
    two = trainer(tmp_path, 3, WriteDown(tmp_path), strategy="ddp_fork", devices=2)
    two.fit(make(starts, seeds=seeds))
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True), everything(alone, one))


def test_a_checkpoint_alone_dreams_alike_and_acts_in_the_real_environment(tmp_path, starts):
    stage, fitted = make(starts), trainer(tmp_path, 3)
    fitted.fit(stage)
    fitted.save_checkpoint(tmp_path / "c.ckpt")
    again = load(tmp_path / "c.ckpt")
    seeds = list(range(10))
    assert np.array_equal(again.dreamt_returns(seeds), stage.dreamt_returns(seeds))
    assert torch.equal(again.policy().candidates, stage.policy().candidates)
    assert again.dream.temperature == 1.15


def test_a_finished_fit_that_is_resumed_still_has_its_dream_return(tmp_path, starts):
    first = trainer(tmp_path, 3)
    first.fit(make(starts))
    first.save_checkpoint(tmp_path / "c.ckpt")
    second = trainer(tmp_path, 3)
    second.fit(make(starts), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    name = "controller/dream_return"
    assert second.callback_metrics[name] == first.callback_metrics[name]


@pytest.mark.parametrize("dreaming", [True, False])
def test_the_search_begins_at_an_earlier_mean(tmp_path, starts, dreaming):
    stage, fitted = make(starts), trainer(tmp_path, 1)
    fitted.fit(stage)
    fitted.save_checkpoint(tmp_path / "c.ckpt")
    changes = {} if dreaming else {"dream": None}
    model = dreaming_model()
    environment = EnvFactory("wmlightning/DummyPixels-v0", time_limit=4)
    settings = {"dream": DreamRules(starts), "start": str(tmp_path / "c.ckpt"), "sigma": 0.25} | changes
    later = CMAESController(model, environment, **settings)
    search = later.configure_optimizers()
    assert torch.equal(search.mean.float(), stage.controller.theta.detach())
    assert search.sigma == 0.25
    assert later.model is model
    assert later.__dict__["_arguments"]["start"] is None, "the recipe must not depend on a path"


def test_an_earlier_mean_that_does_not_fit_is_refused(tmp_path, starts):
    stage, fitted = make(starts), trainer(tmp_path, 1)
    fitted.fit(stage)
    fitted.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match="give both the same parts and sizes"):
        make(starts, start=str(tmp_path / "c.ckpt"), features="zch")
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        make(starts, start=str(tmp_path / "nothing.ckpt"))


def test_bad_input_is_refused_before_training_starts(tmp_path, starts):
    with pytest.raises(ValueError, match="reward_head=true"):
        make(starts, model=tiny_model())
    for folder, message in ((str(tmp_path / "none"), "holds no episodes"), (None, "starts name no folder")):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, 1).fit(make(folder))
    other = dreaming_model()
    other.vae.code.bias.data.add_(1)
    with pytest.raises(ValueError, match="written by V"):
        trainer(tmp_path, 1).fit(make(starts, model=other))
    without_dream = CMAESController(tiny_model(), EnvFactory("wmlightning/DummyPixels-v0"))
    with pytest.raises(ValueError, match="it has no dream to play in"):
        without_dream.dreamt_returns([1])
