"""One-hot vectors: categorical latents, and the straight-through gradient of a choice."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, Independent, OneHotCategorical

from wmlightning.distributions.latents import Latent

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1, the upper bound of uniform numbers."""


class CategoricalLatent(Latent):
    """Several groups of classes, one choice in each; a sample is their one-hot vectors side by side, flat.

        z = onehot + p - sg(p),        p = softmax(logits),        onehot ~ p

    So forward it is exactly the one-hot vector, and backward the gradient is that of the probabilities (straight
    through), at any temperature. Everything is computed in float32, under mixed precision too.

    Noise is one standard normal number for each group, as for every latent: the normal distribution function turns it
    into a uniform number, and the inverse of the classes' cumulative probabilities into a choice, so that a class of
    probability zero is never chosen.

    Args:
        groups: categorical variables.
        classes: values that each of them has, at least 2.

    Raises:
        ValueError: for fewer groups than 1 or fewer classes than 2.

    Source: Hafner et al. 2021 (Dreamer V2), Algorithm 1: 32 groups of 32 classes, neither tempered nor mixed with a
    uniform distribution.
    """

    def __init__(self, groups: int = 32, classes: int = 32) -> None:
        if groups < 1 or classes < 2:
            raise ValueError(f"groups is {groups} and classes {classes}, but at least 1 and 2 are needed")
        self.groups = groups
        self.classes = classes
        self.param_size = self.sample_size = groups * classes
        self.noise_size = groups

    def logits(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch groups classes"]:
        """Unnormalised log probabilities, float32, one row for each group."""
        return params.float().unflatten(-1, (self.groups, self.classes))

    def distribution(self, params: Float[Tensor, "*batch params"]) -> Distribution:
        """One-hot categoricals, one for each group, as one event of shape (groups, classes)."""
        return Independent(OneHotCategorical(logits=self.logits(params)), 1)

    def sample(
        self,
        params: Float[Tensor, "*batch params"],
        temperature: float = 1.0,
        noise: Float[Tensor, "*batch groups"] | None = None,
    ) -> Float[Tensor, "*batch params"]:
        """One-hot vectors, flat, drawn from softmax(logits / temperature); a temperature of 0 gives the mode."""
        if temperature == 0:
            return self.mode(params)
        logits = self.logits(params)
        return draw_one_hot(logits if temperature == 1 else logits / temperature, noise).flatten(-2)

    def mode(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch params"]:
        """The likeliest class of every group, one-hot and flat, with the straight-through gradient of a sample."""
        return likeliest_one_hot(self.logits(params)).flatten(-2)

    def kl(
        self, posterior: Float[Tensor, "*batch params"], prior: Float[Tensor, "*batch params"]
    ) -> Float[Tensor, "*batch"]:
        """KL(posterior || prior) in nats, summed over groups; gradients to both."""
        log_posterior, log_prior = (self.logits(params).log_softmax(-1) for params in (posterior, prior))
        return (log_posterior.exp() * (log_posterior - log_prior)).sum((-2, -1))

    def kl_to_standard(self, posterior: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch"]:
        """KL(posterior || uniform) in nats."""
        return self.groups * math.log(self.classes) - entropy(self.logits(posterior)).sum(-1)


def draw_one_hot(
    logits: Float[Tensor, "*batch classes"], noise: Float[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch classes"]:
    """Draws one-hot vectors from softmax(logits), with the straight-through gradient.

    Args:
        logits: unnormalised log probabilities, (..., K).
        noise: standard normal numbers, (...); None draws them.

    Returns:
        float32, (..., K): exactly one-hot forward, the gradient of the probabilities backward.
    """
    probabilities = logits.float().softmax(-1)
    noise = torch.randn_like(probabilities[..., 0]) if noise is None else noise.to(probabilities)
    with torch.no_grad():
        # Class k is chosen where uniform lies in [sum of the probabilities before k, that sum including k).
        # Scaled by the last sum, which rounding leaves a little off 1, so that a class is always found.
        above = probabilities.cumsum(-1)
        uniform = torch.special.ndtr(noise).clamp_(max=BELOW_ONE)[..., None] * above[..., -1:]
        chosen = torch.searchsorted(above, uniform, right=True)
        # With NaN logits no class is found: that should show in the loss, not as an index error.
        chosen.clamp_(max=logits.shape[-1] - 1)
    return _one_hot(probabilities, chosen)


def likeliest_one_hot(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
    """The likeliest class as a one-hot vector, float32, (..., K), with the straight-through gradient."""
    return _one_hot(logits.float().softmax(-1), logits.argmax(-1, keepdim=True))


def entropy(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """-sum p ln p of softmax(logits), in nats, (...)."""
    logs = logits.float().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def straight_through(value: Float[Tensor, "*shape"], source: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns `value`, bit for bit, and passes its gradient to `source`.

    The same as source + sg(value - source), but without its rounding error.
    """
    return _StraightThrough.apply(value, source) if source.requires_grad else value  # type: ignore[return-value]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def _one_hot(probabilities: Tensor, chosen: Tensor) -> Tensor:
    return straight_through(torch.zeros_like(probabilities).scatter_(-1, chosen, 1.0), probabilities)
