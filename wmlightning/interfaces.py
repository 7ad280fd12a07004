"""The three promises on which world models, controllers and tools meet."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

Carry = dict[str, Tensor]
"""What a policy remembers between two calls: tensors whose first axis is the environment row."""


@runtime_checkable
class Policy(Protocol):
    """How one acts. State is passed in and out, never hidden, so rows can be reset, copied and moved alone."""

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """A fresh memory of n rows. A row's noise depends on its seed and its own step count alone."""
        ...

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in n environments.

        Args:
            observation: `{"image": uint8 (n, H, W, C)}`.
            is_first: bool (n,); a true row forgets all but its seed and step.
            carry: what `initial` or the last call returned.

        Returns:
            Actions float32 (n, A) in [-1, 1] or one-hot, and the carry for the next call.
        """
        ...


@runtime_checkable
class LatentModel(Protocol):
    """A world one can dream in, whatever it is made of."""

    dynamics: Any

    def encode(self, image: Tensor) -> Tensor:
        """uint8 images (..., H, W, C) to embeds (..., E)."""
        ...

    def decode(self, features: Tensor) -> Tensor:
        """Features (..., F) to the mean image, float in [0, 1], (..., H, W, C)."""
        ...

    def reward(self, features: Tensor) -> Any:
        """A distribution over the reward for arriving at these features; its `mean` is (...)."""
        ...

    def cont(self, features: Tensor) -> Any:
        """A distribution over going on; its `mean` is the probability, (...)."""
        ...


@runtime_checkable
class Agent(Protocol):
    """Anything that can be evaluated."""

    def policy(self, explore: bool) -> Policy:
        """The agent's way to act, with or without exploration noise."""
        ...
