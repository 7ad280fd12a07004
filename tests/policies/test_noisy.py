"""Noise on top of an agent: clipped, remembered as what was really done, and named by the row alone."""

import numpy as np
import pytest
import torch

from wmlightning.policies.exploration import ConstantPolicy, SmoothNoisePolicy
from wmlightning.policies.noisy import NoisyPolicy

IMAGE = {"image": np.zeros((3, 8, 8, 3), np.uint8)}


class Remembers(ConstantPolicy):
    """Keeps its last action, as a policy with a memory does."""

    def initial(self, n, seeds=None):
        return super().initial(n, seeds) | {"action": torch.zeros(n, len(self.action))}

    def act(self, observation, is_first, carry, generators):
        action, _ = super().act(observation, is_first, carry, generators)
        return action, {"action": torch.from_numpy(action)}


def play(policy, steps=4, n=3, seeds=(5, 6, 7)):
    carry, actions = policy.initial(n, list(seeds)[:n]), []
    for step in range(steps):
        action, carry = policy({"image": IMAGE["image"][:n]}, np.full(n, step == 0), carry)
        actions.append(action)
    return np.stack(actions, 1), carry


def test_the_sum_is_clipped_and_what_was_done_is_remembered():
    noise = SmoothNoisePolicy(2, scale=0.5)
    actions, carry = play(NoisyPolicy(Remembers([0.9, 0.0]), noise))
    alone, _ = play(noise)
    np.testing.assert_allclose(actions, np.clip(alone + np.float32([0.9, 0.0]), -1, 1), atol=1e-6)
    np.testing.assert_array_equal(carry["action"].numpy(), actions[:, -1])


def test_a_rows_noise_does_not_depend_on_the_other_rows():
    policy = NoisyPolicy(Remembers([0.0, 0.0]), SmoothNoisePolicy(2))
    np.testing.assert_array_equal(play(policy)[0][:1], play(policy, n=1)[0])


def test_choices_cannot_be_disturbed_by_a_sum():
    with pytest.raises(ValueError, match="one-hot"):
        NoisyPolicy(ConstantPolicy([0.0, 1.0]), SmoothNoisePolicy(2, discrete=True))


def test_noise_of_another_size_is_refused():
    with pytest.raises(ValueError, match="same action_size"):
        play(NoisyPolicy(ConstantPolicy([0.0, 1.0]), SmoothNoisePolicy(3)))
