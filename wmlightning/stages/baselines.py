"""What a test of M compares: the likelihood of a Gaussian around the last code, and open-loop predictions."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from datamodules.episode import Batch
from wmlightning.dynamics.mdn_rnn import MDNLSTM

CONTEXT = 5
"""Least rows that M observes before a prediction starts; fewer where a window is too short."""
STARTS = 4
"""Rows of each window from which predictions start, evenly spread."""
DREAMS = 8
"""Dreams from each such row; their mean is the predicted mean."""


class CopyBaseline:
    """Predicts that the next code is the present one: a Gaussian at z[t], with one variance for each dimension.

        variance = E (z[t+1] - z[t])^2 = mean over pairs of  (mean[t+1] - mean[t])^2 + var[t+1] + var[t]

    where mean and var are V's, so that the codes' own noise enters exactly instead of as samples. It also measures the
    mean KL of each dimension from the prior: how much information V's codes hold there.

    Args:
        latent_size: numbers in a code.
        device: of the sums.
    """

    def __init__(self, latent_size: int, device: torch.device) -> None:
        self.variance = self.kl = torch.ones(latent_size, device=device)
        self._sums = torch.zeros(2, latent_size, device=device, dtype=torch.float64)
        self._counts = torch.zeros(2, 1, device=device, dtype=torch.float64)

    def update(self, embeds: Float[Tensor, "batch time embed"], is_first: Bool[Tensor, "batch time"]) -> None:
        """Adds a batch of V's [mean, logvar] to the sums; pairs across the beginning of an episode are left out."""
        mean, logvar = embeds.double().chunk(2, -1)
        var = logvar.exp()
        pair = ~is_first[:, 1:, None]
        squares = (mean[:, 1:] - mean[:, :-1]).square() + var[:, 1:] + var[:, :-1]
        nats = 0.5 * (mean.square() + var - 1 - logvar)
        self._sums += torch.stack([(squares * pair).sum((0, 1)), nats.sum((0, 1))])
        self._counts += self._counts.new_tensor([[pair.sum()], [is_first.numel()]])

    def fit(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Sets `variance` and `kl` from the sums, which `mean_over_ranks` averages over the processes."""
        self.variance, self.kl = (mean_over_ranks(self._sums) / mean_over_ranks(self._counts)).float()

    def nll(self, codes: Float[Tensor, "batch time latent"]) -> Float[Tensor, "batch time"]:
        """Negative log-likelihood of z[t] given z[t-1], in nats per dimension; zero at t = 0, which has no z[t-1]."""
        squares = (codes[:, 1:] - codes[:, :-1]).square() / self.variance
        nats = 0.5 * (squares + self.variance.log() + math.log(2 * math.pi)).mean(-1)
        return functional.pad(nats, (1, 0))

    @property
    def informative(self) -> Bool[Tensor, "latent"]:
        """The dimensions with a KL above 0.1 nats, or all dimensions if none has."""
        above = self.kl > 0.1
        return above if above.any() else torch.ones_like(above)


def predictions_ahead(
    dynamics: MDNLSTM, embeds: Float[Tensor, "batch time embed"], batch: Batch, horizons: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Predicts codes several decisions ahead with the recorded actions, beside the code at the start.

        row           start     start + 1   ...  start + h
        action                  a[0]        ...  a[h-1]       recorded
        code          observed  dreamt      ...  dreamt

    Predictions start from a few rows of each window; those across the end of an episode are left out.

    Args:
        dynamics: M's dynamics.
        embeds: V's [mean, logvar].
        batch: the windows they encode, of more rows than the furthest horizon.
        horizons: decisions ahead.

    Returns:
        For each horizon the predicted mean, V's mean at the start, and V's mean at the horizon, each (N, latent).
    """
    furthest = max(horizons)
    last = batch.shape[1] - 1 - furthest
    starts = torch.linspace(min(CONTEXT, last), last, STARTS).round().long().unique().to(embeds.device)
    ahead = starts[:, None] + 1 + torch.arange(furthest, device=embeds.device)
    mean = embeds.chunk(2, -1)[0]
    past = slice(0, last + 1)
    # Zero noise observes V's means, as the baseline copies V's means.
    observed, _ = dynamics.observe(
        embeds[:, past], batch.action[:, past], batch.is_first[:, past], noise=torch.zeros_like(mean[:, past])
    )
    begin = observed[:, starts].flatten()
    actions = batch.action[:, ahead].flatten(0, 1).repeat(DREAMS, 1, 1)
    dream = dynamics.imagine(begin.map(lambda tensor: tensor.repeat(DREAMS, 1)), actions)
    guess = dynamics.mixture(dream.params).mean.unflatten(0, (DREAMS, -1)).mean(0)
    truth = mean[:, ahead].flatten(0, 1)
    whole = batch.is_first[:, ahead].flatten(0, 1).cumsum(1) == 0
    return {
        h: (guess[whole[:, h - 1], h - 1], begin.stoch[whole[:, h - 1]], truth[whole[:, h - 1], h - 1])
        for h in horizons
    }
