"""How a categorical latent is used: which classes, in how many groups, and how sure of them an image makes it."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmlightning.callbacks.charts import heat_map, line_chart
from wmlightning.callbacks.images import Picture, stack


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
