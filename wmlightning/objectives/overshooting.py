"""Overshooting: PlaNet's losses on predictions of more than one step, in latent space or on observations.

    row t                        0      1      2      3
    starts (distance 1)         -1      0      1      2       prior of row t, 1 step from the start's posterior
    starts (distance 2)          .     -1      0      1       after 2 steps, without the image between
    starts (distance 3)          .      .     -1      0       -1 is the state before the window, as in `observe`

Where a start would lie further back (.) and where a reset lies between, there is no such prior: the mask is false.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from datamodules.episode import Batch
from wmlightning.dynamics.state import State
from wmlightning.objectives.divergence import KLLoss
from wmlightning.recipes import Recorded


class Overshot(NamedTuple):
    """The losses of overshooting, unreduced.

    Args:
        loss: (B, T, D), in nats; entry (t, d - 1) belongs to the prior of row t at distance d. Zero outside the mask.
        mask: bool (B, T, D), where such a prior exists.
    """

    loss: Float[Tensor, "batch time distance"]
    mask: Bool[Tensor, "batch time distance"]

    def mean_over_distances(self, first: int = 1) -> Float[Tensor, "batch time"]:
        """The sum over the distances from `first` on, divided by their number, mask or not (equation 7)."""
        return self.loss[..., first - 1 :].mean(-1)


def check_distance(distance: int, rows: int) -> None:
    """Raises ValueError unless the distance is between 1 and the rows of a window."""
    if not 1 <= distance <= rows:
        raise ValueError(f"the overshooting distance is {distance} but windows have {rows} rows: take 1 to {rows}")


def multi_step_priors(
    dynamics: Any,
    posterior: State,
    actions: Float[Tensor, "batch time action"],
    is_first: Bool[Tensor, "batch time"],
    distance: int,
) -> Iterator[tuple[State, Bool[Tensor, "batch rest"]]]:
    """Rolls the prior by sampling, from every posterior at once, with the recorded actions (equation 5).

    Yields:
        For d = 1 to distance: the priors of rows d - 1 to T - 1, each d steps from its start, and which of them exist.
        Their `stoch` is a sample of the distribution with their `params`.

    Raises:
        ValueError: if the distance is not between 1 and T.
    """
    rows, time = is_first.shape
    check_distance(distance, time)
    before = dynamics.initial(rows)
    gone = is_first[..., None]
    deter, stoch = (
        torch.cat([first[:, None], rest[:, :-1]], 1).masked_fill(gone, 0.0)
        for first, rest in ((before.deter, posterior.deter), (before.stoch, posterior.stoch))
    )
    state = State(deter, stoch, stoch[..., :0])
    actions = actions.masked_fill(gone, 0.0)
    exists = torch.ones_like(is_first)
    for d in range(1, distance + 1):
        if d > 1:
            state = state[:, :-1]
            exists = exists[:, :-1] & ~is_first[:, d - 1 :]
        arrived = dynamics.imagine_step(state.flatten(), actions[:, d - 1 :].flatten(0, 1))
        state = arrived.map(lambda tensor, shape=exists.shape: tensor.unflatten(0, shape))
        yield state, exists


def latent_overshooting(
    dynamics: Any,
    posterior: State,
    actions: Float[Tensor, "batch time action"],
    is_first: Bool[Tensor, "batch time"],
    distance: int,
    kl: KLLoss,
) -> Overshot:
    """Returns the KL of every posterior to the priors predicted from 1 to D steps before.

        loss[t, d] = kl( q(s_t | o<=t), p(s_t | s_{t-1}) ),     s_{t-1} ~ p(s_{t-1} | s_{t-d}) q(s_{t-d} | o<=t-d)

    For d > 1 the posterior of row t is detached, so that predictions learn from posteriors and not the other way round;
    the posterior that a prediction starts from keeps its gradient.

    Args:
        dynamics: with `latent`, `initial` and `imagine_step`.
        posterior: the states of a window, (B, T).
        actions: as in a Batch: actions[:, t] led to row t.
        is_first: where episodes begin.
        distance: D, from 1 to T.
        kl: the loss on a KL.

    Source: Hafner et al. 2019 (PlaNet), equations 6 and 7.
    """

    return _kl_to_priors(
        posterior, multi_step_priors(dynamics, posterior, actions, is_first, distance), dynamics.latent, kl
    )


def observation_overshooting(
    model: Any,
    posterior: State,
    batch: Batch,
    distance: int,
    pixels: Float[Tensor, "batch time c h w"] | None = None,
) -> Overshot:
    """Returns the negative log-likelihood of every image and reward under the priors from 1 to D steps before.

        loss[t, d] = -ln p(o_t | s_t) - reward_scale ln p(r_t | s_t),       s_t ~ p(s_t | s_{t-d}) q(s_{t-d} | o<=t-d)

    Images are decoded again in the backward pass instead of being kept: those of D windows would not fit into memory.

    Args:
        model: with `dynamics`, `image_nats(features, pixels)`, `reward_nats(features, reward)`, `pixels(image)` and
            `reward_scale`.
        posterior: the states of a window, (B, T).
        batch: that window.
        distance: D, from 1 to T.
        pixels: the decoder's target, the same as for the posterior; None for the model's `pixels` of the batch, which
            may draw new noise.

    Source: Hafner et al. 2019 (PlaNet), figure 3b, after Amos et al. 2018; it is not in their released code.
    """

    target = model.pixels(batch.observation["image"]).unflatten(0, batch.shape) if pixels is None else pixels

    def cost(d: int, prior: State) -> Tensor:
        features = prior.features
        rows = (features.flatten(0, 1), target[:, d - 1 :].flatten(0, 1))
        image = checkpoint(model.image_nats, *rows, use_reentrant=False, preserve_rng_state=False)
        reward = model.reward_nats(features, batch.reward[:, d - 1 :])
        return image.unflatten(0, reward.shape) + model.reward_scale * reward  # type: ignore[union-attr]

    priors = multi_step_priors(model.dynamics, posterior, batch.action, batch.is_first, distance)
    return _pad_and_stack((cost(d, prior), exists) for d, (prior, exists) in enumerate(priors, 1))


class Overshooting(Recorded, ABC):
    """The terms of a world model's loss on predictions of more than one step (abstract).

    Args:
        distance: D, the furthest prediction, in rows.
        scale: weight of the mean over distances.
    """

    min_distance = 1
    """The smallest distance that adds a term."""

    def __init__(self, distance: int, scale: float = 1.0) -> None:
        if distance < self.min_distance:
            raise ValueError(f"distance is {distance} but {type(self).__name__} needs at least {self.min_distance}")
        self.distance = distance
        self.scale = scale

    @abstractmethod
    def __call__(
        self, model: Any, posterior: State, batch: Batch, pixels: Float[Tensor, "batch time c h w"], kl: KLLoss
    ) -> dict[str, Float[Tensor, "batch time"]]:
        """Returns named terms of the loss, (B, T), already weighted; the outer sum over t is a mean as everywhere."""


class LatentOvershooting(Overshooting):
    """Trains multi-step priors towards later posteriors, in latent space, without decoding images.

        loss[t] = scale / (D - 1) * sum over d = 2..D of kl[t, d]    + reward_scale / (D - 1) * sum of -ln p(r_t | s_t)

    Distance 1 is the ordinary KL, which the world model has anyway (so equation 7's beta_1 is D * kl_scale). Priors
    that do not exist, at a window's start and across resets, count as zero: the authors' final code has a constant
    there, their first one divided by the number that exist.

    Args:
        distance: D, at least 2; the length of a window for all distances.
        scale: weight of the mean KL over distances, beta.
        reward_scale: weight of the reward's likelihood under the multi-step priors. 100 in the first release, whose
            text says multi-step priors, while its code gave the head detached posteriors, so that only the head
            learned.

    Source: Hafner et al. 2019 (PlaNet), equation 7.
    """

    min_distance = 2

    def __init__(self, distance: int, scale: float = 1.0, reward_scale: float = 0.0) -> None:
        super().__init__(distance, scale)
        self.reward_scale = reward_scale

    def __call__(
        self, model: Any, posterior: State, batch: Batch, pixels: Float[Tensor, "batch time c h w"], kl: KLLoss
    ) -> dict[str, Float[Tensor, "batch time"]]:
        """Returns `overshooting_kl` and, with a reward_scale, `overshooting_reward`."""
        priors = list(multi_step_priors(model.dynamics, posterior, batch.action, batch.is_first, self.distance))
        overshot = _kl_to_priors(posterior, priors, model.dynamics.latent, kl)
        found = {"overshooting_kl": self.scale * overshot.mean_over_distances(2)}
        if self.reward_scale:
            rewards = _pad_and_stack(
                (model.reward_nats(prior.features, batch.reward[:, d - 1 :]), exists)
                for d, (prior, exists) in enumerate(priors, 1)
            )
            found["overshooting_reward"] = self.reward_scale * rewards.mean_over_distances(2)
        return found


class ObservationOvershooting(Overshooting):
    """Predicts every image and every reward from all the priors made 1 to D steps before.

        loss[t] = scale / D * sum over d = 1..D of ( -ln p(o_t | s_t) - model's reward_scale * ln p(r_t | s_t) )

    Costs D decodings of every window. Priors that do not exist, at a window's start and across resets, count as zero.

    Args:
        distance: D, at least 1.
        scale: weight of the mean over distances.

    Source: Hafner et al. 2019 (PlaNet), figure 3b.
    """

    def __call__(
        self, model: Any, posterior: State, batch: Batch, pixels: Float[Tensor, "batch time c h w"], kl: KLLoss
    ) -> dict[str, Float[Tensor, "batch time"]]:
        """Returns `overshooting_observation`."""
        overshot = observation_overshooting(model, posterior, batch, self.distance, pixels)
        return {"overshooting_observation": self.scale * overshot.mean_over_distances()}


def _kl_to_priors(posterior: State, priors: Iterable[tuple[State, Tensor]], latent: Any, kl: KLLoss) -> Overshot:
    def cost(d: int, prior: State) -> Tensor:
        target = posterior.params[:, d - 1 :]
        return kl(latent, target if d == 1 else target.detach(), prior.params)[0]

    return _pad_and_stack((cost(d, prior), exists) for d, (prior, exists) in enumerate(priors, 1))


def _pad_and_stack(parts: Iterable[tuple[Tensor, Tensor]]) -> Overshot:
    """Pads the losses of each distance with zeros in front, and stacks the distances along a last axis."""
    losses = []
    masks = []
    for d, (loss, exists) in enumerate(parts, 1):
        masks.append(functional.pad(exists, (d - 1, 0)))
        losses.append(functional.pad(torch.where(exists, loss, 0.0), (d - 1, 0)))
    return Overshot(torch.stack(losses, -1), torch.stack(masks, -1))
