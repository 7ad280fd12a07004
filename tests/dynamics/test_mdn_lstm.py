"""The memory M: what it has seen at each t, that it forgets exactly, and that its several ways agree."""

import pytest
import torch
from torch.testing import assert_close

from wmlightning.dynamics import MDNLSTM, State

B, T, Z, A, H = 2, 6, 3, 2, 5


def memory(**options):
    torch.manual_seed(3)
    return MDNLSTM(latent_size=Z, action_size=A, hidden_size=H, mixtures=2, **options)


@pytest.fixture(params=[False, True], ids=["plain", "input_is_first"])
def dynamics(request):
    return memory(input_is_first=request.param)


def window(is_first=()):
    """Embeds, actions, flags and noise; is_first lists the (row, t) that are flagged."""
    flags = torch.zeros(B, T, dtype=torch.bool)
    for place in is_first:
        flags[place] = True
    return torch.randn(B, T, 2 * Z), torch.randn(B, T, A), flags, torch.randn(B, T, Z)


def observe(dynamics, data, state=None):
    embeds, actions, is_first, noise = data
    return dynamics.observe(embeds, actions, is_first, state, noise)


def random_state(dynamics, rows=B):
    return dynamics.initial(rows).map(torch.randn_like)


@pytest.mark.parametrize(
    ("sizes", "done_head", "expected"),
    [((32, 3, 256, 5, False), 0, 422_368), ((64, 1, 512, 5, True), 512 + 1, 1_678_785)],
    ids=["CarRacing", "Doom"],
)
def test_parameter_counts_are_the_papers(sizes, done_head, expected):
    assert sum(p.numel() for p in MDNLSTM(*sizes).parameters()) + done_head == expected


def test_the_memory_at_t_is_one_lstm_step_from_the_code_before_and_the_action_that_led_here():
    dynamics, data = memory(), window()
    posterior, _ = observe(dynamics, data)
    for t in range(1, T):
        x = torch.cat([posterior.stoch[:, t - 1], data[1][:, t]], -1)
        before = posterior.deter[:, t - 1].chunk(2, -1)
        expected = torch.cat(dynamics.cell.step(dynamics.cell.project(x), *before), -1)
        assert_close(posterior.deter[:, t], expected)


def test_the_memory_at_t_depends_on_codes_before_t_and_actions_up_to_t_and_on_nothing_later(dynamics):
    embeds, actions, is_first, noise = window()
    embeds.requires_grad_()
    actions.requires_grad_()
    posterior, prior = dynamics.observe(embeds, actions, is_first, None, noise)
    for t in range(T):
        for seen in (posterior.deter[:, t], prior.params[:, t]):
            moved = torch.autograd.grad(
                seen.square().sum(), (embeds, actions), retain_graph=True, materialize_grads=True
            )
            codes, acts = (grad.abs().sum((0, 2)) > 0 for grad in moved)
            assert codes.tolist() == [s < t for s in range(T)]
            assert acts.tolist() == [s <= t for s in range(T)]


def test_the_code_at_t_is_drawn_from_the_embed_at_t_alone(dynamics):
    embeds, actions, is_first, noise = window()
    posterior, _ = dynamics.observe(embeds, actions, is_first, None, noise)
    assert_close(posterior.stoch, embeds[..., :Z] + (embeds[..., Z:] / 2).exp() * noise)
    assert torch.equal(posterior.params, embeds)


def test_codes_are_drawn_anew_every_time_and_with_the_embeds_variance():
    dynamics = memory()
    embed = torch.tensor([1.0, -2.0, 0.0, 2 * torch.log(torch.tensor(0.5)), 0.0, -100.0]).expand(50_000, -1)
    codes = dynamics.code(embed)
    assert_close(codes.mean(0), torch.tensor([1.0, -2.0, 0.0]), rtol=0.0, atol=0.02)
    assert_close(codes.std(0), torch.tensor([0.5, 1.0, 0.0]), rtol=0.02, atol=1e-6)
    assert not torch.equal(codes, dynamics.code(embed))


def test_the_memory_of_a_first_row_is_exactly_zero(dynamics):
    posterior, _ = observe(dynamics, window(is_first=[(0, 0), (1, 3)]))
    assert posterior.deter[0, 0].abs().max() == 0
    assert posterior.deter[1, 3].abs().max() == 0
    assert posterior.deter[0, 3].abs().max() > 0


def test_after_a_reset_in_the_middle_nothing_before_it_matters_at_all(dynamics):
    data = window(is_first=[(0, 0), (1, 0), (0, 3)])
    other = [tensor.clone() for tensor in data]
    for tensor in (other[0], other[1], other[3]):
        tensor[0, :3] = torch.randn_like(tensor[0, :3])
    other[1][0, 3] = 7.0  # the action of a first row leads nowhere
    for one, two in zip(observe(dynamics, data), observe(dynamics, other), strict=True):
        for name in ("deter", "stoch", "params"):
            assert torch.equal(getattr(one, name)[0, 3:], getattr(two, name)[0, 3:])
            assert torch.equal(getattr(one, name)[1], getattr(two, name)[1])
    codes = [dynamics.code(d[0], d[3]) for d in (data, other)]
    hiddens = [dynamics.remember(c, d[1], d[2])[0] for c, d in zip(codes, (data, other), strict=True)]
    assert torch.equal(hiddens[0][0, 3:], hiddens[1][0, 3:])


def test_after_a_reset_in_the_middle_the_window_is_one_that_begins_there(dynamics):
    data = window(is_first=[(0, 2), (1, 2)])
    whole, _ = observe(dynamics, data)
    rest, _ = observe(dynamics, [tensor[:, 2:] for tensor in data])
    assert_close(whole[:, 2:].deter, rest.deter)


