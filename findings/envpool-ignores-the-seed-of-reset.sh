#!/usr/bin/env bash
# Finding: EnvPool accepts reset(seed=...) and ignores it.
# Package: envpool 1.2.5 (gymnasium interface, gymnasium 1.4.0)
#
# One would guess: reset(seed=7) starts the same episode each time, as the gymnasium interface promises.
#
# What happens: only the seed given to envpool.make counts. reset(seed=7) twice gives two different starts, and the
# first reset gives the same start for seed 7 and for seed 99. No warning is given.
#
# Seen on 2026-12-01:
#   CartPole-v1: reset(seed=7) twice gives one start: gymnasium True, envpool False; envpool, first reset with seed 7 and with seed 99 give one start: True
#   CarRacing-v3: reset(seed=7) twice gives one start: gymnasium True, envpool False; envpool, first reset with seed 7 and with seed 99 give one start: True
#
# For a user of world models: an evaluation over "seeds 0 to 99" plays one stream of tracks, the same for every
# list of seeds, and a search that compares controllers on one seed compares them on different tracks. Make a new
# pool for each seed.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check envpool==1.2.5 "gymnasium[box2d]==1.4.0" numpy==2.4.6

cat > check.py <<'PY'
import warnings

warnings.simplefilter("ignore")
import envpool
import gymnasium as gym

for name in ("CartPole-v1", "CarRacing-v3"):
    plain = gym.make(name)
    a, b = plain.reset(seed=7)[0], plain.reset(seed=7)[0]
    gym_repeats = bool((a == b).all())
    pool = envpool.make(name, "gymnasium", num_envs=1, seed=0)
    a, b = pool.reset(seed=7)[0], pool.reset(seed=7)[0]
    pool_repeats = bool((a == b).all())
    c = envpool.make(name, "gymnasium", num_envs=1, seed=0).reset(seed=99)[0]
    other_seed_same_start = bool((a == c).all())
    print(
        f"{name}: reset(seed=7) twice gives one start: gymnasium {gym_repeats}, envpool {pool_repeats}; "
        f"envpool, first reset with seed 7 and with seed 99 give one start: {other_seed_same_start}"
    )
    assert gym_repeats and not pool_repeats and other_seed_same_start, "envpool heeds the seed of reset now"
PY
HOME="$work" venv/bin/python check.py
