"""Memory that rows of episodes are read into: `EpisodeBuffer`."""

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules.episode import Batch, Spec


class EpisodeBuffer(NamedTuple):
    """Arrays that `store.from_disk` fills; named and aligned as in `Episode`, with any leading axes."""

    observation: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_terminal: np.ndarray

    @classmethod
    def empty(cls, spec: Spec, shape: Sequence[int]) -> "EpisodeBuffer":
        """Returns memory with the given leading axes, e.g. (B, T); not cleared, since every byte of it is read into."""
        shape = tuple(shape)
        return cls(
            {key: _allocate(shape + tuple(size), np.dtype(dtype)) for key, (size, dtype) in spec.observation.items()},
            np.empty((*shape, spec.action_size), np.float32),
            np.empty(shape, np.float32),
            np.empty(shape, np.bool_),
            np.empty(shape, np.bool_),
        )

    def view(self, index: Any) -> "EpisodeBuffer":
        """Returns a part of the same memory, chosen by an index into the leading axes."""
        observation = {key: array[index] for key, array in self.observation.items()}
        return EpisodeBuffer(
            observation, self.action[index], self.reward[index], self.is_first[index], self.is_terminal[index]
        )

    def to_batch(self) -> Batch:
        """Returns the same memory as tensors; the leading axes must be (B, T)."""
        is_terminal = torch.from_numpy(self.is_terminal)
        return Batch(
            {key: torch.from_numpy(array) for key, array in self.observation.items()},
            torch.from_numpy(self.action),
            torch.from_numpy(self.reward),
            torch.logical_not(is_terminal).float(),
            torch.from_numpy(self.is_first),
            is_terminal,
        )


_blocks: deque[tuple[np.ndarray, weakref.ref]] = deque(maxlen=3)
"""The blocks of the last large arrays, each with a weak reference to the array that uses it."""


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array that is not cleared, in the memory of an earlier batch that is no longer referenced, if any.

    Fresh pages cost as much as a third of the reading. A tensor made by `torch.from_numpy` keeps a reference to the
    array object given to it for as long as anything shares its memory, so once that array is gone its block is free.
    """
    if math.prod(shape) * dtype.itemsize < 1_000_000:
        return np.empty(shape, dtype)
    block = None
    for _ in range(len(_blocks)):
        candidate, user = _blocks.pop()  # the newest first: it may still be in the processor's cache
        if user() is None and candidate.shape == shape and candidate.dtype == dtype:
            block = candidate
            break
        _blocks.appendleft((candidate, user))
    if block is None:
        block = np.empty(shape, dtype)
    array = block.view()
    _blocks.append((block, weakref.ref(array)))
    return array
