"""Categorical latents: exactly one-hot forward, the gradient of the probabilities backward, KLs worked by hand."""

import math

import pytest
import torch
from torch.distributions import OneHotCategorical, kl_divergence
from torch.testing import assert_close

from wmlightning.distributions import CategoricalLatent, MeanLatent
from wmlightning.distributions.categorical import draw_one_hot, straight_through
from wmlightning.recipes import build_recipe, recipe_of

GROUPS, CLASSES = 3, 4


@pytest.fixture
def latent():
    return CategoricalLatent(GROUPS, CLASSES)


def params(*rows):
    return 2 * torch.randn(*rows, GROUPS * CLASSES)


def grouped(flat):
    return flat.unflatten(-1, (GROUPS, CLASSES))


def test_sizes_are_flat_and_noise_is_one_number_a_group():
    latent = CategoricalLatent(32, 16)
    assert (latent.param_size, latent.sample_size, latent.noise_size) == (512, 512, 32)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
def test_a_sample_is_exactly_one_hot_in_every_group(latent, temperature):
    drawn = latent.sample(params(50).requires_grad_(), temperature)
    assert drawn.shape == (50, latent.sample_size)
    assert set(drawn.detach().flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(grouped(drawn).sum(-1), torch.ones(50, GROUPS))


def test_the_gradient_of_a_sample_is_that_of_the_probabilities(latent):
    p, weight = params(5).requires_grad_(), torch.randn(5, latent.sample_size)
    got = torch.autograd.grad((latent.sample(p) * weight).sum(), p)[0]
    expected = torch.autograd.grad((grouped(p).softmax(-1).flatten(-2) * weight).sum(), p)[0]
    assert torch.equal(got, expected)


def test_the_gradient_of_a_sample_on_paper():
    """softmax(0, ln 3) = 1/4, 3/4: the Jacobian is 3/16 (1, -1; -1, 1), whatever was drawn."""
    latent, weight = CategoricalLatent(1, 2), torch.tensor([2.0, 5.0])
    for noise in (-3.0, 3.0):
        p = torch.tensor([0.0, math.log(3)], requires_grad=True)
        got = torch.autograd.grad((latent.sample(p, noise=torch.tensor([noise])) * weight).sum(), p)[0]
        assert_close(got, torch.tensor([-9 / 16, 9 / 16]))


def test_the_mode_is_the_likeliest_class_and_teaches_as_a_sample_does(latent):
    p, weight = params(5).requires_grad_(), torch.randn(5, latent.sample_size)
    assert torch.equal(grouped(latent.mode(p)).argmax(-1), grouped(p).argmax(-1))
    got = torch.autograd.grad((latent.mode(p) * weight).sum(), p)[0]
    assert torch.equal(got, torch.autograd.grad((latent.sample(p) * weight).sum(), p)[0])
    assert torch.equal(latent.sample(p, 0.0), latent.mode(p))


def test_classes_are_drawn_as_often_as_they_are_probable():
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    drawn = draw_one_hot(probabilities.log().expand(40_000, 4))
    assert_close(drawn.mean(0), probabilities, rtol=0, atol=0.01)


def test_temperature_divides_the_logits():
    p, noise = torch.tensor([0.0, 0.4, 0.8]).expand(20_000, 3), torch.randn(20_000, 1)
    drawn = CategoricalLatent(1, 3).sample(p, 0.2, noise).mean(0)
    assert_close(drawn, torch.tensor([0.0, 2.0, 4.0]).softmax(-1), rtol=0, atol=0.01)


def test_noise_goes_through_its_distribution_function_to_the_classes_in_their_order():
    """Probabilities 1/4, 1/2, 1/4: the middle class lies within 0.674 of 0, the quartiles of a Gaussian."""
    noise = torch.tensor([-9.0, -0.68, -0.67, 0.0, 0.67, 0.68, 9.0])
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(7, 3)
    assert draw_one_hot(logits, noise).argmax(-1).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_a_class_of_probability_zero_is_never_drawn_however_far_out_the_noise():
    logits = torch.tensor([-1e4, 0.0, -1e4, 0.3, -1e4]).expand(401, 5)
    drawn = draw_one_hot(logits, torch.linspace(-40, 40, 401)).argmax(-1)
    assert set(drawn.tolist()) == {1, 3}


def test_a_rows_draw_does_not_depend_on_its_company(latent):
    p, noise = params(6), torch.randn(6, GROUPS)
    assert torch.equal(latent.sample(p, noise=noise)[2:3], latent.sample(p[2:3], noise=noise[2:3]))


def test_logits_that_are_not_numbers_are_left_to_be_found_in_the_loss(latent):
    assert latent.sample(torch.full((2, latent.param_size), torch.nan)).isfinite().all()


def test_the_kl_of_32_choices_made_to_32_that_are_open_is_32_ln_32():
    latent = CategoricalLatent(32, 32)
    certain = 1000 * latent.mode(torch.randn(latent.param_size))
    for nats in (latent.kl(certain, torch.zeros(latent.param_size)), latent.kl_to_standard(certain)):
        assert_close(nats, torch.tensor(110.9035), rtol=0, atol=1e-4)


def test_the_kl_is_torchs_summed_over_groups(latent):
    posterior, prior = params(4, 5), params(4, 5)
    one, two = (OneHotCategorical(logits=grouped(p)) for p in (posterior, prior))
    assert_close(latent.kl(posterior, prior), kl_divergence(one, two).sum(-1))
    assert_close(latent.kl_to_standard(posterior), latent.kl(posterior, torch.zeros_like(prior)))
    assert latent.kl(posterior, posterior).abs().max() == 0


def test_the_kl_depends_on_differences_of_logits_alone(latent):
    posterior, prior = params(4), params(4)
    assert_close(latent.kl(posterior + 7, prior - 3), latent.kl(posterior, prior))


def test_the_distribution_is_one_categorical_a_group(latent):
    p = params(4, 5)
    whole = latent.distribution(p)
    assert whole.batch_shape == (4, 5)
    assert_close(whole.base_dist.probs, grouped(p).softmax(-1))
    parts = kl_divergence(whole.base_dist, latent.distribution(params(4, 5)).base_dist)
    assert parts.shape == (4, 5, GROUPS)


def test_everything_is_float32_whatever_the_parameters_are(latent):
    half = params(4).bfloat16()
    for number in (latent.sample(half), latent.mode(half), latent.kl(half, half), latent.kl_to_standard(half)):
        assert number.dtype == torch.float32


def test_a_generators_noise_is_the_generators(latent):
    draw = [latent.noise(5, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draw[0].shape == (5, GROUPS)
    assert torch.equal(*draw)


def test_without_noise_it_still_learns():
    latent = MeanLatent(CategoricalLatent(GROUPS, CLASSES))
    p = params(4).requires_grad_()
    assert torch.autograd.grad((latent.sample(p) * torch.randn(4, 12)).sum(), p)[0].abs().max() > 0
    assert latent.noise_size == GROUPS


def test_what_goes_straight_through_keeps_its_bits():
    value, source = torch.tensor([1.0, 0.0]), torch.tensor([0.3, 0.7], requires_grad=True)
    through = straight_through(value, source)
    assert torch.equal(through, value)
    assert torch.autograd.grad((through * torch.tensor([2.0, 3.0])).sum(), source)[0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("options", [{"groups": 0}, {"classes": 1}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at least 1 and 2 are needed"):
        CategoricalLatent(**options)


def test_a_recipe_builds_it_again():
    again = build_recipe(recipe_of(CategoricalLatent(5, 6)))
    assert (again.groups, again.classes) == (5, 6)
