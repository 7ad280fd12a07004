"""Open-loop predictions of a world model: images, rewards, and the KL of each dimension of its latent."""

import math
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
from wmlightning.pictures.charts import heat_map, line_chart, scatter_chart
from wmlightning.pictures.images import Picture, evenly, reconstruction_table, stack, to_frames
from wmlightning.pictures.open_loop import HORIZONS, OpenLoop, open_loop, open_loop_frames, open_loop_strips
from wmlightning.pictures.reconstructions import kl_chart
from wmlightning.validation import at_least

WINDOWS = 8
"""Windows that curves are averaged over."""
EPISODES = 16
"""Newest episodes that the windows come from."""


def posterior_pictures(model: Any, loop: OpenLoop, columns: int = 10, name: str = "Held-out windows") -> Picture:
    """Draws truth, reconstruction and error of images that the model saw, one column an image, over all windows.

    Args:
        model: a `LatentModel`.
        loop: from `open_loop`, with images.
        columns: images drawn, evenly spread over windows and time.
        name: says where the windows come from.
    """
    assert loop.truth is not None
    rows = loop.truth.shape[1]
    truth = loop.truth.reshape(-1, *loop.truth.shape[2:])
    chosen = evenly(len(truth), columns)
    guess = model.decode(loop.posterior.features.flatten(0, 1)[chosen])
    title = f"{name}: images reconstructed from the posterior"
    captions = [f"{k // rows}, {k % rows}" for k in chosen]
    return reconstruction_table(to_frames(truth[chosen]), to_frames(guess), title, captions, "window, row")


def image_quality(
    guess: Float[Tensor, "windows time height width channels"],
    truth: Float[Tensor, "windows time height width channels"],
) -> tuple[Float[Tensor, "time"], Float[Tensor, "time"]]:
    """Returns PSNR in dB and SSIM of images in [0, 1] at every step, (T,) each: means over the windows' images."""
    errors = (guess - truth).square().mean((2, 3, 4)).clamp(min=1e-10)
    psnr = -10 * errors.log10().mean(0)
    pairs = (images.flatten(0, 1).permute(0, 3, 1, 2) for images in (guess, truth))
    # One value an image; at a window's size of 11 smaller pictures than that have none.
    ssim = structural_similarity_index_measure(*pairs, data_range=1.0, reduction="none")  # type: ignore[arg-type]
    return psnr, torch.as_tensor(ssim).reshape(errors.shape).mean(0)


def prediction_curves(model: Any, loop: OpenLoop, reward: Float[Tensor, "windows time"]) -> dict[str, Tensor]:
    """Returns how good predictions are 1 to H steps after the last image seen; means over windows, each (H,).

    `psnr`, `ssim` and `reward_error` (root mean square) of one sampled prediction; `watching_` the same of the
    posterior, which sees every image; `copy_psnr` and `copy_ssim` of the last image seen, held.

    Args:
        model: a `LatentModel`.
        loop: from `open_loop`, with images.
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


def quality_chart(curves: dict[str, Tensor], name: str = "Held-out windows") -> Picture:
    """Draws PSNR and SSIM of `prediction_curves` as two charts; `name` says where the windows come from."""
    steps = list(range(1, len(curves["psnr"]) + 1))
    names = {
        "open loop (actions alone)": "",
        "reconstruction (every image seen)": "watching_",
        "copy of the last image seen": "copy_",
    }

    def chart(key: str, title: str, unit: str) -> Picture:
        lines = {name: (steps, curves[prefix + key].tolist()) for name, prefix in names.items()}
        return line_chart(lines, title, "steps after the last image seen", unit, (760, 260))

    psnr = chart("psnr", f"{name}, predicted images: peak signal-to-noise ratio, higher is better", "PSNR (dB)")
    ssim = chart("ssim", f"{name}, predicted images: structural similarity, at most 1", "SSIM")
    return stack([psnr, ssim], gap=8)


def reward_chart(
    model: Any, loop: OpenLoop, reward: Float[Tensor, "windows time"], name: str = "Held-out window"
) -> Picture:
    """Draws predicted and true reward: over one window's time, and each against the other in all windows.

    Args:
        model: a `LatentModel` with rewards.
        loop: from `open_loop`.
        reward: of the same windows, all rows or more, (N, T).
        name: of one window; says where it comes from.
    """
    context, total = loop.context, loop.embeds.shape[1]
    truth = reward[:, :total].cpu()
    filtered = model.reward(loop.posterior.features).mean.float().cpu()
    predicted = model.reward(loop.dream.features).mean.float().cpu()
    steps = [row - context + 1 for row in range(total)]
    lines = {
        "every image seen": (steps, filtered[0].tolist()),
        "open loop (actions alone)": (steps[context:], predicted[0].tolist()),
        "true reward": (steps, truth[0].tolist()),
    }
    title = f"{name} 0: predicted and true reward"
    over_time = line_chart(lines, title, "steps after the last image seen", "reward of a step", (760, 280))
    x = truth[:, context:].flatten().tolist()
    points = {
        "every image seen": (x, filtered[:, context:].flatten().tolist()),
        "open loop (actions alone)": (x, predicted.flatten().tolist()),
    }
    title = f"{name}s: predicted against true reward, all steps after the last image seen"
    against = scatter_chart(points, title, "true reward", "predicted reward", (760, 360))
    return stack([over_time, against], gap=8)


def kl_per_dimension(latent: Latent, posterior: Tensor, prior: Tensor) -> Float[Tensor, "dimensions"]:
    """Returns KL(posterior || prior) of each dimension, or each group of a categorical latent, in nats.

    Means over all leading axes; zero everywhere where the latent has no noise, and so no KL.

    Args:
        latent: knows what the parameters mean; its dimensions are independent.
        posterior: parameters (..., P).
        prior: parameters (..., P).
    """
    whole = latent.distribution(posterior), latent.distribution(prior)
    parts = [part.base_dist if isinstance(part, Independent) else part for part in whole]
    nats = kl_divergence(*parts).flatten(0, -2).mean(0)
    return torch.zeros_like(nats) if isinstance(latent, MeanLatent) else nats


class LogPredictions(LogPictures):
    """Draws what a WorldModel, alone or inside an agent, predicts of recorded windows; all under `world_model/`.

    `reconstructions`: images seen, decoded from the posterior. `open_loop`: truth, prediction and error after `context`
    images, with the recorded actions; `open_loop_moving`: the same as a GIF. `prediction_quality`: PSNR and SSIM by
    steps after the last image, a few of them as scalars `open_loop_psnr_h1`, `open_loop_ssim_h1`,
    `open_loop_reward_error_h1` and so on. `rewards`: predicted and true. `kl_per_dimension`: KL of the posterior from
    the prior. `categorical_usage`, of a categorical latent: entropy per group, and how often each class is chosen.

    The windows come from the newest held-out episodes, or, where the run holds none out, from the newest ones of the
    replay that it trains on; the titles say which. While episodes are collected, the newest ones change.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        windows: windows drawn, at most 8.
        context: images seen before the prediction begins.
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
        book.add("world_model/open_loop", open_loop_strips(model, few, columns=self.columns, name=name), step)
        # Two windows keep the file under a megabyte.
        book.add_gif("world_model/open_loop_moving", open_loop_frames(model, loop[:2], name=name), step)
        curves = prediction_curves(model, loop, batch.reward)
        book.add("world_model/prediction_quality", quality_chart(curves, f"{name}s"), step)
        book.add("world_model/rewards", reward_chart(model, loop, batch.reward, name), step)
        nats = kl_per_dimension(model.dynamics.latent, loop.posterior.params, loop.prior.params)
        book.add(
            "world_model/kl_per_dimension",
            kl_chart(nats, "dimension of the latent, or group of a categorical one"),
            step,
        )
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
        """Returns a window's name and windows of the newest episodes; None, with one warning, if there are none."""
        found = newest_windows(trainer, self.context, self.horizon)
        if not isinstance(found, str):
            return found
        if not self._warned:
            rank_zero_warn(f"LogPredictions draws nothing: {found}")
            self._warned = True
        return None


