"""The posterior state of a world model while an agent acts, updated by one image after the other."""

import inspect
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmlightning.dynamics.state import State
from wmlightning.interfaces import Carry
from wmlightning.policies.exploration import row_generator
from wmlightning.validation import check_observation

_ROWS = 8
"""Batches are padded to a multiple of this, so that a row's numbers round alike alone and beside seven others."""


class StateFilter:
    """Filters latent states from images and executed actions, in n environments at once.

        image ---> encoder ---> posterior state ---> policy ---> (exploration, clipped) ---> action
                                  ^  |                                                         |
                                  |  +-- next call --+                                         |
                                  +------------------+-----------------------------------------+

    Each image is one posterior step of the dynamics. Where `is_first` is set, previous state and action are zero. All
    random numbers of a row are functions of the row's seed and step. Rows are computed together with copies, up to a
    multiple of eight, so that a row's numbers do not depend on how many rows there are.

    Args:
        model: a `LatentModel` whose dynamics have `observe_step(state, action, embed, is_first, noise)`; its weights
            are used as they are at each call.
        extra: random numbers that the policy draws for a row at every step, beside those of the latent.
    """

    def __init__(self, model: Any, extra: int = 0) -> None:
        self.model, self.extra = model, extra
        noisy = "noise" in inspect.signature(model.encode).parameters
        self.dequantises = getattr(model, "dequantises", noisy)

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows before their first image; without seeds, row i has seed i."""
        with torch.no_grad():
            start = self.model.dynamics.initial(n)
        return {
            "seed": torch.tensor(list(range(n)) if seeds is None else seeds, dtype=torch.int64),
            "step": torch.zeros(n, dtype=torch.int64),
            "deter": start.deter,
            "stoch": start.stoch,
            "action": start.stoch.new_zeros(n, self.model.dynamics.action_size),
        }

    def observe(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[State, Float[Tensor, "rows extra"]]:
        """Updates the state of every row by one image.

        Args:
            observation: `{"image": uint8 (n, H, W, C)}`.
            is_first: bool (n,).
            carry: from `initial` or `next_carry`.

        Returns:
            The posterior state and `extra` standard normal numbers, each of n rows and of copies of the last one up to
            a multiple of eight.

        Raises:
            ValueError: in one line, for images of another type or shape, or another number of rows.
        """
        image = check_observation(observation, is_first, carry)
        device, rows = carry["stoch"].device, padded_rows(len(is_first))
        here = rows.to(device)
        size = self._noise_size(carry)
        drawn = row_noise(carry["seed"].numpy(), carry["step"].numpy(), size + self.extra)
        noise = torch.from_numpy(drawn).to(carry["stoch"])[here]
        pixels = torch.from_numpy(image)[rows].to(device)
        if self.dequantises:
            # Seeds of rows are below 2**32, so that no other stream has this key.
            counters = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
            uniform = [row_generator(s + 2**32, t).random(image.shape[1:], np.float32) for s, t in counters]
            embed = self.model.encode(pixels, torch.from_numpy(np.stack(uniform))[rows].to(device))
        else:
            embed = self.model.encode(pixels)
        before = State(carry["deter"][here], carry["stoch"][here], carry["stoch"][here, :0])
        flags = torch.from_numpy(np.asarray(is_first, bool))[rows].to(device)
        posterior, _ = self.model.dynamics.observe_step(before, carry["action"][here], embed, flags, noise[:, :size])
        return posterior, noise[:, size:]

    def next_carry(self, carry: Carry, state: State, action: Float[Tensor, "rows action"]) -> Carry:
        """Returns the carry for the next call.

        Args:
            carry: of this call; entries of other names are kept.
            state: posterior state of n rows.
            action: actions that they execute, (n, A).
        """
        updated = {"deter": state.deter, "stoch": state.stoch, "action": action}
        return carry | updated | {"step": carry["step"] + 1}

    def _noise_size(self, carry: Carry) -> int:
        # An MDN-RNN's dynamics have no latent distribution: its noise is one number for each dimension of the code.
        return getattr(getattr(self.model.dynamics, "latent", None), "noise_size", carry["stoch"].shape[1])


def padded_rows(n: int) -> Tensor:
    """Returns indices of n rows and of copies of the last one, up to a multiple of 8: see `_ROWS`."""
    return torch.arange(n + -n % _ROWS).clamp(max=n - 1)


def row_noise(seed: np.ndarray, step: np.ndarray, size: int) -> np.ndarray:
    """Computes standard normal numbers as a function of (seed, step, dimension), for all rows at once.

    A hash of the three counters (the finaliser of SplitMix64) gives uniform numbers, and Box and Muller's formula turns
    them into normal ones. A random generator for each row would take longer than the dynamics' own step.

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
