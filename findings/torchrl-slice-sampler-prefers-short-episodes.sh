#!/usr/bin/env bash
# Finding: torchrl's SliceSampler draws episodes, not steps, so short episodes fill the batch.
# Package: torchrl 0.14.1 (tensordict 0.14.3, torch 2.13.0)
#
# One would guess: slices of a replay buffer are drawn evenly, so an episode's share of a batch follows its length.
#
# What happens: SliceSampler picks an episode first, all with equal chance, and then a start inside it. Three
# episodes of 4 steps beside one of 996 make up 1.2 % of the stored steps and 75 % of what is drawn.
#
# Seen on 2026-12-01:
#   episode lengths          : [996, 4, 4, 4]
#   share of the stored steps: [0.988, 0.004, 0.004, 0.004]
#   share of the slices there are: [0.997, 0.001, 0.001, 0.001]
#   share of the slices drawn: [0.251, 0.256, 0.241, 0.252]
#
# For a user of world models: early crashes dominate training, the model sees the same few starts again and again,
# and long successful episodes are hardly visited. Cut episodes to like lengths, or weigh the draw yourself.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6

cat > check.py <<'PY'
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler

torch.manual_seed(0)
lengths = [996, 4, 4, 4]
episode = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
sampler = SliceSampler(slice_len=4, traj_key="episode", strict_length=True)
replay = ReplayBuffer(storage=LazyTensorStorage(len(episode)), sampler=sampler, batch_size=40_000)
replay.extend(TensorDict({"episode": episode}, [len(episode)]))
drawn = replay.sample()["episode"]
steps = [round(n / len(episode), 3) for n in lengths]
starts = [round((n - 3) / sum(m - 3 for m in lengths), 3) for n in lengths]
share = [round((drawn == k).float().mean().item(), 3) for k in range(4)]
print("episode lengths          :", lengths)
print("share of the stored steps:", steps)
print("share of the slices there are:", starts)
print("share of the slices drawn:", share)
assert all(abs(v - 0.25) < 0.03 for v in share), "slices are drawn otherwise now"
PY
HOME="$work" venv/bin/python check.py
