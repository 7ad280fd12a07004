"""How parameters are searched where gradients do not reach."""

from wmlightning.optimizers.cmaes import CMAES

__all__ = ["CMAES"]
