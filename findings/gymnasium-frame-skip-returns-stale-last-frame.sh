#!/usr/bin/env bash
# Finding: gymnasium's frame-skipping wrappers return the frame before the end as an episode's last observation.
# Package: gymnasium 1.4.0 (with ale-py 0.12.1)
#
# One would guess: the last observation shows the state in which the episode ended.
#
# What happens: MaxAndSkipObservation(skip=4) looks only at the third and fourth frame of a skip, and
# AtariPreprocessing leaves its loop at the end before it looks at the screen. When an episode ends inside a skip,
# both return the buffer of the step before. The counter below ends at 9, and its last observation is 8. In Pong,
# Breakout and Ms. Pac-Man the last two observations of the game are equal, bit for bit.
#
# Seen on 2026-12-01:
#   MaxAndSkipObservation (counter, reward, terminated): [(4, 4.0, False), (8, 4.0, False), (8, 1.0, True)]
#   Pong: last observation equals the one before: True; pixels unlike the emulator's screen: 12; game over at skipped frame 3 of 4
#   Breakout: last observation equals the one before: True; pixels unlike the emulator's screen: 27; game over at skipped frame 1 of 4
#   MsPacman: last observation equals the one before: True; pixels unlike the emulator's screen: 45; game over at skipped frame 1 of 4
#
# For a user of world models: the reward and the end of the last step hang on a picture in which nothing has
# happened yet, so a model that predicts them from the picture cannot learn to. Skip frames with a wrapper that
# keeps the last frame.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check gymnasium==1.4.0 ale-py==0.12.1 opencv-python-headless==5.0.0.93 numpy==2.4.6

cat > check.py <<'PY'
import ale_py
import cv2
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, MaxAndSkipObservation

gym.register_envs(ale_py)


class Counter(gym.Env):
    """Shows the number of steps taken; ends at step 9."""

    observation_space = gym.spaces.Box(0, 255, (1,), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([0], np.uint8), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t], np.uint8), 1.0, self.t >= 9, False, {}


env = MaxAndSkipObservation(Counter(), skip=4)
env.reset()
seen = []
ended = False
while not ended:
    obs, reward, ended, _, _ = env.step(0)
    seen.append((int(obs[0]), reward, ended))
print("MaxAndSkipObservation (counter, reward, terminated):", seen)
assert seen == [(4, 4.0, False), (8, 4.0, False), (8, 1.0, True)], "the last frame is 9 now"

for game in ("Pong", "Breakout", "MsPacman"):
    raw = gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)
    env = AtariPreprocessing(raw, noop_max=0, frame_skip=4, screen_size=84, grayscale_obs=True)
    obs, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    ended = False
    while not ended:
        before = obs
        obs, _, ended, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        assert not truncated
    screen = cv2.resize(env.ale.getScreenGrayscale(), (84, 84), interpolation=cv2.INTER_AREA)
    same, wrong = bool((obs == before).all()), int((obs != screen).sum())
    left_over = info["episode_frame_number"] % 4
    print(f"{game}: last observation equals the one before: {same}; pixels unlike the emulator's screen: {wrong}; game over at skipped frame {left_over} of 4")
    assert same, "AtariPreprocessing shows the last frame now"
PY
HOME="$work" venv/bin/python check.py
