"""How far M foresees: the simplest guess it must beat, and its guesses several decisions ahead."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from datamodules.episode import Batch
from wmlightning.dynamics.mdn_rnn import MDNLSTM

CONTEXT = 5
"""Rows that M watches, at least, before it predicts them; fewer where a window is too short."""
STARTS = 4
"""Rows of each window from which it predicts them, evenly spread."""
DREAMS = 8
"""Dreams from each such row; the mean over them is the predicted mean."""


class CopyBaseline:
    """`Next code = this code`: a Gaussian at z[t] with a variance for each dimension, the same for every t.

        variance = E (z[t+1] - z[t])^2 = mean over pairs of  (mean[t+1] - mean[t])^2 + var[t+1] + var[t]

    where mean and var are V's, so that the codes' own noise is counted exactly instead of drawn. Beside it stands the
    mean KL of each dimension from the prior, which says how much V's codes tell there.

    Args:
        latent_size: numbers in a code.
        device: where sums are kept.
    """

    def __init__(self, latent_size: int, device: torch.device) -> None:
        self.variance = self.kl = torch.ones(latent_size, device=device)
        self._sums = torch.zeros(2, latent_size, device=device, dtype=torch.float64)
        self._counts = torch.zeros(2, 1, device=device, dtype=torch.float64)

    def update(self, embeds: Float[Tensor, "batch time embed"], is_first: Bool[Tensor, "batch time"]) -> None:
        """Counts a batch of V's [mean, logvar] in; pairs across an episode's beginning do not count."""
        mean, logvar = embeds.double().chunk(2, -1)
        var = logvar.exp()
        pair = ~is_first[:, 1:, None]
        squares = (mean[:, 1:] - mean[:, :-1]).square() + var[:, 1:] + var[:, :-1]
        nats = 0.5 * (mean.square() + var - 1 - logvar)
        self._sums += torch.stack([(squares * pair).sum((0, 1)), nats.sum((0, 1))])
        self._counts += self._counts.new_tensor([[pair.sum()], [is_first.numel()]])

    def fit(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Sets `variance` and `kl`, with `over_ranks` averaging the sums over the processes."""
        self.variance, self.kl = (over_ranks(self._sums) / over_ranks(self._counts)).float()

    def nll(self, codes: Float[Tensor, "batch time latent"]) -> Float[Tensor, "batch time"]:
        """Nats per dimension of z[t] given z[t-1]; zero at t = 0, where nothing comes before."""
        squares = (codes[:, 1:] - codes[:, :-1]).square() / self.variance
        nats = 0.5 * (squares + self.variance.log() + math.log(2 * math.pi)).mean(-1)
        return functional.pad(nats, (1, 0))

    @property
    def informative(self) -> Bool[Tensor, "latent"]:
        """The dimensions with a KL above 0.1 nats, or all of them where there is none."""
        above = self.kl > 0.1
        return above if above.any() else torch.ones_like(above)


def predictions_ahead(
    dynamics: MDNLSTM, embeds: Float[Tensor, "batch time embed"], batch: Batch, horizons: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Predicts codes some decisions ahead, with the recorded actions, and copies them for comparison.

        row           start     start + 1   ...  start + h
        action                  a[0]        ...  a[h-1]       recorded
        code          watched   dreamt      ...  dreamt

    Predictions start from a few rows of each window; those during which an episode ends are left out.

    Args:
        dynamics: the memory.
        embeds: V's [mean, logvar].
        batch: the windows that belong to them, of more rows than the furthest horizon.
        horizons: decisions ahead.

    Returns:
        For each horizon the predicted mean, the code copied from the start and V's mean there, each (N, latent).
    """
    furthest, last = max(horizons), batch.shape[1] - 1 - max(horizons)
    starts = torch.linspace(min(CONTEXT, last), last, STARTS).round().long().unique().to(embeds.device)
    ahead = starts[:, None] + 1 + torch.arange(furthest, device=embeds.device)
    mean = embeds.chunk(2, -1)[0]
    seen = slice(0, last + 1)
    # V's means, not samples: copying has them too.
    watched, _ = dynamics.observe(
        embeds[:, seen], batch.action[:, seen], batch.is_first[:, seen], noise=torch.zeros_like(mean[:, seen])
    )
    begin = watched[:, starts].flatten()
    actions = batch.action[:, ahead].flatten(0, 1).repeat(DREAMS, 1, 1)
    dream = dynamics.imagine(begin.map(lambda tensor: tensor.repeat(DREAMS, 1)), actions)
    guess = dynamics.mixture(dream.params).mean.unflatten(0, (DREAMS, -1)).mean(0)
    truth = mean[:, ahead].flatten(0, 1)
    whole = batch.is_first[:, ahead].flatten(0, 1).cumsum(1) == 0
    return {
        h: (guess[whole[:, h - 1], h - 1], begin.stoch[whole[:, h - 1]], truth[whole[:, h - 1], h - 1])
        for h in horizons
    }
