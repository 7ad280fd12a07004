"""Plays one episode and keeps its images, for a film of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.interfaces import Policy
from wmlightning.pictures.images import Picture, captioned, evenly, to_frames


class FirstEpisode:
    """Keeps images and rewards of a rollout's first episode; has the methods of an `EpisodeWriter`.

    Attributes:
        images: observed, one more than decisions.
        rewards: that came with the images; the first is 0.
        terminated: whether the episode has ended by itself, so that nothing can follow.
    """

    def __init__(self) -> None:
        self.row: int | None = None
        self.images: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.terminated = False

    @property
    def decisions(self) -> int:
        """Number of actions taken."""
        return max(0, len(self.rewards) - 1)

    def begin(self, row: int, observation: dict[str, np.ndarray], index: int, metadata: Any = None) -> None:
        """Starts recording if this is the first episode."""
        if index == 0:
            self.row, self.images, self.rewards = row, [observation["image"].copy()], [0.0]

    def step(
        self,
        row: int,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        observation: dict[str, np.ndarray],
    ) -> None:
        """Keeps an image and its reward, until the episode ends."""
        if row == self.row:
            self.images.append(observation["image"].copy())
            self.rewards.append(float(reward))
            self.terminated, self.row = terminated, None if terminated or truncated else row

    def drop(self, row: int) -> None:
        """Stops recording; the images so far are kept."""
        self.row = None if row == self.row else self.row

    def film(self, frames: int, note: str = "") -> list[Picture]:
        """Returns at most `frames` of the images, evenly spread, with `note`, step and return so far below each."""
        return film(self.images, np.cumsum(self.rewards), frames, note)


def play(policy: Policy, environment: EnvFactory, seed: int, decisions: int | None = None) -> FirstEpisode:
    """Plays one episode in this process, or its beginning.

    Args:
        policy: how to act.
        environment: where.
        seed: environment seed.
        decisions: most actions taken; None plays the episode to its end.
    """
    seen = FirstEpisode()
    with environment.vector(1) as envs:
        over = None if decisions is None else lambda: seen.decisions >= decisions
        rollout(envs, policy, [seed], writer=seen, should_stop=over)
    return seen


def film(pictures: Sequence[Any], returns: Sequence[float] | np.ndarray, frames: int, note: str) -> list[Picture]:
    """Returns at most `frames` of the pictures, evenly spread, with `note`, step and return so far below each."""
    chosen = evenly(len(pictures), frames)
    return [captioned(to_frames(pictures[k]), f"{note}step {k}  return {returns[k]:.1f}") for k in chosen]
