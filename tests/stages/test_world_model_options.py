"""What Dreamer's world models have beyond PlaNet's: pixels, heads, and which gradients teach the states."""

import pytest
import torch
from dreamer_support import data, grads, moved, windows, world
from stage_support import trainer
from torch.testing import assert_close

from datamodules.episode import Spec
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import RSSM
from wmlightning.networks.pixels import normalize
from wmlightning.objectives.contrastive import Contrastive
from wmlightning.objectives.overshooting import ObservationOvershooting
from wmlightning.stages.checkpoints import load
from wmlightning.stages.world_model import WorldModel


def counts(model):
    parts = model.encoder, model.dynamics, model.decoder, model.reward_head
    return [sum(parameter.numel() for parameter in part.parameters()) for part in parts]


def test_parameter_counts_at_dreamer_v1s_sizes():
    dynamics = RSSM(GaussianLatent(30), 6, cell="keras_gru", activation="elu")
    model = WorldModel(dynamics, reward_layers=2, reward_units=400, activation="elu")
    assert counts(model) == [690_144, 557_920, 3_795_555, 253_201]


def test_parameter_counts_at_dreamer_v2s_sizes_on_atari():
    dynamics = RSSM(CategoricalLatent(32, 32), 18, 1536, 600, 600, cell="layer_norm_gru", activation="elu")
    heads = {"reward_layers": 4, "reward_units": 400, "cont_layers": 4, "cont_units": 400}
    model = WorldModel(dynamics, depth=48, channels=1, conv_activation="elu", activation="elu", **heads)
    assert counts(model) == [1_549_776, 5_664_848, 10_497_553, 1_131_601]
    assert sum(parameter.numel() for parameter in model.cont_head.parameters()) == 1_131_601
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_975_379


def test_centred_pixels_keep_all_their_bits_and_draw_no_noise():
    model, image = world(), windows().observation["image"]
    expected = model.encoder(normalize(image, -0.5)).unflatten(0, (3, 4))
    assert_close(model.encode(image), expected)
    assert torch.equal(model.encode(image), model.encode(image))


def test_centred_pixels_are_what_the_decoder_has_to_draw():
    model, batch = world(), windows()
    learned = model.learn(batch)
    drawn = model.decoder(learned.posterior.features.flatten(0, 1))
    error = batch.observation["image"].flatten(0, 1).permute(0, 3, 1, 2) / 255 - 0.5 - drawn
    assert_close(learned.metrics["image"], 0.5 * error.square().sum((1, 2, 3)).mean() + 11_291.92, rtol=1e-6, atol=0.01)


def test_a_grey_image_has_a_third_of_the_constant():
    model, pixels = world(channels=1), torch.zeros(1, 1, 64, 64)
    assert model.learn(windows(channels=1)).loss.isfinite()
    assert model.decode(torch.randn(2, model.dynamics.feature_size)).shape == (2, 64, 64, 1)
    model.decoder.draw = lambda maps: pixels
    assert model.image_nats(torch.randn(1, model.dynamics.feature_size), pixels).item() == pytest.approx(3_763.97)


def test_a_store_of_other_colours_is_refused_with_the_cure():
    grey, coloured = (Spec({"image": ((64, 64, channels), "uint8")}, 2) for channels in (1, 3))
    world(channels=1).check_spec(grey, "here")
    with pytest.raises(ValueError, match="uint8 .64, 64, 3. is read: set world_model.channels to 1"):
        world().check_spec(grey, "the episodes in here")
    with pytest.raises(ValueError, match="set world_model.channels to 3"):
        world(channels=1).check_spec(coloured, "the episodes in here")


def test_the_heads_parts_of_the_loss_on_paper():
    options = {"cont_layers": 1, "cont_scale": 7.0, "cont_label": 0.9, "reward_squash": "tanh", "reward_scale": 2.0}
    model, batch = world(**options), windows(terminal=[(1, 3)])
    batch.reward *= 50
    learned = model.learn(batch)
    features, found = learned.posterior.features, learned.metrics
    assert_close(found["cont"], model.cont_head.nats(features, batch.cont).mean())
    squares = (model.reward(features).mean - batch.reward.tanh()).square()
    assert_close(found["reward"], 0.5 * squares.mean() + 0.918939)
    parts = found["image"] + 2 * found["reward"] + found["kl_clipped"] + 7 * found["cont"]
    assert_close(learned.loss, parts, rtol=1e-6, atol=0.01)


def test_an_end_is_learnt_from_the_row_at_which_the_episode_ended_and_not_from_a_cut():
    model = world(cont_layers=1)
    ended, cut = (model.cont_head.target(windows(terminal=places).cont) for places in ([(0, 2)], []))
    assert (ended == 0).nonzero().tolist() == [[0, 2]]
    assert cut.min() == 1


