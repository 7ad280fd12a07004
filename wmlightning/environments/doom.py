"""ViZDoom adapted to this package: unseen frames are not drawn, the user's folder is not written to.

What is special about Doom, and where the code handles it:

* Under action repeat the engine itself repeats and draws the last frame only, three times faster (`DoomDecisions`).
  Pictures, rewards and length are those of single steps, bit for bit; a test compares them.
* When an episode is over there is no picture: the stock environment gives zeros instead, and a model would
  learn to predict them. `LastPicture` repeats the last one that was seen.
* The engine has time limits of its own, at which it sets both flags; a time limit is not terminal (`DoomDecisions`).
* Take Cover has the actions left, right and stay; the paper's controller gives one number (`ThreeWay`).
* The engine writes `_vizdoom.ini` and `_vizdoom/` into its working folder, and two that start at once in one folder
  can make each other fail. `start_elsewhere` gives each a folder of its own, which is removed with the environment.
"""

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import vizdoom
from gymnasium import spaces

from wmlightning.environments.wrappers import Decisions

TAKE_COVER = "take_cover.cfg"
"""The scenario of the paper, `VizdoomTakeCover-v1`."""
TAKE_COVER_LIMIT = 2100
"""Environment steps after which the paper's episodes end: one minute of 35 a second."""

STAY, RIGHT, LEFT = 0, 1, 2
"""What the numbers of Take Cover's `Discrete(3)` mean (its buttons are [MOVE_LEFT, MOVE_RIGHT]; a test looks)."""


class ThreeWay(gym.ActionWrapper):
    """One action in [-1, 1]: below -1/3 is left, above +1/3 right, and between them one stays.

    Source: Ha and Schmidhuber 2018, the Doom experiment; doomrnn/doomrnn.py of their code.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def action(self, action: np.ndarray) -> int:
        """The number that Take Cover takes."""
        steer = float(np.asarray(action).reshape(-1)[0])
        return LEFT if steer < -1 / 3 else RIGHT if steer > 1 / 3 else STAY


LAUNCHER = """#!/bin/sh
cd {folder} || exit 1
for word; do [ "$before" = +viz_instance_id ] && id=$word; before=$word; done
(
    trap '' HUP INT TERM
    while kill -0 $PPID && kill -0 $$; do sleep 2; done
    kill -9 $$ && rm -rf {folder} "/dev/shm/ViZDoomSM$id" "/dev/shm/ViZDoomMQCtr$id" "/dev/shm/ViZDoomMQDoom$id"
) </dev/null >/dev/null 2>&1 &
exec {engine} "$@"
"""
"""A script that starts a watching shell and then replaces itself by the engine. If this process is killed, the shell
ends the engine and removes its files: the engine ignores SIGTERM and would wait for commands for ever."""


def start_elsewhere(game: Any) -> tempfile.TemporaryDirectory:
    """Has a `DoomGame` that is not running yet start its engine in a fresh folder, not in the user's.

    Returns:
        The folder; keep it as long as the game.
    """
    folder = tempfile.TemporaryDirectory(prefix="wmlightning-doom-", ignore_cleanup_errors=True)
    launcher, engine = Path(folder.name, "start"), Path(vizdoom.__file__).parent / "vizdoom"
    launcher.write_text(LAUNCHER.format(folder=shlex.quote(folder.name), engine=shlex.quote(str(engine))))
    launcher.chmod(0o700)
    game.set_vizdoom_path(str(launcher))
    game.set_doom_config_path(os.devnull)
    return folder


class LastPicture(gym.Wrapper):
    """A ViZDoom environment whose terminal observation shows what was seen last, and which leaves no files behind."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.screen: np.ndarray | None = None
        self.folder = start_elsewhere(env.unwrapped.game)  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begins an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.screen = observation["screen"]
        return observation, info

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """As the stock environment; at the end the screen is the one before."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.env.unwrapped.state is None:  # type: ignore[attr-defined]
            observation = observation | {"screen": self.screen}
        self.screen = observation["screen"]
        return observation, float(reward), terminated, truncated, info

    def render(self) -> Any:
        """The last screen at its full size, (240, 320, 3) for Take Cover."""
        return self.screen if self.env.render_mode == "rgb_array" else self.env.render()

    def close(self) -> None:
        """Ends the engine and removes its folder."""
        super().close()
        self.folder.cleanup()


class DoomDecisions(Decisions):
    """Action repeat inside the engine, which draws the last frame only; otherwise as `Decisions`.

    Raises:
        ValueError: if termination shall be ignored: a game that is over does not go on.
    """

    def __init__(
        self, env: gym.Env, action_repeat: int = 1, time_limit: int | None = None, ignore_termination: bool = False
    ) -> None:
        super().__init__(env, action_repeat, time_limit, ignore_termination)
        if ignore_termination:
            raise ValueError("a ViZDoom game that is over does not go on: set ignore_termination to false")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """One decision."""
        doom: Any = self.env.unwrapped
        left = self.action_repeat if self.time_limit is None else self.time_limit - self.env_steps
        doom.frame_skip = min(self.action_repeat, left)
        before = doom.game.get_episode_time()
        observation, reward, terminated, truncated, info = self.env.step(action)
        made = int(doom.game.get_episode_time()) - before
        self.env_steps += made
        # At its own time limit the engine sets both flags. Ask the engine: kwargs can switch the second flag off.
        timeout = bool(doom.game.is_episode_timeout_reached())
        terminated = bool(terminated) and not timeout
        truncated = bool(truncated) or timeout or self.at_limit
        self.count_decision()
        return observation, float(reward), terminated, truncated, info | {"env_steps": made}
