"""What moves an actor: the return's own gradient, the probability of what was done, or both."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from wmlightning.objectives import ActorLoss, DynamicsBackprop, Mixed, Reinforce
from wmlightning.recipes import build_recipe, recipe_of

KINDS = [DynamicsBackprop(), Reinforce(), Mixed(0.3)]
LOG_PROB, RETURNS, VALUE = tensor([[-1.0, -2.0]]), tensor([[5.0, 3.0]]), tensor([[4.0, 7.0]])


def loss_and_slopes(kind):
    inputs = [given.clone().requires_grad_() for given in (LOG_PROB, RETURNS, VALUE)]
    loss = kind(*inputs)
    return loss, torch.autograd.grad(loss.sum(), inputs, materialize_grads=True)


def test_dynamics_backprop_is_the_return_with_the_sign_turned():
    loss, slopes = loss_and_slopes(DynamicsBackprop())
    assert_close(loss, tensor([[-5.0, -3.0]]))
    assert [slope.tolist() for slope in slopes] == [[[0.0, 0.0]], [[-1.0, -1.0]], [[0.0, 0.0]]]


def test_reinforce_weighs_the_probability_with_what_was_more_than_expected():
    loss, slopes = loss_and_slopes(Reinforce())
    assert_close(loss, tensor([[1.0, -8.0]]))
    # More than expected: likelier.  Less than expected: less likely.
    assert [slope.tolist() for slope in slopes] == [[[-1.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]]


def test_mixed_is_so_much_of_the_one_and_the_rest_of_the_other():
    loss, slopes = loss_and_slopes(Mixed(0.25))
    assert_close(loss, 0.25 * tensor([[1.0, -8.0]]) + 0.75 * tensor([[-5.0, -3.0]]))
    assert [slope.tolist() for slope in slopes] == [[[-0.25, 1.0]], [[-0.75, -0.75]], [[0.0, 0.0]]]


@pytest.mark.parametrize(("share", "other"), [(1.0, Reinforce()), (0.0, DynamicsBackprop())])
def test_mixed_at_its_ends_is_one_of_the_two(share, other):
    for one, two in zip(loss_and_slopes(Mixed(share)), loss_and_slopes(other), strict=True):
        assert_close(one, two)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_it_says_truly_whether_the_dream_must_keep_its_graph_and_whether_it_reads_the_value(kind):
    _, (log_prob, returns, _) = loss_and_slopes(kind)
    assert kind.through_dynamics == bool(returns.any())
    assert kind.needs_value == bool(log_prob.any())


def test_dynamics_backprop_reads_neither_probability_nor_value():
    assert_close(DynamicsBackprop()(None, RETURNS, None), -RETURNS)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"is a share: give a number in \[0, 1\]"):
        Mixed(share)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_a_recipe_builds_it_again(kind):
    again = build_recipe(recipe_of(kind))
    assert isinstance(again, ActorLoss)
    assert_close(again(LOG_PROB, RETURNS, VALUE), kind(LOG_PROB, RETURNS, VALUE))
