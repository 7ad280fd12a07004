"""What a world model predicts with its eyes shut: images, rewards and how many nats each dimension is worth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributions import Independent, kl_divergence
from torchmetrics.functional.image import structural_similarity_index_measure

from datamodules.datasets import WindowDataset
from datamodules.episode import Batch
from datamodules.samplers import UniformWindows
from datamodules.segments import SegmentedEpisodes
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import Latent, MeanLatent
from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import bar_chart, heat_map, line_chart, scatter_chart
from wmlightning.pictures.images import Picture, error_map, evenly, stack, table, to_frames
from wmlightning.pictures.open_loop import HORIZONS, OpenLoop, open_loop
from wmlightning.validation import at_least

WINDOWS = 8
"""Windows that curves are averaged over."""
EPISODES = 16
"""Newest episodes that the windows come from."""
NOTE = "error: white is 0, black is half the range or more"


def posterior_pictures(model: Any, loop: OpenLoop, columns: int = 10, name: str = "Held-out windows") -> Picture:
    """Truth, reconstruction and error of images that the model saw, one column an image, over all windows."""
    assert loop.truth is not None
    windows, rows = loop.truth.shape[:2]
    chosen = evenly(windows * rows, columns)
    truth = to_frames(loop.truth.reshape(-1, *loop.truth.shape[2:])[chosen])
    guess = to_frames(model.decode(loop.posterior.features.flatten(0, 1)[chosen]))
    rows_of = {"truth": truth, "recon-\nstruction": guess, "error": error_map(truth, guess)}
    return table(rows_of, [f"row {k % rows}" for k in chosen], name, NOTE)


def prediction_strips(model: Any, loop: OpenLoop, columns: int = 10, name: str = "Held-out window") -> Picture:
    """Truth, model and error over time, for each window; the rule stands where the model's eyes are shut.

    Args:
        model: a `LatentModel`.
        loop: what `open_loop` returned, with images.
        columns: predicted rows shown, evenly spread; two watched ones stand before them.
        name: put before the number of the window.
    """
    context, horizon = loop.context, loop.dream.deter.shape[1]
    watched = evenly(context, 2)
    chosen = watched + [context + k for k in evenly(horizon, columns)]
    captions = [f"{row - context + 1:+d}" if row != context - 1 else "0" for row in chosen]
    note = f"left of the rule it watches; right of it it is told the actions alone. {NOTE}"
    tables = [
        table(
            _rows(model, loop[k : k + 1], chosen), captions, f"{name} {k}", note if k == 0 else "", None, len(watched)
        )
        for k in range(len(loop.embeds))
    ]
    return stack(tables, gap=6)


def prediction_frames(model: Any, loop: OpenLoop) -> list[Picture]:
    """The same as moving pictures: truth | model | error side by side, one row a window."""
    context, total = loop.context, loop.embeds.shape[1]
    windows = [_rows(model, loop[k : k + 1], range(total)) for k in range(len(loop.embeds))]
    frames = []
    for row in range(total):
        title = f"watching {row - context + 1}" if row < context else f"predicting +{row - context + 1}"
        rows = {" " * k: np.stack([part[row] for part in window.values()]) for k, window in enumerate(windows)}
        frames.append(table(rows, list(windows[0]), title))
    return frames


def _rows(model: Any, loop: OpenLoop, columns: Sequence[int]) -> dict[str, np.ndarray]:
    """Truth, model and error of ONE window at some rows of it: watching before `context`, predicting after."""
    assert loop.truth is not None
    chosen = list(columns)
    features = torch.cat([loop.posterior.features[0, : loop.context], loop.dream.features[0]])
    truth, guess = to_frames(loop.truth[0, chosen]), to_frames(model.decode(features[chosen]))
    return {"truth": truth, "model": guess, "error": error_map(truth, guess)}


def image_quality(
    guess: Float[Tensor, "windows time height width channels"],
    truth: Float[Tensor, "windows time height width channels"],
) -> tuple[Float[Tensor, "time"], Float[Tensor, "time"]]:
    """PSNR in dB and SSIM of images in [0, 1] at every step: means over windows of each image's own, (T,) and (T,)."""
    errors = (guess - truth).square().mean((2, 3, 4)).clamp(min=1e-10)
    psnr = -10 * errors.log10().mean(0)
    pairs = (images.flatten(0, 1).permute(0, 3, 1, 2) for images in (guess, truth))
    # One value an image; at a window's size of 11 smaller pictures than that have none.
    ssim = structural_similarity_index_measure(*pairs, data_range=1.0, reduction="none")  # type: ignore[arg-type]
    return psnr, torch.as_tensor(ssim).reshape(errors.shape).mean(0)


