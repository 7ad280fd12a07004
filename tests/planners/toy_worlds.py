"""Worlds whose best plan is known, in which planners and policies are tested; and assertions about every policy."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from wmlightning.dynamics.state import State
from wmlightning.interfaces import Policy


class Certain:
    """A distribution whose mean is all one asks for."""

    def __init__(self, mean):
        self.mean = mean


class PointWorld:
    """A point in a box, moved by its actions, and a goal in `deter` that does not move.

        stoch' = stoch + step * action + wind * noise        reward = what `score(stoch, goal)` says

    `observe_step` adds the previous action and a tenth of the image's first pixels to the position, so that a filtered
    state shows which actions it was updated with. The encoder takes dequantisation noise as a WorldModel's does.

    Args:
        score: (position, goal) -> reward; by default minus the squared distance.
        cont: position -> probability of going on; by default 1.
        carry_on: how much of the old position is kept; 0 makes the new position the action alone.
    """

    def __init__(self, score=None, cont=None, size=2, step=1.0, carry_on=1.0, wind=0.0):
        self.score = score or (lambda x, goal: -(x - goal).square().sum(-1))
        self.going_on = cont or (lambda x: torch.ones(len(x)))
        self.size, self.step, self.carry_on, self.wind = size, step, carry_on, wind
        self.dynamics, self.seen, self.embeds = self, [], []
        self.action_size = self.deter_size = size

    def initial(self, n):
        return State(torch.zeros(n, self.size), torch.zeros(n, self.size), torch.zeros(n, 0))

    def at(self, position, goal=None):
        """A state at a position (N, A)."""
        position = torch.as_tensor(position, dtype=torch.float32)
        goal = torch.zeros_like(position) if goal is None else torch.as_tensor(goal, dtype=torch.float32)
        return State(goal, position, position[:, :0])

    def imagine_step(self, state, action, temperature=1.0, noise=None):
        self.seen.append(action)
        position = self.carry_on * state.stoch + self.step * action
        return State(state.deter, position if noise is None else position + self.wind * noise, state.params)

    def imagine_noise(self, rows, generator):
        return torch.randn(rows, self.size, generator=generator) if self.wind else None

    def encode(self, image, noise=None):
        self.embeds.append(noise)
        return image[..., 0, 0, : self.size].float() / 255

    def observe_step(self, state, action, embed, is_first, noise=None):
        action = action.masked_fill(is_first[:, None], 0.0)
        before = state.stoch.masked_fill(is_first[:, None], 0.0)
        posterior = State(state.deter, before + action + 0.1 * embed + self.wind * noise, state.params)
        return posterior, posterior

    def decode(self, features):
        raise AssertionError("planning decodes no images")

    def reward(self, features):
        return Certain(self.score(features[..., : self.size], features[..., self.size :]))

    def cont(self, features):
        return Certain(self.going_on(features[..., : self.size]))


def frames(rows, size=8, value=None):
    """Images (rows, size, size, 3), random or of one value a row."""
    image = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8)
    if value is not None:
        image[:] = torch.as_tensor(value, dtype=torch.uint8)[:, None, None, None]
    return {"image": image.numpy()}


def assert_is_a_policy(policy):
    """Asserts shapes, types and ranges of `Policy` for three rows, and returns their actions on first images (3, 2)."""
    assert isinstance(policy, Policy)
    action, carry = policy(frames(3, 64), np.ones(3, bool), policy.initial(3))
    assert action.shape == (3, 2)
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1
    assert all(len(value) == 3 for value in carry.values())
    assert carry["step"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="images are float32 but uint8 0..255 is wanted"):
        policy({"image": frames(3, 64)["image"].astype(np.float32)}, np.ones(3, bool), policy.initial(3))
    return action


def assert_filters_with_the_executed_action(policy):
    """In PointWorld state' = state + action + 0.1 * pixel, in which a clipped action counts as it was executed."""
    carry, state = policy.initial(1, [7]), torch.zeros(1, 2)
    for step in range(4):
        executed = carry["action"].clone()
        action, carry = policy(frames(1, value=[51 * step]), np.array([step == 0]), carry)
        state = state + executed + 0.1 * 0.2 * step
        assert_close(carry["stoch"], state)
        assert np.array_equal(carry["action"].numpy(), action)
        assert np.abs(action).max() <= 1
