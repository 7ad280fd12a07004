"""M in iterations: it starts from an earlier M's weights, learns scaled rewards, and may be curious."""

import math

import pytest
import torch
from stage_support import code_batch, episode, trainer
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.samplers import UniformWindows
from datamodules.store import EpisodeStore
from wmlightning.dynamics import MDNLSTM
from wmlightning.stages.checkpoints import load
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

Z, A, H = 3, 2, 6
HEADS = {"reward_head": True, "done_head": True, "action_head": "continuous"}


def tiny(seed=0, hidden_size=H, **options):
    torch.manual_seed(seed)
    return MDNRNN(VAE(Z, depth=1), MDNLSTM(Z, A, hidden_size, 2), **(HEADS | options))


def saved(stage, path):
    run = trainer(max_steps=0)
    run.strategy.connect(stage)
    run.save_checkpoint(path)
    return str(path)


def batch_and_hidden(model):
    batch = code_batch(torch.randn(2, 4, 2 * Z), is_first=[(0, 0), (1, 0)])
    noise = torch.zeros(2, 4, Z)
    posterior, _ = model.dynamics.observe(model.embeds(batch), batch.action, batch.is_first, noise=noise)
    return batch, noise, posterior


def nats(guess, target):
    return (0.5 * (guess - target).square() + 0.5 * math.log(2 * math.pi))[:, 1:].mean()


def test_the_reward_head_learns_scaled_rewards_and_predicts_them_in_their_own_units():
    model = tiny(reward_scale=0.1)
    batch, noise, posterior = batch_and_hidden(model)
    reward = model.reward(posterior.features)
    assert_close(model.learn(batch, noise)["reward"], nats(0.1 * reward.mean, 0.1 * batch.reward))
    assert_close(reward.stddev, torch.full((2, 4), 10.0))


def test_curiosity_adds_ms_own_nll_to_the_reward_of_each_row():
    model = tiny(reward_scale=0.5, curiosity=2.0)
    batch, noise, posterior = batch_and_hidden(model)
    nll = -model.dynamics.mixture(model.dynamics.head(posterior.deter[..., :H])).log_prob(posterior.stoch).mean(-1)
    expected = nats(0.5 * model.reward(posterior.features).mean, 0.5 * batch.reward + 2 * nll)
    assert_close(model.learn(batch, noise)["reward"], expected)


def test_curiosity_does_not_change_how_m_learns_codes():
    plain, curious = tiny(), tiny(curiosity=5.0)
    for model in (plain, curious):
        torch.manual_seed(1)
        batch, noise, _ = batch_and_hidden(model)
        model.learn(batch, noise)["loss"].backward()
    assert torch.equal(plain.dynamics.head.weight.grad, curious.dynamics.head.weight.grad)


def test_it_starts_from_the_memory_and_heads_of_an_earlier_m_and_keeps_its_own_v(tmp_path):
    earlier = tiny(seed=1)
    path = saved(earlier, tmp_path / "earlier.ckpt")
    model = tiny(seed=2, start=path)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in own.items():
        part = name.partition(".")[0]
        if part in ("dynamics", "heads"):
            assert torch.equal(value, earlier.state_dict()[name]), name
    assert model.vae.fingerprint() != earlier.vae.fingerprint()
    again = saved(model, tmp_path / "later.ckpt")
    (tmp_path / "earlier.ckpt").unlink()
    assert_close(dict(load(again).state_dict()), own, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("earlier", "options", "says"),
    [
        ({"hidden_size": 5}, {}, r"dynamics\..* is \[.*\] in start .* but \[.*\] here"),
        ({"reward_head": False}, {}, r"heads\.layers\.reward\.bias is absent in start"),
        ({}, {"done_head": False}, r"heads\.layers\.done\.bias is \[1\] in start .* but absent here"),
    ],
)
def test_an_earlier_m_that_does_not_fit_is_refused_in_one_line(tmp_path, earlier, options, says):
    path = saved(tiny(**earlier), tmp_path / "earlier.ckpt")
    with pytest.raises(ValueError, match=says) as refused:
        tiny(start=path, **options)
    assert "\n" not in str(refused.value)


def test_a_start_that_is_missing_or_no_m_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        tiny(start=str(tmp_path / "nowhere.ckpt"))
    with pytest.raises(ValueError, match="holds a VAE: give the checkpoint of an earlier MDNRNN"):
        tiny(start=saved(VAE(Z, depth=1), tmp_path / "v.ckpt"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reward_scale": 0.0}, "reward_scale is 0.0"),
        ({"curiosity": -1.0}, "curiosity is -1.0"),
        ({"curiosity": 1.0, "reward_head": False}, "set reward_head=true"),
        ({"reward_scale": 0.5, "reward_head": False}, "set reward_head=true"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        tiny(**options)


def codes(path, **metadata):
    store = EpisodeStore(path)
    for number in range(4):
        observation = {name: torch.zeros(9, Z).half().numpy() for name in ("mean", "logvar")}
        store.append(episode(8, observation, number, **metadata))
    return store


def data(store):
    return EpisodeDataModule(store.path, WindowDataset(UniformWindows(4)), 2, 2, validation_fraction=0.5)


def test_one_episode_of_another_v_among_many_is_found(tmp_path):
    model, store = tiny(), codes(tmp_path)
    store.append(episode(8, {name: torch.zeros(9, Z).half().numpy() for name in ("mean", "logvar")}, 9, vae="0123"))
    with pytest.raises(ValueError, match="written by V 0123"):
        trainer(max_steps=1).fit(model, data(store))


def test_a_head_for_another_kind_of_action_is_refused(tmp_path):
    with pytest.raises(ValueError, match="action_head is continuous but the actions .* are discrete"):
        trainer(max_steps=1).fit(tiny(), data(codes(tmp_path, discrete=True)))


def test_a_test_gives_the_error_of_the_reward(tmp_path):
    model, store = tiny(), codes(tmp_path)
    with torch.no_grad():
        model.heads.layers["reward"].weight.zero_()
    got = trainer().test(model, data(store), verbose=False)[0]
    rewards = torch.cat([torch.from_numpy(store.read(k).reward[1:]) for k in range(4)])
    assert 0 < got["mdn_rnn/test_reward_error"] < 3 * rewards.square().mean().sqrt()
