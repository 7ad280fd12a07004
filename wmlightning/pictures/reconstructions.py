"""Pictures of V (the VAE): reconstructions, samples from the prior, and what each dimension of its code does."""

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import bar_chart
from wmlightning.pictures.images import Picture, code_kl, evenly, reconstruction_table, split_embeds, table, to_frames


class LogReconstructions(LogPictures):
    """Draws what a VAE has learnt, always from the same held-out frames.

    `vae/reconstructions`: truth, reconstruction and error. `vae/samples`: decoded draws from the prior, always from
    the same noise. `vae/traversal`: one frame's code with one dimension at a time moved through the prior's range, for
    the dimensions of largest KL. `vae/kl_per_dimension`: KL from the prior in nats; where most are near zero, the floor
    of the KL, or the data, leaves those dimensions unused.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        frames: columns of `vae/reconstructions`.
        samples: draws from the prior, in rows of ten.
        dimensions: rows of `vae/traversal`.
        reach: how far the traversal goes to both sides, in standard deviations of the prior.
    """

    def __init__(
        self, every: int = 500, frames: int = 10, samples: int = 30, dimensions: int = 8, reach: float = 2.5
    ) -> None:
        super().__init__(every)
        self.frames, self.samples, self.dimensions, self.reach = frames, samples, dimensions, reach

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Draws the four pictures."""
        batch = self.held_out(trainer)
        if batch is None:
            return
        images = batch.observation["image"].flatten(0, 1)
        # 256 frames are enough for the KL, and long windows would hold thousands.
        images = images[evenly(len(images), 256)].to(stage.device)
        mean, logvar = split_embeds(stage.encode(images))
        kl = code_kl(mean, logvar).mean(0)
        chosen = evenly(len(images), self.frames)
        book.add("vae/reconstructions", reconstructions(stage, images[chosen], mean[chosen]), step)
        book.add("vae/samples", prior_samples(stage, self.samples, mean.shape[-1]), step)
        book.add(
            "vae/traversal", traversal(stage, mean[chosen[len(chosen) // 2]], kl, self.dimensions, self.reach), step
        )
        book.add("vae/kl_per_dimension", kl_chart(kl), step)


def reconstructions(vae: Any, images: Tensor, mean: Tensor | None = None) -> Picture:
    """Draws frames, their reconstructions from the code's mean, and the errors, one column a frame.

    Args:
        vae: a stage with `encode` and `decode`.
        images: uint8 (N, H, W, C).
        mean: their codes (N, Nz) if known.
    """
    mean = split_embeds(vae.encode(images))[0] if mean is None else mean
    return reconstruction_table(to_frames(images), to_frames(vae.decode(mean)), "Held-out frames")


def prior_samples(vae: Any, count: int, latent_size: int, seed: int = 0) -> Picture:
    """Draws images decoded from N(0, I), in rows of ten; the same noise for the same seed, whatever the device."""
    noise = torch.randn(count, latent_size, generator=torch.Generator().manual_seed(seed))
    frames = to_frames(vae.decode(noise.to(next(vae.parameters()).device)))
    rows = {f"{k} to {min(k + 10, count) - 1}": frames[k : k + 10] for k in range(0, count, 10)}
    return table(
        rows, title="Samples from the prior", note="codes drawn from N(0, I) and decoded; rows count the samples"
    )


def traversal(vae: Any, mean: Tensor, kl: Tensor, dimensions: int = 8, reach: float = 2.5, columns: int = 9) -> Picture:
    """Draws one frame's code with one dimension at a time moved from -reach to +reach; rows: those of largest KL.

    Args:
        vae: a stage with `decode`.
        mean: the code to start from (Nz,).
        kl: of each dimension, in nats, (Nz,); the largest are drawn.
        dimensions: rows drawn.
        reach: in standard deviations of the prior.
        columns: values drawn, evenly spread.
    """
    values = torch.linspace(-reach, reach, columns)
    order = kl.argsort(descending=True)[:dimensions].tolist()
    codes = mean.repeat(len(order), columns, 1)
    for row, dimension in enumerate(order):
        codes[row, :, dimension] = values.to(codes)
    frames = to_frames(vae.decode(codes))
    rows = {f"z{d}\n{kl[d]:.2f} nats": frames[row] for row, d in enumerate(order)}
    captions = [f"{value:+.1f}" for value in values.tolist()]
    note = "one dimension of one held-out frame's code is set to the value above the column, the others stay"
    return table(rows, captions, "Latent traversal", note, column_label="value of z")


def kl_chart(kl: Tensor, x_label: str = "dimension of z") -> Picture:
    """Draws the KL of each dimension from the prior, largest first.

    Args:
        kl: of each dimension, in nats, (D,).
        x_label: what the dimensions are of.
    """
    order = kl.argsort(descending=True)
    active = int((kl > 0.1).sum())
    title = f"KL per dimension: {float(kl.sum()):.1f} nats an image, {active} of {len(kl)} dimensions above 0.1"
    return bar_chart(kl[order].tolist(), [str(d) for d in order.tolist()], title, x_label, "KL (nats)")