def newest_windows(trainer: Any, context: int, horizon: int) -> tuple[str, Batch] | str:
    """Returns windows of a run's newest episodes: held-out ones, or, where it holds none out, those it trains on.

    Args:
        trainer: has the run's datamodule.
        context: rows that a window must have more than.
        horizon: rows beyond them, or fewer where episodes are shorter.

    Returns:
        What to call a window, and `WINDOWS` of them; or why there are none.
    """
    data, why = getattr(trainer, "datamodule", None), "the run has no datamodule with a store"
    for held_out, name in ((True, "Held-out window"), (False, "Replay window")):
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
    """Returns two entropies of each group, in nats, at most the logarithm of the number of classes.

    A group whose average use has little entropy chooses the same class for every image; one whose posterior has much is
    undecided. A group's information about the image is at most the difference of the two.

    Args:
        latent: a `CategoricalLatent`.
        params: of posteriors.

    Returns:
        The entropy of each group's mean probabilities over all images, and its posterior's entropy, a mean over images.
    """
    share = latent.logits(params).softmax(-1).flatten(0, -3)
    return torch.special.entr(share.mean(0)).sum(-1), torch.special.entr(share).sum(-1).mean(0)


def usage_chart(latent: Any, params: Float[Tensor, "*batch params"]) -> Picture:
    """Draws the entropies of every group, most used first, and below them the probability of each class.

    Args:
        latent: a `CategoricalLatent`.
        params: of posteriors.
    """
    used, undecided = group_entropies(latent, params)
    order = used.argsort(descending=True)
    groups, most = list(range(len(order))), math.log(latent.classes)
    information = float((used - undecided).sum())
    title = f"Entropy per group, at most {most:.2f} nats; all groups hold up to {information:.1f} nats about an image"
    lines = {
        "of its average use": (groups, used[order].tolist()),
        "of one image's posterior": (groups, undecided[order].tolist()),
    }
    above = line_chart(lines, title, "rank of the group, most used first", "entropy (nats)", (760, 260))
    share = latent.logits(params).softmax(-1).flatten(0, -3).mean(0)[order].cpu().numpy()
    # The likeliest class of every group first: the number of a class has no meaning.
    share = -np.sort(-share, -1)
    title = "Probability of each class, averaged over images"
    names, x_label = [str(k) for k in order.tolist()], "rank of the class within its group"
    below = heat_map(share, names, title, x_label, (760, 300), "group", "probability")
    return stack([above, below], gap=6)
