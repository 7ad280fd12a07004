"""Acting by the actor of a Dreamer on filtered states, and the decay of its exploration."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from wmlightning.distributions.bounded import ActionDistribution
from wmlightning.interfaces import Carry
from wmlightning.policies.state_filter import StateFilter
from wmlightning.recipes import Recorded
from wmlightning.validation import at_least


class LinearDecay(Recorded):
    """A schedule that changes linearly from one value to another and then stays constant.

        value(update) = start + (end - start) min(1, update / updates)

    Args:
        start: value at update 0.
        end: value from update `updates` on.
        updates: gradient steps from one to the other, at least 1.

    Raises:
        ValueError: if updates is below 1.
    """

    def __init__(self, start: float, end: float, updates: int) -> None:
        at_least(1, updates=updates)
        self.start, self.end, self.updates = start, end, updates

    def __call__(self, update: int) -> float:
        """Returns the value after `update` gradient steps."""
        return self.start + (self.end - self.start) * min(1.0, update / self.updates)


class ActorPolicy:
    """Filters the state from images and executed actions, and acts by one forward pass of the actor.

        image ---> filtered state ---> actor ---> sample or mode ---> (+ noise, clipped; or random choice) ---> action

    See `StateFilter`. All random numbers of a row (the image's dequantisation where there is any, the latent, the
    action, exploration) are functions of the row's seed and step. The next state is filtered with the executed action.

    Args:
        model: the world model; its weights, and the actor's, are used as they are at each call.
        actor: features (N, F) to the parameters of `distribution`.
        distribution: distribution of actions.
        sample: draw actions (to collect), or take the mode (to evaluate).
        exploration: standard deviation of Gaussian noise on continuous actions, then clipped to [-1, 1]; 0 for none.
        epsilon: probability that a discrete action is drawn uniformly instead; 0 for none.

    Raises:
        ValueError: if exploration or epsilon is out of its range or does not suit the kind of actions.

    Source: Hafner et al. 2020 and 2021 (Dreamer V1 and V2); epsilon is in V1's code and in neither paper.
    """

    def __init__(
        self,
        model: Any,
        actor: nn.Module,
        distribution: ActionDistribution,
        sample: bool,
        exploration: float = 0.0,
        epsilon: float = 0.0,
    ) -> None:
        check_exploration(distribution, exploration, epsilon)
        self.model, self.actor, self.distribution = model, actor, distribution
        self.sample, self.exploration, self.epsilon = sample, exploration, epsilon
        self.discrete = distribution.discrete
        action_size = model.dynamics.action_size
        self._action_noise_size = distribution.noise_size(action_size)
        # Continuous exploration takes a number for each dimension, discrete one whether to explore and which to choose.
        exploration_noise_size = 2 if self.discrete else action_size
        self.state_filter = StateFilter(model, self._action_noise_size + exploration_noise_size)

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows before their first image; without seeds, row i has seed i."""
        return self.state_filter.initial(n, seeds)

    @torch.inference_mode()
    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments."""
        n = len(is_first)
        state, noise = self.state_filter.observe(observation, is_first, carry)
        params = self.actor(state.features).float()
        if self.sample:
            action = self.distribution.sample(params, noise[:, : self._action_noise_size])
        else:
            action = self.distribution.mode(params)
        action = self._explore(action, noise[:, self._action_noise_size :])[:n]
        return action.cpu().numpy(), self.state_filter.next_carry(carry, state[:n], action)

    def _explore(self, action: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        if not self.discrete:
            return (action + self.exploration * noise).clamp(-1, 1)
        chance, choice = torch.special.ndtr(noise).unbind(1)
        size = action.shape[1]
        other = functional.one_hot((choice * size).long().clamp(max=size - 1), size).to(action)
        return torch.where(chance[:, None] < self.epsilon, other, action)


def check_exploration(distribution: ActionDistribution, exploration: float, epsilon: float) -> None:
    """Checks that an agent with such actions can explore this way.

    Raises:
        ValueError: as `ActorPolicy`.
    """
    kind = type(distribution).__name__
    if not exploration >= 0:
        raise ValueError(f"exploration is {exploration} but is a standard deviation: give 0 or more")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon} but is a probability: give a number in [0, 1]")
    if distribution.discrete and exploration:
        raise ValueError(
            f"exploration is noise on continuous actions, but {kind} gives one-hot ones: give epsilon, or, where the "
            "environment takes numbers, TanhNormal or TruncatedNormal as actor_critic.actor"
        )
    if not distribution.discrete and epsilon:
        raise ValueError(
            f"epsilon chooses among discrete actions, but {kind} gives continuous ones: give exploration, or, where "
            "the environment takes choices, OneHot as actor_critic.actor"
        )
