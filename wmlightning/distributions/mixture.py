"""Mixtures of Gaussians, one for every dimension."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024
"""Rows worked on at a time on a CPU, so that temporaries of (rows, K, D) numbers stay in its cache."""


class GaussianMixture:
    """K Gaussians for each of D dimensions, the dimensions independent of one another.

        p(x) = prod_d sum_k softmax(logits)[d, k] N(x[d]; mean[d, k], exp(log_std[d, k])^2)

    Args:
        logits: unnormalised log weights, shape (..., D, K).
        mean: means, shape (..., D, K).
        log_std: natural logarithms of the standard deviations, not clamped, shape (..., D, K).
        temperature: uncertainty of `sample`, above 0: it divides the logits and multiplies the noise by its root.
            `log_prob` and `mean` are those of the untempered mixture.

    Raises:
        ValueError: if the temperature is not above 0.

    Source: Ha and Schmidhuber 2018, section 2.3; their released code (carracing/rnn/rnn.py).
    """

    def __init__(
        self,
        logits: Float[Tensor, "*batch dim component"],
        mean: Float[Tensor, "*batch dim component"],
        log_std: Float[Tensor, "*batch dim component"],
        temperature: float = 1.0,
    ) -> None:
        self._set_params(torch.stack([logits.mT, mean.mT, log_std.mT], -3), temperature)

    @classmethod
    def from_params(
        cls, params: Float[Tensor, "*batch params"], dims: int, temperature: float = 1.0
    ) -> "GaussianMixture":
        """Reads a network's flat output (..., 3 * K * D) as logits, means and log stds, K rows of D each, uncopied."""
        self = cls.__new__(cls)
        self._set_params(params.unflatten(-1, (3, -1, dims)), temperature)
        return self

    def _set_params(self, params: Tensor, temperature: float) -> None:
        if temperature <= 0:
            raise ValueError(
                f"temperature is {temperature} but must be above 0: for a prediction without noise use `mean`"
            )
        # float32 even under mixed precision: exp(-log_std) leaves the range of half precision.
        self._params = params.float() if params.dtype in (torch.float16, torch.bfloat16) else params
        self.temperature = temperature
        self.logits, self.means, self.log_std = self._params.mT.unbind(-3)

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Natural log density of each dimension of x, shape (..., D), in nats; the temperature has no effect.

        Gradients flow to the parameters and to x, once (there is no second derivative).
        """
        if x.shape != self.means.shape[:-1]:
            raise ValueError(f"x has shape {tuple(x.shape)} but the mixture is of {tuple(self.means.shape[:-1])}")
        rows = self._params.reshape(-1, *self._params.shape[-3:])
        return _LogProb.apply(rows, x.to(rows.dtype).reshape(-1, x.shape[-1])).view(x.shape)  # type: ignore[union-attr]

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """The mean of each dimension, shape (..., D): the best prediction in squared error."""
        return (self.logits.softmax(-1) * self.means).sum(-1)

    def sample(
        self, noise: tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch dim"]] | None = None
    ) -> Float[Tensor, "*batch dim"]:
        """Draws x, shape (..., D), at the temperature.

        Args:
            noise: uniform numbers in [0, 1), which choose the components, and standard normal numbers, each (..., D);
                None draws both from torch's generator.
        """
        logits, means, log_stds = self._params.unbind(-3)
        if noise is None:
            noise = torch.rand_like(means[..., 0, :]), torch.randn_like(means[..., 0, :])
        uniform, normal = noise
        # Component by component, (..., D) at a time: several times faster than cumsum over the short axis of all.
        weights = (logits / self.temperature).softmax(-2).unbind(-2)
        below = torch.zeros_like(weights[0])
        chosen = torch.zeros_like(weights[0], dtype=torch.int64)
        for weight in weights[:-1]:
            below = below + weight
            chosen += uniform >= below
        index = chosen.unsqueeze(-2)
        mean, log_std = (part.gather(-2, index).squeeze(-2) for part in (means, log_stds))
        return torch.addcmul(mean, log_std.exp(), normal.to(mean), value=math.sqrt(self.temperature))


class _LogProb(torch.autograd.Function):
    """log p and its closed-form gradient, chunk by chunk: autograd would keep ten arrays of (rows, K, D) numbers.

    With e = (x - mean) / std, joint = logits - log_std - e^2 / 2 and share = softmax(joint) over K,

        log p = logsumexp(joint) - logsumexp(logits) - log(2 pi) / 2
        d/dlogits = share - softmax(logits)    d/dmean = share e / std    d/dlog_std = share (e^2 - 1)
        d/dx = -sum over K of d/dmean

    If it is needed, the gradient is computed in the forward pass, while a chunk's exponentials are in the cache.
    """

    @staticmethod
    def forward(ctx: Any, params: Tensor, x: Tensor) -> Tensor:
        log_p = torch.empty_like(x)
        needs_gradient = any(ctx.needs_input_grad)
        # Plain empty, not empty_like: params may be a view with holes or of stride 0.
        gradients = (params.new_empty(params.shape), torch.empty_like(x)) if needs_gradient else ()
        for at in _chunks(x):
            logits, mean, log_std = params[at].unbind(1)
            inverse = torch.neg(log_std).exp_()
            e = (x[at, None] - mean).mul_(inverse)
            total, share = _normalized((logits - log_std).addcmul_(e, e, value=-0.5))
            prior, weight = _normalized(logits)
            torch.sub(total, prior, out=log_p[at]).sub_(0.5 * math.log(2 * math.pi))
            if gradients:
                d_logits, d_mean, d_log_std = gradients[0][at].unbind(1)
                torch.sub(share, weight, out=d_logits)
                torch.mul(share, e, out=d_mean)
                torch.mul(d_mean, e, out=d_log_std).sub_(share)
                torch.sum(d_mean.mul_(inverse), 1, out=gradients[1][at]).neg_()
        ctx.save_for_backward(*gradients)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        d_params, d_x = ctx.saved_tensors
        return d_params * grad[:, None, None], d_x * grad


def _normalized(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp over K, (rows, D), and softmax, (rows, K, D), of one exponential."""
    most = logits.amax(1, keepdim=True)
    weight = torch.sub(logits, most).exp_()
    total = weight.sum(1, keepdim=True)
    return total.log().add_(most).squeeze(1), weight.div_(total)


def _chunks(x: Tensor) -> list[slice]:
    size = max(1, len(x)) if x.is_cuda else CHUNK
    return [slice(start, start + size) for start in range(0, len(x), size)]
