"""The latent state of a world model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class State:
    """A latent state, or a whole batch of them; leading axes are free, e.g. (N,), (B, T) or (N, H).

    Args:
        deter: the deterministic part, carried by a cell (MDN-RNN: [h, c] side by side), (..., D); width 0 if missing.
        stoch: the sampled part, always flat, (..., S).
        params: parameters of the distribution `stoch` was drawn from; only the latent reads them, (..., P).
    """

    deter: Tensor
    stoch: Tensor
    params: Tensor

    @cached_property
    def features(self) -> Tensor:
        """The input of every head and controller: [stoch, deter], (..., S + D)."""
        return torch.cat([self.stoch, self.deter], -1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """Returns the state with `function` applied to each tensor."""
        return State(function(self.deter), function(self.stoch), function(self.params))

    def detach(self) -> "State":
        """Returns the state without its gradient graph."""
        return self.map(Tensor.detach)

    def flatten(self) -> "State":
        """Flattens (B, T, .) to (B * T, .): every replayed state becomes one start."""
        return self.map(lambda tensor: tensor.flatten(0, -2))

    def __getitem__(self, index: object) -> "State":
        return self.map(lambda tensor: tensor[index])  # type: ignore[index]


def stack_states(states: list[State], dim: int) -> State:
    """Joins one-step states along a new axis."""
    return State(*(torch.stack([getattr(s, name) for s in states], dim) for name in ("deter", "stoch", "params")))
