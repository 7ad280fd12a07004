"""The mathematics of learning: functions and parts that return unreduced values, (B, T)."""

from wmlightning.objectives.divergence import FreeNatsKL, KLLoss
from wmlightning.objectives.overshooting import (
    LatentOvershooting,
    ObservationOvershooting,
    Overshooting,
    latent_overshooting,
    observation_overshooting,
)

__all__ = [
    "FreeNatsKL",
    "KLLoss",
    "LatentOvershooting",
    "ObservationOvershooting",
    "Overshooting",
    "latent_overshooting",
    "observation_overshooting",
]
