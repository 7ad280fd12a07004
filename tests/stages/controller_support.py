"""Shared by the tests of C: a tiny M, a quiet Trainer, where runs are cut, and all that must then be equal."""

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

CUTS = {
    "in the middle of an epoch": (3, {"every_n_train_steps": 3}),
    "on its last batch": (4, {"every_n_train_steps": 4}),
    "at its end": (4, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
}


class Notes(Logger):
    """Keeps everything that is logged, as (x axis, metrics)."""

    name, version = "notes", 0

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        metrics.pop("epoch", None)
        self.lines.append((int(step), metrics))

    def log_hyperparams(self, *args, **kwargs): ...


def tiny_model():
    torch.manual_seed(0)
    return MDNRNN(VAE(4, depth=2), MDNLSTM(4, 2, 8, 2))


def trainer(folder, steps, *callbacks, **changes):
    settings = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return lightning.Trainer(**(settings | changes))


def assert_same(a, b):
    """Equal bit for bit, all the way down."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def everything(stage, fitted):
    return {"weights": stage.state_dict(), "search": fitted.optimizers[0].state_dict()}


class AskToStop(Callback):
    """Sends SIGTERM's flag while a given generation is being played."""

    def __init__(self, generation):
        self.generation = generation

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if trainer.global_step == self.generation:
            trainer._signal_connector.received_sigterm = True


class WriteDown(Callback):
    """Leaves every rank's parameters in a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, stage):
        torch.save(everything(stage, trainer), self.folder / f"rank{trainer.global_rank}.pt")
