"""How far a posterior may go from its prior, and what that costs."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from wmlightning.distributions.latents import Latent
from wmlightning.recipes import Recorded


class KLLoss(Recorded, ABC):
    """What the KL of posterior and prior costs (abstract)."""

    @abstractmethod
    def __call__(
        self,
        latent: Latent,
        posterior: Float[Tensor, "batch time params"],
        prior: Float[Tensor, "batch time params"],
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """The loss of every element and its plain KL(posterior || prior), both in nats, (B, T)."""


class FreeNatsKL(KLLoss):
    """A KL that costs nothing extra below some nats: there it is good enough and has no gradient.

        each element    loss = max(KL, free)                          KL summed over the latent, before any mean
        on the mean     loss = KL where mean(KL) > free, else free    the mean over batch and time, and over processes

    Args:
        free_nats: nats that are free, at least 0.
        per_element: clip every element (PlaNet, Dreamer V3), or the mean (the code of Dreamer V1 and V2).

    Source: PlaNet's code clips each element, as max(0, KL - free), which differs by a constant; Dreamer V1's code clips
    the mean. The papers do not say. Both have the value max(KL, free) here.
    """

    def __init__(self, free_nats: float = 3.0, per_element: bool = True) -> None:
        if free_nats < 0:
            raise ValueError(f"free_nats is {free_nats} but must be at least 0: no KL is below that")
        self.free_nats, self.per_element = free_nats, per_element

    def __call__(
        self,
        latent: Latent,
        posterior: Float[Tensor, "batch time params"],
        prior: Float[Tensor, "batch time params"],
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Gradients flow to both, where they flow."""
        nats = latent.kl(posterior, prior)
        if self.per_element:
            return nats.clamp(min=self.free_nats), nats
        return torch.where(_mean_over_ranks(nats) > self.free_nats, nats, self.free_nats), nats


def _mean_over_ranks(values: Tensor) -> Tensor:
    mean = values.detach().mean()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean = mean / distributed.get_world_size()
    return mean
