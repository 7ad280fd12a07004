"""Actions: bounded or one-hot, with densities, entropies and gradients that agree with float64 and with paper."""

import math

import pytest
import torch
from torch.testing import assert_close

from wmlightning.distributions import ActionDistribution, OneHot, TanhNormal, TruncatedNormal
from wmlightning.distributions.bounded import BOUND
from wmlightning.recipes import build_recipe, recipe_of

A = 3
KINDS = {"tanh": TanhNormal(), "truncated": TruncatedNormal(), "one-hot": OneHot()}
CONTINUOUS = {name: kind for name, kind in KINDS.items() if not kind.discrete}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    return request.param


@pytest.fixture(params=CONTINUOUS.values(), ids=CONTINUOUS.keys())
def continuous(request):
    return request.param


@pytest.fixture
def truncated():
    return TruncatedNormal()


def params(kind, *rows):
    return torch.randn(*rows, kind.param_size(A))


def noise(kind, *rows):
    return torch.randn(*rows, kind.noise_size(A))


def raw_std(kind, mean, std):
    """Parameters that give about this mean and std inside (bisected: what squashes them is the class's own affair)."""
    found = []
    for index, wanted in ((0, mean), (1, std)):
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            numbers = torch.tensor([middle, middle])
            low, high = (middle, high) if kind.mean_std(numbers)[index].item() < wanted else (low, middle)
        found.append(low)
    return torch.tensor(found)


def test_shapes_and_float32_whatever_the_parameters_are(kind):
    half = params(kind, 4, 5).bfloat16()
    action = kind.sample(half, noise(kind, 4, 5))
    assert action.shape == kind.mode(half).shape == kind.sample(half).shape == (4, 5, A)
    for number in (kind.log_prob(half, action), kind.entropy(half)):
        assert number.shape == (4, 5)
        assert number.dtype == torch.float32
    assert action.dtype == kind.mode(half).dtype == torch.float32


def test_widths_of_parameters_and_noise():
    assert [kind.param_size(6) for kind in KINDS.values()] == [12, 12, 6]
    assert [kind.noise_size(6) for kind in KINDS.values()] == [6, 6, 1]
    assert [kind.discrete for kind in KINDS.values()] == [False, False, True]


def test_actions_stay_in_bounds(continuous):
    p = 10 * params(continuous, 2000)
    for action in (continuous.sample(p), continuous.mode(p)):
        assert action.abs().max() <= 1


def test_the_same_noise_gives_the_same_action_and_fresh_noise_another(kind):
    p, eps = params(kind, 50), noise(kind, 50)
    assert torch.equal(kind.sample(p, eps), kind.sample(p, eps))
    assert not torch.equal(kind.sample(p), kind.sample(p))


def test_a_row_does_not_depend_on_its_company(kind):
    p, eps = params(kind, 8), noise(kind, 8)
    assert_close(kind.sample(p, eps)[5:6], kind.sample(p[5:6], eps[5:6]))
    assert_close(kind.mode(p)[5:6], kind.mode(p[5:6]))
    assert_close(kind.entropy(p)[5:6], kind.entropy(p[5:6]))


def test_gradients_reach_every_parameter_from_sample_probability_and_entropy(kind):
    p = params(kind, 4).requires_grad_()
    action = kind.sample(p)
    weight = torch.randn(4, A)
    for number in ((action * weight).sum(), kind.log_prob(p, action.detach()).sum(), kind.entropy(p).sum()):
        assert torch.autograd.grad(number, p, retain_graph=True)[0].abs().min() > 0


SHAPES = [(-0.9, 0.15), (0.0, 0.3), (0.5, 0.8), (0.99, 1.9)]


@pytest.mark.parametrize(("mean", "std"), SHAPES)
def test_densities_add_up_to_1(continuous, mean, std):
    p = raw_std(continuous, mean, std)
    # Even steps before the tanh come as close to the ends as it takes.
    actions = torch.linspace(-7.2, 7.2, 20_001).tanh() if isinstance(continuous, TanhNormal) else None
    actions = torch.linspace(-1, 1, 20_001) if actions is None else actions
    density = continuous.log_prob(p.expand(20_001, 2), actions[:, None]).exp()
    assert torch.trapezoid(density, actions).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(("mean", "std"), SHAPES)
def test_samples_have_the_density_they_are_said_to_have(continuous, mean, std):
    """The mean of -ln p over samples, at evenly spaced noise, is the entropy."""
    p = raw_std(continuous, mean, std).expand(20_000, 2)
    eps = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]
    surprise = -continuous.log_prob(p, continuous.sample(p, eps)).mean()
    assert_close(surprise, continuous.entropy(p[0]), rtol=0, atol=4e-3)


