"""The LSTM: one bias, torch's numbers, and forgetting that is exact. The GRUs: by hand, one after another."""

import pytest
import torch
from torch.testing import assert_close

from wmlightning.networks import CELLS, GRU, LSTM, KerasGRU, LayerNormGRU


def test_it_has_one_bias_vector_only():
    assert sum(p.numel() for p in LSTM(35, 256).parameters()) == 4 * 256 * (35 + 256 + 1)


def test_the_forget_gate_starts_open_and_the_other_biases_at_zero():
    bias = LSTM(3, 4).bias
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def test_weights_start_within_the_joint_glorot_bound():
    cell = LSTM(20, 50)
    bound = (6 / (70 + 200)) ** 0.5
    for weight in (cell.input_weight, cell.hidden_weight):
        assert 0.95 * bound < weight.abs().max() <= bound


def run_steps(cell, inputs, hidden, cell_state, forget):
    outputs = []
    for t in range(inputs.shape[1]):
        hidden, cell_state = cell.step(cell.project(inputs[:, t]), hidden, cell_state)
        hidden, cell_state = (s.masked_fill(forget[:, t, None], 0.0) for s in (hidden, cell_state))
        outputs.append(hidden)
    return torch.stack(outputs, 1), hidden, cell_state


def test_one_step_is_that_of_torchs_own_cell():
    cell, torchs = LSTM(3, 4), torch.nn.LSTMCell(3, 4)
    with torch.no_grad():
        torchs.weight_ih.copy_(cell.input_weight)
        torchs.weight_hh.copy_(cell.hidden_weight)
        torchs.bias_ih.copy_(cell.bias)
        torchs.bias_hh.zero_()
    x, hidden, memory = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    assert_close(cell.step(cell.project(x), hidden, memory), torchs(x, (hidden, memory)))


@torch.no_grad()
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_without_gradients_is_the_same_bit_for_bit_and_leaves_its_arguments_alone(mixed):
    cell, x, memory = LSTM(3, 4), torch.randn(8, 3), torch.randn(8, 8)
    before = x.clone(), memory.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        expected = torch.cat(cell.step(cell.project(x), *memory.chunk(2, -1)), -1)
        got = cell.advance(x, memory)
    assert got.dtype == torch.float32
    assert_close(got, expected, rtol=0.0, atol=0.02 if mixed else 0.0)
    assert torch.equal(x, before[0])
    assert torch.equal(memory, before[1])


