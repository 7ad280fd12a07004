"""Free nats: below them a KL costs the same and pulls at nothing, element by element or on the mean."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from wmlightning.distributions import GaussianLatent
from wmlightning.objectives import FreeNatsKL, divergence


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
    with pytest.raises(ValueError, match="free_nats is -1"):
        FreeNatsKL(-1.0)