def test_observing_a_window_is_observing_its_rows_one_by_one(dynamics):
    data, state = window(is_first=[(0, 0), (1, 0), (0, 3)]), random_state(dynamics)
    posterior, prior = observe(dynamics, data, state)
    for t in range(T):
        embed, action, is_first, noise = (tensor[:, t] for tensor in data)
        state, guess = dynamics.observe_step(state, action, embed, is_first, noise)
        assert_close([state.deter, state.stoch, state.params], [getattr(posterior, n)[:, t] for n in vars(state)])
        assert_close([guess.deter, guess.stoch, guess.params], [getattr(prior, n)[:, t] for n in vars(guess)])


def test_observing_two_halves_with_the_state_carried_over_is_observing_the_whole(dynamics):
    data = window(is_first=[(0, 0), (1, 4)])
    whole, _ = observe(dynamics, data)
    first, _ = observe(dynamics, [tensor[:, :3] for tensor in data])
    second, _ = observe(dynamics, [tensor[:, 3:] for tensor in data], first[:, -1])
    assert_close(torch.cat([first.features, second.features], 1), whole.features)


RESETS = {"none": [], "start": [(0, 0), (1, 0)], "middle": [(0, 3), (1, 0), (1, 1)], "end": [(1, T - 1)]}


@pytest.mark.parametrize("is_first", RESETS.values(), ids=RESETS.keys())
def test_the_fused_memory_of_training_is_the_observed_one(dynamics, is_first):
    data = window(is_first)
    for state in (None, random_state(dynamics)):
        posterior, _ = observe(dynamics, data, state)
        hidden, last = dynamics.remember(posterior.stoch, data[1], data[2], state)
        assert_close(hidden, posterior.deter[..., :H])
        assert_close([last.deter, last.stoch], [posterior.deter[:, -1], posterior.stoch[:, -1]])


def test_the_initial_state_is_zero_and_nothing_was_seen(dynamics):
    state = dynamics.initial(4)
    assert state.features.shape == (4, Z + 2 * H)
    assert state.features.abs().max() == 0


def test_features_are_code_then_hidden_then_cell():
    dynamics, data = memory(), window()
    posterior, _ = observe(dynamics, data)
    x = torch.cat([posterior.stoch[:, 0], data[1][:, 1]], -1)
    hidden, cell = dynamics.cell.step(dynamics.cell.project(x), *posterior.deter[:, 0].chunk(2, -1))
    assert_close(posterior.features[:, 1], torch.cat([posterior.stoch[:, 1], hidden, cell], -1))


def test_imagining_many_steps_is_imagining_one_many_times(dynamics):
    start, actions = random_state(dynamics), torch.randn(B, 4, A)
    torch.manual_seed(5)
    dream = dynamics.imagine(start, actions)
    torch.manual_seed(5)
    for k in range(4):
        start = dynamics.imagine_step(start, actions[:, k])
        assert_close([start.deter, start.stoch, start.params], [getattr(dream, n)[:, k] for n in vars(start)])


def test_a_dreamt_step_has_the_memory_and_the_prior_of_an_observed_one(dynamics):
    """The action taken AT state k leads to state k + 1, whose memory does not depend on what is then seen."""
    data, state = window(), random_state(dynamics)
    action, embed, is_first = data[1][:, 0], data[0][:, 0], data[2][:, 0]
    _, prior = dynamics.observe_step(state, action, embed, is_first)
    dreamt = dynamics.imagine_step(state, action)
    assert_close([dreamt.deter, dreamt.params], [prior.deter, prior.params])


def test_a_dreamt_code_is_a_sample_of_its_mixture_at_the_temperature(dynamics):
    noise = torch.rand(B, Z), torch.randn(B, Z)
    for temperature in (1.0, 0.3):
        state = dynamics.imagine_step(random_state(dynamics), torch.randn(B, A), temperature, noise)
        assert_close(state.stoch, dynamics.mixture(state.params, temperature).sample(noise))


def test_the_first_code_of_an_episode_is_announced_to_the_memory_that_asks_for_it():
    dynamics = memory(input_is_first=True)
    codes, actions = torch.zeros(1, 3, Z), torch.zeros(1, 3, A)
    is_first = torch.tensor([[True, False, False]])
    inputs = dynamics._inputs(random_state(dynamics, 1), codes, actions, is_first)
    assert inputs[0, :, -1].tolist() == [0.0, 1.0, 0.0], "image 0 is consumed on the way to row 1"


def test_a_dream_from_the_initial_state_announces_a_first_code_too():
    dynamics = memory(input_is_first=True)
    assert dynamics._first_flags(dynamics.initial(1)).pop().item() == 1.0
    assert dynamics._first_flags(random_state(dynamics, 1)).pop().item() == 0.0


def test_weights_start_as_in_tensorflow():
    dynamics = MDNLSTM()
    assert dynamics.head.bias.abs().max() == 0
    assert 0.95 * (6 / (256 + 480)) ** 0.5 < dynamics.head.weight.abs().max() <= (6 / (256 + 480)) ** 0.5


def test_an_unfused_state_can_be_indexed_and_flattened_into_starts(dynamics):
    posterior, _ = observe(dynamics, window())
    starts = posterior.flatten().detach()
    assert isinstance(starts, State)
    assert dynamics.imagine(starts, torch.zeros(B * T, 2, A)).features.shape == (B * T, 2, Z + 2 * H)
