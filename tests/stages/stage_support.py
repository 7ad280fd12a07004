"""What the tests of V and M share: episodes, batches, and a Trainer that writes nothing it is not asked to."""

import numpy as np
import torch
from lightning import Callback, Trainer

from datamodules.episode import Batch, Episode


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
