"""RNN, SSM and RSSM: what is true of all three, that they forget exactly, and where information may and may not go."""

import pytest
import torch
from torch.testing import assert_close

from wmlightning.distributions import CategoricalLatent, GaussianLatent
from wmlightning.dynamics import RNN, RSSM, SSM
from wmlightning.recipes import build_recipe, recipe_of

B, T, Z, A, E, H = 2, 6, 3, 2, 7, 5
KINDS = {"RNN": RNN, "SSM": SSM, "RSSM": RSSM}
V2 = {"cell": "layer_norm_gru", "activation": "elu"}
EVERY = {name: (kind, GaussianLatent(Z), {}) for name, kind in KINDS.items()} | {
    "Dreamer V1": (RSSM, GaussianLatent(Z), {"cell": "keras_gru", "activation": "elu"}),
    "Dreamer V2": (RSSM, CategoricalLatent(Z, 4), V2),
    "V2 with Gaussian latents": (RSSM, GaussianLatent(Z, squash="sigmoid"), V2),
    "RNN of categoricals": (RNN, CategoricalLatent(Z, 4), V2),
    "SSM with ELU": (SSM, GaussianLatent(Z), {"activation": "elu"}),
}


def make(kind, latent=None, **options):
    torch.manual_seed(3)
    widths = {"hidden_size": 8} | ({} if kind is SSM else {"deter_size": H})
    return kind(latent or GaussianLatent(Z), A, E, **widths, **options)


@pytest.fixture(params=EVERY.values(), ids=EVERY.keys())
def dynamics(request):
    kind, latent, options = request.param
    return make(kind, latent, **options)


@pytest.fixture
def rssm():
    return make(RSSM)


def window(is_first=()):
    """Embeds, actions, flags and noise; is_first lists the (row, t) that are flagged."""
    flags = torch.zeros(B, T, dtype=torch.bool)
    for place in is_first:
        flags[place] = True
    return torch.randn(B, T, E), torch.randn(B, T, A), flags, torch.randn(B, T, Z)


def observe(dynamics, data, state=None):
    embeds, actions, is_first, noise = data
    return dynamics.observe(embeds, actions, is_first, state, noise)


def random_state(dynamics, rows=B):
    return dynamics.initial(rows).map(torch.randn_like)


def tensors(state):
    return [state.deter, state.stoch, state.params]


def test_parameter_counts_at_planets_sizes():
    """Dreamer V1's RSSM has 557,920 with a GRU of two biases; the block cell has one, 600 numbers fewer."""
    for kind, expected in ((RSSM, 557_920 - 600), (RNN, 557_920 - 600), (SSM, 7_400 + 12_060 + 217_000 + 12_060)):
        assert sum(p.numel() for p in kind(GaussianLatent(30), 6).parameters()) == expected


def test_parameter_counts_of_both_dreamers():
    v1 = RSSM(GaussianLatent(30), 6, cell="keras_gru", activation="elu")
    atari = RSSM(CategoricalLatent(32, 32), 18, 1536, 600, 600, **V2)
    dmc = RSSM(CategoricalLatent(32, 32), 6, 1536, 200, 200, **V2)
    counts = [sum(p.numel() for p in rssm.parameters()) for rssm in (v1, atari, dmc)]
    assert counts == [557_920, 5_664_848, 1_247_248]


def test_features_have_the_width_that_is_announced():
    assert RSSM(GaussianLatent(30), 6).feature_size == RNN(GaussianLatent(30), 6).feature_size == 230
    assert SSM(GaussianLatent(30), 6).feature_size == 30
    for kind in KINDS.values():
        small = make(kind)
        assert observe(small, window())[0].features.shape == (B, T, small.feature_size)


def test_the_initial_state_is_zero(dynamics):
    state = dynamics.initial(4)
    assert state.features.shape == (4, dynamics.feature_size)
    assert state.features.abs().sum() == 0


def test_observing_a_window_is_observing_its_rows_one_by_one(dynamics):
    data, state = window(is_first=[(0, 0), (1, 0), (0, 3)]), random_state(dynamics)
    posterior, prior = observe(dynamics, data, state)
    for t in range(T):
        embed, action, is_first, noise = (tensor[:, t] for tensor in data)
        state, guess = dynamics.observe_step(state, action, embed, is_first, noise)
        assert_close(tensors(state), [tensor[:, t] for tensor in tensors(posterior)])
        assert_close(tensors(guess), [tensor[:, t] for tensor in tensors(prior)])


