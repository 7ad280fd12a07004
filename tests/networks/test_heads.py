"""RewardHead and ContHead: what they predict, and what they learn from."""

import math

import pytest
import torch
from torch.testing import assert_close

from wmlightning.networks.heads import ContHead, RewardHead


def test_a_reward_is_the_mean_of_a_unit_gaussian():
    head, features, reward = RewardHead(5, 1, 8), torch.randn(2, 3, 5), torch.randn(2, 3)
    mean = head(features)[..., 0]
    assert_close(head.distribution(features).mean, mean)
    assert_close(head.nats(features, reward), 0.5 * (mean - reward) ** 2 + 0.5 * math.log(2 * math.pi))


def test_rewards_are_squashed_where_they_are_learnt_and_so_is_what_is_predicted():
    plain, squashed, features = RewardHead(5, 1, 8), RewardHead(5, 1, 8, squash="tanh"), torch.randn(7, 5)
    squashed.load_state_dict(plain.state_dict())
    reward = 100 * torch.randn(7)
    assert_close(squashed.nats(features, reward), plain.nats(features, reward.tanh()))
    assert_close(squashed.distribution(features).mean, plain.distribution(features).mean)


def test_without_a_head_an_episode_goes_on_for_certain():
    head = ContHead(5)
    assert not list(head.parameters())
    assert head.distribution(torch.randn(2, 3, 5)).mean.tolist() == [[1.0] * 3] * 2
    assert head.target(torch.tensor([1.0, 0.0])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("label", [1.0, 0.9])
def test_a_label_is_learnt_as_it_stands_and_an_end_as_zero(label):
    """The cross-entropy with a soft label is least where the probability is the label."""
    head, features = ContHead(2, 1, 8, label=label), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    cont, optimizer = torch.tensor([1.0, 0.0]), torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        head.nats(features, cont).sum().backward()
        optimizer.step()
    assert_close(head.distribution(features).mean, torch.tensor([label, 0.0]), atol=0.01, rtol=0)


def test_the_cross_entropy_on_paper():
    head, features, cont = ContHead(3, 1, 4, label=0.9), torch.randn(4, 3), torch.tensor([1.0, 1.0, 0.0, 1.0])
    p, target = head.distribution(features).mean, 0.9 * cont
    assert_close(head.nats(features, cont), -(target * p.log() + (1 - target) * (1 - p).log()))


@pytest.mark.parametrize(
    ("layers", "label", "words"), [(1, 1.5, "at most 1"), (1, 0.0, "above 0"), (0, 0.9, "no head")]
)
def test_a_label_that_no_head_can_learn_is_refused(layers, label, words):
    with pytest.raises(ValueError, match=words):
        ContHead(3, layers, label=label)
