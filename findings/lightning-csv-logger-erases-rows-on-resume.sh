#!/usr/bin/env bash
# Finding: Lightning's CSVLogger erases the rows of the run that it resumes.
# Package: lightning 2.6.6 (torch 2.13.0)
#
# One would guess: a run resumed with ckpt_path and the same logger version adds its rows to metrics.csv.
#
# What happens: the file is written anew. The checkpoint goes on at step 8, and the first 8 rows are gone.
#
# Seen on 2026-12-01:
#   steps in metrics.csv after epochs 0 and 1: [0, 1, 2, 3, 4, 5, 6, 7]
#   after resuming for epoch 2               : [8, 9, 10, 11]
#
# For a user of world models: the learning curve of a run of days that was stopped and resumed keeps its last part
# only. Give each part a version of its own and join them, or log to TensorBoard.

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
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def steps_on_file(max_epochs, ckpt_path=None):
    trainer = L.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=CSVLogger("logs", name="run", version=0),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir="files",
    )
    trainer.fit(Model(), DataLoader(torch.zeros(8, 1), batch_size=2), ckpt_path=ckpt_path)
    trainer.save_checkpoint("last.ckpt")
    lines = Path("logs/run/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    return [int(line.split(",")[column]) for line in lines[1:]]


first = steps_on_file(2)
second = steps_on_file(3, "last.ckpt")
print("steps in metrics.csv after epochs 0 and 1:", first)
print("after resuming for epoch 2               :", second)
assert first == list(range(8))
assert second == list(range(8, 12)), "the old rows stay now"
PY
HOME="$work" venv/bin/python check.py