def test_observing_two_halves_with_the_state_carried_over_is_observing_the_whole(dynamics):
    data = window(is_first=[(0, 0), (1, 4)])
    whole, _ = observe(dynamics, data)
    first, _ = observe(dynamics, [tensor[:, :3] for tensor in data])
    second, _ = observe(dynamics, [tensor[:, 3:] for tensor in data], first[:, -1])
    assert_close(torch.cat([first.features, second.features], 1), whole.features)


def test_a_windows_first_action_is_fed_in_unless_its_row_is_a_first(dynamics):
    for is_first, matters in ([], True), ([(0, 0), (1, 0)], False):
        data = window(is_first)
        other = [data[0], data[1].clone(), *data[2:]]
        other[1][:, 0] += 1
        same = torch.equal(observe(dynamics, data)[1].params, observe(dynamics, other)[1].params)
        assert same != matters


def test_after_a_reset_in_the_middle_nothing_before_it_matters_at_all(dynamics):
    data = window(is_first=[(0, 0), (1, 0), (0, 3)])
    other = [tensor.clone() for tensor in data]
    for tensor in (other[0], other[1], other[3]):
        tensor[0, :3] = torch.nan
    other[1][0, 3] = torch.nan  # the action of a first row leads nowhere
    for one, two in zip(observe(dynamics, data), observe(dynamics, other), strict=True):
        for here, there in zip(tensors(one), tensors(two), strict=True):
            assert torch.equal(here[0, 3:], there[0, 3:])
            assert torch.equal(here[1], there[1])


def test_after_a_reset_in_the_middle_the_window_is_one_that_begins_there(dynamics):
    data = window(is_first=[(0, 2), (1, 2)])
    whole, _ = observe(dynamics, data)
    rest, _ = observe(dynamics, [tensor[:, 2:] for tensor in data])
    assert_close(whole[:, 2:].features, rest.features)


def test_no_gradient_passes_a_reset(dynamics):
    embeds, actions, is_first, noise = window(is_first=[(0, 3), (1, 3)])
    embeds.requires_grad_()
    posterior, _ = dynamics.observe(embeds, actions, is_first, None, noise)
    grad = torch.autograd.grad(posterior.features[:, 3:].square().sum(), embeds)[0]
    assert grad[:, :3].abs().max() == 0
    assert grad[:, 3:].abs().sum((0, 2)).min() > 0


def test_the_prior_at_t_has_seen_images_before_t_and_actions_up_to_t_the_posterior_the_image_too(dynamics):
    embeds, actions, is_first, noise = window()
    embeds.requires_grad_()
    actions.requires_grad_()
    posterior, prior = dynamics.observe(embeds, actions, is_first, None, noise)
    for t in range(T):
        for state, last_seen in ((prior, t - 1), (posterior, t)):
            seen = state.params[:, t].square().sum()
            images, acts = torch.autograd.grad(seen, (embeds, actions), retain_graph=True, materialize_grads=True)
            assert [bool(g > 0) for g in images.abs().sum((0, 2))] == [s <= last_seen for s in range(T)]
            assert [bool(g > 0) for g in acts.abs().sum((0, 2))] == [s <= t for s in range(T)]


def test_the_prior_reads_h_and_nothing_else(rssm):
    """In the first release of PlaNet's code it did not."""
    h, moved = torch.randn(1, H), torch.randn(1, H)
    assert not torch.allclose(rssm.prior_params(h), rssm.prior_params(moved))
    state = random_state(rssm, 1)
    other = state.map(torch.clone)
    other.deter = other.deter + 1.0
    params = [rssm.imagine_step(s, torch.zeros(1, A)).params for s in (state, other)]
    assert not torch.allclose(*params)


def test_an_image_reaches_the_memory_only_through_the_sample(rssm):
    """With the samples held fixed, h does not know what was seen."""
    embeds, actions, is_first, noise = window()
    fixed = torch.randn(B, Z)
    rssm.latent.sample = lambda params, temperature=1.0, noise=None: fixed
    one, two = (rssm.observe(seen, actions, is_first, None, noise)[0] for seen in (embeds, torch.randn_like(embeds)))
    assert torch.equal(one.deter, two.deter)
    assert not torch.equal(one.params, two.params)


def test_heads_see_the_sample_and_the_next_step_starts_from_it(dynamics):
    data = window()
    posterior, _ = observe(dynamics, data)
    assert_close(posterior.stoch, dynamics.latent.sample(posterior.params, noise=data[3]))
    assert torch.equal(posterior.features, torch.cat([posterior.stoch, posterior.deter], -1))
    dreamt = dynamics.imagine_step(posterior[:, 1], data[1][:, 2])
    assert_close(dreamt.deter, posterior.deter[:, 2])


