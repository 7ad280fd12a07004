"""What the tests of pictures and guards share: films of a bright square that moves, and a Trainer that draws."""

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.episode import Episode
from datamodules.store import EpisodeStore


def squares(folder, rows, episodes=5, pace=3, discrete=False):
    """The path of a store of squares that go `pace` pixels to the right a frame; the reward tells where they are."""
    store, time = EpisodeStore(folder), np.arange(rows)
    for number in range(episodes):
        image = np.zeros((rows, 64, 64, 3), np.uint8)
        for t in time:
            image[t, 8 * number : 8 * number + 12, pace * t : pace * t + 12] = 255
        action = (np.eye(3)[time % 3] if discrete else np.full((rows, 2), 0.5)).astype(np.float32)
        action[0] = 0
        flags, metadata = np.zeros(rows, bool), {"discrete": discrete}
        store.append(Episode({"image": image}, action, time.astype(np.float32), time == 0, flags, metadata))
    return store.path


def trainer(folder, callbacks=(), steps=2, **options):
    """A Trainer of a few updates that logs all of them to TensorBoard and holds no validation."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {
        "default_root_dir": folder,
        "logger": TensorBoardLogger(folder, name="tensorboard", version=""),
        "callbacks": list(callbacks),
        "max_steps": steps,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
        "accelerator": "cpu",
    }
    return Trainer(**(settings | quiet | options))


def events_in(folder):
    """Everything that a run in a folder has logged."""
    return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
