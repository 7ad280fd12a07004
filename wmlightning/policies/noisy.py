"""Exploration noise for agents without their own."""

import numpy as np

from wmlightning.interfaces import Carry, Policy
from wmlightning.policies.exploration import ExplorationPolicy


class NoisyPolicy:
    """Adds an exploration policy's actions to an agent's, clipped to [-1, 1].

        action = clip(agent(image) + noise)

    The last action in the agent's carry (`action`) is the executed one, so that the agent's next state is filtered with
    it. The noise of a row is a function of the row's seed and step, as the agent's own noise is.

    Args:
        agent: the policy that acts.
        noise: the policy whose actions are added, such as SmoothNoisePolicy with a small scale.

    Raises:
        ValueError: if the actions of either are one-hot, and so cannot be added.
    """

    def __init__(self, agent: Policy, noise: ExplorationPolicy) -> None:
        if noise.discrete or getattr(agent, "discrete", False):
            raise ValueError("noise is added to continuous actions only, and these are one-hot: leave noise out")
        self.agent, self.noise = agent, noise

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows, that of the noise under names with `noise_` in front."""
        noise_carry = self.noise.initial(n, seeds)
        return self.agent.initial(n, seeds) | {f"noise_{key}": value for key, value in noise_carry.items()}

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in every row."""
        noise_carry = {key.removeprefix("noise_"): value for key, value in carry.items() if key.startswith("noise_")}
        action, agent_carry = self.agent(observation, is_first, carry)
        noise, noise_carry = self.noise(observation, is_first, noise_carry)
        if noise.shape != action.shape:
            raise ValueError(
                f"noise has {noise.shape[1:]} numbers but the agent acts with {action.shape[1:]}: give it the same "
                "action_size"
            )
        action = np.clip(action + noise, -1, 1)
        if "action" in agent_carry:
            agent_carry = agent_carry | {"action": agent_carry["action"].new_tensor(action)}
        return action, agent_carry | {f"noise_{key}": value for key, value in noise_carry.items()}
