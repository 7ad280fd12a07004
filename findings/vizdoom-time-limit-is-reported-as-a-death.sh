#!/usr/bin/env bash
# Finding: ViZDoom reports its own time limit as terminated and truncated at once, and ends on a black screen.
# Package: vizdoom 1.3.2 (gymnasium wrapper, gymnasium 1.4.0)
#
# One would guess: a time limit gives terminated False and truncated True, with the last screen to bootstrap from.
#
# What happens: when the engine's limit is reached, both flags are True, though the player lives. A death gives
# True and False. The last observation is all zeros in both cases.
#
# Seen on 2026-12-01:
#   VizdoomBasic-v1: engine limit 300, ended after 300 steps, terminated True, truncated True, player dead False, brightest pixel before the end 255, in the last observation 0
#   VizdoomTakeCover-v1: engine limit none, ended after 233 steps, terminated True, truncated False, player dead True, brightest pixel before the end 255, in the last observation 0
#
# For a user of world models: a discount computed as 1 - terminated teaches that surviving until the limit is
# death, and the decoder learns a black frame for every end. Take truncated first, and repeat the last real screen.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check vizdoom==1.3.2 gymnasium==1.4.0 numpy==2.4.6

cat > check.py <<'PY'
import gymnasium as gym
from vizdoom import gymnasium_wrapper  # noqa: F401


def end_of_episode(name):
    env = gym.make(name)
    obs, _ = env.reset(seed=0)
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        screen = obs["screen"]
        obs, _, terminated, truncated, _ = env.step(0)
        steps += 1
    game = env.unwrapped.game
    row = (steps, terminated, truncated, bool(game.is_player_dead()), int(screen.max()), int(obs["screen"].max()))
    limit = game.get_episode_timeout()
    env.close()
    print(
        f"{name}: engine limit {limit or 'none'}, ended after {row[0]} steps, terminated {row[1]}, truncated {row[2]}, "
        f"player dead {row[3]}, brightest pixel before the end {row[4]}, in the last observation {row[5]}"
    )
    return row


limit = end_of_episode("VizdoomBasic-v1")
death = end_of_episode("VizdoomTakeCover-v1")
assert limit[:3] == (300, True, True) and limit[4] > 0 and limit[5] == 0, "a time limit is only truncated now"
assert death[1:3] == (True, False) and death[4] > 0 and death[5] == 0, "the last screen is drawn now"
PY
HOME="$work" venv/bin/python check.py
