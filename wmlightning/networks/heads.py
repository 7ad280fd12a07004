"""Heads of a world model: from features to the reward for arriving there, and to whether the episode goes on."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.nn import functional

from wmlightning.networks.activations import Activation
from wmlightning.networks.mlp import MLP
from wmlightning.recipes import Recorded


class RewardHead(MLP):
    """Dense layers that predict the reward as the mean of a unit Gaussian.

    Args:
        input_size: width of the features.
        layers: hidden layers, at least 0.
        units: width of a hidden layer.
        activation: "relu" (PlaNet) or "elu" (Dreamer).
        squash: "tanh" predicts tanh(reward), which Dreamer does where rewards have very different sizes (Atari). The
            prediction is then squashed wherever it is used; "none" keeps the environment's units.
    """

    def __init__(
        self,
        input_size: int,
        layers: int = 3,
        units: int = 300,
        activation: Activation = "relu",
        squash: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__(input_size, 1, layers, units, activation)
        self.squash = squash

    def distribution(self, features: Float[Tensor, "*batch features"]) -> Normal:
        """The distribution of the reward for arriving at features (..., F), squashed as it is learnt, (...)."""
        return Normal(self(features).float()[..., 0], 1.0, validate_args=False)

    def target(self, reward: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The environment's rewards as the head learns them."""
        return torch.tanh(reward) if self.squash == "tanh" else reward

    def nats(
        self, features: Float[Tensor, "*batch features"], reward: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """-ln p(reward | features), constant included, for rewards in the environment's units, (...)."""
        return -self.distribution(features).log_prob(self.target(reward))


class ContHead(Recorded, nn.Module):
    """Dense layers that predict the probability that the episode goes on; without layers it is always 1.

        target = label * cont,      cont = 1, or 0 where the episode ends by itself (a time limit does not count)

    A label below 1 includes the discount: the prediction is then used in the discount's place.

    Args:
        input_size: width of the features.
        layers: hidden layers; 0 for no head.
        units: width of a hidden layer.
        activation: "relu" or "elu".
        label: target of a step that goes on, above 0 and at most 1.

    Raises:
        ValueError: if label is out of its range, or given where there is no head to learn it.

    Source: Dreamer V1 and V2, whose code has a label of gamma; a Bernoulli's cross-entropy takes such soft labels.
    """

    def __init__(
        self,
        input_size: int,
        layers: int = 0,
        units: int = 400,
        activation: Activation = "relu",
        label: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < label <= 1:
            raise ValueError(f"cont_label is {label} but must be above 0 and at most 1: it is a probability")
        if label < 1 and not layers:
            raise ValueError(f"cont_label is {label} but there is no head to learn it: give cont_layers=4, or label 1")
        self.label = label
        self.mlp = MLP(input_size, 1, layers, units, activation) if layers else None

    def distribution(self, features: Float[Tensor, "*batch features"]) -> Bernoulli:
        """The distribution of cont, whether the episode goes on, at features (..., F), (...)."""
        if self.mlp is None:
            return Bernoulli(probs=torch.ones_like(features[..., 0]))
        return Bernoulli(logits=self.mlp(features).float()[..., 0], validate_args=False)

    def target(self, cont: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The targets of steps that go on (1) or do not (0)."""
        return self.label * cont

    def nats(
        self, features: Float[Tensor, "*batch features"], cont: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """The cross-entropy of targets and predictions, (...); needs layers."""
        assert self.mlp is not None
        logits = self.mlp(features).float()[..., 0]
        return functional.binary_cross_entropy_with_logits(logits, self.target(cont), reduction="none")
