"""Acting by what was learnt in dreams: believe what the images say, and do what the actor does there."""

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
    """A number that goes linearly from one value to another and stays there.

    Args:
        start: its value at update 0.
        end: its value from `updates` on.
        updates: gradient steps that this takes, at least 1.

    Raises:
        ValueError: if updates is below 1.
    """

    def __init__(self, start: float, end: float, updates: int) -> None:
        at_least(1, updates=updates)
        self.start, self.end, self.updates = start, end, updates

    def __call__(self, update: int) -> float:
        """The value after so many gradient steps."""
        return self.start + (self.end - self.start) * min(1.0, update / self.updates)


class ActorPolicy:
    """Believes what images and executed actions say, and acts by one forward pass of the actor.

        image ---> belief ---> actor ---> sample, or mode ---> (+ noise, clipped; or a random choice) ---> action

    See `StateFilter`. Every number that a row draws (the image's dequantisation where there is any, the latent, the
    action, exploration) is a function of the row's seed and step. The filter is told the action that is executed.

    Args:
        model: the world to believe in; its weights, and the actor's, as they are at each call.
        actor: features (N, F) to the numbers that `distribution` reads.
        distribution: how they become actions.
        sample: draw actions (to collect), or take the likeliest one (to evaluate).
        exploration: standard deviation of Gaussian noise on continuous actions, then clipped to [-1, 1]; 0 for none.
        epsilon: probability that a discrete action is drawn uniformly instead; 0 for none.

    Raises:
        ValueError: if a number is out of its range, or is for the other kind of actions.

    Source: Hafner et al. 2020 and 2021 (Dreamer V1 and V2); the papers say nothing of epsilon, V1's code does.
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
        self.model, self.actor, self.distribution, self.sample = model, actor, distribution, sample
        self.discrete, self.exploration, self.epsilon = distribution.discrete, exploration, epsilon
        size = model.dynamics.action_size
        self._drawn = distribution.noise_size(size)
        # To explore with: a number for each of an action's, or whether to and which to choose.
        self.belief = StateFilter(model, self._drawn + (2 if self.discrete else size))

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """A fresh memory of n rows; without seeds, row i has seed i."""
        return self.belief.initial(n, seeds)

    @torch.inference_mode()
    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments."""
        n = len(is_first)
        belief, noise = self.belief.take_in(observation["image"], is_first, carry)
        params = self.actor(belief.features).float()
        if self.sample:
            action = self.distribution.sample(params, noise[:, : self._drawn])
        else:
            action = self.distribution.mode(params)
        action = self._explore(action, noise[:, self._drawn :])[:n]
        return action.cpu().numpy(), self.belief.keep(carry, belief[:n], action)

    def _explore(self, action: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        if not self.discrete:
            return (action + self.exploration * noise).clamp(-1, 1)
        chance, choice = torch.special.ndtr(noise).unbind(1)
        size = action.shape[1]
        other = functional.one_hot((choice * size).long().clamp(max=size - 1), size).to(action)
        return torch.where(chance[:, None] < self.epsilon, other, action)


def check_exploration(distribution: ActionDistribution, exploration: float, epsilon: float) -> None:
    """Makes sure that an agent can explore so.

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