FORGETTING = {
    "never": [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    "at the start": [[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    "some in the middle": [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
    "in a row, and last": [[0, 1, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0]],
    "always": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("forget", FORGETTING.values(), ids=FORGETTING.keys())
def test_a_fused_window_is_many_steps(forget):
    cell, forget = LSTM(3, 4), torch.tensor(forget, dtype=torch.bool)
    start = torch.randn(2, 6, 3), torch.randn(2, 4), torch.randn(2, 4)
    assert_close(cell(*start, forget), run_steps(cell, *start, forget))


@pytest.mark.parametrize("forget", FORGETTING.values(), ids=FORGETTING.keys())
def test_a_fused_windows_gradient_is_that_of_many_steps(forget):
    cell, forget = LSTM(3, 4), torch.tensor(forget, dtype=torch.bool)
    start = [torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 3), (2, 4), (2, 4))]
    weight, ends = torch.randn(2, 6, 4), torch.randn(2, 2, 4)
    grads = []
    for outputs, hidden, memory in (cell(*start, forget), run_steps(cell, *start, forget)):
        loss = (outputs * weight).sum() + (hidden * ends[0]).sum() + (memory * ends[1]).sum()
        grads.append(torch.autograd.grad(loss, [*start, *cell.parameters()], allow_unused=True, materialize_grads=True))
    assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def gru_by_hand(cell, x, h):
    """The block cell as its formulas stand in the docstring, from the joint matrices."""
    size = cell.hidden_size
    w_g = torch.cat([cell.input_weight[: 2 * size], cell.gate_weight], 1)
    w_c = torch.cat([cell.input_weight[2 * size :], cell.candidate_weight], 1)
    r, u = torch.sigmoid(torch.cat([x, h], 1) @ w_g.T + cell.bias[: 2 * size]).chunk(2, 1)
    c = torch.tanh(torch.cat([x, r * h], 1) @ w_c.T + cell.bias[2 * size :])
    return u * h + (1 - u) * c


def test_the_gru_is_tensorflows_block_cell():
    cell, x, h = GRU(3, 4), torch.randn(5, 3), torch.randn(5, 4)
    torch.nn.init.normal_(cell.bias)
    assert_close(cell(x, h), gru_by_hand(cell, x, h))


def test_the_grus_reset_comes_before_the_product_unlike_torchs():
    """With the reset gate shut and the update gate open to what is new, nothing of h is left."""
    cell = GRU(3, 4)
    with torch.no_grad():
        cell.bias.copy_(torch.tensor([-100.0] * 8 + [0.0] * 4))
    x = torch.randn(5, 3)
    assert_close(cell(x, torch.randn(5, 4)), cell(x, torch.zeros(5, 4)))


def test_a_fresh_gru_remembers_its_gates_biases_are_1():
    assert GRU(3, 2).bias.tolist() == [1.0] * 4 + [0.0] * 2


def test_the_gru_counts_one_bias_a_gate_and_starts_within_the_joint_glorot_bounds():
    cell = GRU(200, 200)
    assert sum(p.numel() for p in cell.parameters()) == 3 * 200 * (200 + 200 + 1)
    gates, candidate = (6 / (400 + 400)) ** 0.5, (6 / (400 + 200)) ** 0.5
    for weight, bound in (
        (cell.input_weight[:400], gates),
        (cell.gate_weight, gates),
        (cell.input_weight[400:], candidate),
        (cell.candidate_weight, candidate),
    ):
        assert 0.95 * bound < weight.abs().max() <= bound


def test_kerass_gru_is_torchs_own():
    cell, torchs = KerasGRU(3, 4), torch.nn.GRUCell(3, 4)
    with torch.no_grad():
        for ours, weight, bias in (
            (cell.from_input, torchs.weight_ih, torchs.bias_ih),
            (cell.from_hidden, torchs.weight_hh, torchs.bias_hh),
        ):
            weight.copy_(ours.weight)
            bias.copy_(ours.bias.normal_())
    x, h = torch.randn(5, 3), torch.randn(5, 4)
    assert_close(cell(x, h), torchs(x, h))


def test_kerass_gru_counts_two_biases_a_gate_and_starts_with_orthogonal_weights_on_its_memory():
    cell = KerasGRU(200, 200)
    assert sum(p.numel() for p in cell.parameters()) == 3 * 200 * (200 + 200 + 2)
    assert_close(cell.from_hidden.weight.T @ cell.from_hidden.weight, torch.eye(200), rtol=0, atol=1e-5)
    bound = (6 / (200 + 600)) ** 0.5
    assert 0.95 * bound < cell.from_input.weight.abs().max() <= bound
    assert not torch.cat([cell.from_input.bias, cell.from_hidden.bias]).any()


def layer_norm_gru_by_hand(cell, x, h):
    """Dreamer V2's cell, from the joint matrix."""
    joint = torch.cat([cell.input_weight, cell.hidden_weight], 1)
    parts = torch.cat([x, h], 1) @ joint.T + cell.bias
    parts = (parts - parts.mean(1, keepdim=True)) / (parts.var(1, keepdim=True, correction=0) + 1e-3).sqrt()
    reset, candidate, update = (parts * cell.norm.weight + cell.norm.bias).split(cell.hidden_size, 1)
    update = torch.sigmoid(update - 1)
    return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * h


def test_the_layer_norm_gru_is_dreamer_v2s():
    cell, x, h = LayerNormGRU(3, 4), torch.randn(5, 3), torch.randn(5, 4)
    for vector in (cell.bias, cell.norm.weight, cell.norm.bias):
        torch.nn.init.normal_(vector)
    assert_close(cell(x, h), layer_norm_gru_by_hand(cell, x, h))


def test_a_layer_norm_gru_that_has_learnt_nothing_lets_in_a_quarter_of_what_is_new():
    """All weights 0: normalised zeros, so the candidate is 0 and h shrinks by sigmoid(-1) = 0.2689."""
    cell, h = LayerNormGRU(3, 4), torch.randn(5, 4)
    for weight in (cell.input_weight, cell.hidden_weight):
        torch.nn.init.zeros_(weight)
    assert_close(cell(torch.randn(5, 3), h), (1 - 0.26894) * h, rtol=1e-4, atol=0)


def test_the_layer_norm_gru_counts_one_bias_and_one_norm_over_all_gates():
    cell = LayerNormGRU(600, 600)
    assert sum(p.numel() for p in cell.parameters()) == 1800 * 1200 + 1800 + 2 * 1800
    bound = (6 / (1200 + 1800)) ** 0.5
    for weight in (cell.input_weight, cell.hidden_weight):
        assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("name", CELLS)
def test_a_memory_stays_float32_under_mixed_precision(name):
    cell, x, h = CELLS[name](3, 4), torch.randn(5, 3), torch.randn(5, 4)
    expected = cell(x, h)
    with torch.autocast("cpu", torch.bfloat16):
        got = cell(x.bfloat16(), h)
    assert got.dtype == torch.float32
    assert_close(got, expected, rtol=0, atol=0.05)
