"""TargetNetwork follows from afar, and `frozen` keeps weights at rest while gradients pass."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from wmlightning.networks.mlp import MLP
from wmlightning.networks.target import TargetNetwork, frozen


def shift(network, by=1.0):
    with torch.no_grad():
        for weight in network.parameters():
            weight += by


def follow(target, network, updates):
    """First weights of the copy after each of so many updates, between which the network moves by 1."""
    start, seen = next(network.parameters()).clone(), []
    for update in range(updates):
        target.renew(network, update)
        seen.append((next(target.of(network).parameters()) - start).mean().item())
        shift(network)
    return seen


def made(**options):
    target, network = TargetNetwork(**options), MLP(3, 1, 1, 4)
    target.attach(network)
    return target, network


def test_it_copies_at_update_zero_and_then_every_so_many():
    target, network = made(every=3)
    assert follow(target, network, 7) == pytest.approx([0, 0, 0, 3, 3, 3, 6], abs=1e-5)


def test_it_begins_as_a_copy_even_before_its_first_update():
    target, network = made(every=100)
    inputs = torch.randn(5, 3)
    assert torch.equal(target.of(network)(inputs), network(inputs))


def test_a_share_moves_it_a_part_of_the_way_but_the_first_copy_is_whole():
    target, network = made(every=1, share=0.5)
    shift(network, 8.0)
    assert follow(target, network, 4) == pytest.approx([0.0, 0.5, 1.25, 2.125], abs=1e-5)


def test_a_copy_at_every_update_of_all_there_is_is_the_network_itself():
    target, network = made(every=1, share=1.0)
    assert target.of(network) is network
    assert not list(target.parameters())


def test_batches_that_share_an_update_renew_once():
    target, network = made(every=1, share=0.5)
    target.renew(network, 0)
    shift(network)
    for _ in range(3):
        target.renew(network, 1)
    there, here = (next(part.parameters()) for part in (target.of(network), network))
    assert_close(here - there, torch.full_like(here, 0.5))


def test_a_checkpoint_holds_the_copy_and_when_it_was_made():
    target, network = made(every=2)
    shift(network)
    target.renew(network, 4)
    again, _ = made(every=2)
    again.load_state_dict(target.state_dict())
    shift(network)
    again.renew(network, 4)
    assert_close(dict(again.named_parameters()), dict(target.named_parameters()))
    again.renew(network, 6)
    assert_close(next(again.of(network).parameters()), next(network.parameters()))


def test_it_asks_for_no_gradient_and_gives_none_to_the_network():
    target, network = made(every=2)
    inputs = torch.randn(2, 3, requires_grad=True)
    target.of(network)(inputs).sum().backward()
    assert inputs.grad is not None
    assert all(parameter.grad is None for part in (target, network) for parameter in part.parameters())


@pytest.mark.parametrize(
    ("options", "words"), [({"every": 0}, "at least 1"), ({"share": 0.0}, "above 0"), ({"share": 2.0}, "at most 1")]
)
def test_numbers_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TargetNetwork(**options)


def test_what_is_frozen_passes_gradients_on_and_takes_none():
    first, last, inputs = nn.Linear(3, 3), nn.Linear(3, 1), torch.randn(4, 3)
    last.bias.requires_grad_(False)
    with frozen(last):
        last(first(inputs)).sum().backward()
    assert first.weight.grad.abs().sum() > 0
    assert last.weight.grad is None
    assert last.weight.requires_grad, "and learns again afterwards"
    assert not last.bias.requires_grad, "but for what was at rest before"


def test_what_is_frozen_learns_again_after_an_error():
    layer = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="stop"), frozen(layer):
        raise RuntimeError("stop")
    assert layer.weight.requires_grad


def test_in_mixed_precision_the_gradients_of_what_is_not_frozen_stay_their_own():
    """Autocast keeps the half-precision copy of a weight, with the graph to it, for later products."""
    layer, inputs = nn.Linear(3, 3), torch.randn(4, 3)
    alone = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        alone(inputs).sum().backward()
        loss = layer(inputs).sum()
        with frozen(layer):
            other = layer(inputs).square().sum()
        assert not other.requires_grad
        (loss + other).backward()
    assert torch.equal(layer.weight.grad, alone.weight.grad)
