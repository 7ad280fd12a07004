"""Overshooting on a mock cell: the state counts in decimals, so that each prior says where it came from."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from datamodules.episode import Batch
from wmlightning.distributions import GaussianLatent
from wmlightning.dynamics import RSSM, State
from wmlightning.objectives import (
    FreeNatsKL,
    KLLoss,
    LatentOvershooting,
    ObservationOvershooting,
    latent_overshooting,
    observation_overshooting,
)

ACTIONS = torch.tensor([[[0.1], [0.2], [0.4], [0.8]]])
POSTERIOR = [[10.0, 20.0, 30.0, 40.0]]
# prior of row t at distance d = posterior of row t - d (0 before the window) + the d actions up to t's
PRIORS = [
    #  d = 1   2     3     4
    [0.1, None, None, None],
    [10.2, 0.3, None, None],
    [20.4, 10.6, 0.7, None],
    [30.8, 21.2, 11.4, 1.5],
]
NONE = torch.zeros(1, 4, dtype=torch.bool)


class Counter:
    """A cell that adds the action to the state and is its own latent: the KL is posterior minus prior."""

    latent = property(lambda self: self)

    def initial(self, n):
        return State(torch.zeros(n, 0), torch.zeros(n, 1), torch.zeros(n, 1))

    def imagine_step(self, state, action):
        there = state.stoch + action
        return State(state.deter, there, there)

    def kl(self, posterior, prior):
        return (posterior - prior)[..., 0]


class Plain(KLLoss):
    """Costs what it is."""

    def __call__(self, latent, posterior, prior):
        nats = latent.kl(posterior, prior)
        return nats, nats


plain = Plain()


def posterior_of(stoch=POSTERIOR):
    stoch = torch.tensor(stoch)[..., None]
    return State(stoch[..., :0], stoch, stoch)


def table(rows):
    """The mask of a table with gaps, and its numbers with zeros in them."""
    mask = torch.tensor([[entry is not None for entry in row] for row in rows])
    return mask, torch.tensor([[entry or 0.0 for entry in row] for row in rows])


def test_latent_overshooting_on_paper():
    found = latent_overshooting(Counter(), posterior_of(), ACTIONS, NONE, 4, plain)
    mask, priors = table(PRIORS)
    assert torch.equal(found.mask[0], mask)
    assert_close(found.loss[0], torch.where(mask, torch.tensor(POSTERIOR[0])[:, None] - priors, 0.0))


def test_a_shorter_distance_is_the_beginning_of_a_longer_one():
    two, four = (latent_overshooting(Counter(), posterior_of(), ACTIONS, NONE, d, plain) for d in (2, 4))
    assert torch.equal(two.loss, four.loss[..., :2])
    assert torch.equal(two.mask, four.mask[..., :2])


def test_no_prediction_reaches_over_a_reset_and_a_first_row_starts_from_nothing():
    is_first = torch.tensor([[False, False, True, False]])
    found = latent_overshooting(Counter(), posterior_of(), ACTIONS, is_first, 4, plain)
    mask, priors = table(
        [
            [0.1, None, None, None],
            [10.2, 0.3, None, None],
            [0.0, None, None, None],  # neither the state before nor the action counts
            [30.8, 0.8, None, None],  # two steps: from nothing over row 2, whose action is not fed in
        ]
    )
    mask[2, 0] = True
    assert torch.equal(found.mask[0], mask)
    assert_close(found.loss[0], torch.where(mask, torch.tensor(POSTERIOR[0])[:, None] - priors, 0.0))


def test_what_lies_outside_the_mask_is_worth_nothing_even_where_it_is_not_a_number():
    is_first = torch.tensor([[False, False, True, False]])
    stoch = torch.tensor([[torch.nan, torch.nan, 30.0, 40.0]])[..., None].requires_grad_()
    found = latent_overshooting(Counter(), State(stoch[..., :0], stoch, stoch), ACTIONS, is_first, 4, plain)
    loss = found.loss[:, 2:].sum()
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, stoch)[0][:, 2:]).all()


def test_posteriors_are_not_pulled_at_by_predictions_of_more_than_one_step():
    """d = 1: +1 as target of row t, -1 as start of row t + 1. d > 1: only as start."""
    expected = {0: [0.0, 0.0, 0.0, 1.0], 1: [-1.0, -1.0, 0.0, 0.0], 2: [-1.0, 0.0, 0.0, 0.0], 3: [0.0] * 4}
    for column, slope in expected.items():
        stoch = torch.tensor(POSTERIOR)[..., None].requires_grad_()
        found = latent_overshooting(Counter(), State(stoch[..., :0], stoch, stoch), ACTIONS, NONE, 4, plain)
        grad = torch.autograd.grad(found.loss[..., column].sum(), stoch, materialize_grads=True)[0]
        assert grad.flatten().tolist() == slope, f"distance {column + 1}"


def batch_of(reward=((0.0, 1.0, 2.0, 3.0),), is_first=NONE):
    reward = torch.tensor(reward)
    return Batch({}, ACTIONS, reward, torch.ones_like(reward), is_first, NONE)


def model_of(reward_scale=0.0):
    """Draws an image of one pixel, the state; the nats of image and reward are truth minus guess."""
    return SimpleNamespace(
        dynamics=Counter(),
        reward_scale=reward_scale,
        image_nats=lambda features, pixels: pixels[:, 0, 0, 0] - features[:, 0],
        reward_nats=lambda features, reward: reward - features[..., 0],
    )


PIXELS = torch.tensor([[100.0, 200.0, 300.0, 400.0]])[..., None, None, None]


def test_observation_overshooting_on_paper():
    mask, priors = table(PRIORS)
    for scale in (0.0, 10.0):
        found = observation_overshooting(model_of(scale), posterior_of(), batch_of(), 4, PIXELS)
        image = torch.tensor([100.0, 200.0, 300.0, 400.0])[:, None] - priors
        reward = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None] - priors
        assert torch.equal(found.mask[0], mask)
        assert_close(found.loss[0], torch.where(mask, image + scale * reward, 0.0))
        model, batch = model_of(scale), batch_of()
        batch.observation["image"], model.pixels = PIXELS, lambda image: image.flatten(0, 1)
        assert_close(observation_overshooting(model, posterior_of(), batch, 4).loss, found.loss)


def test_the_parts_weigh_the_mean_over_distances_and_what_does_not_exist_counts_as_zero():
    latent = LatentOvershooting(3, scale=2.0, reward_scale=100.0)
    found = latent(model_of(), posterior_of(), batch_of(), PIXELS, plain)
    # d = 2 and 3 alone: the ordinary KL is the world model's own.  Row 3: 40 - 21.2 = 18.8 and 40 - 11.4 = 28.6.
    assert_close(found["overshooting_kl"], torch.tensor([[0.0, 19.7, 19.4 + 29.3, 18.8 + 28.6]]))
    expected = 50 * torch.tensor([[0.0, 0.7, 2 - 10.6 + 2 - 0.7, 3 - 21.2 + 3 - 11.4]])
    assert_close(found["overshooting_reward"], expected)
    assert "overshooting_reward" not in LatentOvershooting(3)(model_of(), posterior_of(), batch_of(), PIXELS, plain)
    observation = ObservationOvershooting(2, scale=4.0)(model_of(), posterior_of(), batch_of(), PIXELS, plain)
    expected = 2 * torch.tensor([[99.9, 189.8 + 199.7, 279.6 + 289.4, 369.2 + 378.8]])
    assert_close(observation["overshooting_observation"], expected)


def test_at_distance_one_it_is_the_ordinary_kl_of_a_real_model():
    torch.manual_seed(0)
    dynamics = RSSM(GaussianLatent(3), 2, 7, 5, 8)
    is_first = torch.tensor([[False, False, True, False], [True, False, False, False]])
    actions = torch.randn(2, 4, 2)
    posterior, prior = dynamics.observe(torch.randn(2, 4, 7), actions, is_first)
    found = latent_overshooting(dynamics, posterior, actions, is_first, 1, FreeNatsKL(0.0))
    assert_close(found.loss[..., 0], dynamics.latent.kl(posterior.params, prior.params), rtol=1e-4, atol=1e-5)
    assert found.mask.all()


@pytest.mark.parametrize("distance", [0, 5])
def test_a_distance_beyond_the_window_is_refused(distance):
    with pytest.raises(ValueError, match=f"distance is {distance} but windows have 4 rows: take 1 to 4"):
        latent_overshooting(Counter(), posterior_of(), ACTIONS, NONE, distance, plain)


def test_a_distance_that_adds_nothing_is_refused():
    with pytest.raises(ValueError, match="distance is 1 but LatentOvershooting needs at least 2"):
        LatentOvershooting(1)
