"""M: its loss, what it learns, resumed runs, runs of several processes, and its tests against baselines."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_support import (
    CUTS,
    Gradients,
    assert_resumes,
    assert_two_processes_are_one,
    code_batch,
    episode,
    trainer,
)
from torch.nn import functional
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import FrameDataset, WindowDataset
from datamodules.samplers import ChainedWindows, ConsecutiveWindows, UniformWindows
from datamodules.store import EpisodeStore
from wmlightning.distributions import GaussianMixture
from wmlightning.dynamics import MDNLSTM, State
from wmlightning.interfaces import LatentModel
from wmlightning.stages.baselines import CopyBaseline, predictions_ahead
from wmlightning.stages.checkpoints import load
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

Z, A, H = 3, 2, 6
CERTAIN = -80.0
"""A logvar so small that a code is its mean."""


def tiny(hidden_size=H, mixtures=2, **options):
    torch.manual_seed(0)
    dynamics = MDNLSTM(Z, A, hidden_size, mixtures)
    return MDNRNN(VAE(Z, depth=1), dynamics, **options)


def embeds(rows, time, logvar=0.0):
    return torch.cat([torch.randn(rows, time, Z), torch.full((rows, time, Z), logvar)], -1)


def data(store, sampler=None, **options):
    options = {"batch_size": 4, "updates_per_epoch": 4, "validation_fraction": 0.5, "validation_batches": 2} | options
    return EpisodeDataModule(store.path, WindowDataset(sampler or ChainedWindows(6)), **options)


def hidden_states(model, batch, noise):
    posterior, _ = model.dynamics.observe(model.embeds(batch), batch.action, batch.is_first, noise=noise)
    return posterior, posterior.deter[..., : model.dynamics.hidden_size]


def trained_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("latent_size", "memory", "done_head", "expected"),
    [(32, (32, 3, 256), False, 422_368), (64, (64, 1, 512, 5, True), True, 1_678_785)],
    ids=["CarRacing", "Doom"],
)
def test_parameter_counts_are_the_papers(latent_size, memory, done_head, expected):
    model = MDNRNN(VAE(latent_size, depth=1), MDNLSTM(*memory), done_head=done_head)
    assert trained_parameters(model) == expected


# --------------------------------------------------------------------------------------------------- what is learnt


def test_the_loss_is_the_mean_over_predictable_rows_and_dimensions():
    model, noise = tiny(), torch.randn(2, 5, Z)
    batch = code_batch(embeds(2, 5), is_first=[(0, 0), (1, 3)])
    posterior, hidden = hidden_states(model, batch, noise)
    log_prob = model.dynamics.mixture(model.dynamics.head(hidden)).log_prob(posterior.stoch)
    rows = [(0, t) for t in (1, 2, 3, 4)] + [(1, t) for t in (1, 2, 4)]
    expected = -torch.stack([log_prob[row] for row in rows]).mean()
    assert_close(model.learn(batch, noise)["nll"], expected)
    assert_close(model.learn(batch, noise)["loss"], expected)


def test_a_code_that_nothing_precedes_is_never_trained_on():
    model, noise = tiny(), torch.randn(2, 4, Z)
    batch = code_batch(embeds(2, 4), is_first=[(0, 3), (1, 3)])
    before = model.learn(batch, noise)["loss"]
    batch.observation["mean"][:, 3] += 100.0  # an episode's first image, and no later row has consumed it
    assert torch.equal(model.learn(batch, noise)["loss"], before)


def test_a_batch_of_first_rows_only_has_no_loss():
    batch = code_batch(embeds(2, 3), is_first=[(row, t) for row in range(2) for t in range(3)])
    assert tiny().learn(batch)["loss"] == 0


def test_codes_are_drawn_anew_for_every_batch():
    model, batch = tiny(), code_batch(embeds(2, 5))
    assert model.learn(batch)["loss"] != model.learn(batch)["loss"]


def test_float16_codes_and_images_give_the_same_embeds():
    model, image = tiny(), torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8)
    batch = code_batch(model.encode(image).half())
    codes = model.embeds(batch)
    batch.observation = {"image": image}
    assert codes.dtype == torch.float32
    assert_close(codes, model.embeds(batch), rtol=1e-3, atol=1e-4)


def test_the_reward_head_is_a_unit_gaussian_on_the_reward_of_arriving():
    model, noise = tiny(reward_head=True), torch.zeros(2, 4, Z)
    batch = code_batch(embeds(2, 4), is_first=[(0, 0), (1, 0)])
    posterior, _ = hidden_states(model, batch, noise)
    nats = 0.5 * (model.reward(posterior.features).mean - batch.reward).square() + 0.5 * math.log(2 * math.pi)
    parts = model.learn(batch, noise)
    assert_close(parts["reward"], nats[:, 1:].mean())
    assert_close(parts["loss"], parts["nll"] + parts["reward"])


def test_the_done_head_counts_ends_ten_times():
    model, noise = tiny(done_head=True), torch.zeros(2, 4, Z)
    batch = code_batch(embeds(2, 4), is_first=[(0, 0), (1, 0)], is_terminal=[(0, 3)])
    posterior, _ = hidden_states(model, batch, noise)
    going_on = model.cont(posterior.features).mean
    nats = -going_on.log()
    nats[0, 3] = -10 * (1 - going_on[0, 3]).log()
    assert_close(model.learn(batch, noise)["done"], nats[:, 1:].mean())


def test_an_episode_is_over_where_the_done_logit_is_above_zero():
    model = tiny(done_head=True)
    with torch.no_grad():
        model.heads.layers["done"].weight.zero_()
        for logit in (0.1, -0.1):
            model.heads.layers["done"].bias.fill_(logit)
            assert (model.cont(torch.randn(5, Z + 2 * H)).mean < 0.5).all() == (logit > 0)


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_the_action_head_predicts_the_action_taken_at_the_image_that_arrives(kind):
    model, noise = tiny(action_head=kind), torch.zeros(2, 4, Z)
    action = functional.one_hot(torch.randint(0, A, (2, 4)), A).float()
    batch = code_batch(embeds(2, 4), action, is_first=[(0, 0), (1, 0), (1, 3)])
    posterior, _ = hidden_states(model, batch, noise)
    log_prob = model.action(posterior.features[:, :-1]).log_prob(batch.action[:, 1:])
    log_prob = log_prob if kind == "discrete" else log_prob.sum(-1)
    # At (1, 2) the episode ends, and the action of row 3 belongs to no image.
    rows = [(0, 1), (0, 2), (1, 1)]
    assert_close(model.learn(batch, noise)["action"], -torch.stack([log_prob[row] for row in rows]).mean())


def test_a_head_that_is_missing_is_named_with_the_cure():
    features = torch.zeros(1, Z + 2 * H)
    with pytest.raises(ValueError, match="no reward head: train it with reward_head"):
        tiny().reward(features)
    assert tiny().cont(features).mean.item() == 1.0


def test_it_is_a_latent_model():
    assert isinstance(tiny(), LatentModel)


def test_its_loss_moves_every_weight_of_m_and_none_of_v():
    model = tiny(reward_head=True, done_head=True, action_head="continuous")
    batch = code_batch(embeds(2, 5))
    batch.observation = {"image": torch.randint(0, 256, (2, 5, 64, 64, 3), dtype=torch.uint8)}
    model.learn(batch)["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name, _ in model.named_parameters() if not name.startswith("vae.")}


def test_v_stays_in_evaluation_mode_and_unchanged(codes):
    model = tiny()
    before = model.vae.fingerprint()
    trainer(max_steps=2).fit(model, data(codes))
    assert not model.train().vae.training
    assert model.vae.fingerprint() == before


# ------------------------------------------------------------------------------------------------- that it is learnt


def train(model, batches):
    optimizer = model.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        model.learn(batch)["loss"].backward()
        optimizer.step()
    return model


def test_it_recovers_a_known_mixture():
    def batch():
        chosen = (torch.rand(16, 20, Z) < 0.3).float()
        mean = 4 * chosen - 2 + 0.5 * torch.randn(16, 20, Z)
        return code_batch(torch.cat([mean, torch.full_like(mean, CERTAIN)], -1))

    model, test = train(tiny(learning_rate=2e-2), (batch() for _ in range(150))), batch()
    weight = torch.tensor([0.3, 0.7]).log().expand(16, 20, Z, 2)
    truth = GaussianMixture(weight, torch.tensor([2.0, -2.0]).expand_as(weight), torch.full_like(weight, math.log(0.5)))
    best = -truth.log_prob(test.observation["mean"])[:, 1:].mean()
    assert model.learn(test)["nll"] < best + 0.05
    posterior, _ = hidden_states(model, test, None)
    mixture = model.dynamics.mixture(model.dynamics.head(posterior.deter[0, -1, :H]))
    share = torch.where(mixture.means > 0, mixture.logits.softmax(-1), 0.0).sum(-1)
    assert_close(share, torch.full((Z,), 0.3), rtol=0, atol=0.1)


def test_it_learns_that_the_action_of_a_row_leads_to_its_image():
    """z[t] = action[t] + z[t-1] / 2 + noise: an M that had not consumed action[t] could not tell it so well."""

    def batch():
        action, z = torch.randn(16, 15, A), torch.zeros(16, 15, Z)
        for t in range(1, 15):
            z[:, t] = action[:, t, :1] + 0.5 * z[:, t - 1] + 0.2 * torch.randn(16, Z)
        return code_batch(torch.cat([z, torch.full_like(z, CERTAIN)], -1), action)

    model = train(tiny(hidden_size=16, mixtures=1, learning_rate=2e-2), (batch() for _ in range(150)))
    entropy = math.log(0.2) + 0.5 * math.log(2 * math.pi * math.e)
    nll = torch.stack([model.learn(batch())["nll"] for _ in range(5)]).mean()
    assert entropy - 0.1 < nll < entropy + 0.2


# -------------------------------------------------------------------------------------------------------- training


def test_gradients_are_clipped_by_value_without_any_flag_of_the_trainer(codes):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(max(p.grad.abs().max() for p in pl_module.parameters() if p.requires_grad))

    trainer([Look()], max_steps=1).fit(tiny(clip_value=1e-3), data(codes))
    assert seen == [pytest.approx(1e-3)]


def test_it_learns_in_mixed_precision_nearly_the_same(codes):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        run = trainer(max_steps=1, precision=precision)
        run.fit(tiny(reward_head=True, done_head=True, action_head="continuous"), data(codes))
        losses.append(run.callback_metrics["mdn_rnn/loss"])
    assert_close(losses[1], losses[0], rtol=0.01, atol=0)


def test_precision_with_scaled_gradients_is_refused_with_the_cure():
    model = tiny()
    model._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match="use bf16-mixed"):
        model.configure_gradient_clipping(None)


def test_the_learning_rate_decays_by_the_formula_of_the_doom_run():
    schedule = tiny(learning_rate=1e-3, final_learning_rate=1e-5, learning_rate_decay=0.9).configure_optimizers()
    optimizer, scheduler = schedule["optimizer"], schedule["lr_scheduler"]["scheduler"]
    for update in range(4):
        assert optimizer.param_groups[0]["lr"] == pytest.approx((1e-3 - 1e-5) * 0.9**update + 1e-5)
        optimizer.step()
        scheduler.step()


def test_a_stateful_memory_goes_on_where_the_batch_before_ended(codes):
    """Two windows with the state carried over are one long window, and the second one's first row is trained on."""
    model, long = tiny(stateful=True), code_batch(embeds(2, 8, CERTAIN))
    halves = [long.map(lambda tensor, k=k: tensor[:, 4 * k : 4 * k + 4]) for k in range(2)]
    model.log_dict = lambda *args, **kwargs: None
    model.mean_over_ranks = lambda count: count
    losses = [model.training_step(half, 0) for half in halves]
    assert_close((3 * losses[0] + 4 * losses[1]) / 7, model.learn(long)["loss"])


