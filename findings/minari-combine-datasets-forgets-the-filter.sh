#!/usr/bin/env bash
# Finding: minari.combine_datasets brings back the episodes that a filter removed, and makes exact images lossy.
# Package: minari 0.5.4 (h5py 3.16.0, Pillow 13.0.0)
#
# One would guess: a data set made from a filtered one holds the episodes that the filter left.
#
# What happens: filter_episodes and iteration respect the filter, combine_datasets copies the whole store below it.
# It also stores images as JPEG, though the source was made with jpeg_encoding=False: in a picture of three flat
# colours a pixel moves by up to 149 of 255. Nothing warns of either.
#
# Seen on 2026-12-01:
#   returns of all     : [0.0, 4.0, 8.0, 12.0, 16.0]
#   returns of filtered: [12.0, 16.0]
#   returns of combined: [0.0, 4.0, 8.0, 12.0, 16.0]
#   largest pixel error: stored with jpeg_encoding=False 0 - after combine_datasets 149
#
# For a user of world models: an expert-only set is silently mixed with the failures, and a model of pixels trains
# on JPEG noise. Build the new set from the episodes themselves, with jpeg_encoding=False.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check "minari[hdf5]==0.5.4" h5py==3.16.0 pillow==13.0.0 gymnasium==1.4.0 numpy==2.4.6

cat > check.py <<'PY'
import os
import tempfile
import warnings

os.environ["MINARI_DATASETS_PATH"] = tempfile.mkdtemp()
warnings.simplefilter("ignore")
import gymnasium as gym
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer


def episode(number, steps=4):
    frames = np.zeros((steps + 1, 64, 64, 3), np.uint8)
    frames[:, :32], frames[:, 32:], frames[:, 20:24, 20:24] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    return EpisodeBuffer(
        id=number,
        observations=frames,
        actions=np.zeros(steps, np.int64),
        rewards=np.full(steps, float(number)),
        terminations=np.arange(steps) == steps - 1,
        truncations=np.zeros(steps, bool),
        infos={},
    )


full = minari.create_dataset_from_buffers(
    "dream/all-v0",
    buffer=[episode(k) for k in range(5)],
    observation_space=gym.spaces.Box(0, 255, (64, 64, 3), np.uint8),
    action_space=gym.spaces.Discrete(2),
    jpeg_encoding=False,
)
good = full.filter_episodes(lambda e: e.rewards.sum() >= 12)
merged = minari.combine_datasets([good], new_dataset_id="dream/good-v0")
returns = {n: [float(e.rewards.sum()) for e in d] for n, d in (("all", full), ("filtered", good), ("combined", merged))}
for name, values in returns.items():
    print(f"returns of {name:8s}:", values)
before, after = full[0].observations.astype(int), merged[0].observations.astype(int)
exact = int(np.abs(before - episode(0).observations).max())
loss = int(np.abs(before - after).max())
print("largest pixel error: stored with jpeg_encoding=False", exact, "- after combine_datasets", loss)
assert returns["filtered"] == [12.0, 16.0]
assert returns["combined"] == returns["all"], "combine_datasets respects the filter now"
assert exact == 0 and loss > 50, "combine_datasets keeps the pixels now"
PY
HOME="$work" venv/bin/python check.py
