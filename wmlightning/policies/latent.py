"""Acting by a controller on the latent state of a world model: V and M run once for all environments and candidates."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from wmlightning.interfaces import Carry
from wmlightning.policies.state_filter import StateFilter, padded_rows
from wmlightning.runtime import torch_threads

_ONE_THREAD_ROWS = 16
"""Up to so many rows act with one thread: there is too little work to share, and threads that synchronise wait long
where other processes use the cores."""


class LatentPolicy:
    """One controller, or a whole population of them, acting on the latent state of a world model.

        image ---> V ---> z ---+---> [z, h, c] ---> controller of that row ---> action
                               |         ^                                         |
                  next call:   +---> M --+-----------------------------------------+

    See `StateFilter`. M reads z and the action at the start of the next call, so that a controller sees the memory of
    earlier images and actions, and the z of the present image. Where `is_first` is set, the memory is zero. z is drawn
    from V's Gaussian with noise that depends on the row's seed and step alone. The decoder never runs.

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
        self.state_filter = StateFilter(model)

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows that all act by the first candidate; without seeds, row i has seed i."""
        return self.begin([0] * n, list(range(n)) if seeds is None else seeds)

    def begin(self, owners: list[int], seeds: list[int]) -> Carry:
        """Returns the carry of one row for each pair of a candidate's index and a seed."""
        return self.state_filter.initial(len(owners), seeds) | {"owner": torch.tensor(owners, dtype=torch.int64)}

    @torch.inference_mode()
    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments."""
        n = len(is_first)
        rows = padded_rows(n)
        with torch_threads(1 if len(rows) <= _ONE_THREAD_ROWS else torch.get_num_threads()):
            state, _ = self.state_filter.observe(observation, is_first, carry)
            owner = carry["owner"][rows].to(self.candidates.device)
            action = self.controller.act(self.candidates, state.features, owner)[:n]
            if self.discrete:
                action = functional.one_hot(action.argmax(-1), action.shape[-1]).to(action.dtype)
            return action.cpu().numpy(), self.state_filter.next_carry(carry, state[:n], action)