def test_a_dreamt_step_has_the_memory_and_the_prior_of_an_observed_one(dynamics):
    """The action taken AT state k leads to state k + 1, whose prior does not depend on what is then seen."""
    data, state, noise = window(), random_state(dynamics), torch.randn(B, Z)
    action, embed, is_first = data[1][:, 0], data[0][:, 0], data[2][:, 0]
    _, prior = dynamics.observe_step(state, action, embed, is_first)
    dreamt = dynamics.imagine_step(state, action, 0.25, noise)
    assert_close([dreamt.deter, dreamt.params], [prior.deter, prior.params])
    assert_close(dreamt.stoch, dynamics.latent.sample(prior.params, 0.25, noise))


def test_imagining_many_steps_is_imagining_one_many_times_and_the_state_advances(dynamics):
    start, actions, noise = random_state(dynamics), torch.randn(B, 4, A), torch.randn(B, 4, Z)
    dream = dynamics.imagine(start, actions, 1.0, noise)
    for k in range(4):
        start = dynamics.imagine_step(start, actions[:, k], 1.0, noise[:, k])
        assert_close(tensors(start), [tensor[:, k] for tensor in tensors(dream)])
    assert (dream.features[:, 1:] - dream.features[:, :-1]).abs().amax(-1).min() > 0


def test_rows_of_a_dream_do_not_see_each_other(dynamics):
    start, actions, noise = random_state(dynamics, 6), torch.randn(6, 3, A), torch.randn(6, 3, Z)
    order = torch.randperm(6)
    dream = dynamics.imagine(start, actions, 1.0, noise)
    again = dynamics.imagine(start[order], actions[order], 1.0, noise[order])
    assert_close(again.features, dream.features[order])


def test_generators_give_the_noise_of_steps_observed_and_dreamt(dynamics):
    drawn = [dynamics.observe_noise(4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert drawn[0].shape == dynamics.imagine_noise(4, torch.Generator()).shape == (4, Z)
    assert torch.equal(*drawn)


def test_an_rnn_is_certain_and_an_rssm_is_not():
    data, again = window(), torch.randn(B, T, Z)
    for kind, certain in ((RNN, True), (RSSM, False), (SSM, False)):
        dynamics = make(kind)
        one, two = (observe(dynamics, [*data[:3], noise])[0] for noise in (data[3], again))
        assert torch.equal(one.features, two.features) == certain


def test_an_rnn_is_an_rssm_whose_noise_is_zero():
    data, rnn, rssm = window(), make(RNN), make(RSSM)
    rssm.load_state_dict(rnn.state_dict())
    data = [*data[:3], torch.zeros(B, T, Z)]
    for one, two in zip(observe(rnn, data), observe(rssm, data), strict=True):
        assert_close(tensors(one), tensors(two))


def test_an_rnns_kl_is_zero_unless_its_prior_is_asked_to_learn():
    for prior_error, learns in ((0.0, False), (1.0, True)):
        rnn = make(RNN, prior_error=prior_error)
        posterior, prior = observe(rnn, window())
        nats = rnn.latent.kl(posterior.params, prior.params)
        grads = torch.autograd.grad(nats.sum(), list(rnn.prior.parameters()))
        assert bool((nats > 0).all()) == any(grad.abs().max() > 0 for grad in grads) == learns


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_activation_is_the_one_asked_for(kind):
    relu, elu = (make(kind, activation=name) for name in ("relu", "elu"))
    elu.load_state_dict(relu.state_dict())
    data, state = window(), random_state(relu)
    for one, two in zip(observe(relu, data, state), observe(elu, data, state), strict=True):
        assert not torch.isclose(one.params, two.params).any()


def test_mean_and_std_start_as_two_layers(rssm):
    big = RSSM(GaussianLatent(30), 6)
    for head in (big.prior.last, big.posterior):
        assert head.weight.abs().max() <= (6 / 230) ** 0.5
        assert head.weight.abs().max() > (6 / 260) ** 0.5
        assert head.bias.abs().max() == 0


def test_a_recipe_builds_it_again(dynamics):
    again = build_recipe(recipe_of(dynamics))
    again.load_state_dict(dynamics.state_dict())
    data = window()
    assert torch.equal(observe(again, data)[0].features, observe(dynamics, data)[0].features)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="action_size is 0 but must be at least 1"):
        RSSM(GaussianLatent(3), 0)
    with pytest.raises(ValueError, match="use SSM for a model without deter"):
        RSSM(GaussianLatent(3), 2, deter_size=0)
