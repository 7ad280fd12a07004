"""Open-loop prediction: a model sees the first images of a window, then predicts the rest from the actions alone.

`open_loop` computes it, for M (MDN-RNN) and the RSSM family alike; `open_loop_strips` and `open_loop_frames` draw it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.episode import Batch
from wmlightning.dynamics.state import State
from wmlightning.pictures.images import ERROR_NOTE, Frames, Picture, error_map, evenly, stack, table, to_frames

HORIZONS = (1, 2, 5, 10, 20, 50, 100)
"""Steps ahead at which the curves are logged as scalars."""

Row = Literal["truth", "reconstruction", "prediction", "error"]
"""What can be drawn of a window. `truth`: the images. `reconstruction`: decoded from the posterior, which has seen
every image. `prediction`: the same until the context ends, then decoded from the dream. `error`: of the prediction."""


@dataclass(frozen=True)
class OpenLoop:
    """Windows as a model filters them, and as it predicts them once the first rows have been seen.

        row         0  1  ...  context-1 | context  ...  T-1
        posterior   o  o  ...      o     |    o     ...   o      every image seen
        dream                      start |    +     ...   +      no image seen, recorded actions

    Args:
        embeds: the encoder's output for the images, (N, T, E).
        posterior: states that have seen every image up to their own row, (N, T).
        dream: states imagined from the posterior at row context - 1, (N, T - context).
        truth: the images, uint8 (N, T, H, W, C), or None where only codes are stored.
        prior: one-step predictions, each made before the image of its row was seen, (N, T).
    """

    embeds: Tensor
    posterior: State
    dream: State
    truth: UInt8[np.ndarray, "windows time height width channels"] | None
    prior: State

    @property
    def context(self) -> int:
        """Rows seen before the dream begins."""
        return self.embeds.shape[1] - self.dream.deter.shape[1]

    @property
    def horizon(self) -> int:
        """Rows predicted."""
        return self.dream.deter.shape[1]

    def __getitem__(self, rows: slice) -> "OpenLoop":
        """Returns some of the windows."""
        truth = None if self.truth is None else self.truth[rows]
        return OpenLoop(self.embeds[rows], self.posterior[rows], self.dream[rows], truth, self.prior[rows])


def open_loop(model: Any, batch: Batch, context: int, horizon: int) -> OpenLoop:
    """Filters `context` rows of each window and imagines the `horizon` rows after them, by the recorded actions.

    Args:
        model: a `LatentModel`; what is stored as codes, MDNRNN's `embeds(batch)` turns into embeds.
        batch: windows (B, T, ...) of at least context + horizon rows, on the model's device.
        context: rows seen.
        horizon: rows predicted. The action at row t led to image t, so the one taken at the last state that saw its
            image is action[:, context].

    Returns:
        The first context + horizon rows, filtered and imagined.
    """
    batch = batch.map(lambda tensor: tensor[:, : context + horizon])
    image = batch.observation.get("image")
    embeds = model.embeds(batch) if hasattr(model, "embeds") else model.encode(image)
    posterior, prior = model.dynamics.observe(embeds, batch.action, batch.is_first)
    dream = model.dynamics.imagine(posterior[:, context - 1], batch.action[:, context:])
    return OpenLoop(embeds, posterior, dream, None if image is None else image.cpu().numpy(), prior)


def open_loop_strips(
    model: Any,
    loop: OpenLoop,
    rows: Sequence[Row] = ("truth", "prediction", "error"),
    columns: int = 10,
    name: str = "Held-out window",
) -> Picture:
    """Draws every window as rows of images over time; a rule stands where the model sees no more images.

    Args:
        model: a `LatentModel`.
        loop: from `open_loop`; without images the rows that need them are left out.
        rows: what is drawn of each window, from above.
        columns: predicted steps shown, evenly spread; two of the steps seen stand before them.
        name: put before the number of the window; says where it comes from.
    """
    seen = evenly(loop.context, 2)
    chosen = seen + [loop.context + k for k in evenly(loop.horizon, columns)]
    captions = [_step(loop, row) for row in chosen]
    note = "left of the rule the model sees every image, right of it the recorded actions alone"
    if "error" in rows and loop.truth is not None:
        note += f"; {ERROR_NOTE}"
    tables = []
    for window in range(len(loop.embeds)):
        drawn = _images(model, loop[window : window + 1], chosen, rows)
        title = f"{name} {window}"
        tables.append(table(drawn, captions, title, note, divide_at=len(seen), column_label="step"))
    return stack(tables, gap=6)


def open_loop_frames(
    model: Any,
    loop: OpenLoop,
    rows: Sequence[Row] = ("truth", "prediction", "error"),
    name: str = "Held-out window",
) -> list[Picture]:
    """Draws the same as a film: one row a window, and what `open_loop_strips` has as rows side by side.

    Args:
        model: a `LatentModel`.
        loop: from `open_loop`.
        rows: what is drawn of each window, from the left.
        name: of one window; says where it comes from.

    Returns:
        One picture a step, all of one size.
    """
    steps = range(loop.embeds.shape[1])
    windows = [_images(model, loop[k : k + 1], steps, rows) for k in range(len(loop.embeds))]
    frames = []
    for step in steps:
        seen = step < loop.context
        note = f"step {_step(loop, step)}: " + (
            "the model sees the image" if seen else "predicted from the actions alone"
        )
        shown = {f"window {k}": [part[step] for part in window.values()] for k, window in enumerate(windows)}
        frames.append(table(shown, list(windows[0]), f"{name}s", note))
    width = max(frame.shape[1] for frame in frames)
    return [np.pad(f, ((0, 0), (0, width - f.shape[1]), (0, 0)), constant_values=255) for f in frames]


def _step(loop: OpenLoop, row: int) -> str:
    """Returns a row's distance from the last image seen: -1, 0, +1."""
    step = row - loop.context + 1
    return f"{step:+d}" if step else "0"


def _images(model: Any, loop: OpenLoop, chosen: Sequence[int], rows: Sequence[Row]) -> dict[str, Frames]:
    """Returns the images of ONE window at some of its rows, by the name of what they are."""
    chosen = list(chosen)
    posterior = loop.posterior.features[0]
    drawn: dict[str, Frames] = {}
    if loop.truth is not None:
        drawn["truth"] = to_frames(loop.truth[0, chosen])
    if "reconstruction" in rows:
        drawn["reconstruction"] = to_frames(model.decode(posterior[chosen]))
    predicted = torch.cat([posterior[: loop.context], loop.dream.features[0]])
    drawn["prediction"] = to_frames(model.decode(predicted[chosen]))
    if "truth" in drawn:
        drawn["error"] = error_map(drawn["truth"], drawn["prediction"])
    return {name: drawn[name] for name in rows if name in drawn}
