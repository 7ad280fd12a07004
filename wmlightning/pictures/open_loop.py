"""What a world model predicts from the actions alone, after it has watched the first images of a window."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from datamodules.episode import Batch
from wmlightning.dynamics.state import State

HORIZONS = (1, 2, 5, 10, 20, 50, 100)
"""Decisions ahead at which the curves are logged as scalars."""


@dataclass(frozen=True)
class OpenLoop:
    """Windows that a model watched whole, and of which it dreamt all but the first rows.

        row         0  1  ...  context-1 | context  ...  T-1
        posterior   o  o  ...      o     |    o     ...   o      every image seen
        dream                      start |    +     ...   +      no image seen, recorded actions

    Args:
        embeds: what the model's encoder says of the images, (N, T, E).
        posterior: states that saw every image, (N, T).
        dream: states dreamt from the posterior at row context - 1, (N, T - context).
        truth: the images, uint8 (N, T, H, W, C), or None where only codes are stored.
        prior: what was expected at every row before its image was seen, (N, T).
    """

    embeds: Tensor
    posterior: State
    dream: State
    truth: UInt8[np.ndarray, "windows time height width channels"] | None
    prior: State

    @property
    def context(self) -> int:
        """Rows watched before the dream."""
        return self.embeds.shape[1] - self.dream.deter.shape[1]

    def __getitem__(self, rows: slice) -> "OpenLoop":
        """Some of the windows."""
        truth = None if self.truth is None else self.truth[rows]
        return OpenLoop(self.embeds[rows], self.posterior[rows], self.dream[rows], truth, self.prior[rows])


def open_loop(model: Any, batch: Batch, context: int, horizon: int) -> OpenLoop:
    """Lets a model watch `context` rows of each window and dream the `horizon` rows after them.

    Args:
        model: a `LatentModel`; what is stored as codes, MDNRNN's `embeds(batch)` turns into embeds.
        batch: windows (B, T, ...) of at least context + horizon rows, on the model's device.
        context: rows watched.
        horizon: rows dreamt. The action at row t led to image t, so the one taken at the last watched state is
            action[:, context].

    Returns:
        The first context + horizon rows, watched and dreamt.
    """
    batch = batch.map(lambda tensor: tensor[:, : context + horizon])
    image = batch.observation.get("image")
    embeds = model.embeds(batch) if hasattr(model, "embeds") else model.encode(image)
    posterior, prior = model.dynamics.observe(embeds, batch.action, batch.is_first)
    dream = model.dynamics.imagine(posterior[:, context - 1], batch.action[:, context:])
    return OpenLoop(embeds, posterior, dream, None if image is None else image.cpu().numpy(), prior)