@pytest.mark.parametrize("overshooting", [None, ObservationOvershooting(2)])
def test_stopped_image_gradients_teach_the_decoder_and_nothing_else(overshooting):
    """V2's ablation, and V1's reward only: states learn from rewards, ends and the KL."""
    model = world(stop_image_gradients=True, cont_layers=1, overshooting=overshooting)
    seen = model.observe(windows())
    image = model.image_nats(seen.posterior.features.flatten(0, 1), seen.pixels).sum()
    assert moved(image, model.decoder) is True
    assert moved(image, model.encoder) is moved(image, model.dynamics) is False
    loss = model.learn(windows()).loss
    assert moved(loss, model.encoder) is moved(loss, model.decoder) is moved(loss, model.reward_head) is True


def test_stopped_reward_gradients_teach_the_head_and_nothing_else():
    model = world(stop_reward_gradients=True)
    batch = windows()
    features = model.observe(batch).posterior.features
    nats = model.reward_nats(features, batch.reward).sum()
    assert moved(nats, model.reward_head) is True
    assert moved(nats, model.dynamics) is moved(nats, model.encoder) is False
    assert torch.autograd.grad(model.reward(features).mean.sum(), features)[0].abs().sum() > 0, "dreams still use it"


def test_stopped_gradients_leave_the_value_of_the_loss():
    losses = []
    for stop in (False, True):
        torch.manual_seed(1)
        model = world(stop_image_gradients=stop, stop_reward_gradients=stop)
        torch.manual_seed(2)
        losses.append(model.learn(windows()).loss)
    assert torch.equal(*losses)


def test_without_stops_images_and_rewards_teach_everything():
    model = world()
    batch = windows()
    seen = model.observe(batch)
    image = model.image_nats(seen.posterior.features.flatten(0, 1), seen.pixels).sum()
    reward = model.reward_nats(seen.posterior.features, batch.reward).sum()
    assert moved(image, model.encoder) is moved(reward, model.encoder) is True


def test_contrastive_states_learn_without_a_decoders_gradient():
    """V1's second representation: the contrastive loss trains the states, images the decoder alone."""
    model = world(contrastive=Contrastive(units=8, layers=1), contrastive_scale=3.0, stop_image_gradients=True)
    batch = windows()
    seen = model.observe(batch)
    contrast = model.contrastive(seen.embeds, seen.posterior.features).sum()
    assert moved(contrast, model.encoder) is moved(contrast, model.contrastive) is True
    assert any(gradient is not None for gradient in grads(contrast, model.dynamics))
    learned = model.learn(batch)
    found = learned.metrics
    parts = found["image"] + 10 * found["reward"] + found["kl_clipped"] + 3 * found["contrastive"]
    assert_close(learned.loss, parts, rtol=1e-6, atol=0.01)
    assert all(gradient is not None for gradient in grads(learned.loss, model)), "or two processes wait for ever"


def test_a_contrast_of_other_sizes_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"made for .* \(1024, 230\) but the world model has \(64, 11\)"):
        world(contrastive=Contrastive(1024, 230))


def test_a_share_of_every_weight_is_lost_at_an_update_whatever_the_learning_rate():
    for learning_rate in (1e-3, 1e-5):
        model = world(decay=1e-3, learning_rate=learning_rate)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model.configure_optimizers().step()
        wanted = {name: (1 - 1e-3) * weight for name, weight in before.items()}
        assert_close(dict(model.named_parameters()), wanted, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_of_every_option_rebuilds_alone(tmp_path, episodes):
    options = {"cont_layers": 1, "cont_label": 0.9, "reward_squash": "tanh", "stop_image_gradients": True}
    model, run = world("v2", contrastive=Contrastive(units=8), decay=1e-6, **options), trainer(max_steps=1)
    run.fit(model, data(episodes.path))
    run.save_checkpoint(tmp_path / "model.ckpt")
    again, batch = load(tmp_path / "model.ckpt"), windows()
    losses = []
    for one in (model, again):
        torch.manual_seed(0)
        losses.append(one.learn(batch).loss)
    assert torch.equal(*losses)


def test_planets_own_are_the_defaults():
    """By default no option of Dreamer adds a weight or a term."""
    names = {name.partition(".")[0] for name, _ in WorldModel(RSSM(GaussianLatent(2), 1)).named_parameters()}
    assert names == {"encoder", "decoder", "dynamics", "reward_head"}


def test_the_gradients_norm_is_logged_before_it_is_clipped(episodes):
    norms = []
    for max_norm in (1e-3, 1e9):
        torch.manual_seed(0)
        run = trainer(max_steps=1)
        run.fit(world(max_norm=max_norm), data(episodes.path))
        norms.append(run.callback_metrics["world_model/gradient_norm"])
    assert_close(norms[0], norms[1])
    assert norms[0] > 1
