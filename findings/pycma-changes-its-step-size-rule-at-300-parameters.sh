#!/usr/bin/env bash
# Finding: pycma changes how it adapts the step size at 300 parameters, and two candidates are then no samples.
# Package: cma 4.5.0
#
# One would guess: CMAEvolutionStrategy adapts its step size by cumulative path length (CSA) at every size.
#
# What happens: from 300 parameters on, the default becomes two-point adaptation (TPA), without a word. From the
# second generation on, candidates 0 and 1 lie exactly forward and backward along the mean's last move, and the
# step size follows the comparison of these two alone. The controller of World Models for CarRacing has 867
# parameters; one input fewer in a small one can change the algorithm.
#
# Seen on 2026-12-01 (cosines: of candidates 0 and 1; of candidate 0 and the mean's last move):
#   299 parameters: CMAAdaptSigmaCSA; ... [(-0.1, -0.0), (0.03, -0.02), (0.03, 0.0)]
#   300 parameters: CMAAdaptSigmaTPA; ... [(-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0)]
#   867 parameters: CMAAdaptSigmaTPA; ... [(-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0)]
#
# For a user of world models: returns of a few rollouts are noisy, and two noisy numbers steer the step size of the
# whole search; a result with CSA does not carry over. Set AdaptSigma to the class that you mean.

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


def cosine(a, b):
    return round(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), 2)


def run(parameters):
    es = cma.CMAEvolutionStrategy(parameters * [0.0], 0.1, {"seed": 1, "verbose": -9, "popsize": 16})
    noise = np.random.default_rng(0)
    rows, old = [], None
    for _ in range(4):
        xs, mean = es.ask(), es.mean.copy()
        a, b = xs[0] - mean, xs[1] - mean
        if old is not None:
            rows.append((cosine(a, b), cosine(a, mean - old)))
        old = mean
        es.tell(xs, list(noise.standard_normal(16)))
    return type(es.adapt_sigma).__name__, rows


for n in (299, 300, 867):
    name, rows = run(n)
    print(f"{n} parameters: {name}; generations 2 to 4, cosine of candidates 0 and 1, of candidate 0 and the mean's last move: {rows}")
    if n < 300:
        assert name == "CMAAdaptSigmaCSA" and all(abs(v) < 0.3 for row in rows for v in row)
    else:
        assert name == "CMAAdaptSigmaTPA" and all(row == (-1.0, 1.0) for row in rows), "the rule no longer changes"
PY
HOME="$work" venv/bin/python check.py
