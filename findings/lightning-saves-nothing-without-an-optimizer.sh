#!/usr/bin/env bash
# Finding: Lightning's ModelCheckpoint never saves a model that is trained without a torch optimizer.
# Package: lightning 2.6.6 (torch 2.13.0)
#
# One would guess: configure_optimizers may return None, and checkpoints come every n steps or epochs all the same.
#
# What happens: training runs, and global_step stays 0. ModelCheckpoint compares it with the step of its last save,
# also 0, and concludes that there is nothing new, for steps, for epochs and for a monitored score. It says nothing.
#
# Seen on 2026-12-01:
#   ModelCheckpoint(every_n_train_steps=2): generations 12, global_step 0, files []
#   ModelCheckpoint(every_n_epochs=1): generations 12, global_step 0, files []
#   ModelCheckpoint(monitor='score'): generations 12, global_step 0, files []
#
# For a user of world models: a controller trained by an evolution strategy loses days of search at the first
# crash. Wrap the strategy in a torch Optimizer, so that each generation is a step.

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


class Search(L.LightningModule):
    """An evolution strategy: it learns without a torch optimizer."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.best = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def training_step(self, batch, _):
        self.best += 1
        self.log("score", self.best.item())

    def configure_optimizers(self):
        return None


ways = {
    "every_n_train_steps=2": {"every_n_train_steps": 2},
    "every_n_epochs=1": {"every_n_epochs": 1},
    "monitor='score'": {"monitor": "score", "mode": "max"},
}
for number, (name, options) in enumerate(ways.items()):
    keeper = ModelCheckpoint(f"files-{number}", save_top_k=1, **options)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[keeper],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    model = Search()
    trainer.fit(model, DataLoader(torch.zeros(8, 1), batch_size=2))
    files = sorted(p.name for p in Path(f"files-{number}").glob("*"))
    print(f"ModelCheckpoint({name}): generations {int(model.best)}, global_step {trainer.global_step}, files {files}")
    assert int(model.best) == 12 and trainer.global_step == 0 and files == [], "it saves now"
PY
HOME="$work" venv/bin/python check.py