KINDS = {
    "plain": ({}, ChainedWindows(6)),
    "stateful": (
        {"stateful": True, "learning_rate_decay": 0.9, "done_head": True, "reward_head": True},
        ConsecutiveWindows(3),
    ),
}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("options", "sampler"), KINDS.values(), ids=KINDS.keys())
def test_a_run_cut_and_resumed_is_the_uninterrupted_run(tmp_path, codes, options, sampler, cut):
    assert_resumes(tmp_path, lambda: tiny(**options), lambda: data(codes, sampler), cut, {"mdn_rnn/loss"})


class ModeRNN(MDNRNN):
    """M without noise, so that two processes see the same numbers as one."""

    def _learn(self, batch, noise=None, before=None, mean_over_ranks=None):
        return super()._learn(batch, torch.zeros(*batch.shape, Z), before, mean_over_ranks)


@pytest.mark.parametrize("options", [{}, KINDS["stateful"][0]], ids=KINDS.keys())
def test_two_processes_stay_equal_and_have_the_gradient_of_one_with_the_double_batch(tmp_path, codes, options):
    """With windows in which episodes end at other rows for each process: the means must count all rows alike."""

    def make():
        torch.manual_seed(0)
        return ModeRNN(VAE(Z, depth=1), MDNLSTM(Z, A, H, 2), clip_value=0.01, **options)

    assert_two_processes_are_one(tmp_path, make, lambda size: data(codes, batch_size=size))


