"""Distributions of actions, bounded or one-hot, from a network's outputs, with gradients and entropies."""

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from wmlightning.distributions.categorical import draw_one_hot, entropy, likeliest_one_hot, straight_through
from wmlightning.recipes import Recorded

BOUND = 1 - 1e-6
"""The largest absolute value of a continuous action: nearer to 1, its atanh is not finite in float32."""

MODE_QUANTILES = 100
"""Quantiles of a Gaussian among which the mode of its tanh, which has no closed form, is searched."""
ENTROPY_QUANTILES = 32
"""Quantiles of a Gaussian over which the ln slope of the tanh is averaged for its entropy."""


class ActionDistribution(Recorded, ABC):
    """A distribution of actions whose parameters are a network's outputs (abstract). It has no weights.

    Actions, (..., A), are in [-1, 1] and independent in each number, or one-hot. Everything is computed in float32,
    under mixed precision too.

    Attributes:
        discrete: whether actions are one-hot vectors.
    """

    discrete: bool

    @abstractmethod
    def param_size(self, action_size: int) -> int:
        """Number P of network outputs for an action of this size."""

    @abstractmethod
    def noise_size(self, action_size: int) -> int:
        """Number of standard normal numbers that a sample takes."""

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draws actions (..., A) with a gradient to the parameters.

        Args:
            params: the network's outputs, (..., P).
            noise: standard normal numbers, (..., noise_size); None draws them.
        """

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """The likeliest action, (..., A)."""

    @abstractmethod
    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """ln of the probability, or of its density, summed over the numbers of an action, (...)."""

    @abstractmethod
    def entropy(self, params: Tensor) -> Tensor:
        """Entropy in nats, differential where actions are continuous, summed over the numbers of an action, (...)."""


class TanhNormal(ActionDistribution):
    """A Gaussian squashed by tanh; the network's outputs are [mean, raw].

        m = scale * tanh(mean / scale)      s = softplus(raw + ln(e^init_std - 1)) + min_std      a = tanh(m + s eps)

    Without the first tanh the mean would drift to where the second has no gradient. Mode and entropy have no closed
    form. Where the authors draw 100 samples we take fixed quantiles of each Gaussian, the means of equally likely
    pieces of it, so that nothing is drawn and a row does not depend on the others: the mode is the one of highest
    density among 100; the entropy is exact but for the tanh's ln slope, whose mean over 32 it takes (0.013 nats off at
    most, for an s up to 8).

    Args:
        init_std: std before the tanh where the raw output is 0, above 0.
        min_std: lower bound of the std, at least 0.
        mean_scale: the mean before the tanh stays within plus and minus this, above 0.

    Raises:
        ValueError: for a number out of its range.

    Source: Hafner et al. 2020 (Dreamer V1), and their code (tools.py, SampleDist and TanhBijector).
    """

    discrete = False

    def __init__(self, init_std: float = 5.0, min_std: float = 1e-4, mean_scale: float = 5.0) -> None:
        if not (0 < init_std < math.inf and 0 <= min_std < math.inf and 0 < mean_scale < math.inf):
            raise ValueError(
                f"init_std is {init_std}, min_std {min_std} and mean_scale {mean_scale}, but above 0, at least 0 and "
                "above 0 are needed"
            )
        self.init_std = init_std
        self.min_std = min_std
        self.mean_scale = mean_scale
        self._raw_start = init_std + math.log(-math.expm1(-init_std))

    def param_size(self, action_size: int) -> int:
        """Mean and raw std of each number."""
        return 2 * action_size

    def noise_size(self, action_size: int) -> int:
        """One for each number."""
        return action_size

    def mean_std(
        self, params: Float[Tensor, "*batch params"]
    ) -> tuple[Float[Tensor, "*batch action"], Float[Tensor, "*batch action"]]:
        """Mean and std of the Gaussian before the tanh."""
        mean, raw = params.float().chunk(2, -1)
        mean = self.mean_scale * torch.tanh(mean / self.mean_scale)
        return mean, functional.softplus(raw + self._raw_start) + self.min_std

    def sample(
        self, params: Float[Tensor, "*batch params"], noise: Float[Tensor, "*batch action"] | None = None
    ) -> Float[Tensor, "*batch action"]:
        """tanh(m + s * noise)."""
        mean, std = self.mean_std(params)
        noise = torch.randn_like(mean) if noise is None else noise.to(mean)
        return torch.tanh(torch.addcmul(mean, std, noise))

    def mode(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch action"]:
        """The quantile of highest density, for each dimension by itself, since they are independent."""
        mean, std = self.mean_std(params)
        noise = mean.new_tensor(_quantiles(MODE_QUANTILES))
        inputs = torch.addcmul(mean[..., None], std[..., None], noise)
        best = (-0.5 * noise.square() - _log_slope(inputs)).argmax(-1, keepdim=True)
        return torch.tanh(inputs.gather(-1, best))[..., 0]

    def log_prob(
        self, params: Float[Tensor, "*batch params"], action: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch"]:
        """ln N(atanh a; m, s) - ln slope of the tanh; actions outside plus and minus `BOUND` are clamped."""
        mean, std = self.mean_std(params)
        inputs = torch.atanh(action.float().clamp(-BOUND, BOUND))
        return (_normal_log_prob((inputs - mean) / std, std) - _log_slope(inputs)).sum(-1)

    def entropy(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch"]:
        """Entropy of the Gaussian plus the mean ln slope of the tanh."""
        mean, std = self.mean_std(params)
        slope: Any = _MeanLogSlope.apply(mean, std)
        return (0.5 * math.log(2 * math.pi * math.e) + std.log() + slope).sum(-1)


class TruncatedNormal(ActionDistribution):
    """A Gaussian cut off at -1 and 1; the network's outputs are [mean, raw].

        m = tanh(mean)        s = 2 sigmoid(raw / 2) + min_std        p(a) = N(a; m, s) / Z for a in [-1, 1]

    A sample is the inverse of the distribution function at a uniform number, and so has a gradient to both; it is
    clamped to 1e-6 inside the limits, and the gradient ignores the clamp. The mode is m, for it lies inside.

    Args:
        min_std: lower bound of s, at least 0; s starts at min_std + 1 and stays below min_std + 2.

    Raises:
        ValueError: if min_std is below 0.

    Source: Hafner et al. 2021 (Dreamer V2), for continuous actions; their code (common/nets.py, common/dists.py).
    """

    discrete = False

    def __init__(self, min_std: float = 0.1) -> None:
        if not 0 <= min_std < math.inf:
            raise ValueError(f"min_std is {min_std} but must be at least 0")
        self.min_std = min_std

    def param_size(self, action_size: int) -> int:
        """Mean and raw std of each number."""
        return 2 * action_size

    def noise_size(self, action_size: int) -> int:
        """One for each number."""
        return action_size

    def mean_std(
        self, params: Float[Tensor, "*batch params"]
    ) -> tuple[Float[Tensor, "*batch action"], Float[Tensor, "*batch action"]]:
        """Mean and std of the Gaussian before it is truncated."""
        mean, raw = params.float().chunk(2, -1)
        return mean.tanh(), 2 * (0.5 * raw).sigmoid() + self.min_std

    def sample(
        self, params: Float[Tensor, "*batch params"], noise: Float[Tensor, "*batch action"] | None = None
    ) -> Float[Tensor, "*batch action"]:
        """The quantile of the truncated Gaussian at the probability of the noise under a standard one."""
        mean, std = self.mean_std(params)
        noise = torch.randn_like(mean) if noise is None else noise.to(mean)
        # Noise above 0 is mirrored, and the result's sign flipped: probabilities are then below 3/4, and near 0,
        # unlike near 1, float32 tells them apart.
        side = torch.where(noise > 0, -1.0, 1.0)
        low, high = (torch.special.ndtr((end - side * mean) / std) for end in (-1.0, 1.0))
        probability = low + torch.special.ndtr(-noise.abs()) * (high - low)
        # Clamped from below: at 0 the inverse and its slope are infinite. The bound is 11 stds out.
        action = mean + side * std * torch.special.ndtri(probability.clamp(min=1e-30))
        return straight_through(action.detach().clamp(-BOUND, BOUND), action)

    def mode(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch action"]:
        """The mean before the cut."""
        return self.mean_std(params)[0]

    def log_prob(
        self, params: Float[Tensor, "*batch params"], action: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch"]:
        """ln N(a; m, s) - ln Z, for actions in [-1, 1]."""
        mean, std = self.mean_std(params)
        _, _, inside = self._cut(mean, std)
        return (_normal_log_prob((action.float() - mean) / std, std) - inside.log()).sum(-1)

    def entropy(self, params: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch"]:
        """ln(sqrt(2 pi e) s Z) + (low phi(low) - high phi(high)) / 2 Z, the ends in standard deviations."""
        mean, std = self.mean_std(params)
        low, high, inside = self._cut(mean, std)
        lost = (low * torch.exp(-0.5 * low.square()) - high * torch.exp(-0.5 * high.square())) / (2 * inside)
        return (0.5 * math.log(2 * math.pi * math.e) + (std * inside).log() + lost / math.sqrt(2 * math.pi)).sum(-1)

    @staticmethod
    def _cut(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ends in standard deviations from the mean, and Z, what lies between: at least 0.33, as the mean does."""
        low, high = (-1 - mean) / std, (1 - mean) / std
        return low, high, torch.special.ndtr(high) - torch.special.ndtr(low)


