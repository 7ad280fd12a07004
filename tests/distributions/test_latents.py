"""Latents: parameters to samples, and KLs that agree with hand-worked numbers and with torch's."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from wmlightning.distributions import GaussianLatent, MeanLatent
from wmlightning.recipes import build_recipe, recipe_of

SIZE = 3


def params(*rows):
    return torch.randn(*rows, 2 * SIZE)


def test_a_raw_parameter_of_zero_is_a_std_of_ln_2_and_a_tenth():
    mean, std = GaussianLatent(1).mean_std(torch.tensor([7.0, 0.0]))
    assert_close((mean, std), (torch.tensor([7.0]), torch.tensor([0.7931])), rtol=0, atol=1e-4)


def test_dreamer_v2_squashes_another_way_between_a_tenth_and_just_above_2():
    mean, std = GaussianLatent(3, squash="sigmoid").mean_std(torch.tensor([7.0, 7.0, 7.0, -1000.0, 0.0, 1000.0]))
    assert_close(std, torch.tensor([0.1, 1.1, 2.1]))
    assert mean.tolist() == [7.0] * 3


def test_noise_is_one_number_a_dimension():
    assert GaussianLatent(SIZE).noise_size == MeanLatent(GaussianLatent(SIZE)).noise_size == SIZE


def test_the_std_never_falls_below_its_minimum():
    assert GaussianLatent(1, min_std=0.25).mean_std(torch.tensor([0.0, -1000.0]))[1].item() == 0.25


def test_a_sample_is_mean_plus_std_times_noise_times_the_root_of_the_temperature():
    latent, p, noise = GaussianLatent(SIZE), params(4), torch.randn(4, SIZE)
    mean, std = latent.mean_std(p)
    assert_close(latent.sample(p, noise=noise), mean + std * noise)
    assert_close(latent.sample(p, 0.25, noise), mean + 0.5 * std * noise)
    assert_close(latent.sample(p, 0.0), latent.mode(p))
    assert not torch.equal(latent.sample(p), latent.sample(p))


def test_the_kl_on_paper():
    # Means 1 apart at std 1 on both sides: 1/2 nat each. Std 2 against 1: (4 - 1)/2 - ln 2.
    latent = GaussianLatent(2, min_std=0.0)
    raw = {std: math.log(math.expm1(std)) for std in (1.0, 2.0)}
    standard = torch.tensor([0.0, 0.0, raw[1.0], raw[1.0]])
    moved = torch.tensor([1.0, 1.0, raw[1.0], raw[1.0]])
    wide = torch.tensor([0.0, 0.0, raw[2.0], raw[2.0]])
    assert_close(latent.kl(moved, standard), torch.tensor(1.0))
    assert_close(latent.kl(wide, standard), torch.tensor(2 * (1.5 - math.log(2))))
    assert latent.kl(standard, wide) != latent.kl(wide, standard)
    assert_close(latent.kl_to_standard(moved), torch.tensor(1.0))


def test_the_kl_is_torchs_summed_over_dimensions():
    latent, posterior, prior = GaussianLatent(SIZE), params(4, 5), params(4, 5)
    expected = kl_divergence(Normal(*latent.mean_std(posterior)), Normal(*latent.mean_std(prior))).sum(-1)
    assert_close(latent.kl(posterior, prior), expected)
    assert_close(latent.kl(posterior, posterior), torch.zeros(4, 5), rtol=0, atol=1e-6)


def test_distributions_and_kls_are_float32_whatever_the_parameters_are():
    latent, half = GaussianLatent(SIZE), params(4).bfloat16()
    assert latent.distribution(half).mean.dtype == latent.sample(half).dtype == latent.kl(half, half).dtype
    assert latent.kl(half, half).dtype == torch.float32


def test_gradients_reach_both_sides_of_the_kl_and_pass_through_the_sample():
    latent, posterior, prior = GaussianLatent(SIZE), params(4).requires_grad_(), params(4).requires_grad_()
    grads = torch.autograd.grad(latent.kl(posterior, prior).sum(), (posterior, prior))
    assert all(grad.abs().min() > 0 for grad in grads)
    assert torch.autograd.grad(latent.sample(posterior).square().sum(), posterior)[0].abs().min() > 0


def test_a_generators_noise_is_the_generators():
    draw = [GaussianLatent(SIZE).noise(4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draw)


def test_without_noise_a_sample_is_the_mean_and_the_kl_is_zero_but_has_a_gradient():
    latent, posterior, prior = MeanLatent(GaussianLatent(SIZE)), params(4).requires_grad_(), params(4).requires_grad_()
    assert torch.equal(latent.sample(posterior, 5.0, torch.randn(4, SIZE)), posterior[:, :SIZE])
    for nats in (latent.kl(posterior, prior), latent.kl_to_standard(posterior)):
        assert nats.abs().max() == 0
    grads = torch.autograd.grad(latent.kl(posterior, prior).sum(), (posterior, prior))
    assert all(grad.abs().max() == 0 for grad in grads)


def test_without_noise_means_can_be_drawn_together_instead():
    latent = MeanLatent(GaussianLatent(2), prior_error=3.0)
    assert latent.kl(torch.tensor([1.0, 2.0, 9.0, 9.0]), torch.zeros(4)).item() == 3 / 2 * (1 + 4)


@pytest.mark.parametrize("options", [{"size": 0}, {"min_std": -0.1}, {"min_std": float("nan")}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at least 1 and 0 are needed"):
        GaussianLatent(**options)


def test_a_recipe_builds_it_again():
    again = build_recipe(recipe_of(GaussianLatent(5, 0.2, "sigmoid")))
    assert (again.size, again.min_std) == (5, 0.2)
    assert again.mean_std(torch.zeros(10))[1].max().item() == pytest.approx(1.2)