def prediction_curves(model: Any, loop: OpenLoop, reward: Float[Tensor, "windows time"]) -> dict[str, Tensor]:
    """How good predictions are 1 to H steps after the last image was seen; means over windows, each (H,).

    `psnr`, `ssim` and `reward_error` (root mean square) of one sampled prediction; `watching_` the same of the
    posterior, which sees every image; `copy_psnr` and `copy_ssim` of the last image seen, held.

    Args:
        model: a `LatentModel`.
        loop: what `open_loop` returned, with images.
        reward: of the same windows, all rows or more, (N, T).
    """
    assert loop.truth is not None
    context, total = loop.context, loop.embeds.shape[1]
    device = loop.embeds.device
    truth = torch.from_numpy(loop.truth).to(device)[:, context - 1 :].float() / 255
    last, truth = truth[:, :1], truth[:, 1:]
    true_reward = reward[:, context:total].to(device)
    curves = {}
    for name, features in {"": loop.dream.features, "watching_": loop.posterior.features[:, context:]}.items():
        curves[f"{name}psnr"], curves[f"{name}ssim"] = image_quality(model.decode(features), truth)
        error = model.reward(features).mean - true_reward
        curves[f"{name}reward_error"] = error.square().mean(0).sqrt()
    curves["copy_psnr"], curves["copy_ssim"] = image_quality(last.expand_as(truth), truth)
    return curves


def quality_chart(curves: dict[str, Tensor]) -> Picture:
    """PSNR and SSIM of `prediction_curves` as two charts."""
    steps = list(range(1, len(curves["psnr"]) + 1))
    names = {"predicting": "", "watching": "watching_", "copying the last image": "copy_"}

    def chart(key: str, title: str, unit: str) -> Picture:
        lines = {name: (steps, curves[prefix + key].tolist()) for name, prefix in names.items()}
        return line_chart(lines, title, "steps after the last image", unit, (760, 260))

    return stack(
        [chart("psnr", "Images: peak signal to noise", "dB"), chart("ssim", "Images: structural similarity", "")]
    )


def reward_chart(model: Any, loop: OpenLoop, reward: Float[Tensor, "windows time"]) -> Picture:
    """Predicted and true reward: over one window's time, and each against the other in all windows."""
    context, total = loop.context, loop.embeds.shape[1]
    truth = reward[:, :total].cpu()
    watching = model.reward(loop.posterior.features).mean.float().cpu()
    dreaming = model.reward(loop.dream.features).mean.float().cpu()
    rows, later = list(range(total)), list(range(context, total))
    lines = {
        "watching": (rows, watching[0].tolist()),
        "predicting": (later, dreaming[0].tolist()),
        "truth": (rows, truth[0].tolist()),
    }
    over_time = line_chart(lines, "Reward over window 0", "row", "", (760, 280))
    x = truth[:, context:].flatten().tolist()
    points = {"watching": (x, watching[:, context:].flatten().tolist()), "predicting": (x, dreaming.flatten().tolist())}
    against = scatter_chart(points, "Predicted reward against the true one", "true", "predicted", (760, 360))
    return stack([over_time, against], gap=8)


def kl_per_dimension(latent: Latent, posterior: Tensor, prior: Tensor) -> Float[Tensor, "dimensions"]:
    """KL(posterior || prior) of each dimension, or of each group of a categorical latent, in nats; means over the rest.

    Zero in all of them where the latent has no noise, and so no KL.

    Args:
        latent: says what the parameters mean; its dimensions are independent.
        posterior: parameters (..., P).
        prior: parameters (..., P).
    """
    whole = latent.distribution(posterior), latent.distribution(prior)
    parts = [part.base_dist if isinstance(part, Independent) else part for part in whole]
    nats = kl_divergence(*parts).flatten(0, -2).mean(0)
    return torch.zeros_like(nats) if isinstance(latent, MeanLatent) else nats


def latent_kl_chart(nats: Tensor) -> Picture:
    """Nats that an image tells through each dimension, most informative first."""
    order = nats.argsort(descending=True)
    active = int((nats > 0.1).sum())
    title = f"KL per dimension: {float(nats.sum()):.1f} nats an image, {active} of {len(nats)} dimensions above 0.1"
    return bar_chart(nats[order].tolist(), [str(d) for d in order.tolist()], title, "dimension of the latent", "nats")


