"""ActorPolicy: one forward pass on the filtered state, exploration, noise as a function of (seed, step)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from toy_worlds import PointWorld, assert_filters_with_the_executed_action, assert_is_a_policy, frames

from wmlightning.distributions.bounded import OneHot, TanhNormal, TruncatedNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.rssm import RSSM
from wmlightning.networks.mlp import MLP
from wmlightning.policies.actor import ActorPolicy, LinearDecay
from wmlightning.stages.world_model import WorldModel

FIRST, LATER = np.ones(1, bool), np.zeros(1, bool)
DISTRIBUTIONS = {"tanh": TanhNormal(init_std=0.5), "truncated": TruncatedNormal(), "one-hot": OneHot()}


class Fixed(nn.Module):
    """An actor that always gives the same numbers."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = torch.tensor(numbers)

    def forward(self, features):
        return self.numbers.expand(len(features), -1)


def made(name, sample=True, latent=None, **options):
    """A policy on a tiny WorldModel, and the model."""
    torch.manual_seed(0)
    model = WorldModel(RSSM(latent or GaussianLatent(4), 2, 64, 8, 8), depth=2, reward_units=8, pixels="centred")
    distribution = DISTRIBUTIONS[name]
    actor = MLP(model.dynamics.feature_size, distribution.param_size(2), 1, 16)
    return ActorPolicy(model, actor, distribution, sample, **options), model


def play(policy, rows, steps=3, resets=()):
    """Actions (steps, rows) on pictures that are the row's and the step's, and the last carry."""
    carry, actions = policy.initial(len(rows), rows), []
    for step in range(steps):
        rngs = [np.random.default_rng(100 * row + step) for row in rows]
        image = np.stack([rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for rng in rngs])
        is_first = np.array([step == 0 or (row, step) in resets for row in rows])
        action, carry = policy({"image": image}, is_first, carry)
        actions.append(action)
    return np.stack(actions), carry


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_is_a_policy(name):
    policy, _ = made(name)
    action = assert_is_a_policy(policy)
    if policy.discrete:
        assert np.array_equal(np.sort(action), [[0, 1]] * 3), "exactly one-hot"


