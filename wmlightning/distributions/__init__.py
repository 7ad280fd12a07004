"""Distributions that torch lacks, latents of stochastic states, and distributions of actions."""

from wmlightning.distributions.bounded import ActionDistribution, OneHot, TanhNormal, TruncatedNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent, Latent, MeanLatent
from wmlightning.distributions.mixture import GaussianMixture

__all__ = [
    "ActionDistribution",
    "CategoricalLatent",
    "GaussianLatent",
    "GaussianMixture",
    "Latent",
    "MeanLatent",
    "OneHot",
    "TanhNormal",
    "TruncatedNormal",
]