@pytest.mark.parametrize(("mean", "std"), SHAPES)
def test_the_mode_is_where_the_density_is_highest(continuous, mean, std):
    p = raw_std(continuous, mean, std)
    grid = torch.linspace(-0.9999, 0.9999, 4001)[:, None]
    best = continuous.log_prob(p.expand(4001, 2), grid).max()
    assert continuous.log_prob(p, continuous.mode(p)) >= best - 0.05


# --------------------------------------------------------------------------------------------------------- TanhNormal


def test_a_fresh_tanh_normal_is_5_wide_before_the_tanh_and_its_mean_stays_within_5():
    assert TanhNormal()._raw_start == pytest.approx(4.99324, abs=1e-5)
    mean, std = TanhNormal().mean_std(torch.tensor([1000.0, 5.0, 0.0, 0.0]))
    assert_close(mean, torch.tensor([5.0, 5 * math.tanh(1)]))
    assert_close(std, torch.full((2,), 5.0001))


def test_a_tanh_normals_density_is_torchs():
    kind, p = TanhNormal(), params(TanhNormal(), 6)
    mean, std = kind.mean_std(p)
    inside = torch.distributions.Normal(mean.double(), std.double())
    whole = torch.distributions.TransformedDistribution(inside, torch.distributions.TanhTransform())
    action = torch.tanh(torch.randn(6, A))
    assert_close(kind.log_prob(p, action), whole.log_prob(action.double()).sum(-1).float(), rtol=1e-4, atol=1e-4)


def test_a_tanh_normals_probability_is_finite_at_the_very_ends():
    p = params(TanhNormal(), 2).requires_grad_()
    action = torch.tensor([[1.0, -1.0, 1 - 2**-24]]).expand(2, A)
    log_prob = TanhNormal().log_prob(p, action)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), p)[0].isfinite().all()


def test_the_mode_of_each_row_is_its_own():
    """In the authors' code every row gets the first row's best sample."""
    kind = TanhNormal()
    rows = torch.stack([raw_std(kind, mean, 0.2) for mean in (-0.8, 0.0, 0.8)])
    assert_close(kind.mode(rows)[:, 0], torch.tensor([-0.8, 0.0, 0.8]).tanh(), rtol=0, atol=0.05)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.01), (0.5, 0.3), (1.0, 1.0), (3.0, 2.0), (0.0, 5.0)])
def test_a_tanh_normals_entropy_and_its_gradient_are_those_of_many_samples(mean, std):
    kind = TanhNormal()
    p = raw_std(kind, mean, std).requires_grad_()
    eps = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000).float()[:, None]
    m, s = kind.mean_std(p)
    inputs = m + s * eps
    slope = 2 * (math.log(2) - inputs - torch.nn.functional.softplus(-2 * inputs))
    expected = 0.5 * math.log(2 * math.pi * math.e) + s.log().sum() + slope.mean()
    got = kind.entropy(p)
    assert_close(got, expected, rtol=0, atol=0.013)
    assert_close(*(torch.autograd.grad(number, p)[0] for number in (got, expected)), rtol=0, atol=5e-3)


# ---------------------------------------------------------------------------------------------------- TruncatedNormal


def reference(kind, p, end=torch.special.ndtr):
    """Mean, std, and the distribution function at the ends, in float64."""
    mean, std = (number.double() for number in kind.mean_std(p))
    return mean, std, end((-1 - mean) / std), end((1 - mean) / std)


def test_a_fresh_truncated_normal_is_1_1_wide_and_never_above_2_1(truncated):
    mean, std = truncated.mean_std(torch.tensor([0.0, 1.0, 50.0, 0.0, -1000.0, 1000.0]))
    assert_close(std, torch.tensor([1.1, 0.1, 2.1]))
    assert_close(mean, torch.tensor([0.0, math.tanh(1), 1.0]))
    assert torch.equal(truncated.mode(torch.tensor([0.0, 1.0, 50.0, 0.0, 0.0, 0.0])), mean)


TAILS = [(m, s) for m in (-9.0, -1.0, 0.0, 0.3, 9.0) for s in (-20.0, -3.0, 0.0, 20.0)]


@pytest.mark.parametrize(("mean", "raw"), TAILS)
def test_a_sample_is_the_quantile_that_the_noise_is_from_either_end(truncated, mean, raw):
    p = torch.tensor([mean, raw])
    m, s, low, high = reference(truncated, p)
    eps = torch.linspace(-7, 7, 1401)
    action = truncated.sample(p.expand(1401, 2), eps[:, None])[:, 0]
    for side in (-1, 1):  # from below and from above: the tails need their own precision
        first, last = (low, high) if side == 1 else (1 - high, 1 - low)
        share = (torch.special.ndtr(side * (action.double() - m) / s) - first) / (last - first)
        assert_close(share, torch.special.ndtr(side * eps.double()), rtol=0, atol=1e-5)
    assert (action.diff() >= -1e-6).all()
    assert action.abs().max() <= BOUND


