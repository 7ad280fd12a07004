"""Acting by planning in a world model, from the filtered state, anew at every decision."""

import numpy as np
import torch

from wmlightning.interfaces import Carry, LatentModel
from wmlightning.planners.cem import CEM
from wmlightning.policies.state_filter import StateFilter
from wmlightning.seeds import derive_seed


class PlanningPolicy:
    """Filters the state from images and executed actions, plans from it, and executes the plan's first action.

        image ---> filtered state ---> planner ---> (+ noise, clipped) ---> action

    See `StateFilter`. All random numbers of a row (the image's dequantisation, the latent, the planner's candidates and
    dreams, exploration) are functions of the row's seed and step.

    Args:
        model: the world model that is filtered and planned in; its weights are used as they are at each call.
        planner: searches for the best sequence of actions.
        exploration: standard deviation of Gaussian noise on the action, which is then clipped to [-1, 1]; 0 for none.

    Raises:
        ValueError: if exploration is negative.

    Source: PlaNet (Hafner et al. 2019), section 3 and Algorithm 1; their code (control/mpc_agent.py).
    """

    discrete = False

    def __init__(self, model: LatentModel, planner: CEM, exploration: float = 0.0) -> None:
        if exploration < 0:
            raise ValueError(f"exploration is {exploration} but is a standard deviation: give 0 or more")
        self.model, self.planner, self.exploration = model, planner, exploration
        self.state_filter = StateFilter(model, model.dynamics.action_size)

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows before their first image; without seeds, row i has seed i."""
        return self.state_filter.initial(n, seeds)

    @torch.inference_mode()
    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments."""
        n = len(is_first)
        padded_state, padded_noise = self.state_filter.observe(observation, is_first, carry)
        state, noise = padded_state[:n], padded_noise[:n]
        counters = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
        action = self.planner.plan(self.model, state, [derive_seed(*pair) for pair in counters])
        action = (action + self.exploration * noise).clamp(-1, 1)
        return action.cpu().numpy(), self.state_filter.next_carry(carry, state, action)
