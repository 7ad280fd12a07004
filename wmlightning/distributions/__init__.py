"""Distributions that torch lacks."""

from wmlightning.distributions.mixture import GaussianMixture

__all__ = ["GaussianMixture"]
