"""What an agent believes of the world while it acts: the posterior of a world model, one image after the other."""

import inspect
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmlightning.dynamics.state import State
from wmlightning.interfaces import Carry
from wmlightning.policies.exploration import row_generator

_ROWS = 8
"""Batches are padded to a multiple of this, so that a row rounds alike whether it acts alone or beside seven others."""


class StateFilter:
    """Filters a belief from images and from the actions that were really executed, in n environments at once.

        image ---> encoder ---> belief ---> whoever acts ---> (exploration, clipped) ---> action
                                 ^  |                                                       |
                                 |  +--- next call -+                                       |
                                 +------------------+---------------------------------------+

    The belief is one posterior step an image. Where `is_first` is set, belief and action begin at zero. Every number
    that a row draws is a function of the row's seed and step, and rows are taken in together with copies, up to a
    multiple of eight, so that company does not change how they round.

    Args:
        model: a `LatentModel`, the world to believe in; its weights as they are at each call.
        extra: numbers that whoever acts draws for a row at every step, beside those of the latent.
    """

    def __init__(self, model: Any, extra: int) -> None:
        self.model, self.extra = model, extra
        noisy = "noise" in inspect.signature(model.encode).parameters
        self.dequantises = getattr(model, "dequantises", noisy)

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """A fresh memory of n rows, that of the last action among it; without seeds, row i has seed i."""
        with torch.no_grad():
            start = self.model.dynamics.initial(n)
        return {
            "seed": torch.tensor(list(range(n)) if seeds is None else seeds, dtype=torch.int64),
            "step": torch.zeros(n, dtype=torch.int64),
            "deter": start.deter,
            "stoch": start.stoch,
            "action": start.stoch.new_zeros(n, self.model.dynamics.action_size),
        }

    def take_in(
        self, image: np.ndarray, is_first: np.ndarray, carry: Carry
    ) -> tuple[State, Float[Tensor, "rows extra"]]:
        """Looks at one image a row.

        Returns:
            The posterior and standard normal numbers for whoever acts: n rows, and copies of the last one up to a
            multiple of eight.
        """
        device, rows = carry["stoch"].device, padded_rows(len(is_first))
        here = rows.to(device)
        size = self._noise_size(carry)
        drawn = row_noise(carry["seed"].numpy(), carry["step"].numpy(), size + self.extra)
        noise = torch.from_numpy(drawn).to(carry["stoch"])[here]
        pixels = torch.from_numpy(image)[rows].to(device)
        if self.dequantises:
            # A stream of its own: seeds of rows are below 2**32.
            counters = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
            uniform = [row_generator(s + 2**32, t).random(image.shape[1:], np.float32) for s, t in counters]
            embed = self.model.encode(pixels, torch.from_numpy(np.stack(uniform))[rows].to(device))
        else:
            embed = self.model.encode(pixels)
        before = State(carry["deter"][here], carry["stoch"][here], carry["stoch"][here, :0])
        flags = torch.from_numpy(np.asarray(is_first, bool))[rows].to(device)
        posterior, _ = self.model.dynamics.observe_step(before, carry["action"][here], embed, flags, noise[:, :size])
        return posterior, noise[:, size:]

    def keep(self, carry: Carry, belief: State, action: Float[Tensor, "rows action"]) -> Carry:
        """What to carry on: the belief of n rows, the actions that they execute, and the next step."""
        kept = {"deter": belief.deter, "stoch": belief.stoch, "action": action}
        return carry | kept | {"step": carry["step"] + 1}

    def _noise_size(self, carry: Carry) -> int:
        # A memory of codes has no latent of its own: it takes a number for each of a code.
        return getattr(getattr(self.model.dynamics, "latent", None), "noise_size", carry["stoch"].shape[1])


def padded_rows(n: int) -> Tensor:
    """Numbers of n rows and of copies of the last one, up to a multiple of 8: see `_ROWS`."""
    return torch.arange(n + -n % _ROWS).clamp(max=n - 1)


def row_noise(seed: np.ndarray, step: np.ndarray, size: int) -> np.ndarray:
    """Standard normal numbers as a function of (seed, step, dimension), for all rows at once.

    A hash of the three counters (the finaliser of SplitMix64) gives uniform numbers, Box and Muller's formula normal
    ones. A generator a row would cost more than the memory's own step.

    Args:
        seed: int64 (n,), at least 0.
        step: int64 (n,), at least 0.
        size: numbers a row.

    Returns:
        float64 (n, size).
    """
    pairs = -(-size // 2)
    key = _mixed(_mixed(seed.astype(np.uint64)) + step.astype(np.uint64))
    counters = np.arange(1, 2 * pairs + 1, dtype=np.uint64) * _GOLDEN
    uniform = ((_mixed(key[:, None] + counters) >> np.uint64(11)) + 1.0) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :pairs])), 2 * np.pi * uniform[:, pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :size]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
