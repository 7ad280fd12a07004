"""Losses on a KL: free nats, below which it has no gradient, and the weights of its two gradients."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from wmlightning.distributions import CategoricalLatent, GaussianLatent, MeanLatent
from wmlightning.objectives import BalancedKL, FreeNatsKL, divergence


class Given(GaussianLatent):
    """A latent whose KL is the posterior's single parameter."""

    def kl(self, posterior, prior):
        return posterior[..., 0]


def cost(nats, **options):
    nats = torch.tensor(nats)[..., None].requires_grad_()
    loss, plain = FreeNatsKL(**options)(Given(), nats, torch.zeros_like(nats))
    assert torch.equal(plain, nats[..., 0])
    return loss, torch.autograd.grad(loss.sum(), nats)[0][..., 0]


ON_PAPER = {
    # nats 1, 2 | 4, 9: mean 4
    "each element": (3.0, True, [[3.0, 3.0], [4.0, 9.0]], [[0.0, 0.0], [1.0, 1.0]]),
    "on the mean, above": (3.0, False, [[1.0, 2.0], [4.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]),
    "on the mean, below": (5.0, False, [[5.0, 5.0], [5.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]),
    "none": (0.0, True, [[1.0, 2.0], [4.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]),
}


@pytest.mark.parametrize(("free", "each", "expected", "slope"), ON_PAPER.values(), ids=ON_PAPER.keys())
def test_free_nats_on_paper(free, each, expected, slope):
    loss, grad = cost([[1.0, 2.0], [4.0, 9.0]], free_nats=free, per_element=each)
    assert_close(loss, torch.tensor(expected))
    assert_close(grad, torch.tensor(slope))


def test_on_the_mean_the_value_is_the_larger_of_mean_and_free_nats():
    for free in (3.0, 5.0):
        assert cost([[1.0, 2.0], [4.0, 9.0]], free_nats=free, per_element=False)[0].mean().item() == max(4.0, free)


def test_on_the_mean_is_on_the_mean_over_all_processes(monkeypatch):
    """Alone this process has 4 nats, with the other one's 12 it has 8."""
    other = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2)
    other.all_reduce = lambda mean: mean.add_(12.0)
    nats = [[1.0, 2.0], [4.0, 9.0]]
    assert cost(nats, free_nats=5.0, per_element=False)[1].max() == 0
    monkeypatch.setattr(divergence, "distributed", other)
    loss, grad = cost(nats, free_nats=5.0, per_element=False)
    assert_close(loss, torch.tensor(nats))
    assert grad.min() == 1


def test_free_nats_below_zero_are_refused():
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"free_nats is {wrong}"):
            FreeNatsKL(wrong)


LATENTS = {
    "categorical": CategoricalLatent(3, 4),
    "gaussian": GaussianLatent(6),
    "mean": MeanLatent(GaussianLatent(6), 1.0),
}


@pytest.fixture(params=LATENTS.values(), ids=LATENTS.keys())
def sides(request):
    """A latent, and parameters of posterior and prior for it."""
    return request.param, *(torch.randn(2, 5, 12, requires_grad=True) for _ in range(2))


def balanced_in_two_halves(latent, posterior, prior, balance):
    """Dreamer V2's Algorithm 2 as it stands: each side is stopped in one of the halves."""
    return balance * latent.kl(posterior.detach(), prior) + (1 - balance) * latent.kl(posterior, prior.detach())


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.8, 1.0])
def test_a_balanced_kl_is_that_of_the_published_algorithm_in_value_and_gradient(sides, balance):
    latent, posterior, prior = sides
    loss, _ = BalancedKL(balance)(latent, posterior, prior)
    expected = balanced_in_two_halves(latent, posterior, prior, balance)
    assert_close(loss, expected)
    weight = torch.randn(2, 5)
    assert_close(*(torch.autograd.grad((nats * weight).sum(), (posterior, prior)) for nats in (loss, expected)))


def test_a_balanced_kl_has_the_plain_value_and_a_fifth_of_the_gradient_for_the_posterior_four_for_the_prior(sides):
    """Swapped, the posterior would be drawn strongly to a poorly trained prior."""
    latent, posterior, prior = sides
    loss, nats = BalancedKL(0.8)(latent, posterior, prior)
    plain = latent.kl(posterior, prior)
    assert torch.equal(loss, plain)
    assert torch.equal(nats, plain)
    got, whole = (torch.autograd.grad(value.sum(), (posterior, prior)) for value in (loss, plain))
    assert_close(got, (0.2 * whole[0], 0.8 * whole[1]))


@pytest.mark.parametrize(("free", "slope"), [(3.0, 0.2), (5.0, 0.0)], ids=["mean above", "mean below"])
def test_free_nats_of_a_balanced_kl_are_on_the_mean_of_each_half(free, slope):
    nats = torch.tensor([[1.0, 2.0], [4.0, 9.0]])[..., None].requires_grad_()
    loss, plain = BalancedKL(0.8, free)(Given(), nats, torch.zeros_like(nats))
    assert loss.mean().item() == max(4.0, free)
    assert torch.equal(plain, nats[..., 0])
    assert_close(torch.autograd.grad(loss.sum(), nats)[0], torch.full((2, 2, 1), slope))


def test_free_nats_of_a_balanced_kl_are_on_the_mean_over_all_processes(monkeypatch):
    other = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2)
    other.all_reduce = lambda mean: mean.add_(12.0)
    monkeypatch.setattr(divergence, "distributed", other)
    nats = torch.tensor([[1.0, 2.0], [4.0, 9.0]])[..., None]
    assert_close(BalancedKL(0.8, 5.0)(Given(), nats, torch.zeros_like(nats))[0], nats[..., 0])


@pytest.mark.parametrize(("options", "said"), [((1.1,), "balance is 1.1"), ((0.8, -1.0), "free_nats is -1.0")])
def test_a_balance_or_free_nats_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        BalancedKL(*options)
