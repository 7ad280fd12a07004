"""Acting on what a world model knows: V and M once for all environments, one controller or many."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from wmlightning.dynamics.state import State
from wmlightning.interfaces import Carry
from wmlightning.policies.state_filter import padded_rows, row_noise
from wmlightning.runtime import torch_threads

_FEW = 16
"""Up to so many rows act with one thread: there is little to share out, and threads that wait for one another wait very
long where other work has taken a core."""


class LatentPolicy:
    """One controller, or a whole population, acting on the latent state of a world model.

        image ---> V ---> z ---+---> [z, h, c] ---> controller of that row ---> action
                               |         ^                                         |
                  next call:   +---> M --+-----------------------------------------+

    M consumes z and the action at the next call, before anything else; so a controller sees a memory that has taken in
    images up to the last one and never its own action. Where `is_first` is set, the memory is zero. z is drawn from V's
    Gaussian with noise that depends on the row's seed and step alone. The decoder is never run.

    Args:
        model: a `LatentModel` whose dynamics have `observe_step(state, action, embed, is_first, noise)`.
        controller: has `act(candidates, features, owner) -> actions`, see `networks.controller.Controller`.
        candidates: parameter vectors, float32 (P, n), on the model's device.
        discrete: give one-hot actions, the largest output's, instead of the outputs themselves.

    Source: Ha and Schmidhuber 2018, section 2.4.
    """

    def __init__(
        self, model: Any, controller: Any, candidates: Float[Tensor, "population size"], discrete: bool = False
    ) -> None:
        self.model, self.controller, self.discrete = model, controller, discrete
        self.candidates = candidates.detach()

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """A fresh memory of n rows, all acting by the first candidate; without seeds, row i has seed i."""
        return self.begin([0] * n, list(range(n)) if seeds is None else seeds)

    def begin(self, owners: list[int], seeds: list[int]) -> Carry:
        """A fresh memory of one row for each (candidate, seed)."""
        n = len(owners)
        with torch.no_grad():
            start = self.model.dynamics.initial(n)
        return {
            "seed": torch.tensor(seeds, dtype=torch.int64),
            "step": torch.zeros(n, dtype=torch.int64),
            "owner": torch.tensor(owners, dtype=torch.int64),
            "deter": start.deter,
            "stoch": start.stoch,
            "action": torch.zeros(n, self.model.dynamics.action_size, device=start.deter.device),
        }

    @torch.inference_mode()
    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments."""
        rows = padded_rows(len(is_first))
        with torch_threads(1 if len(rows) <= _FEW else torch.get_num_threads()):
            return self._act(observation, is_first, carry, rows)

    def _act(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry, rows: Tensor
    ) -> tuple[np.ndarray, Carry]:
        n, device = len(is_first), self.candidates.device
        padded = {key: value[rows.to(value.device)] for key, value in carry.items()}
        image = torch.from_numpy(observation["image"])[rows].to(device)
        noise = row_noise(padded["seed"].numpy(), padded["step"].numpy(), padded["stoch"].shape[1])

        embed = self.model.encode(image)
        before = State(padded["deter"], padded["stoch"], padded["stoch"][:, :0])
        flags = torch.from_numpy(np.asarray(is_first, bool))[rows].to(device)
        state, _ = self.model.dynamics.observe_step(
            before, padded["action"], embed, flags, noise=torch.from_numpy(noise).to(embed)
        )
        action = self.controller.act(self.candidates, state.features, padded["owner"].to(device))
        if self.discrete:
            action = functional.one_hot(action.argmax(-1), action.shape[-1]).to(action.dtype)

        kept = {"deter": state.deter[:n], "stoch": state.stoch[:n], "action": action[:n]}
        return action[:n].cpu().numpy(), carry | kept | {"step": carry["step"] + 1}
