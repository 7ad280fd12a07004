"""A contrastive loss, in the place of a decoder: states must identify their image among many."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from wmlightning.networks.activations import Activation
from wmlightning.networks.mlp import MLP
from wmlightning.recipes import Recorded
from wmlightning.validation import above


class Contrastive(Recorded, nn.Module):
    """Predicts a state from its image, and asks every state to fit its own image better than all others (InfoNCE).

        loss[i] = -ln q(s[i] | o[i]) + ln sum over j of q(s[i] | o[j])

    q is a diagonal Gaussian over the whole feature vector, from dense layers on the encoder's embed; o[j] are all
    images of the batch, those of other processes too, its own included. So it takes the place of the decoder's
    -ln p(o | s); it is at least 0, and ln(images) where states and images have nothing in common. Gradients reach
    encoder and state.

    Args:
        embed_size: width of the encoder's output; None takes that of the world model that it becomes part of.
        feature_size: width of a state's features, [stoch, deter]; None where embed_size is None.
        layers: hidden layers.
        units: their width.
        min_std: lower bound of the standard deviation, above 0.
        activation: of the dense layers.

    Raises:
        ValueError: if min_std is not above 0, or one size is given without the other.

    Source: Hafner et al. 2020 (Dreamer V1), equation 12, with the sum over images as printed there; sizes as in
    their first code (3 x 400 with ELU, std = softplus(raw + ln(e - 1)) + 0.01). That code sums over 300 shifted copies
    of the STATES for a fixed image instead; all pairs of a batch of 50 x 50 are two matrix products here.
    """

    def __init__(
        self,
        embed_size: int | None = None,
        feature_size: int | None = None,
        layers: int = 3,
        units: int = 400,
        min_std: float = 0.01,
        activation: Activation = "elu",
    ) -> None:
        super().__init__()
        above(0, min_std=min_std)
        self.min_std = min_std
        self.sizes = None
        self._layers: tuple[int, int, Activation] = (layers, units, activation)
        if embed_size is not None and feature_size is not None:
            self.build(embed_size, feature_size)
        elif embed_size is not feature_size:
            raise ValueError(f"embed_size is {embed_size} and feature_size {feature_size}: give both sizes or neither")

    def build(self, embed_size: int, feature_size: int) -> None:
        """Makes the layers, or checks the sizes if the layers exist.

        Args:
            embed_size: as of the class.
            feature_size: as of the class.

        Raises:
            ValueError: if they exist with other sizes.
        """
        if self.sizes is None:
            self.head = MLP(embed_size, 2 * feature_size, *self._layers)
            self.sizes = embed_size, feature_size
            # Recorded, so that the recipe builds it without a world model.
            vars(self)["_arguments"].update(embed_size=embed_size, feature_size=feature_size)
        if self.sizes != (embed_size, feature_size):
            raise ValueError(
                f"contrastive was made for embed_size and feature_size {self.sizes} but the world model has "
                f"{(embed_size, feature_size)}: give it these, or neither"
            )

    def mean_std(
        self, embeds: Float[Tensor, "*batch embed"]
    ) -> tuple[Float[Tensor, "*batch features"], Float[Tensor, "*batch features"]]:
        """Mean and standard deviation of q(s | o), float32."""
        mean, raw = self.head(embeds).float().chunk(2, -1)
        return mean, functional.softplus(raw + math.log(math.e - 1)) + self.min_std

    def forward(
        self, embeds: Float[Tensor, "batch time embed"], features: Float[Tensor, "batch time features"]
    ) -> Float[Tensor, "batch time"]:
        """The loss of every row of every window, in nats, (B, T).

        Args:
            embeds: the encoder's outputs for the images.
            features: those of the states of the same rows.
        """
        mean, std = (tensor.flatten(0, 1) for tensor in self.mean_std(embeds))
        log_probs = log_prob_of_pairs(features.flatten(0, 1).float(), _gather(mean), _gather(std))
        own = torch.arange(len(mean), device=mean.device) + len(mean) * _rank()
        return functional.cross_entropy(log_probs, own, reduction="none").unflatten(0, embeds.shape[:2])


def log_prob_of_pairs(
    values: Float[Tensor, "rows size"], mean: Float[Tensor, "others size"], std: Float[Tensor, "others size"]
) -> Float[Tensor, "rows others"]:
    """Returns ln of the density of every value under every diagonal Gaussian, (N, M).

    The square is multiplied out, which leaves two matrix products instead of an array of (N, M, size) numbers:

        ln N(x; m, s) = [x^2, x] . [-1 / 2 s^2, m / s^2] - sum(m^2 / 2 s^2 + ln s) - size / 2 ln 2 pi

    The mean of the values is subtracted first, so that the terms that cancel are small.
    """
    # Not in half precision: the terms that cancel are much larger than their sum.
    with torch.autocast(values.device.type, enabled=False):
        center = values.detach().mean(0)
        values = values - center
        mean = mean - center
        precision = std.square().reciprocal()
        pull = mean * precision
        rest = -(0.5 * mean * pull + std.log()).sum(-1) - 0.5 * math.log(2 * math.pi) * values.shape[1]
        return torch.cat([values.square(), values], 1) @ torch.cat([-0.5 * precision, pull], 1).T + rest


class _Gather(torch.autograd.Function):
    """Gathers the rows of all processes, by rank. The gradient of a row is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        return grad.chunk(distributed.get_world_size())[distributed.get_rank()]


def _gather(rows: Tensor) -> Tensor:
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return _Gather.apply(rows) if is_distributed else rows  # type: ignore[return-value]


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
