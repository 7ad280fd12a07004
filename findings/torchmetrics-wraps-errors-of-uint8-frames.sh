#!/usr/bin/env bash
# Finding: torchmetrics computes the squared and the absolute error of uint8 frames with a wrap at 256.
# Package: torchmetrics 1.9.0 (torch 2.13.0)
#
# One would guess: the metrics convert integer frames to floats, as PeakSignalNoiseRatio does, or refuse them.
#
# What happens: MeanSquaredError and MeanAbsoluteError subtract and square in uint8. Frames of 10 and 30 differ by
# 20: the mean squared error is 144 instead of 400, and the absolute error is 236 one way round and 20 the other.
# PeakSignalNoiseRatio, of the same family, is right.
#
# Seen on 2026-12-01:
#   MeanSquaredError     uint8 (dream, truth) 144.0, uint8 (truth, dream) 144.0, float 400.0
#   MeanAbsoluteError    uint8 (dream, truth) 236.0, uint8 (truth, dream) 20.0, float 20.0
#   PeakSignalNoiseRatio uint8 (dream, truth) 22.11, uint8 (truth, dream) 22.11, float 22.11
#
# For a user of world models: the error of dreamed frames against stored ones stays below 256 whatever the model
# does, and a worse dream can score better. Convert frames to float first.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6

cat > check.py <<'PY'
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError
from torchmetrics.image import PeakSignalNoiseRatio

dream = torch.full((1, 3, 64, 64), 10, dtype=torch.uint8)
truth = torch.full((1, 3, 64, 64), 30, dtype=torch.uint8)
seen = {}
for name, metric in (
    ("MeanSquaredError", MeanSquaredError),
    ("MeanAbsoluteError", MeanAbsoluteError),
    ("PeakSignalNoiseRatio", lambda: PeakSignalNoiseRatio(data_range=255.0)),
):
    row = [metric()(dream, truth), metric()(truth, dream), metric()(dream.float(), truth.float())]
    seen[name] = [round(float(v), 2) for v in row]
    print(f"{name:20s} uint8 (dream, truth) {seen[name][0]}, uint8 (truth, dream) {seen[name][1]}, float {seen[name][2]}")
assert seen["MeanSquaredError"] == [144.0, 144.0, 400.0], "MeanSquaredError takes uint8 right now"
assert seen["MeanAbsoluteError"] == [236.0, 20.0, 20.0], "MeanAbsoluteError takes uint8 right now"
assert len(set(seen["PeakSignalNoiseRatio"])) == 1
PY
HOME="$work" venv/bin/python check.py
