"""`MemoryHeads`: what M can predict besides the next code, which is the reward, the episode's end, the next action."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, OneHotCategorical
from torch.nn import functional

from datamodules.episode import Batch, Spec
from wmlightning.networks.conv import initialize


class MemoryHeads(nn.Module):
    """Linear heads on the memory h[t] that predict what arrives with image t.

        row          t                       t + 1
        reward       reward[t] * reward_scale + bonus[t]
        done         is_terminal[t]
        action                               action[t + 1], the one taken at image t

    Args:
        hidden_size: width of h.
        action_size: numbers in an action.
        reward: predict the reward, as the mean of a Gaussian.
        done: predict the end of the episode, as a logit.
        done_weight: weight of the rows at which an episode ends.
        action: predict the next action: "none", "continuous" (the mean of unit Gaussians) or "discrete" (logits of a
            one-hot choice).
        reward_scale: factor on rewards before a unit Gaussian learns them, above 0.

    Raises:
        ValueError: if reward_scale is not above 0.

    Source: Ha and Schmidhuber 2018, section 5; the weight of 10 is their Doom code's (doomrnn/doomrnn.py).
    """

    def __init__(
        self,
        hidden_size: int,
        action_size: int,
        reward: bool = False,
        done: bool = False,
        done_weight: float = 10.0,
        action: Literal["none", "continuous", "discrete"] = "none",
        reward_scale: float = 1.0,
    ) -> None:
        if not reward_scale > 0:
            raise ValueError(f"reward_scale is {reward_scale} but must be above 0: 1 leaves rewards as they are")
        widths = {"reward": int(reward), "done": int(done), "action": 0 if action == "none" else action_size}
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(hidden_size, width) for name, width in widths.items() if width})
        self.done_weight = done_weight
        self.discrete = action == "discrete"
        self.reward_scale = reward_scale
        initialize(self)

    def check_spec(self, spec: Spec, what: str) -> None:
        """Checks that actions are of the kind that the action head predicts.

        Args:
            spec: of a store.
            what: the store, named in the error.

        Raises:
            ValueError: if they are discrete and it predicts continuous ones, or the other way round.
        """
        if "action" in self.layers and self.discrete != spec.discrete:
            kind, other = ("discrete", "continuous") if spec.discrete else ("continuous", "discrete")
            raise ValueError(f"action_head is {other} but the actions of {what} are {kind}: set it to {kind}")

    def reward(self, hidden: Float[Tensor, "*batch hidden"]) -> Normal:
        """Predicts the reward for arriving, in the environment's units, (...).

        Raises:
            ValueError: without a reward head.
        """
        return Normal(self._read("reward", hidden)[..., 0] / self.reward_scale, 1 / self.reward_scale)

    def cont(self, hidden: Float[Tensor, "*batch hidden"]) -> Bernoulli:
        """Predicts whether the episode continues, (...); with probability 1 without a done head."""
        if "done" not in self.layers:
            return Bernoulli(probs=torch.ones_like(hidden[..., 0]))
        return Bernoulli(logits=-self._read("done", hidden)[..., 0])

    def action(self, hidden: Float[Tensor, "*batch hidden"]) -> Distribution:
        """Predicts the next action, (..., A) or one-hot.

        Raises:
            ValueError: without an action head.
        """
        out = self._read("action", hidden)
        return OneHotCategorical(logits=out) if self.discrete else Normal(out, 1.0)

    def nats(
        self,
        hidden: Float[Tensor, "batch time hidden"],
        batch: Batch,
        bonus: Float[Tensor, "batch time"] | float = 0.0,
    ) -> dict[str, tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]]:
        """Computes the negative log-likelihood of every row under every head.

        Args:
            hidden: h, (B, T, hidden_size).
            batch: the rows it belongs to.
            bonus: added to the scaled reward that is learnt.

        Returns:
            For each head its nats, of which those of `done` are weighted, and which rows have a target: the last row of
            an episode or a window has no next action.
        """
        every_row = torch.ones_like(batch.is_first)
        nats_and_rows = {}
        if "reward" in self.layers:
            scaled_reward = Normal(self._read("reward", hidden)[..., 0], 1.0)
            nats = -scaled_reward.log_prob(batch.reward * self.reward_scale + bonus)
            nats_and_rows["reward"] = (nats, every_row)
        if "done" in self.layers:
            done = batch.is_terminal.to(hidden.dtype)
            logit = self._read("done", hidden)[..., 0]
            weight = 1 + (self.done_weight - 1) * done
            nats = functional.binary_cross_entropy_with_logits(logit, done, weight, reduction="none")
            nats_and_rows["done"] = (nats, every_row)
        if "action" in self.layers:
            nats = -self.action(hidden[:, :-1]).log_prob(batch.action[:, 1:])
            nats = nats if self.discrete else nats.sum(-1)
            has_next = functional.pad(~batch.is_first[:, 1:], (0, 1))
            nats_and_rows["action"] = (functional.pad(nats, (0, 1)), has_next)
        return nats_and_rows

    def _read(self, name: str, hidden: Tensor) -> Tensor:
        if name not in self.layers:
            raise ValueError(f"this model has no {name} head: train it with {name}_head switched on")
        return self.layers[name](hidden)