def test_each_process_restores_its_own_memory(tmp_path, codes):
    def fit(steps, ckpt_path=None, saving=()):
        run = trainer([Gradients(tmp_path), *saving], strategy="ddp_fork", devices=2, max_steps=steps)
        run.fit(tiny(stateful=True), data(codes, ConsecutiveWindows(3), batch_size=2), ckpt_path=ckpt_path)
        return torch.load(tmp_path / "weights-1-of-2")

    whole = fit(4)
    fit(2, saving=[ModelCheckpoint(tmp_path, "cut", every_n_train_steps=2)])
    carried = torch.load(tmp_path / "cut.ckpt", weights_only=True)["carried"]["deter"]
    assert carried.shape == (2, 2, 2 * H)
    assert not torch.equal(carried[0], carried[1])
    assert_close(fit(4, tmp_path / "cut.ckpt"), whole, rtol=0, atol=0)


# ----------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_rebuilds_v_and_m_alone(tmp_path, episodes, codes):
    run = trainer(max_steps=1)
    run.fit(VAE(Z, depth=1), EpisodeDataModule(episodes.path, FrameDataset(), 2, 1))
    run.save_checkpoint(tmp_path / "vae.ckpt")
    model, run = MDNRNN(str(tmp_path / "vae.ckpt"), MDNLSTM(Z, A, H), done_head=True), trainer(max_steps=1)
    run.fit(model, data(codes))
    run.save_checkpoint(tmp_path / "m.ckpt")
    (tmp_path / "vae.ckpt").unlink()
    with pytest.raises(ValueError, match="holds a MDNRNN, but a VAE is needed"):
        MDNRNN(str(tmp_path / "m.ckpt"), MDNLSTM(Z, A, H))

    recipe = torch.load(tmp_path / "m.ckpt", weights_only=True)["recipe"]
    assert json.loads(json.dumps(recipe)) == recipe
    again = load(tmp_path / "m.ckpt")
    assert isinstance(again, MDNRNN)
    assert again.vae.fingerprint() == model.vae.fingerprint()
    image, features = torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.randn(2, Z + 2 * H)
    model.eval()
    assert torch.equal(again.encode(image), model.encode(image))
    assert torch.equal(again.decode(features), model.decode(features))
    assert torch.equal(again.cont(features).mean, model.cont(features).mean)


