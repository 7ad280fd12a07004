"""What M believes: it watches a few images of a held-out episode, then dreams on with the recorded actions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.datamodule import held_out
from datamodules.datasets import WindowDataset
from datamodules.episode import Batch
from datamodules.samplers import UniformWindows
from datamodules.store import EpisodeStore
from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import line_chart
from wmlightning.pictures.images import Picture, code_kl, evenly, split_embeds, stack, table, to_frames
from wmlightning.pictures.open_loop import HORIZONS, OpenLoop, open_loop

WINDOWS = 16
"""Windows that the curves are averaged over."""


def _rows(model: Any, loop: OpenLoop, columns: Sequence[int]) -> dict[str, np.ndarray]:
    """Truth, reconstruction and dream of ONE window at some rows of it."""
    context, chosen = loop.context, list(columns)
    features = loop.posterior.features[0]
    dreamt = torch.cat([features[:context], loop.dream.features[0]])
    rows = {} if loop.truth is None else {"truth": to_frames(loop.truth[0, chosen])}
    rows["recon-\nstruction"] = to_frames(model.decode(features[chosen]))
    rows["dream"] = to_frames(model.decode(dreamt[chosen]))
    return rows


def dream_strips(model: Any, loop: OpenLoop, columns: int = 10) -> Picture:
    """Truth, reconstruction and dream over time, for each window; the rule stands where the dream begins.

    Args:
        model: a `LatentModel`.
        loop: what `open_loop` returned.
        columns: dreamt rows shown, evenly spread; two watched ones stand before them.
    """
    context, horizon = loop.context, loop.dream.deter.shape[1]
    watched = evenly(context, 2)
    chosen = watched + [context + k for k in evenly(horizon, columns)]
    captions = [f"{row - context + 1:+d}" if row != context - 1 else "0" for row in chosen]
    tables = []
    for window in range(len(loop.embeds)):
        title, note = (
            f"Held-out window {window}",
            "left of the rule M watches; right of it M dreams, with recorded actions",
        )
        rows = _rows(model, loop[window : window + 1], chosen)
        tables.append(table(rows, captions, title, note, divide_at=len(watched)))
    return stack(tables, gap=6)


def dream_frames(model: Any, loop: OpenLoop) -> list[Picture]:
    """The same as moving pictures: one row of truth | reconstruction | dream a window, all windows at once."""
    context, total = loop.context, loop.embeds.shape[1]
    windows = [_rows(model, loop[k : k + 1], range(total)) for k in range(len(loop.embeds))]
    names = [name.replace("-\n", "") for name in windows[0]]
    frames = []
    for row in range(total):
        title = f"watching {row - context + 1}" if row < context else f"dreaming +{row - context + 1}"
        rows = {" " * k: np.stack([frames[row] for frames in window.values()]) for k, window in enumerate(windows)}
        frames.append(table(rows, names, title))
    return frames


def horizon_curves(model: Any, batch: Batch, context: int, horizon: int, paths: int = 16) -> dict[str, Tensor]:
    """How well an MDN-RNN foretells codes, 1 to H decisions ahead; means over windows and dimensions, each (H,).

    `nll`: nats per dimension of V's code under the mixture, averaged over `paths` dreams before the logarithm;
    `watching_nll`: the same one decision ahead with every image seen, at the same rows. `error`: root mean square
    distance from V's mean to the dream's mean, on dimensions with a KL above 0.1 nats; `copy_error`: the same for
    the last code seen.

    Args:
        model: an `MDNRNN`.
        batch: windows (B, T, ...), T at least context + horizon, on the model's device.
        context: rows watched.
        horizon: rows dreamt, H.
        paths: dreams from each window.
    """
    batch = batch.map(lambda tensor: tensor[:, : context + horizon])
    embeds = model.embeds(batch)
    posterior, prior = model.dynamics.observe(embeds, batch.action, batch.is_first)
    start = posterior[:, context - 1].map(lambda tensor: tensor.repeat(paths, 1))
    dream = model.dynamics.imagine(start, batch.action[:, context:].repeat(paths, 1, 1))
    mixture = model.dynamics.mixture(dream.params)
    mean, logvar = split_embeds(embeds)
    code = posterior.stoch[:, context:]

    log_prob = mixture.log_prob(code.repeat(paths, 1, 1)).unflatten(0, (paths, len(code)))
    watching = model.dynamics.mixture(prior.params[:, context:]).log_prob(code)
    informative = code_kl(mean, logvar).mean((0, 1)) > 0.1
    informative = informative if informative.any() else torch.ones_like(informative)
    guess = mixture.mean.unflatten(0, (paths, len(code))).mean(0)

    def distance(guessed: Tensor) -> Tensor:
        return (guessed - mean[:, context:])[..., informative].square().mean((0, 2)).sqrt()

    return {
        "nll": -(log_prob.logsumexp(0) - np.log(paths)).mean((0, 2)),
        "watching_nll": -watching.mean((0, 2)),
        "error": distance(guess),
        "copy_error": distance(mean[:, context - 1 : context].expand_as(guess)),
    }


def horizon_chart(curves: dict[str, Tensor]) -> Picture:
    """The curves of `horizon_curves` as two charts."""
    steps = list(range(1, len(curves["nll"]) + 1))

    def chart(named: dict[str, str], title: str, unit: str) -> Picture:
        lines = {name: (steps, curves[key].tolist()) for name, key in named.items()}
        return line_chart(lines, title, "decisions ahead", unit, (760, 280))

    nll = chart(
        {"dreaming": "nll", "watching": "watching_nll"}, "Negative log-likelihood of V's code", "nats per dimension"
    )
    error = chart(
        {"dreaming": "error", "copying the last code": "copy_error"},
        "Error of the mean, on dimensions with a KL above 0.1",
        "root mean square, in units of z",
    )
    return stack([nll, error], gap=8)


class LogDreams(LogPictures):
    """Draws what a world model dreams beside what happened, always for the same held-out windows.

    `mdn_rnn/dreams`: truth, reconstruction and dream over time; `mdn_rnn/dreams_moving`: the same side by side, as an
    animated GIF. `mdn_rnn/horizons`: negative log-likelihood and error by decisions ahead; a few of them as scalars
    `mdn_rnn/dream_nll_h1`, `mdn_rnn/dream_error_h1`, and so on.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        pixels: folder of the episode store with the images; needed for the row "truth" where M trains on a store of
            codes, which holds no images.
        windows: windows drawn.
        context: rows watched before the dream.
        horizon: rows dreamt.
        columns: dreamt rows in the strip, evenly spread.
    """

    def __init__(
        self,
        every: int = 500,
        pixels: str | None = None,
        windows: int = 3,
        context: int = 10,
        horizon: int = 50,
        columns: int = 10,
    ) -> None:
        super().__init__(every)
        self.pixels, self.windows = pixels, windows
        self.context, self.horizon, self.columns = context, horizon, columns

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Draws strips, GIF and curves, and logs the scalars."""
        batch = self.held_out(trainer)
        if batch is None:
            return
        batch = batch.to(stage.device)
        horizon = min(self.horizon, batch.shape[1] - self.context)
        loop = open_loop(stage, batch.map(lambda tensor: tensor[: self.windows]), self.context, horizon)
        book.add("mdn_rnn/dreams", dream_strips(stage, loop, self.columns), step)
        # Two windows keep the file under a megabyte.
        book.add_gif("mdn_rnn/dreams_moving", dream_frames(stage, loop[:2]), step)
        curves = horizon_curves(stage, batch, self.context, horizon)
        book.add("mdn_rnn/horizons", horizon_chart(curves), step)
        named = {"nll": curves["nll"].tolist(), "error": curves["error"].tolist()}
        book.add_scalars(
            {
                f"mdn_rnn/dream_{key}_h{h}": values[h - 1]
                for key, values in named.items()
                for h in HORIZONS
                if h <= horizon
            },
            step,
        )

    def held_out(self, trainer: Trainer) -> Batch | None:
        """Held-out windows, each of one episode: from `pixels` if it is given, otherwise from the run's data."""
        if not self._looked:
            batch = super().held_out(trainer) if self.pixels is None else self._pixel_windows(trainer)
            self._looked = True
            if batch is not None:
                whole = ~batch.is_first[:, 1 : self.context + self.horizon].any(1)
                batch = batch.map(lambda tensor: tensor[whole][:WINDOWS, : self.context + self.horizon])
                if not whole.any() or batch.shape[1] <= self.context:
                    rank_zero_warn(f"LogDreams draws nothing: no window holds one episode for over {self.context} rows")
                    batch = None
            self._held_out = batch
        return self._held_out

    def _pixel_windows(self, trainer: Any) -> Batch | None:
        store, data = EpisodeStore(str(self.pixels)), trainer.datamodule
        out = held_out(store.listing, data.validation_fraction, data.seed)
        names = [name for name, is_out in zip(store.listing, out, strict=True) if is_out]
        if not names:
            rank_zero_warn(f"LogDreams draws nothing: {self.pixels} holds no held-out episode")
            return None
        rows = min(self.context + self.horizon, max(name.rows for name in names))
        return WindowDataset(UniformWindows(rows)).draw(store, names, data.seed, 0, WINDOWS)
