"""Losses and returns: functions and modules that return unreduced values, (B, T) or (N, H)."""

from wmlightning.objectives.actor import ActorLoss, DynamicsBackprop, Mixed, Reinforce
from wmlightning.objectives.contrastive import Contrastive
from wmlightning.objectives.divergence import BalancedKL, FreeNatsKL, KLLoss
from wmlightning.objectives.overshooting import (
    LatentOvershooting,
    ObservationOvershooting,
    Overshooting,
    latent_overshooting,
    observation_overshooting,
)
from wmlightning.objectives.returns import discount_weights, lambda_return

__all__ = [
    "ActorLoss",
    "BalancedKL",
    "Contrastive",
    "DynamicsBackprop",
    "FreeNatsKL",
    "KLLoss",
    "LatentOvershooting",
    "Mixed",
    "ObservationOvershooting",
    "Overshooting",
    "Reinforce",
    "discount_weights",
    "lambda_return",
    "latent_overshooting",
    "observation_overshooting",
]