class LogPredictions(LogPictures):
    """Draws what a WorldModel, alone or inside an agent, makes of recorded windows; all under `world_model/`.

    `reconstructions`: images seen, decoded from the posterior. `open_loop`: truth | model | error after `context`
    images, with the recorded actions; `open_loop_moving`: the same as a GIF. `prediction_quality`: PSNR and SSIM by
    steps after the last image, a few of them as scalars `open_loop_psnr_h1`, `open_loop_ssim_h1`,
    `open_loop_reward_error_h1` and so on. `rewards`: predicted and true. `kl_per_dimension`: nats that an image tells.
    `categorical_usage`, of a categorical latent: entropy per group, and how often each class is chosen.

    The windows come from the newest held-out episodes, or, where the run holds none out, from the newest ones trained
    on (the titles say which). Where episodes are collected meanwhile, they are those of the time.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        windows: windows drawn, at most 8.
        context: images seen before predicting.
        horizon: steps predicted; fewer where episodes are shorter.
        columns: predicted rows in the strip, evenly spread.
    """

    def __init__(
        self, every: int = 1000, windows: int = 3, context: int = 5, horizon: int = 45, columns: int = 10
    ) -> None:
        super().__init__(every)
        at_least(1, windows=windows, context=context, horizon=horizon, columns=columns)
        self.windows, self.context, self.horizon, self.columns = windows, context, horizon, columns
        self._warned = False

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Draws the pictures and logs the scalars."""
        model = getattr(stage, "world_model", stage)
        found = self.newest(trainer)
        if found is None:
            return
        name, batch = found[0], found[1].to(stage.device)
        loop = open_loop(model, batch, self.context, batch.shape[1] - self.context)
        few = loop[: self.windows]
        book.add("world_model/reconstructions", posterior_pictures(model, loop, 10, f"{name}s"), step)
        book.add("world_model/open_loop", prediction_strips(model, few, self.columns, name), step)
        # Two windows keep the file under a megabyte.
        book.add_gif("world_model/open_loop_moving", prediction_frames(model, loop[:2]), step)
        curves = prediction_curves(model, loop, batch.reward)
        book.add("world_model/prediction_quality", quality_chart(curves), step)
        book.add("world_model/rewards", reward_chart(model, loop, batch.reward), step)
        nats = kl_per_dimension(model.dynamics.latent, loop.posterior.params, loop.prior.params)
        book.add("world_model/kl_per_dimension", latent_kl_chart(nats), step)
        if isinstance(model.dynamics.latent, CategoricalLatent):
            chart = usage_chart(model.dynamics.latent, loop.posterior.params)
            book.add("world_model/categorical_usage", chart, step)
        book.add_scalars(
            {
                f"world_model/open_loop_{key}_h{h}": float(curves[key][h - 1])
                for key in ("psnr", "ssim", "reward_error")
                for h in HORIZONS
                if h <= len(curves[key])
            },
            step,
        )

    def newest(self, trainer: Any) -> tuple[str, Batch] | None:
        """Windows of the newest episodes and what to call one; None, with one warning, where there are none."""
        found = newest_windows(trainer, self.context, self.horizon)
        if not isinstance(found, str):
            return found
        if not self._warned:
            rank_zero_warn(f"LogPredictions draws nothing: {found}")
            self._warned = True
        return None


def newest_windows(trainer: Any, context: int, horizon: int) -> tuple[str, Batch] | str:
    """Windows of a run's newest episodes: held-out ones, or, where it holds none out, those trained on.

    Args:
        trainer: has the run's datamodule.
        context: rows that a window must have more than.
        horizon: rows beyond them, or fewer where episodes are shorter.

    Returns:
        What to call a window, and `WINDOWS` of them; or why there are none.
    """
    data, why = getattr(trainer, "datamodule", None), "the run has no datamodule with a store"
    for held_out, name in ((True, "Held-out window"), (False, "Window trained on")):
        if data is None:
            break
        try:
            names = data.episodes(validation=held_out)
            newest = SegmentedEpisodes(sorted(names, key=lambda name: name.arrival)[-EPISODES:])
            rows = min(context + horizon, int(newest.lengths.max()))
            batch = WindowDataset(UniformWindows(rows)).draw(data.store, newest, data.seed, 0, WINDOWS)
        except ValueError as error:
            why = str(error)
            continue
        if "image" in batch.observation and rows > context:
            return name, batch
        why = f"no episode holds images and is longer than {context} rows"
    return why


def group_entropies(
    latent: Any, params: Float[Tensor, "*batch params"]
) -> tuple[Float[Tensor, "groups"], Float[Tensor, "groups"]]:
    """Entropy per group, in nats, at most the logarithm of the number of classes.

    A group whose use has little entropy says the same of every image; one whose posterior has much does not know what
    it says. What a group can tell of images is at most the difference of the two.

    Args:
        latent: a `CategoricalLatent`.
        params: of posteriors.

    Returns:
        Of each group's use (of its mean probabilities over all images), and of its posterior (a mean over images).
    """
    share = latent.logits(params).softmax(-1).flatten(0, -3)
    return torch.special.entr(share.mean(0)).sum(-1), torch.special.entr(share).sum(-1).mean(0)


def usage_chart(latent: Any, params: Float[Tensor, "*batch params"]) -> Picture:
    """Entropies of every group, most used first, and below them the share of images that choose each class.

    Args:
        latent: a `CategoricalLatent`.
        params: of posteriors.
    """
    used, unsure = group_entropies(latent, params)
    order = used.argsort(descending=True)
    groups, most = list(range(len(order))), math.log(latent.classes)
    told = float((used - unsure).sum())
    title = f"Entropy per group, of at most {most:.2f} nats: together up to {told:.1f} nats an image"
    lines = {
        "of its use": (groups, used[order].tolist()),
        "of one image's posterior": (groups, unsure[order].tolist()),
    }
    above = line_chart(lines, title, "group, most used first", "nats", (760, 260))
    share = latent.logits(params).softmax(-1).flatten(0, -3).mean(0)[order].cpu().numpy()
    # Of every group the likeliest class first: which number a class has means nothing.
    share = -np.sort(-share, -1)
    below = heat_map(share, [str(k) for k in order.tolist()], "Share of images by group and class", "class", (760, 300))
    return stack([above, below], gap=6)