def test_codes_of_another_v_are_refused(tmp_path):
    store = EpisodeStore(tmp_path / "codes")
    for number in range(2):
        observation = {name: torch.zeros(9, Z).half().numpy() for name in ("mean", "logvar")}
        store.append(episode(8, observation, number, vae="0123456789abcdef"))
    with pytest.raises(ValueError, match="written by V 0123456789abcdef"):
        trainer(max_steps=1).fit(tiny(), data(store))


def test_mismatched_sizes_are_named_with_the_cure():
    with pytest.raises(ValueError, match="latent_size=3"):
        MDNRNN(VAE(3, depth=1), MDNLSTM(4, 2, 5))
    with pytest.raises(ValueError, match="action_size=5"):
        tiny().learn(code_batch(embeds(1, 3), torch.zeros(1, 3, 5)))
    with pytest.raises(ValueError, match="length above 1"):
        tiny().learn(code_batch(embeds(1, 1)))


# ------------------------------------------------------------------------------------------------------------ tests


def test_the_copy_baseline_is_the_best_gaussian_about_the_code_before():
    torch.manual_seed(1)
    walk = (torch.tensor([0.1, 1.0, 3.0]) * torch.randn(400, 30, Z)).cumsum(1)
    logvar = torch.full_like(walk, math.log(0.04))
    baseline, embed = CopyBaseline(Z, torch.device("cpu")), torch.cat([walk, logvar], -1)
    baseline.update(embed, torch.zeros(400, 30, dtype=torch.bool))
    baseline.fit(lambda sums: sums)
    # Both codes of a pair have noise of their own: 0.04 twice.
    assert_close(baseline.variance, torch.tensor([0.09, 1.08, 9.08]), rtol=0.02, atol=0)
    codes = walk + 0.2 * torch.randn_like(walk)
    best = 0.5 * (baseline.variance.log() + math.log(2 * math.pi * math.e)).mean()
    assert_close(baseline.nll(codes)[:, 1:].mean(), best, rtol=0.01, atol=0)


