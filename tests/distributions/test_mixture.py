"""The mixture of Gaussians: densities, samples, temperature."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.testing import assert_close

from wmlightning.distributions import GaussianMixture


def random_parameters(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(3)]


def torch_mixture(logits, mean, log_std):
    return MixtureSameFamily(Categorical(logits=logits), Normal(mean, log_std.exp()))


def test_log_prob_is_that_of_torchs_own_mixture():
    logits, mean, log_std = random_parameters(7, 3, 4, 5)
    x = torch.randn(7, 3, 4)
    got = GaussianMixture(logits, mean, log_std).log_prob(x)
    assert_close(got, torch_mixture(logits, mean, log_std).log_prob(x), rtol=1e-5, atol=1e-5)


def test_log_prob_does_not_depend_on_how_many_rows_are_worked_on_at_a_time():
    logits, mean, log_std = random_parameters(1300, 2, 3)
    x = torch.randn(1300, 2)
    whole = GaussianMixture(logits, mean, log_std).log_prob(x)
    parts = [GaussianMixture(logits[[k]], mean[[k]], log_std[[k]]).log_prob(x[[k]]) for k in (0, 511, 512, 1299)]
    assert_close(torch.cat(parts), whole[[0, 511, 512, 1299]])


def test_one_gaussian_at_its_mean_has_the_density_on_paper():
    # N(2; 2, e^2) = 1 / (e sqrt(2 pi)); two equal components change nothing.
    mixture = GaussianMixture(torch.zeros(1, 2), torch.full((1, 2), 2.0), torch.ones(1, 2))
    assert_close(mixture.log_prob(torch.tensor([2.0])), torch.tensor([-1.9189385]))


def test_the_closed_form_gradient_is_the_numerical_one():
    parameters = [p.requires_grad_() for p in random_parameters(4, 3, 5, dtype=torch.float64)]
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: GaussianMixture(*args[:3]).log_prob(args[3]), (*parameters, x))


def test_parameters_read_from_a_network_are_the_same_ones():
    logits, mean, log_std = random_parameters(6, 3, 5)
    flat = torch.cat([p.mT.flatten(1) for p in (logits, mean, log_std)], 1)
    mixture = GaussianMixture.from_params(flat, dims=3)
    assert_close([mixture.logits, mixture.means, mixture.log_std], [logits, mean, log_std])


def test_dimensions_are_independent_of_one_another():
    logits, mean, log_std = random_parameters(2, 3, 5)
    x = torch.randn(2, 3)
    before = GaussianMixture(logits, mean, log_std).log_prob(x)
    x[:, 1] += 1
    after = GaussianMixture(logits, mean, log_std).log_prob(x)
    assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert (after[:, 1] != before[:, 1]).all()


def test_at_temperature_one_samples_have_the_mixtures_mean_and_variance():
    logits, mean, log_std = random_parameters(3, 5)
    expected = torch_mixture(logits, mean, log_std)
    many = [p.expand(100_000, 3, 5) for p in (logits, mean, log_std)]
    samples = GaussianMixture(*many).sample()
    assert_close(samples.mean(0), expected.mean, rtol=0.02, atol=0.03)
    assert_close(samples.var(0), expected.variance, rtol=0.03, atol=0.0)


def test_temperature_divides_the_logits_and_multiplies_the_noise_by_its_root():
    logits, mean, log_std = random_parameters(3, 5)
    expected = torch_mixture(logits / 0.25, mean, log_std + torch.tensor(0.5).log())
    many = [p.expand(100_000, 3, 5) for p in (logits, mean, log_std)]
    samples = GaussianMixture(*many, temperature=0.25).sample()
    assert_close(samples.mean(0), expected.mean, rtol=0.02, atol=0.03)
    assert_close(samples.var(0), expected.variance, rtol=0.03, atol=0.0)


def test_log_prob_and_mean_know_no_temperature():
    parameters, x = random_parameters(4, 3, 5), torch.randn(4, 3)
    hot, plain = GaussianMixture(*parameters, temperature=3.0), GaussianMixture(*parameters)
    assert torch.equal(hot.log_prob(x), plain.log_prob(x))
    assert torch.equal(hot.mean, plain.mean)


def test_the_mean_is_that_of_torchs_own_mixture():
    parameters = random_parameters(4, 3, 5)
    assert_close(GaussianMixture(*parameters).mean, torch_mixture(*parameters).mean)


@pytest.mark.parametrize(("uniform", "component"), [(0.0, 0), (0.249, 0), (0.251, 1), (0.999999, 2)])
def test_given_noise_chooses_the_component_by_its_place_in_the_weights(uniform, component):
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log()
    mixture = GaussianMixture(logits, torch.tensor([[10.0, 20.0, 30.0]]), torch.zeros(1, 3))
    sample = mixture.sample((torch.tensor([uniform]), torch.tensor([0.5])))
    assert_close(sample, torch.tensor([10.0 * (component + 1) + 0.5]))


def test_half_precision_parameters_are_worked_on_in_full():
    logits, mean, log_std = (p.bfloat16() for p in random_parameters(4, 3, 5))
    got = GaussianMixture(logits, mean, log_std).log_prob(torch.zeros(4, 3, dtype=torch.bfloat16))
    assert_close(got, GaussianMixture(logits.float(), mean.float(), log_std.float()).log_prob(torch.zeros(4, 3)))


def test_a_point_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \(4, 1\) but the mixture is of \(4, 3\)"):
        GaussianMixture(*random_parameters(4, 3, 5)).log_prob(torch.zeros(4, 1))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="use `mean`"):
        GaussianMixture(*random_parameters(1, 1), temperature=0.0)
