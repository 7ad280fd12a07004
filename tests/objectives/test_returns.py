"""Returns of dreams: the published numbers, the sum that the paper prints, and what happens after an end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from wmlightning.objectives import discount_weights, lambda_return

REWARD, VALUE = tensor([[1.0, 2.0, 3.0]]), tensor([[10.0, 20.0, 30.0, 40.0]])


@pytest.mark.parametrize(
    ("discount", "returns"),
    [([0.9, 0.9, 0.9], [24.8725, 33.05, 39.0]), ([0.9, 0.0, 0.9], [10.9, 2.0, 39.0])],
    ids=["going on", "an end at the second state"],
)
def test_lambda_return_has_the_published_numbers(discount, returns):
    assert_close(lambda_return(REWARD, VALUE, tensor([discount]), 0.5), tensor([returns]))


@pytest.mark.parametrize(("lambda_", "expected"), [(0.0, [[1.5, 4.0]]), (1.0, [[3.0, 4.0]])])
def test_lambda_return_on_paper(lambda_, expected):  # r = 1, 2   v = -, 1, 4   d = 1/2, 1/2
    got = lambda_return(tensor([[1.0, 2.0]]), tensor([[9.0, 1.0, 4.0]]), tensor([[0.5, 0.5]]), lambda_)
    assert_close(got, tensor(expected))


def weighted_sum(reward, value, discount, lambda_):
    """The returns as Dreamer V1 prints them: n-step returns of one dream, each with its weight."""
    horizon, found = len(reward), []
    for t in range(horizon):
        total, steps = 0.0, horizon - t
        for n in range(1, steps + 1):
            n_step, left = 0.0, 1.0
            for k in range(t, t + n):
                n_step += left * reward[k]
                left *= discount[k]
            n_step += left * value[t + n]
            total += (lambda_ ** (n - 1)) * (1.0 if n == steps else 1 - lambda_) * n_step
        found.append(total)
    return found


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 3), horizon=st.integers(1, 6), lambda_=st.floats(0, 1), seed=st.integers(0, 99))
def test_lambda_return_is_the_weighted_sum_of_all_n_step_returns(rows, horizon, lambda_, seed):
    draw = torch.Generator().manual_seed(seed)
    reward, discount = (torch.rand(rows, horizon, generator=draw, dtype=torch.float64) for _ in range(2))
    value = torch.randn(rows, horizon + 1, generator=draw, dtype=torch.float64)
    expected = [
        weighted_sum(*row, lambda_) for row in zip(reward.tolist(), value.tolist(), discount.tolist(), strict=True)
    ]
    assert_close(lambda_return(reward, value, discount, lambda_), tensor(expected, dtype=torch.float64))


def test_without_values_and_discount_it_is_the_sum_of_rewards_to_the_horizon():
    got = lambda_return(REWARD, torch.zeros(1, 4), torch.ones(1, 3), 1.0)
    assert_close(got, tensor([[6.0, 5.0, 3.0]]))


def test_gradients_flow_to_rewards_values_and_discounts_but_not_to_the_value_of_the_first_state():
    inputs = [torch.rand(2, 4), torch.rand(2, 5), torch.rand(2, 4)]
    reward, value, discount = (given.requires_grad_() for given in inputs)
    moved = torch.autograd.grad(lambda_return(reward, value, discount).sum(), (reward, value, discount))
    assert moved[0].min() > 0
    assert moved[1][:, 0].abs().max() == 0
    assert moved[1][:, 1:].min() > 0
    assert moved[2].min() > 0


def test_its_gradient_is_the_one_of_finite_differences():
    inputs = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 4), (2, 3))]
    assert torch.autograd.gradcheck(lambda_return, inputs)


def test_weights_have_the_published_numbers():
    assert_close(discount_weights(tensor([[0.9, 0.0, 0.9, 0.9]])), tensor([[1.0, 0.9, 0.0, 0.0]]))


def test_the_first_state_counts_whole_whatever_its_own_discount():
    """A start that is terminal counts itself, and what is dreamt after it does not."""
    assert discount_weights(tensor([[0.0, 0.9, 0.9]])).tolist() == [[1.0, 0.0, 0.0]]


def test_weights_are_detached():
    assert not discount_weights(torch.rand(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("states", [3, 5])
def test_values_that_are_not_one_longer_are_refused_with_the_cure(states):
    with pytest.raises(ValueError, match="one more is needed: pass the critic's value of the last dreamt state too"):
        lambda_return(REWARD, torch.zeros(1, states), torch.ones(1, 3))


@pytest.mark.parametrize("lambda_", [-0.1, 1.1])
def test_a_lambda_out_of_range_is_refused(lambda_):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        lambda_return(REWARD, VALUE, torch.ones(1, 3), lambda_)