def test_the_copy_baseline_does_not_pair_codes_across_a_reset():
    baseline, embed = CopyBaseline(1, torch.device("cpu")), torch.full((1, 4, 2), CERTAIN)
    embed[0, :, 0] = torch.tensor([0.0, 2.0, 100.0, 104.0])
    baseline.update(embed, torch.tensor([[True, False, True, False]]))
    baseline.fit(lambda sums: sums)
    assert_close(baseline.variance, torch.tensor([(4.0 + 16.0) / 2]))


def test_dimensions_without_information_are_left_out_of_the_errors():
    baseline = CopyBaseline(3, torch.device("cpu"))
    embed = torch.zeros(1, 2, 6)
    embed[..., 1] = 1.0  # half a nat
    baseline.update(embed, torch.zeros(1, 2, dtype=torch.bool))
    baseline.fit(lambda sums: sums)
    assert_close(baseline.kl, torch.tensor([0.0, 0.5, 0.0]))
    assert baseline.informative.tolist() == [False, True, False]


class Adds(MDNLSTM):
    """A memory that knows the world z[t] = z[t-1] + action[t] exactly."""

    def imagine(self, state, actions, temperature=1.0):
        return State(state.deter, state.stoch, state.stoch[:, None] + actions.cumsum(1))

    def mixture(self, params, temperature=1.0):
        return GaussianMixture(*(p[..., None] for p in (torch.zeros_like(params), params, torch.zeros_like(params))))


def test_predictions_ahead_use_the_recorded_actions_that_led_to_each_row():
    action = torch.randn(2, 12, 1)
    z = action.cumsum(1)
    embed = torch.cat([z, torch.full_like(z, CERTAIN)], -1)
    batch = code_batch(embed, action, is_first=[(0, 0), (1, 0)])
    for h, (guess, copy, truth) in predictions_ahead(Adds(1, 1), embed, batch, [1, 5]).items():
        assert_close(guess, truth)
        assert (copy - truth).abs().min() > 0
        assert len(truth) == 2 * len({5, 6}), h


def test_predictions_ahead_do_not_cross_a_reset():
    action = torch.randn(1, 12, 1)
    z = action.cumsum(1)
    embed = torch.cat([z, torch.full_like(z, CERTAIN)], -1)
    batch = code_batch(embed, action, is_first=[(0, 0), (0, 8)])
    ahead = predictions_ahead(Adds(1, 1), embed, batch, [1, 5])
    assert [len(ahead[h][2]) for h in (1, 5)] == [2, 0], "from rows 5 and 6, one ahead is whole and five ahead is not"


def test_a_test_gives_every_number_beside_its_baseline(codes):
    got = trainer().test(tiny(), data(codes, UniformWindows(8)), verbose=False)[0]
    names = {"nll", "copy_nll", "untrained_nll", "error_h1", "copy_error_h1", "error_h5", "copy_error_h5"}
    assert set(got) == {f"mdn_rnn/test_{name}" for name in names}
    assert all(math.isfinite(value) for value in got.values())


def test_a_test_gives_the_same_every_time_and_does_not_change_torchs_generator(codes):
    model = tiny()
    first = trainer().test(model, data(codes, UniformWindows(8)), verbose=False)
    assert trainer().test(model, data(codes, UniformWindows(8)), verbose=False) == first


def test_what_was_learnt_beats_what_was_not(tmp_path):
    """Codes that wander slowly: a trained M is better than an untrained one on episodes that it has not seen."""
    store = EpisodeStore(tmp_path / "walks")
    for number in range(10):
        torch.manual_seed(number)
        mean = (0.3 * torch.randn(21, Z)).cumsum(0)
        store.append(
            episode(20, {"mean": mean.half().numpy(), "logvar": torch.full((21, Z), -6.0).half().numpy()}, number)
        )
    model, source = tiny(hidden_size=16, learning_rate=2e-2), data(store, UniformWindows(12), validation_fraction=0.2)
    trainer(max_steps=60).fit(model, source)
    got = trainer().test(model, source, verbose=False)[0]
    assert got["mdn_rnn/test_nll"] < got["mdn_rnn/test_untrained_nll"] - 0.3
