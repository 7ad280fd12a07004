"""Exploring with an agent that does not explore by itself: its actions, and noise on top."""

import numpy as np

from wmlightning.interfaces import Carry, Policy
from wmlightning.policies.exploration import ExplorationPolicy


class NoisyPolicy:
    """An agent's actions with another policy's added, clipped to [-1, 1].

        action = clip(agent(image) + noise)

    What the agent remembers as its last action (`action` in its carry) is what was really done, so that a memory that
    is fed with it stays true. The noise of a row is a function of the row's seed and step, as the agent's own is.

    Args:
        agent: how to act.
        noise: what is added, such as SmoothNoisePolicy with a small scale.

    Raises:
        ValueError: where the noise is one-hot: a choice cannot be disturbed by a sum.
    """

    def __init__(self, agent: Policy, noise: ExplorationPolicy) -> None:
        if noise.discrete or getattr(agent, "discrete", False):
            raise ValueError("noise is added to continuous actions only, and these are one-hot: leave noise out")
        self.agent, self.noise = agent, noise

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Fresh rows of both."""
        own = self.noise.initial(n, seeds)
        return self.agent.initial(n, seeds) | {f"noise_{key}": value for key, value in own.items()}

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in every row."""
        own = {key.removeprefix("noise_"): value for key, value in carry.items() if key.startswith("noise_")}
        action, kept = self.agent(observation, is_first, carry)
        extra, own = self.noise(observation, is_first, own)
        if extra.shape != action.shape:
            raise ValueError(
                f"noise has {extra.shape[1:]} numbers but the agent acts with {action.shape[1:]}: give it the same "
                "action_size"
            )
        action = np.clip(action + extra, -1, 1)
        if "action" in kept:
            kept = kept | {"action": kept["action"].new_tensor(action)}
        return action, kept | {f"noise_{key}": value for key, value in own.items()}
