"""The three interfaces between world models, controllers and tools: `Policy`, `LatentModel` and `Agent`."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

Carry = dict[str, Tensor]
"""The memory of a policy between two calls: tensors whose first axis is the environment row."""


@runtime_checkable
class Policy(Protocol):
    """Chooses actions from observations, in n environments at once.

    Its memory, the carry, is passed in and returned and never kept inside, so that each row can be reset, copied and
    moved by itself.
    """

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns a fresh memory of n rows. The noise of a row depends only on its seed and its own step count."""
        ...

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Chooses one action in each of n environments.

        Args:
            observation: `{"image": uint8 (n, H, W, C)}`.
            is_first: bool (n,); where true, the row's memory is reset, except for its seed and step.
            carry: the memory that `initial` or the last call returned.

        Returns:
            Actions float32 (n, A) in [-1, 1] or one-hot, and the carry for the next call.
        """
        ...


@runtime_checkable
class LatentModel(Protocol):
    """A world model in which a controller can plan and dream."""

    dynamics: Any

    def encode(self, image: Tensor) -> Tensor:
        """Encodes uint8 images (..., H, W, C) as embeds (..., E)."""
        ...

    def decode(self, features: Tensor) -> Tensor:
        """Decodes features (..., F) to the mean image, float in [0, 1], (..., H, W, C)."""
        ...

    def reward(self, features: Tensor) -> Any:
        """Returns the distribution of the reward for arriving at these features; its `mean` is (...)."""
        ...

    def cont(self, features: Tensor) -> Any:
        """Returns the distribution of cont, whether the episode goes on; its `mean` is the probability, (...)."""
        ...


@runtime_checkable
class Agent(Protocol):
    """A trained model that has a policy, and so can collect and be evaluated."""

    def policy(self, explore: bool) -> Policy:
        """Returns the agent's policy, with or without exploration noise."""
        ...
