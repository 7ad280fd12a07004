"""Atari as Dreamer V2 plays it: `ALE/<Game>-v5` with a frame a step, everything else as in the paper.

What is special about the family, and where the code handles it:

* Registered ids skip four frames by themselves. Here a step is a frame (`PROTOCOL`), so action repeat is ours alone,
  and sticky actions apply to single frames: in each, with probability 1/4, the emulator keeps the last action.
* Games draw some things in every other frame only. A picture is the brighter of the last two frames (`AtariGame.look`).
* An episode begins with 1 to 30 frames in which nothing is pressed, a part of the reset: they are no environment steps.
* All 18 actions are there, in every game. Lost lives are ignored: an episode ends with the game, or is truncated after
  108,000 frames, half an hour.
* The emulator's own randomness comes from the seed of the reset: an episode is a function of its seed and actions.

Source: Hafner et al. 2021 (Dreamer V2), section 3 and its code; Machado et al. 2018. The paper shrinks pictures twice,
to 84 and then to 64 pixels; its code does it once, and so do we.
"""

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np

# Otherwise it prints a greeting to stderr, once per worker.
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

PROTOCOL = {
    "frameskip": 1,
    "repeat_action_probability": 0.25,
    "full_action_space": True,
    # None of the emulator's own: it would count the frames of the reset.
    "max_num_frames_per_episode": 0,
}
"""Arguments of the environment that kwargs may overrule, but for the first."""

TIME_LIMIT = 108_000
"""Environment steps, which are frames, of the longest episode."""

NOTHING = 0
"""The action that presses nothing; the first of every action set."""


class AtariGame(gym.Wrapper):
    """A game with one frame a step: it begins with idle frames, and shows the brighter of the last two.

    Args:
        env: an ALE environment with frameskip 1 and pictures as observations.
        noops: most idle frames at the start, drawn from 1 to noops; 0 for none.
        life_loss_ends: a lost life is terminal (Dreamer V1's code); where the game reports no lives, nothing changes.

    Raises:
        ValueError: if noops is negative.
    """

    def __init__(self, env: gym.Env, noops: int = 30, life_loss_ends: bool = False) -> None:
        super().__init__(env)
        if noops < 0:
            raise ValueError(f"noops is {noops} but must be at least 0")
        self.noops, self.life_loss_ends, self.lives = noops, life_loss_ends, 0
        self.before, self.now = np.zeros((0,), np.uint8), np.zeros((0,), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begins a game and lets it idle; a game that ends meanwhile begins again."""
        self.now, info = self.env.reset(seed=seed, options=options)
        idle = int(self.env.unwrapped.np_random.integers(1, self.noops + 1)) if self.noops else 0
        for _ in range(idle):
            self.now, _, terminated, truncated, info = self.env.step(NOTHING)
            if terminated or truncated:
                self.now, info = self.env.reset(options=options)
        self.before, self.lives = self.now, info.get("lives", 0)
        return self.now, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """One frame."""
        self.before = self.now
        self.now, reward, terminated, truncated, info = self.env.step(action)
        lives = info.get("lives", 0)
        lost, self.lives = lives < self.lives, lives
        return self.now, float(reward), bool(terminated or (lost and self.life_loss_ends)), bool(truncated), info

    def look(self) -> np.ndarray:
        """The brighter of the last two frames, pixel by pixel, uint8 (210, 160) or (210, 160, 3)."""
        return np.maximum(self.before, self.now)
