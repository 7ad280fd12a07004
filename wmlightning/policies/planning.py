"""Acting by planning: believe what the images say, imagine what could be done, do the best of it."""

import numpy as np
import torch

from wmlightning.interfaces import Carry, LatentModel
from wmlightning.planners.cem import CEM
from wmlightning.policies.state_filter import StateFilter
from wmlightning.seeds import derive_seed


class PlanningPolicy:
    """Believes what images and executed actions say, and plans anew from it at every decision.

        image ---> belief ---> planner ---> (+ noise, clipped) ---> action

    See `StateFilter`. Every number that a row draws (the image's dequantisation, the latent, the planner's candidates
    and dreams, exploration) is a function of the row's seed and step.

    Args:
        model: the world to believe in and to imagine; its weights as they are at each call.
        planner: what searches for a plan.
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
        self.belief = StateFilter(model, model.dynamics.action_size)

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
        belief, noise = belief[:n], noise[:n]
        counters = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
        action = self.planner.plan(self.model, belief, [derive_seed(*pair) for pair in counters])
        action = (action + self.exploration * noise).clamp(-1, 1)
        return action.cpu().numpy(), self.belief.keep(carry, belief, action)
