#!/usr/bin/env bash
# Finding: Lightning never calls two epoch hooks when it resumes from a checkpoint of an epoch's last batch.
# Package: lightning 2.6.6 (torch 2.13.0)
#
# One would guess: the interrupted run and the resumed one together call the hooks of one whole run.
#
# What happens: a checkpoint that falls on the last batch of an epoch is written before on_train_epoch_end. A run
# resumed from it goes straight into the next epoch's batches: it calls neither the old epoch's end (E0) nor the
# new epoch's start (S1).
#
# Seen on 2026-12-01 (4 batches an epoch, a checkpoint every 4 steps, resumed from the first):
#   one run of three epochs           : S0 b b b b E0 S1 b b b b E1 S2 b b b b E2
#   resumed from epoch=0-step=4.ckpt: b b b b E1 S2 b b b b E2
#
# For a user of world models: an agent that collects episodes in on_train_epoch_start, or updates a target network
# in on_train_epoch_end, skips one collection or update at every restart. Tie both to a counter of batches.

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
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Model(L.LightningModule):
    """Writes down its hooks: S epoch start, b batch, E epoch end."""

    def __init__(self):
        super().__init__()
        self.layer, self.events = torch.nn.Linear(1, 1), []

    def training_step(self, batch, index):
        self.events.append("b")
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_epoch_start(self):
        self.events.append(f"S{self.current_epoch}")

    def on_train_epoch_end(self):
        self.events.append(f"E{self.current_epoch}")


def run(ckpt_path=None):
    keeper = ModelCheckpoint("files", save_top_k=-1, every_n_train_steps=4)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[keeper],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, DataLoader(torch.zeros(8, 1), batch_size=2), ckpt_path=ckpt_path)
    return " ".join(model.events)


whole = run()
first = sorted(Path("files").glob("*"))[0]
resumed = run(str(first))
print("one run of three epochs           :", whole)
print(f"resumed from {first.name}:", resumed)
assert whole == "S0 b b b b E0 S1 b b b b E1 S2 b b b b E2"
assert resumed == "b b b b E1 S2 b b b b E2", "the hooks fire on resume now"
PY
HOME="$work" venv/bin/python check.py
