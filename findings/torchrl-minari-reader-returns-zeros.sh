#!/usr/bin/env bash
# Finding: torchrl reads a Minari data set as the right number of rows, all of them zero.
# Package: torchrl 0.14.1 (tensordict 0.14.3, torch 2.13.0) with minari 0.5.4 and h5py 3.16.0
#
# One would guess: MinariExperienceReplay gives the observations, actions, rewards and ends that Minari stores.
#
# What happens: it reads a local HDF5 data set without a warning, with the right length, names, shapes and types,
# and every value is 0 or False: observations, next observations, actions, rewards, ends, and the episode numbers.
# Minari itself reads the same file correctly.
#
# Seen on 2026-12-01:
#   Minari observations: [[1.0, 2.0, 3.0, 4.0], [101.0, 102.0, 103.0, 104.0, 105.0]]
#   Minari rewards     : [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
#   torchrl rows       : 7
#   torchrl observation [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
#   torchrl action [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
#   torchrl ('next', 'observation') [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
#   torchrl ('next', 'reward') [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
#   torchrl ('next', 'done') [False, False, False, False, False, False, False]
#   torchrl episode [0, 0, 0, 0, 0, 0, 0]
#
# For a user of world models: offline training on a Minari set through torchrl runs, and its loss falls to almost
# nothing, because it learns a world of zeros. Check one known value after loading.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 "minari[hdf5]==0.5.4" h5py==3.16.0 pillow==13.0.0 gymnasium==1.4.0 numpy==2.4.6

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
from torchrl.data.datasets import MinariExperienceReplay


def episode(number, steps):
    ramp = 100.0 * number + np.arange(1, steps + 2)
    return EpisodeBuffer(
        id=number,
        observations=ramp[:, None].astype(np.float32),
        actions=np.full((steps, 1), 0.5, np.float32),
        rewards=np.ones(steps),
        terminations=np.arange(steps) == steps - 1,
        truncations=np.zeros(steps, bool),
        infos={},
    )


minari_set = minari.create_dataset_from_buffers(
    "ramp/test-v0",
    buffer=[episode(0, 3), episode(1, 4)],
    observation_space=gym.spaces.Box(-1000, 1000, (1,), np.float32),
    action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
)
replay = MinariExperienceReplay(
    "ramp/test-v0", batch_size=7, split_trajs=False, load_from_local_minari=True, root=tempfile.mkdtemp()
)
data = replay[:]
print("Minari observations:", [e.observations[:, 0].tolist() for e in minari_set])
print("Minari rewards     :", [e.rewards.tolist() for e in minari_set])
print("torchrl rows       :", len(replay))
for name in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done"), "episode"):
    print("torchrl", name, data[name].flatten().tolist())
assert minari_set[0].observations[:, 0].tolist() == [1, 2, 3, 4]
assert len(replay) == 7
for name in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
    assert not data[name].any(), f"torchrl reads {name} now"
assert not replay.sample()["observation"].any()
PY
HOME="$work" venv/bin/python check.py
