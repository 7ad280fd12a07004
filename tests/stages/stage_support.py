"""Shared by the tests of stages: episodes, batches, a quiet Trainer, and the assertions that a resumed run equals an
uninterrupted one and that two processes equal one with a double batch."""

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from datamodules.episode import Batch, Episode

CUTS = {
    "in the middle of an epoch": ({"max_steps": 3}, {"every_n_train_steps": 3}),
    "on its last batch": ({"max_steps": 4}, {"every_n_train_steps": 4}),
    "at its end": ({"max_epochs": 1}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
}
"""Where a run with epochs of four updates ends, and when its checkpoint is written."""


def episode(steps, observation, seed, action_size=2, terminal=True, **metadata):
    """An episode of random actions and rewards around given observations of steps + 1 rows."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (steps + 1, action_size)).astype(np.float32)
    reward = rng.normal(size=steps + 1).astype(np.float32)
    action[0], reward[0] = 0, 0
    is_first, is_terminal = np.zeros(steps + 1, bool), np.zeros(steps + 1, bool)
    is_first[0], is_terminal[-1] = True, terminal
    return Episode(observation, action, reward, is_first, is_terminal, metadata)


def code_batch(embeds, action=None, is_first=(), is_terminal=()):
    """A Batch of codes (B, T, 2 * Z) whose flags are set at the listed (row, t)."""
    rows, time = embeds.shape[:2]
    mean, logvar = embeds.chunk(2, -1)
    first, terminal = (torch.zeros(rows, time, dtype=torch.bool) for _ in range(2))
    for flags, places in ((first, is_first), (terminal, is_terminal)):
        for place in places:
            flags[place] = True
    action = torch.randn(rows, time, 2) if action is None else action
    observation = {"mean": mean, "logvar": logvar}
    return Batch(observation, action, torch.randn(rows, time), 1 - terminal.float(), first, terminal)


class Record(Callback):
    """Keeps what was logged after each training batch."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps[trainer.global_step] = {key: value.item() for key, value in trainer.callback_metrics.items()}


class Gradients(Callback):
    """Writes every rank's first gradient, and its weights at the end."""

    def __init__(self, folder):
        self.folder = folder

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            grads = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            torch.save(grads, f"{self.folder}/gradient-{trainer.global_rank}-of-{trainer.world_size}")

    def on_train_end(self, trainer, pl_module):
        weights = dict(pl_module.named_parameters())
        torch.save(weights, f"{self.folder}/weights-{trainer.global_rank}-of-{trainer.world_size}")


def trainer(callbacks=(), **options):
    """A quiet Trainer on one CPU; checkpoints only where a ModelCheckpoint is among the callbacks."""
    callbacks = list(callbacks)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_checkpointing=any(type(callback).__name__ == "ModelCheckpoint" for callback in callbacks),
        use_distributed_sampler=False,
        **quiet,
        **options,
    )


def assert_resumes(folder, make, data, cut, logs):
    """Asserts that 8 updates cut at one of CUTS and resumed are 8 uninterrupted ones, bit for bit, logged values too.

    `make` and `data` build the stage and its datamodule anew; `logs` are names that the last update must have logged.
    """

    def fit(ckpt_path=None, saving=(), **limit):
        stage, record = make(), Record()
        run = trainer([record, *saving], **limit)
        run.fit(stage, data(), ckpt_path=ckpt_path, weights_only=True)
        return stage.state_dict(), run.optimizers[0].state_dict(), record.steps

    stop, save = CUTS[cut]
    weights, optimizer, logged = fit(max_steps=8)
    fit(saving=[ModelCheckpoint(folder, "cut", **save)], **stop)
    again_weights, again_optimizer, again = fit(folder / "cut.ckpt", max_steps=8)
    assert_close(again_weights, weights, rtol=0, atol=0)
    assert_close(again_optimizer["state"], optimizer["state"], rtol=0, atol=0)
    assert again_optimizer["param_groups"] == optimizer["param_groups"]
    assert list(again) == list(range(9 - len(again), 9))
    # Means over validations are part of what a run has logged; a resumed run has not seen the first one.
    assert again == {step: {name: logged[step][name] for name in again[step]} for step in again}
    assert logs <= again[8].keys()


def assert_two_processes_are_one(folder, make, data, parts=("",), near=(1e-5, 1e-6), precision="32-true"):
    """Asserts that two processes stay equal and have the gradient of one with the double batch.

    `make` builds a stage that draws no noise, `data` its datamodule for a batch size. A part is all parameters whose
    names begin alike; `near` is (rtol, atol), the latter as a share of each part's largest gradient.
    """
    for batch_size, ranks in ((2, {"strategy": "ddp_fork", "devices": 2, "max_steps": 3}), (4, {"max_steps": 1})):
        trainer([Gradients(folder)], precision=precision, **ranks).fit(make(), data(batch_size))

    def read(name, part=""):
        return {key: value for key, value in torch.load(folder / name).items() if key.startswith(part)}

    assert_close(read("weights-0-of-2"), read("weights-1-of-2"), rtol=0, atol=0)
    for part in parts:
        one, two = read("gradient-0-of-1", part), read("gradient-0-of-2", part)
        scale = max(float(gradient.abs().max()) for gradient in one.values())
        assert scale > 0
        assert_close(two, one, rtol=near[0], atol=near[1] * scale)
