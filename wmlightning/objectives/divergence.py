"""Losses on the KL of posterior and prior: with free nats, or balanced between the two."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from wmlightning.distributions.latents import Latent
from wmlightning.recipes import Recorded
from wmlightning.validation import at_least


class KLLoss(Recorded, ABC):
    """A loss on the KL of posterior and prior (abstract)."""

    @abstractmethod
    def __call__(
        self,
        latent: Latent,
        posterior: Float[Tensor, "batch time params"],
        prior: Float[Tensor, "batch time params"],
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Returns the loss of every element and its plain KL(posterior || prior), both in nats, (B, T)."""


class FreeNatsKL(KLLoss):
    """A KL that is constant below some free nats, where it has no gradient.

        each element    loss = max(KL, free)                          KL summed over the latent, before any mean
        on the mean     loss = KL where mean(KL) > free, else free    the mean over batch and time, and over processes

    Args:
        free_nats: nats that are free, at least 0.
        per_element: clip every element (PlaNet, Dreamer V3), or the mean (the code of Dreamer V1 and V2).

    Source: PlaNet's code clips each element, as max(0, KL - free), which differs by a constant; Dreamer V1's code clips
    the mean. The papers do not say. Both have the value max(KL, free) here.
    """

    def __init__(self, free_nats: float = 3.0, per_element: bool = True) -> None:
        at_least(0, free_nats=free_nats)
        self.free_nats = free_nats
        self.per_element = per_element

    def __call__(
        self,
        latent: Latent,
        posterior: Float[Tensor, "batch time params"],
        prior: Float[Tensor, "batch time params"],
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """See `KLLoss`; gradients flow to both wherever the KL is not free."""
        nats = latent.kl(posterior, prior)
        if self.per_element:
            return nats.clamp(min=self.free_nats), nats
        return _free_on_the_mean(nats, self.free_nats), nats


class BalancedKL(KLLoss):
    """A KL that moves the prior more than the posterior, which should not be drawn to a poorly trained prior.

        loss = balance * KL(sg(posterior) || prior) + (1 - balance) * KL(posterior || sg(prior))

    Its value is the plain KL's, and so are its gradients except for their weights: `balance` for the prior's parameters
    and 1 - balance for the posterior's. Free nats are those on the mean of `FreeNatsKL`, of each half alone: as both
    halves have the same value, both are free or none is.

    Args:
        balance: the prior's share, in [0, 1].
        free_nats: nats that are free, at least 0.

    Raises:
        ValueError: for a number out of its range.

    Source: Hafner et al. 2021 (Dreamer V2), Algorithm 2, with balance 0.8; free nats as in their code, 0 for Atari and
    1 for the DeepMind Control Suite.
    """

    def __init__(self, balance: float = 0.8, free_nats: float = 0.0) -> None:
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is {balance} but is a share: give a number in [0, 1]")
        at_least(0, free_nats=free_nats)
        self.balance = balance
        self.free_nats = free_nats

    def __call__(
        self,
        latent: Latent,
        posterior: Float[Tensor, "batch time params"],
        prior: Float[Tensor, "batch time params"],
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """See `KLLoss`; gradients flow to both, weighted, and the plain KL is for logging and has none."""
        # One KL instead of two: each half is this KL with the gradient of the other argument stopped.
        nats = latent.kl(_scale_gradient(posterior, 1 - self.balance), _scale_gradient(prior, self.balance))
        return _free_on_the_mean(nats, self.free_nats) if self.free_nats else nats, nats.detach()


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.scale, None


def _scale_gradient(values: Tensor, scale: float) -> Tensor:
    """Returns the values unchanged; their gradient is multiplied by `scale`."""
    return _ScaleGradient.apply(values, scale)  # type: ignore[return-value]


def _free_on_the_mean(nats: Tensor, free: float) -> Tensor:
    """Returns the nats where their mean, over all processes, exceeds the free nats; else `free`, without a gradient."""
    mean = nats.detach().mean()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean = mean / distributed.get_world_size()
    return torch.where(mean > free, nats, free)
