#!/usr/bin/env bash
# Finding: gymnasium.make_vec gives another Atari game than gymnasium.make: clipped rewards, idle starts, other frames.
# Package: ale-py 0.12.1 with gymnasium 1.4.0
#
# One would guess: make_vec("ALE/MsPacman-v5", num_envs=1) is one copy of make("ALE/MsPacman-v5").
#
# What happens: the name has a vector class of its own. It cuts every reward to -1, 0 or 1, plays up to 30 idle
# frames at reset, and returns stacks of four 84x84 gray frames where make returns one 210x160 colour frame.
#
# Seen on 2026-12-01 (the same 300 actions):
#   make    : (210, 160, 3) frames played at reset 0; first 300 steps: return 220.0 largest reward 10.0
#   make_vec: (4, 84, 84) frames played at reset 16; first 300 steps: return 22.0 largest reward 1.0
#
# For a user of world models: scores collected through make_vec are not game scores and not comparable with papers,
# and a reward model trained on them cannot be moved to make. Pass reward_clipping=False, noop_max=0 and the sizes.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check ale-py==0.12.1 gymnasium==1.4.0 opencv-python-headless==5.0.0.93 numpy==2.4.6

cat > check.py <<'PY'
import ale_py
import gymnasium as gym
import numpy as np

gym.register_envs(ale_py)
NAME = "ALE/MsPacman-v5"
one, many = gym.make(NAME), gym.make_vec(NAME, num_envs=1)
actions = np.random.default_rng(0).integers(0, 9, 300)

frame, info = one.reset(seed=0)
print("make    :", frame.shape, "frames played at reset", info["episode_frame_number"], end="; ")
rewards = [one.step(int(a))[1] for a in actions]
print("first 300 steps: return", sum(rewards), "largest reward", max(rewards))

batch, vec_info = many.reset(seed=0)
print("make_vec:", batch.shape[1:], "frames played at reset", int(vec_info["episode_frame_number"][0]), end="; ")
vec_rewards = [float(many.step(np.array([a]))[1][0]) for a in actions]
print("first 300 steps: return", sum(vec_rewards), "largest reward", max(vec_rewards))

assert frame.shape == (210, 160, 3) and batch.shape == (1, 4, 84, 84)
assert max(rewards) >= 10 and max(vec_rewards) == 1, "make_vec no longer clips rewards"
assert info["episode_frame_number"] == 0 and vec_info["episode_frame_number"][0] > 0
PY
HOME="$work" venv/bin/python check.py
