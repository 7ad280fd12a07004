"""Acting by planning: believe what the images say, imagine what could be done, do the best of it."""

import inspect

import numpy as np
import torch

from wmlightning.dynamics.state import State
from wmlightning.interfaces import Carry, LatentModel
from wmlightning.planners.cem import CEM
from wmlightning.policies.exploration import row_generator
from wmlightning.policies.latent import padded_rows, row_noise
from wmlightning.seeds import derive_seed


class PlanningPolicy:
    """Filters a belief from images and actions, and plans anew from it at every decision.

        image ---> encoder ---> belief ---> planner ---> (+ noise, clipped) ---> action
                                 ^  |                                              |
                                 |  +--- next call -+                              |
                                 +------------------+------------------------------+

    The belief is one posterior step an image, with the action that was really executed: after noise and clipping. Where
    `is_first` is set, belief and action begin at zero. Every number that a row draws (the image's dequantisation, the
    latent, the planner's candidates and dreams, exploration) is a function of the row's seed and step.

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
        self._dequantises = "noise" in inspect.signature(model.encode).parameters

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """A fresh memory of n rows; without seeds, row i has seed i."""
        with torch.no_grad():
            start = self.model.dynamics.initial(n)
        return {
            "seed": torch.tensor(list(range(n)) if seeds is None else seeds, dtype=torch.int64),
            "step": torch.zeros(n, dtype=torch.int64),
            "deter": start.deter,
            "stoch": start.stoch,
            "action": start.stoch.new_zeros(n, self.model.dynamics.action_size),
        }

    @torch.inference_mode()
    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments."""
        size = carry["stoch"].shape[1]
        seed, step = carry["seed"].numpy(), carry["step"].numpy()
        noise = torch.from_numpy(row_noise(seed, step, size + carry["action"].shape[1])).to(carry["stoch"])
        belief = self._believe(observation["image"], is_first, carry, noise[:, :size])
        seeds = [derive_seed(*counters) for counters in zip(seed.tolist(), step.tolist(), strict=True)]
        action = self.planner.plan(self.model, belief, seeds)
        action = (action + self.exploration * noise[:, size:]).clamp(-1, 1)
        kept = {"deter": belief.deter, "stoch": belief.stoch, "action": action}
        return action.cpu().numpy(), carry | kept | {"step": carry["step"] + 1}

    def _believe(self, image: np.ndarray, is_first: np.ndarray, carry: Carry, noise: torch.Tensor) -> State:
        """The posterior of n rows, taken in together with copies so that company does not change how they round."""
        n, device = len(is_first), carry["stoch"].device
        rows = padded_rows(n)
        here = rows.to(device)
        pixels = torch.from_numpy(image)[rows].to(device)
        if self._dequantises:
            # A stream of its own: seeds of rows are below 2**32.
            counters = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
            drawn = [row_generator(s + 2**32, t).random(image.shape[1:], np.float32) for s, t in counters]
            embed = self.model.encode(pixels, torch.from_numpy(np.stack(drawn))[rows].to(device))  # type: ignore[call-arg]
        else:
            embed = self.model.encode(pixels)
        before = State(carry["deter"][here], carry["stoch"][here], carry["stoch"][here, :0])
        flags = torch.from_numpy(np.asarray(is_first, bool))[rows].to(device)
        posterior, _ = self.model.dynamics.observe_step(before, carry["action"][here], embed, flags, noise[here])
        return posterior[:n]