@pytest.mark.parametrize("latent", [GaussianLatent(4), CategoricalLatent(3, 4)], ids=["gaussian", "categorical"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_row_acts_alike_alone_and_in_company(name, latent):
    options = {"epsilon": 0.3} if name == "one-hot" else {"exploration": 0.3}
    policy, _ = made(name, latent=latent, **options)
    many, last = play(policy, list(range(8)))
    for rows in ([0], [3, 1], [7, 6, 5, 4, 3, 2, 1, 0]):
        some, carry = play(policy, rows)
        assert_close(some, many[:, rows], rtol=1e-5, atol=1e-5)
        assert_close(carry["stoch"], last["stoch"][rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_and_steps_draw_numbers_of_their_own(name):
    policy, _ = made(name)
    policy.actor = Fixed(0.0, 0.0, *([0.0, 0.0] if name != "one-hot" else []))
    actions, _ = play(policy, list(range(40)))
    assert len({tuple(row) for row in actions.reshape(-1, 2).tolist()}) == (2 if name == "one-hot" else 120)


@pytest.mark.parametrize("exploration", [0.0, 5.0])
def test_the_state_is_filtered_with_the_action_that_was_executed(exploration):
    policy = ActorPolicy(PointWorld(), Fixed(0.0, 0.3, -9.0, -9.0), TanhNormal(), True, exploration)
    assert_filters_with_the_executed_action(policy)


def test_the_state_is_filtered_with_a_choice_that_was_random():
    policy = ActorPolicy(PointWorld(), Fixed(50.0, -50.0), OneHot(), True, epsilon=1.0)
    carry, seen = policy.initial(30), set()
    for step in range(3):
        executed, before = carry["action"].clone(), carry["stoch"].clone()
        action, carry = policy(frames(30, value=[0] * 30), np.full(30, step == 0), carry)
        assert_close(carry["stoch"], before + executed)
        seen |= {tuple(row) for row in action.tolist()}
    assert seen == {(1.0, 0.0), (0.0, 1.0)}


def test_the_actor_acts_on_the_state_filtered_from_this_image():
    policy, model = made("tanh", sample=False)
    carry = policy.initial(2)
    image = frames(2, 64)
    action, after = policy(image, np.ones(2, bool), carry)
    features = torch.cat([after["stoch"], after["deter"]], -1)
    assert_close(torch.from_numpy(action), policy.distribution.mode(policy.actor(features)))
    assert_close(model.encode(torch.from_numpy(image["image"])).shape, torch.Size([2, 64]))


def test_to_evaluate_is_to_take_the_likeliest_action():
    rows = np.ones(6, bool)
    for distribution, numbers in ((OneHot(), (0.1, 0.0)), (TruncatedNormal(), (0.4, -0.2, 3.0, 3.0))):
        policy = ActorPolicy(PointWorld(), Fixed(*numbers), distribution, sample=False)
        action, _ = policy(frames(6), rows, policy.initial(6))
        assert_close(torch.from_numpy(action), distribution.mode(torch.tensor(numbers)).expand(6, 2))


def test_noise_is_added_after_sampling_and_clipped():
    loud, quiet = (ActorPolicy(PointWorld(), Fixed(0.9, 0.0, -30.0, -30.0), TanhNormal(), True, s) for s in (0.3, 0.0))
    first, image = np.ones(400, bool), frames(400)
    done, plan = (policy(image, first, policy.initial(400))[0] for policy in (loud, quiet))
    noise, inside = (done - plan)[:, 1], np.abs(done) < 1
    assert noise.std() == pytest.approx(0.3, abs=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert 0.1 < np.mean(~inside[:, 0]) < 0.6
    assert np.abs(done).max() == 1


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_a_choice_is_random_as_often_as_epsilon_says(epsilon):
    policy = ActorPolicy(PointWorld(), Fixed(50.0, -50.0), OneHot(), True, epsilon=epsilon)
    action, _ = policy(frames(2000), np.ones(2000, bool), policy.initial(2000))
    assert action[:, 1].mean() == pytest.approx(epsilon / 2, abs=0.04)
    assert np.array_equal(action.sum(1), np.ones(2000))


def test_a_first_image_makes_a_row_forget_state_and_action():
    policy, _ = made("truncated")
    plain, reset = play(policy, [0, 1])[0], play(policy, [0, 1], resets=[(1, 2)])[0]
    assert_close(plain[:, 0], reset[:, 0])
    assert not np.allclose(plain[2, 1], reset[2, 1])


def test_pixels_that_are_not_quantised_draw_no_noise(monkeypatch):
    policy, model = made("tanh")
    seen = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda image, noise=None: seen.append(noise) or encode(image, noise))
    policy.model.encode(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    policy(frames(2, 64), np.ones(2, bool), policy.initial(2))
    assert seen == [None, None]


def test_decoder_reward_and_critic_rest_while_acting(monkeypatch):
    policy, model = made("tanh")
    for part in (model.decoder, model.reward_head):
        monkeypatch.setattr(part, "forward", None)
        monkeypatch.setattr(part, "maps", None, raising=False)
    policy(frames(2, 64), np.ones(2, bool), policy.initial(2))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tanh", {"exploration": -0.1}, "standard deviation"),
        ("one-hot", {"epsilon": 1.5}, "probability"),
        ("one-hot", {"exploration": 0.1}, "OneHot gives one-hot ones: give epsilon"),
        ("truncated", {"epsilon": 0.1}, "TruncatedNormal gives continuous ones: give exploration"),
    ],
)
def test_exploration_that_makes_no_sense_is_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        made(name, **options)


def test_a_number_decays_linearly_and_stays():
    decay = LinearDecay(0.4, 0.1, 200_000)
    assert [decay(update) for update in (0, 100_000, 200_000, 10**9)] == pytest.approx([0.4, 0.25, 0.1, 0.1])
    with pytest.raises(ValueError, match="updates is 0"):
        LinearDecay(0.4, 0.1, 0)
