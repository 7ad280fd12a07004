"""Distributions that torch lacks, and what stochastic states are made of."""

from wmlightning.distributions.latents import GaussianLatent, Latent, MeanLatent
from wmlightning.distributions.mixture import GaussianMixture

__all__ = ["GaussianLatent", "GaussianMixture", "Latent", "MeanLatent"]
