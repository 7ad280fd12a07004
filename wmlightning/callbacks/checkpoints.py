"""How and when checkpoints are written: `AtomicCheckpointIO` and `LastCheckpoint`."""

import io
import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill or a power cut leaves them complete; loads them without running pickled code.

    Lightning's own CheckpointIO writes to the system's temporary folder, without a sync, and is not atomic if that
    folder is on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the checkpoint; see `write_atomically`."""
        # In memory first, because torch reports a full disk only as an unexpected position in the file.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, lambda file: file.write(content.getbuffer()))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint; `weights_only` is on unless it is False."""
        return super().load_checkpoint(path, map_location, weights_only is not False)


class LastCheckpoint(Checkpoint):
    """Keeps `<default_root_dir>/checkpoints/last.ckpt` up to date, so that a kill loses less than a minute of training.

    It saves after a batch once `seconds` have passed, when training ends, and when the process is asked to stop
    (SIGTERM, or Ctrl-C through the command line), which Lightning does between two batches. It does not save at any
    other exception, which may come in the middle of an optimizer step and leave a state that cannot be resumed from.
    Add a `ModelCheckpoint` to keep the best or every n-th checkpoint as well.

    The checkpoint holds the Trainer's metrics too. A fit that is resumed with nothing left to train has those as its
    results: so a run that is killed between its last checkpoint and the note of its results loses none of them.

    Args:
        seconds: least time from one save to the next; 0 saves after every batch.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._saved_at = 0.0
        self._saved_step = -1
        self._trained = False
        self._metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The metrics at the last save."""
        return {"metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the metrics at the save that is resumed from."""
        self._metrics = state_dict["metrics"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Notes that this fit has trained nothing yet."""
        self._trained = False

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Gives a fit that had nothing left to train the metrics of the checkpoint."""
        if not self._trained:
            for name, value in self._metrics.items():
                trainer.callback_metrics.setdefault(name, torch.tensor(value))

    @staticmethod
    def path(trainer: lightning.Trainer) -> Path:
        """Returns the path of a trainer's last checkpoint."""
        return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def _save(self, trainer: lightning.Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        self._metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        trainer.save_checkpoint(self.path(trainer))
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Makes the first batch save: from then on a run can be resumed, with the episodes it has collected."""
        self._saved_at = -math.inf

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Saves if enough time has passed by the clock of rank 0."""
        self._trained = True
        due = time.monotonic() - self._saved_at >= self.seconds
        if trainer.strategy.broadcast(due):
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Saves the finished state."""
        self._save(trainer)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Saves when asked to stop between two batches."""
        if isinstance(exception, SIGTERMException) and trainer.training and self._saved_step != trainer.global_step:
            self._save(trainer)
