#!/usr/bin/env bash
# Finding: every new pycma strategy seeds numpy's global generator, all strategies draw from it, and seed 0 is no seed.
# Package: cma 4.5.0 (numpy 2.4.6)
#
# One would guess: a strategy made with a seed keeps a generator of its own.
#
# What happens: the constructor seeds the global generator with the option's number, or with the time if there is
# none or if it is 0; so seed 0 gives another search each time. A second strategy made before the first one asks
# makes the first one draw the second's candidates. And np.random.seed(0) in the user's program is undone.
#
# Seen on 2026-12-01 (the unseeded numbers vary from run to run):
#   seed 1, alone                          : [ 0.1624 -0.0612 -0.0528]
#   seed 1, after seed 2 was made beside it: [-0.0417 -0.0056 -0.2136]
#   seed 2                                 : [-0.0417 -0.0056 -0.2136]
#   np.random.seed(0), then rand()                    : 0.5488
#   the same with an unseeded strategy made in between: [0.6117, 0.9513]
#   the same with one of seed 3 made in between       : 0.5508
#   seed 0, twice: [[0.0338, 0.0347], [0.0899, 0.0422]]
#   with seed=nan and a randn of its own, the global rand() stays 0.5488
#
# For a user of world models: two searches in one process (two controllers, islands, a test beside a training) are
# not independent, and an environment or a data loader that uses np.random loses its seed. Pass seed=nan and a randn
# function of your own, or make each strategy in its own process.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check cma==4.5.0 numpy==2.4.6

cat > check.py <<'PY'
import warnings

import numpy as np

warnings.simplefilter("ignore")
import cma

QUIET = {"verbose": -9}


def strategy(seed):
    return cma.CMAEvolutionStrategy(10 * [0.0], 0.1, {**QUIET, "seed": seed})


alone = strategy(1).ask()[0][:3]
first = strategy(1)
strategy(2)
beside = first.ask()[0][:3]
other = strategy(2).ask()[0][:3]
print("seed 1, alone                          :", np.round(alone, 4))
print("seed 1, after seed 2 was made beside it:", np.round(beside, 4))
print("seed 2                                 :", np.round(other, 4))

draws = []
for seed in (None, None, 3):
    np.random.seed(0)
    cma.CMAEvolutionStrategy(10 * [0.0], 0.1, QUIET if seed is None else {**QUIET, "seed": seed})
    draws.append(np.random.rand())
np.random.seed(0)
plain = np.random.rand()
print("np.random.seed(0), then rand()                    :", round(plain, 4))
print("the same with an unseeded strategy made in between:", [round(v, 4) for v in draws[:2]])
print("the same with one of seed 3 made in between       :", round(draws[2], 4))

zeros = [strategy(0).ask()[0][:2] for _ in range(2)]
print("seed 0, twice:", [np.round(v, 4).tolist() for v in zeros])

own = {"seed": np.nan, "randn": np.random.RandomState(5).randn}
np.random.seed(0)
cma.CMAEvolutionStrategy(10 * [0.0], 0.1, {**QUIET, **own})
print("with seed=nan and a randn of its own, the global rand() stays", round(np.random.rand(), 4))

assert (zeros[0] != zeros[1]).all(), "0 is a seed now"
assert (beside == other).all() and (beside != alone).all(), "strategies keep their own generators now"
assert plain not in draws and draws[0] != draws[1], "the global generator is left alone now"
PY
HOME="$work" venv/bin/python check.py
