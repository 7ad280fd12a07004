"""The common types, `Spec`, `Episode` and `Batch`, and the drawing that defines how rows are aligned in time.

    index         0     1     2     3          action[t] led to image[t]; reward[t] is for arriving there
    image        o0    o1    o2    o3
    action        0    a0    a1    a2          the first action is a dummy zero
    reward        0    r1    r2    r3
    is_first      1     0     0     0          tells dynamics to forget, also in the middle of a window
    is_terminal   0     0     0     1          a time limit is not terminal: cont stays 1

An episode of T steps has T + 1 rows. Everything in memory is aligned like this. Only the file on disk is aligned in
another way, and `store.to_disk` / `store.from_disk` are the only functions that shift.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """The shapes of observations and actions: all that a network needs to know of an environment.

    Args:
        observation: for each key, its shape and numpy dtype name, e.g. `{"image": ((64, 64, 3), "uint8")}`.
        action_size: length of the action vector: dimensions of a continuous action, or number of discrete choices.
        discrete: True where actions are one-hot, False where they are float32 in [-1, 1].
    """

    observation: dict[str, tuple[tuple[int, ...], str]]
    action_size: int
    discrete: bool = False


@dataclass(frozen=True)
class Episode:
    """One episode, or a piece of one, as numpy arrays aligned as drawn at the top of this file.

    Args:
        observation: arrays of R rows each; `image` is uint8 (R, H, W, C) by convention, `vector` float32 (R, D).
        action: float32 (R, A), in [-1, 1] or one-hot; row t led to observation t.
        reward: float32 (R,); row t is for arriving at observation t.
        is_first: bool (R,); true where an episode begins.
        is_terminal: bool (R,); true where the environment ended the episode. A time limit is not terminal.
        metadata: plain values that travel with the file (seed, environment id, ...); never read by training.
    """

    observation: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_terminal: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.reward)
        arrays = {f"observation[{key!r}]": value for key, value in self.observation.items()}
        arrays |= {"action": self.action, "is_first": self.is_first, "is_terminal": self.is_terminal}
        for name, array in arrays.items():
            if len(array) != rows:
                raise ValueError(
                    f"{name} has {len(array)} rows but reward has {rows}: every array of an episode needs one row a "
                    "step plus one for the reset; see the picture in datamodules/episode.py"
                )
        if self.action.ndim != 2:
            raise ValueError(f"action has shape {self.action.shape} but must be (rows, action_size): add an axis")
        if not np.isfinite(self.reward).all():
            row = int(np.flatnonzero(~np.isfinite(self.reward))[0])
            raise ValueError(f"reward[{row}] is {self.reward[row]}: rewards must be finite; fix the environment")

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key}: {value.dtype}{value.shape}" for key, value in self.observation.items())
        return f"Episode({len(self)} rows, {shapes}, action {self.action.shape}, return {self.total_reward:.1f})"

    @property
    def num_steps(self) -> int:
        """Decisions taken: one fewer than rows."""
        return len(self) - 1

    @property
    def total_reward(self) -> float:
        """Undiscounted return, summed in float64."""
        return float(self.reward.sum(dtype=np.float64))

    @property
    def spec(self) -> Spec:
        """The spec of these arrays; `discrete`, which the arrays do not show, is read from `metadata["discrete"]`."""
        observation = {key: (value.shape[1:], value.dtype.name) for key, value in self.observation.items()}
        return Spec(observation, self.action.shape[1], bool(self.metadata.get("discrete", False)))


@dataclass
class Batch:
    """Windows of episodes as tensors, (B, T, ...), aligned as drawn at the top of this file.

    Shapes: observation[key] (B, T, ...), pixels stay uint8 until they are on the device; action (B, T, A);
    reward, cont (B, T) float32; is_first, is_terminal (B, T) bool. cont = 1 - is_terminal.
    """

    observation: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    cont: Tensor
    is_first: Tensor
    is_terminal: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.reward.shape[0], self.reward.shape[1]

    def map(self, function: Any) -> "Batch":
        """Returns the batch with `function` applied to every tensor."""
        return Batch(
            {key: function(value) for key, value in self.observation.items()},
            *(function(getattr(self, name)) for name in ("action", "reward", "cont", "is_first", "is_terminal")),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Returns the batch on another device (Lightning calls this)."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Returns the batch in page-locked memory (the DataLoader calls this)."""
        return self.map(lambda tensor: tensor.pin_memory())
