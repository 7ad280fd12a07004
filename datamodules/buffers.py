"""Memory that episodes are read into: `EpisodeBuffer`."""

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules.episode import Batch, Spec


class EpisodeBuffer(NamedTuple):
    """Arrays to be filled by `store.from_disk`; named and aligned as in `Episode`, with any leading axes."""

    observation: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_terminal: np.ndarray

    @classmethod
    def empty(cls, spec: Spec, shape: Sequence[int]) -> "EpisodeBuffer":
        """Memory of the given leading axes, e.g. (B, T); not cleared, since every byte is going to be read into."""
        shape = tuple(shape)
        return cls(
            {key: _memory(shape + tuple(size), np.dtype(dtype)) for key, (size, dtype) in spec.observation.items()},
            np.empty((*shape, spec.action_size), np.float32),
            np.empty(shape, np.float32),
            np.empty(shape, np.bool_),
            np.empty(shape, np.bool_),
        )

    def part(self, index: Any) -> "EpisodeBuffer":
        """The same memory, narrowed by an index into the leading axes."""
        observation = {key: array[index] for key, array in self.observation.items()}
        return EpisodeBuffer(
            observation, self.action[index], self.reward[index], self.is_first[index], self.is_terminal[index]
        )

    def batch(self) -> Batch:
        """The same memory as tensors; leading axes must be (B, T)."""
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


def _memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that is not cleared, in the memory of an earlier batch that nobody holds any more if there is one.

    Fresh pages cost as much as a third of the reading. A tensor made by `torch.from_numpy` holds the very array object
    given to it for as long as anything shares its memory, so once that array is gone its block is free.
    """
    if math.prod(shape) * dtype.itemsize < 1_000_000:
        return np.empty(shape, dtype)
    block = None
    for _ in range(len(_blocks)):
        known, user = _blocks.pop()  # the youngest first: the processor may still have it at hand
        if user() is None and known.shape == shape and known.dtype == dtype:
            block = known
            break
        _blocks.appendleft((known, user))
    if block is None:
        block = np.empty(shape, dtype)
    array = block.view()
    _blocks.append((block, weakref.ref(array)))
    return array
