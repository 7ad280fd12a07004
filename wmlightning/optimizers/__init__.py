"""Optimizers without gradients."""

from wmlightning.optimizers.cmaes import CMAES

__all__ = ["CMAES"]
