#!/usr/bin/env bash
# Finding: Lightning takes the first axis for the batch size, so epoch means of time-major sequences are wrong.
# Package: lightning 2.6.6 (torch 2.13.0)
#
# One would guess: self.log(..., on_epoch=True) gives the mean over the data, in any layout, or warns.
#
# What happens: without batch_size= it weighs each batch by the length of the first axis. Sequences laid out as
# (time, batch, ...), as recurrent state-space models take them, always weigh the same, so a last batch of one
# episode counts as much as a full one.
#
# Seen on 2026-12-01 (four episodes of zeros in one batch, one of tens in the last):
#   batch first (B, T, 1): epoch mean 2.0
#   time first (T, B, 1): epoch mean 5.0
#   mean of the 30 numbers: 2.0
#
# For a user of world models: validation losses of PlaNet or Dreamer data depend on how the episodes fall into
# batches, and checkpoints are chosen by them. Pass batch_size= to self.log.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check torch==2.13.0 lightning==2.6.6 pytorch-lightning==2.6.6 torchmetrics==1.9.0 numpy==2.4.6

cat > check.py <<'PY'
import logging
import warnings

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

warnings.simplefilter("ignore")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Episodes(Dataset):
    """Five episodes of six steps; the last one holds tens, the others zeros."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.full((6, 1), 10.0 if index == 4 else 0.0)


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        self.log("mean", batch.mean(), on_step=False, on_epoch=True)
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


seen = {}
for name, axis in (("batch first (B, T, 1)", 0), ("time first (T, B, 1)", 1)):
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(Episodes(), batch_size=4, collate_fn=lambda e, axis=axis: torch.stack(e, axis)))
    seen[axis] = float(trainer.callback_metrics["mean"])
    print(f"{name}: epoch mean {seen[axis]}")
print("mean of the 30 numbers: 2.0")
assert seen == {0: 2.0, 1: 5.0}, "the batch size is found otherwise now"
PY
HOME="$work" venv/bin/python check.py
