"""Latents: from parameters to distributions and samples of a stochastic state, and the KL of two of them."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional

from wmlightning.recipes import Recorded


class Latent(Recorded, ABC):
    """The kind of distribution of a stochastic state (abstract). It has no weights: networks output its parameters.

    Attributes:
        param_size: numbers that describe one distribution, `State.params`.
        sample_size: numbers in a sample, `State.stoch`; samples are always flat.
        noise_size: standard normal numbers that a sample takes.
        param_layers: dense layers in the paper that output the parameters; each is initialized with its own bound.
    """

    param_size: int
    sample_size: int
    noise_size: int
    param_layers: int = 1

    @abstractmethod
    def distribution(self, params: Tensor) -> Distribution:
        """Returns the distribution with parameters (..., param_size), an `Independent` over the latent."""

    @abstractmethod
    def sample(self, params: Tensor, temperature: float = 1.0, noise: Tensor | None = None) -> Tensor:
        """Draws (..., sample_size), with a gradient.

        Args:
            params: parameters, (..., param_size).
            temperature: uncertainty, at least 0; 1 is the distribution itself and 0 its mode.
            noise: standard normal numbers, (..., noise_size), whatever the latent; None draws them.
        """

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """The most likely sample, (..., sample_size)."""

    @abstractmethod
    def kl(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """KL(posterior || prior) in nats, summed over the latent, (...)."""

    @abstractmethod
    def kl_to_standard(self, posterior: Tensor) -> Tensor:
        """KL of the posterior to the uninformed distribution, N(0, I) or uniform, in nats, (...)."""

    def noise(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows numbers"]:
        """Draws standard normal numbers for `rows` samples, (rows, noise_size), from a generator and on its device."""
        return torch.randn(rows, self.noise_size, generator=generator, device=generator.device)


def _sigmoid(raw: Tensor) -> Tensor:
    return 2 * (0.5 * raw).sigmoid()


SQUASHES = {"softplus": functional.softplus, "sigmoid": _sigmoid}


class GaussianLatent(Latent):
    """Independent Gaussians whose parameters are [mean, raw].

        softplus    std = softplus(raw) + min_std            at a raw number of 0: 0.793, without an upper bound
        sigmoid     std = 2 sigmoid(raw / 2) + min_std       at a raw number of 0: 1.1, never above 2.1

    The mean is not clamped. Everything is computed in float32, under mixed precision too.

    Args:
        size: dimensions.
        min_std: lower bound of the standard deviation, so that a state never becomes certain; at least 0.
        squash: how the raw number becomes a std: "softplus" (PlaNet, Dreamer V1) or "sigmoid" (Dreamer V2 where its
            latents are Gaussian).

    Raises:
        ValueError: for a size or a min_std below its bound.

    Source: Hafner et al. 2019 (PlaNet); their code, and that of Dreamer V2 (common/nets.py).
    """

    def __init__(
        self, size: int = 30, min_std: float = 0.1, squash: Literal["softplus", "sigmoid"] = "softplus"
    ) -> None:
        if size < 1 or not 0 <= min_std < math.inf:
            raise ValueError(f"size is {size} and min_std {min_std}, but at least 1 and 0 are needed")
        self.size = size
        self.min_std = min_std
        self._squash = SQUASHES[squash]
        self.param_size = 2 * size
        self.sample_size = size
        self.noise_size = size
        # PlaNet has a layer for the means and one for the stds, Dreamer V2 one for both.
        self.param_layers = 2 if squash == "softplus" else 1

    def mean_std(
        self, params: Float[Tensor, "*batch params"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        """Mean and standard deviation, float32, each (..., size)."""
        mean, raw = params.float().chunk(2, -1)
        # Contiguous, because the squash of a strided tensor is not vectorised.
        return mean, self._squash(raw.contiguous()) + self.min_std

    def distribution(self, params: Float[Tensor, "*batch params"]) -> Distribution:
        """Normals, (..., size), as one event."""
        return Independent(Normal(*self.mean_std(params)), 1)

    def sample(
        self,
        params: Float[Tensor, "*batch params"],
        temperature: float = 1.0,
        noise: Float[Tensor, "*batch size"] | None = None,
    ) -> Float[Tensor, "*batch size"]:
        """mean + sqrt(temperature) * std * noise, with noise standard normal; None draws it."""
        mean, std = self.mean_std(params)
        noise = torch.randn_like(mean) if noise is None else noise.to(mean)
        return torch.addcmul(mean, std, noise, value=math.sqrt(temperature))

    def mode(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch size"]:
        """The mean."""
        return params.float().chunk(2, -1)[0]

    def kl(
        self, posterior: Float[Tensor, "*batch params"], prior: Float[Tensor, "*batch params"]
    ) -> Float[Tensor, "*batch"]:
        """KL(posterior || prior) in nats, summed over dimensions; gradients to both."""
        return _normal_kl(*self.mean_std(posterior), *self.mean_std(prior))

    def kl_to_standard(self, posterior: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch"]:
        """KL(posterior || N(0, I)) in nats."""
        mean, std = self.mean_std(posterior)
        return _normal_kl(mean, std, torch.zeros_like(mean), torch.ones_like(std))


class MeanLatent(Latent):
    """Another latent without its noise: a sample is the mode, and the KL is zero.

    The KL is identically zero and so is its gradient, so that it does not train the prior. `prior_error` therefore
    weighs the distance between the two modes; at 1 it is the KL between unit Gaussians:

        kl = prior_error / 2 * |mode(posterior) - mode(prior)|^2

    Args:
        latent: the one whose parameters and mode are used.
        prior_error: weight of the distance, at least 0.

    Source: the released code of PlaNet, `mean_only: True, divergence_scale: 0.0`, is prior_error 0.
    """

    def __init__(self, latent: Latent, prior_error: float = 0.0) -> None:
        if prior_error < 0:
            raise ValueError(f"prior_error is {prior_error} but must be at least 0: it weighs a squared distance")
        self.latent = latent
        self.prior_error = prior_error
        self.param_size = latent.param_size
        self.sample_size = latent.sample_size
        self.noise_size = latent.noise_size
        self.param_layers = latent.param_layers

    def distribution(self, params: Float[Tensor, "*batch params"]) -> Distribution:
        """The distribution of the other latent, with its noise."""
        return self.latent.distribution(params)

    def sample(
        self,
        params: Float[Tensor, "*batch params"],
        temperature: float = 1.0,
        noise: Float[Tensor, "*batch numbers"] | None = None,
    ) -> Float[Tensor, "*batch size"]:
        """The mode; temperature and noise are ignored."""
        return self.mode(params)

    def mode(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch size"]:
        """The mode of the latent."""
        return self.latent.mode(params)

    def kl(
        self, posterior: Float[Tensor, "*batch params"], prior: Float[Tensor, "*batch params"]
    ) -> Float[Tensor, "*batch"]:
        """prior_error / 2 * |mode(posterior) - mode(prior)|^2."""
        if self.prior_error:
            return 0.5 * self.prior_error * (self.mode(posterior) - self.mode(prior)).square().sum(-1)
        # Zero, but with a gradient (of zeros) for every weight, which DDP expects.
        return 0.0 * (posterior.float().sum(-1) + prior.float().sum(-1))

    def kl_to_standard(self, posterior: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch"]:
        """Zero: without noise there is no KL."""
        return 0.0 * posterior.float().sum(-1)


def _normal_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    ratio = (std / other_std).square()
    return 0.5 * (ratio + ((mean - other_mean) / other_std).square() - 1 - ratio.log()).sum(-1)
