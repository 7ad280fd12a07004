"""M's open-loop predictions: it sees a few images of a held-out episode, then dreams on with the recorded actions."""

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
from wmlightning.pictures.images import Picture, code_kl, split_embeds, stack
from wmlightning.pictures.open_loop import HORIZONS, Row, open_loop, open_loop_frames, open_loop_strips

WINDOWS = 16
"""Windows that the curves are averaged over."""
ROWS: tuple[Row, ...] = ("truth", "reconstruction", "prediction")
"""What is drawn of a window, in strips and in the film."""


def horizon_curves(model: Any, batch: Batch, context: int, horizon: int, paths: int = 16) -> dict[str, Tensor]:
    """Returns how well an MDN-RNN predicts codes, 1 to H steps ahead; means over windows and dimensions, each (H,).

    `nll`: nats per dimension of V's code under the mixture, averaged over `paths` dreams before the logarithm;
    `watching_nll`: the same one step ahead with every image seen, at the same rows. `error`: root mean square distance
    from V's mean to the dream's mean, on dimensions with a KL above 0.1 nats; `copy_error`: the same for the last code
    seen.

    Args:
        model: an `MDNRNN`.
        batch: windows (B, T, ...), T at least context + horizon, on the model's device.
        context: rows seen.
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
    """Draws the curves of `horizon_curves` as two charts."""
    steps = list(range(1, len(curves["nll"]) + 1))

    def chart(named: dict[str, str], title: str, unit: str) -> Picture:
        lines = {name: (steps, curves[key].tolist()) for name, key in named.items()}
        return line_chart(lines, title, "steps after the last image seen", unit, (760, 280))

    nll = chart(
        {"open loop (actions alone)": "nll", "one step ahead (every image seen)": "watching_nll"},
        "Negative log-likelihood of V's code, held-out windows",
        "nats per dimension",
    )
    error = chart(
        {"open loop (actions alone)": "error", "copy of the last code seen": "copy_error"},
        "Error of the predicted mean code, dimensions with a KL above 0.1 nats, held-out windows",
        "RMS error (units of z)",
    )
    return stack([nll, error], gap=8)


class LogDreams(LogPictures):
    """Draws what M dreams beside what happened, always for the same held-out windows.

    `mdn_rnn/dreams`: truth, reconstruction and prediction over time; `mdn_rnn/dreams_moving`: the same side by side, as
    an animated GIF. `mdn_rnn/horizons`: negative log-likelihood and error by steps ahead; a few of them as scalars
    `mdn_rnn/dream_nll_h1`, `mdn_rnn/dream_error_h1`, and so on.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        pixels: folder of the episode store with the images; needed for the row "truth" where M trains on a store of
            codes, which holds no images.
        windows: windows drawn.
        context: rows seen before the dream.
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
        """Draws strips, film and curves, and logs the scalars."""
        batch = self.held_out(trainer)
        if batch is None:
            return
        batch = batch.to(stage.device)
        horizon = min(self.horizon, batch.shape[1] - self.context)
        loop = open_loop(stage, batch.map(lambda tensor: tensor[: self.windows]), self.context, horizon)
        book.add("mdn_rnn/dreams", open_loop_strips(stage, loop, ROWS, self.columns), step)
        # Two windows keep the file under a megabyte.
        book.add_gif("mdn_rnn/dreams_moving", open_loop_frames(stage, loop[:2], ROWS), step)
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
        """Returns held-out windows, each of one episode: from `pixels` if given, otherwise from the run's data."""
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