class OneHot(ActionDistribution):
    """A choice of one among A actions; the network's outputs are its logits.

    Samples have the straight-through gradient: exactly one-hot forward, that of the probabilities backward.

    Source: Hafner et al. 2020 and 2021 (Dreamer V1 and V2), for discrete actions.
    """

    discrete = True

    def param_size(self, action_size: int) -> int:
        """A logit for each action."""
        return action_size

    def noise_size(self, action_size: int) -> int:
        """One, however many actions there are."""
        return 1

    def sample(
        self, params: Float[Tensor, "*batch action"], noise: Float[Tensor, "*batch one"] | None = None
    ) -> Float[Tensor, "*batch action"]:
        """A one-hot vector."""
        return draw_one_hot(params, None if noise is None else noise[..., 0])

    def mode(self, params: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """The likeliest action as a one-hot vector."""
        return likeliest_one_hot(params)

    def log_prob(
        self, params: Float[Tensor, "*batch action"], action: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch"]:
        """ln of the probability of a one-hot action."""
        return (params.float().log_softmax(-1) * action).sum(-1)

    def entropy(self, params: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
        """-sum p ln p."""
        return entropy(params)


def _normal_log_prob(deviation: Tensor, std: Tensor) -> Tensor:
    """ln of a Gaussian's density at a deviation from its mean, in standard deviations."""
    return -0.5 * deviation.square() - std.log() - 0.5 * math.log(2 * math.pi)


def _log_slope(inputs: Tensor) -> Tensor:
    """ln(1 - tanh(x)^2), finite for every x."""
    return 2 * (math.log(2) - inputs - functional.softplus(-2 * inputs))


@cache
def _quantiles(count: int) -> tuple[float, ...]:
    """The means of `count` equally likely pieces of a standard Gaussian, in ascending order."""
    # Between ends a and b it is phi(a) - phi(b) over the probability; phi is 0 at both infinite ends.
    ends = torch.special.ndtri(torch.arange(count + 1, dtype=torch.float64) / count)
    return tuple((-count / math.sqrt(2 * math.pi) * torch.exp(-0.5 * ends.square()).diff()).tolist())


class _MeanLogSlope(torch.autograd.Function):
    """The mean over quantiles q of ln(1 - tanh(x)^2), x = mean + std q, and its gradient, a quantile at a time:

        d/dmean = mean of -2 tanh(x)        d/dstd = mean of -2 tanh(x) q

    Autograd would keep several arrays of 32 times the size of an action.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, std: Tensor) -> Tensor:
        total, mean_slope, std_slope = (torch.zeros_like(mean) for _ in range(3))
        for q in _quantiles(ENTROPY_QUANTILES):
            inputs = torch.add(mean, std, alpha=q)
            total += _log_slope(inputs)
            if any(ctx.needs_input_grad):
                slope = inputs.tanh_()
                mean_slope.add_(slope, alpha=-2 / ENTROPY_QUANTILES)
                std_slope.add_(slope, alpha=-2 * q / ENTROPY_QUANTILES)
        ctx.save_for_backward(mean_slope, std_slope)
        return total / ENTROPY_QUANTILES

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        mean_slope, std_slope = ctx.saved_tensors
        return grad * mean_slope, grad * std_slope