def test_a_samples_gradient_is_that_of_the_quantile(truncated):
    """Where F(a; p) stays the same, da/dp = -(dF/dp) / (dF/da); all of it in float64, by hand."""
    p, eps = params(truncated, 200).requires_grad_(), 2 * torch.randn(200, A)
    action = truncated.sample(p, eps)
    got = torch.autograd.grad(action.sum(), p)[0]
    wide, here = p.detach().double().requires_grad_(), action.detach().double().requires_grad_()
    raw_mean, raw = wide.chunk(2, -1)
    m, s = raw_mean.tanh(), 2 * (raw / 2).sigmoid() + 0.1
    low, high = (torch.special.ndtr((end - m) / s) for end in (-1, 1))
    share = (torch.special.ndtr((here - m) / s) - low) / (high - low)
    density = torch.autograd.grad(share.sum(), here, retain_graph=True)[0]
    expected = -torch.autograd.grad((share / density.detach()).sum(), wide)[0]
    inside = (action.detach().abs() < BOUND).repeat(1, 2)
    assert_close(got[inside], expected[inside].float(), rtol=2e-3, atol=2e-4)


def test_the_gradient_passes_the_bound_and_is_finite_wherever_the_noise_falls(truncated):
    for eps in (-40.0, -8.0, 0.0, 8.0, 40.0):
        for mean, raw in TAILS:
            p = torch.tensor([mean, raw], requires_grad=True)
            action = truncated.sample(p, torch.tensor([eps]))
            grad = torch.autograd.grad(action.sum(), p)[0]
            assert action.isfinite().all()
            assert grad.isfinite().all(), (eps, mean, raw)
    # Brought back from 1 to the bound, it is still moved by its mean.
    p = torch.tensor([1.0, 0.0], requires_grad=True)
    action = truncated.sample(p, torch.tensor([5.2]))
    assert action.item() == torch.tensor(BOUND).item()
    assert torch.autograd.grad(action.sum(), p)[0][0] != 0


def test_a_truncated_normals_density_on_paper(truncated):
    """Mean 0, std 1: at 0 it is 0.39894 / 0.68269 = 0.58437, at 0.5 it is 0.35207 / 0.68269 = 0.51571."""
    p = raw_std(truncated, 0.0, 1.0)
    for action, density in ((0.0, 0.58437), (0.5, 0.51571)):
        assert truncated.log_prob(p, torch.tensor([action])).exp().item() == pytest.approx(density, abs=1e-4)


def test_a_truncated_normals_entropy_is_near_ln_2_where_it_is_nearly_flat_and_a_whole_ones_where_it_is_narrow():
    assert TruncatedNormal(20.0).entropy(torch.zeros(2)).item() == pytest.approx(math.log(2), abs=1e-3)
    narrow = TruncatedNormal(0.05).entropy(torch.tensor([0.0, -50.0])).item()
    assert narrow == pytest.approx(0.5 * math.log(2 * math.pi * math.e) + math.log(0.05), abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- OneHot


def test_a_choice_is_one_hot_and_teaches_its_probabilities():
    p, weight = params(KINDS["one-hot"], 5).requires_grad_(), torch.randn(5, A)
    action = OneHot().sample(p)
    assert set(action.detach().flatten().tolist()) == {0.0, 1.0}
    grads = [torch.autograd.grad((number * weight).sum(), p)[0] for number in (action, p.softmax(-1))]
    assert torch.equal(*grads)


def test_a_choices_probability_and_entropy_are_torchs():
    p = params(KINDS["one-hot"], 5)
    torchs = torch.distributions.OneHotCategorical(logits=p)
    action = OneHot().sample(p)
    assert_close(OneHot().log_prob(p, action), torchs.log_prob(action))
    assert_close(OneHot().entropy(p), torchs.entropy())
    assert torch.equal(OneHot().mode(p), torchs.mode)


# ---------------------------------------------------------------------------------------------------------- bad input

REFUSED = {
    "init_std is 0.0": lambda: TanhNormal(init_std=0.0),
    "min_std -1.0": lambda: TanhNormal(min_std=-1.0),
    "mean_scale 0.0, but above 0": lambda: TanhNormal(mean_scale=0.0),
    "init_std is nan": lambda: TanhNormal(init_std=math.nan),
    "min_std inf": lambda: TanhNormal(min_std=math.inf),
    "min_std is nan": lambda: TruncatedNormal(math.nan),
    "min_std is -0.1 but must be at least 0": lambda: TruncatedNormal(-0.1),
}


@pytest.mark.parametrize(("said", "build"), REFUSED.items(), ids=REFUSED)
def test_numbers_out_of_range_are_refused(said, build):
    with pytest.raises(ValueError, match=said):
        build()


def test_a_recipe_builds_it_again(kind):
    again = build_recipe(recipe_of(kind))
    assert isinstance(again, ActionDistribution)
    p, eps = params(kind, 2), noise(kind, 2)
    assert torch.equal(again.sample(p, eps), kind.sample(p, eps))
