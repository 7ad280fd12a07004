"""Dense layers: how many, how they start, and that a joint layer can be computed in shares."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from wmlightning.networks import MLP
from wmlightning.networks.mlp import joint_linears, split_glorot


def test_planets_reward_head_has_so_many_parameters():
    assert sum(p.numel() for p in MLP(230, 1, 3, 300).parameters()) == 250_201


@pytest.mark.parametrize(
    ("inputs", "outputs", "layers", "expected"),
    [
        pytest.param(230, 1, 2, 253_201, id="V1 reward"),
        pytest.param(230, 1, 3, 413_601, id="V1 value"),
        pytest.param(230, 12, 4, 578_412, id="V1 actor, 6 actions"),
        pytest.param(1624, 1, 4, 1_131_601, id="V2 reward, discount and critic"),
        pytest.param(1624, 18, 4, 1_138_418, id="V2 actor, 18 actions"),
    ],
)
def test_heads_of_both_dreamers_have_the_published_numbers_of_parameters(inputs, outputs, layers, expected):
    assert sum(p.numel() for p in MLP(inputs, outputs, layers, 400, "elu").parameters()) == expected


def test_an_activation_follows_every_layer_but_the_last():
    kinds = [type(layer) for layer in MLP(4, 2, 2, 3).layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in MLP(4, 2, 0).layers] == [nn.Linear]
    assert isinstance(MLP(4, 2, activation="elu").layers[1], nn.ELU)


def test_overwriting_what_a_layer_made_leaves_the_input_and_the_gradients_as_they_are():
    mlp, x = MLP(4, 2, 2, 3, "elu"), torch.randn(5, 4, requires_grad=True)
    before, plain = x.detach().clone(), x
    for layer in mlp.layers:
        plain = nn.functional.elu(plain) if isinstance(layer, nn.ELU) else layer(plain)
    grads = [torch.autograd.grad(y.square().sum(), [x, *mlp.parameters()]) for y in (mlp(x), plain)]
    assert_close(*grads)
    assert torch.equal(x, before)


def test_weights_start_glorot_uniform_with_zero_biases():
    mlp = MLP(100, 50, 1, 200)
    bound = (6 / 300) ** 0.5
    assert 0.95 * bound < mlp.layers[0].weight.abs().max() <= bound
    assert mlp.last.bias.abs().max() == 0


def test_a_joint_layer_is_one_layer_over_its_inputs_side_by_side():
    one, two = joint_linears([3, 4], 5)
    x, y = torch.randn(2, 3), torch.randn(2, 4)
    nn.init.normal_(two.bias)
    whole = nn.functional.linear(torch.cat([x, y], -1), torch.cat([one.weight, two.weight], 1), two.bias)
    assert_close(one(x) + two(y), whole)
    assert one.bias is None


def test_a_joint_layer_starts_within_the_joint_glorot_bound():
    bound = (6 / (30 + 60 + 200)) ** 0.5
    for layer in joint_linears([30, 60], 200):
        assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_layers_that_are_stored_as_one_start_each_within_its_own_bound():
    layer = nn.Linear(200, 60)
    split_glorot(layer, 2)
    bound = (6 / 230) ** 0.5
    for half in layer.weight.chunk(2):
        assert 0.95 * bound < half.abs().max() <= bound
