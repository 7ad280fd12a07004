#!/usr/bin/env bash
# Finding: Crafter's render() draws from the game's own random numbers at night, so watching changes the game.
# Package: crafter 1.8.3
#
# One would guess: an extra render() for a video, or another picture size, leaves the game as it is.
#
# What happens: the night noise in the picture comes from the generator that also moves the creatures and decides
# where they appear, one number for every pixel. By day render() leaves it alone. At night one more render, or a
# larger picture, gives the game other random numbers from there on.
#
# Seen on 2026-12-01 (the drawn numbers vary from run to run):
#   by day, render() leaves the game's generator alone: True
#   at night (step 156, daylight 0.40), the game's next three draws after
#     no render       [0.9798, 0.2703, 0.6693]
#     render 64x64    [0.5824, 0.767, 0.9751]
#     render 128x128  [0.7534, 0.9552, 0.2869]
#
# For a user of world models: an evaluation that records a video does not play the episodes of one that does not,
# and a change of the picture size changes the dynamics, not only the picture. Record the observations of step().

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check crafter==1.8.3 numpy==2.4.6

cat > check.py <<'PY'
import crafter
import numpy as np


def same(a, b):
    return bool((a[1] == b[1]).all() and a[2] == b[2])


def dice_after(env, size=None):
    """What the game's own generator holds after one extra render; the state is put back."""
    before = env._world.random.get_state()
    env.render(size) if size else env.render()
    after = env._world.random.get_state()
    env._world.random.set_state(before)
    return before, after


for seed in range(20):
    env = crafter.Env(seed=seed)
    env.reset()
    before, after = dice_after(env)
    day = same(before, after)
    done = False
    while not done and env._world.daylight >= 0.4:
        _, _, done, _ = env.step(0)
    if not done:
        break
assert not done
before, small = dice_after(env, (64, 64))
_, large = dice_after(env, (128, 128))
rolls = {}
for name, state in (("no render", before), ("render 64x64", small), ("render 128x128", large)):
    dice = np.random.RandomState()
    dice.set_state(state)
    rolls[name] = [round(float(v), 4) for v in dice.uniform(size=3)]
print("by day, render() leaves the game's generator alone:", day)
print(f"at night (step {env._step}, daylight {env._world.daylight:.2f}), the game's next three draws after")
for name, draws in rolls.items():
    print(f"  {name:15s}", draws)
assert day
assert len({tuple(v) for v in rolls.values()}) == 3, "rendering no longer draws from the game's generator"
PY
HOME="$work" venv/bin/python check.py
