"""Callbacks that act on an agent's measured returns: `BestCheckpoint` and `StopWithoutProgress`.

A return is not measured at every batch (`evaluate/return`, `collect/return`, `controller/evaluated_return`). It stays
among the Trainer's metrics only until the next batch begins, so that these callbacks, and Lightning's own
`ModelCheckpoint` and `EarlyStopping`, count each measurement once.
"""

import math
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from wmlightning.validation import at_least


class _Follower:
    """Finds a number in the batch or epoch in which it was measured (abstract)."""

    def __init__(self, monitor: str, mode: Literal["max", "min"]) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r} but must be max or min: give one of them")
        self.monitor = monitor
        self.mode = mode
        self.best = -math.inf if mode == "max" else math.inf
        self._seen_at = -1

    def measured(self, trainer: Any) -> float | None:
        """The number, the first time that it is seen after it was measured; otherwise None."""
        step = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if self.monitor not in trainer.callback_metrics or step == self._seen_at:
            return None
        self._seen_at = step
        return float(trainer.callback_metrics[self.monitor])

    def improves(self, value: float, by: float = 0.0) -> bool:
        """Whether the number is better than the best so far by more than `by`."""
        gain = value - self.best if self.mode == "max" else self.best - value
        return gain > by


class BestCheckpoint(_Follower, Checkpoint):
    """Keeps the weights that were measured best in `<default_root_dir>/checkpoints/best.ckpt`, beside `last.ckpt`.

    Args:
        monitor: a metric that is measured now and then: "evaluate/return", "collect/return",
            "controller/evaluated_return"; or any other that the stage logs.
        mode: "max" where the larger number is the better one, "min" where the smaller is.

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, monitor: str = "evaluate/return", mode: Literal["max", "min"] = "max") -> None:
        super().__init__(monitor, mode)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves after a batch that measured a better number."""
        self._save_if_better(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after an epoch that measured a better number."""
        self._save_if_better(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Saves the best number so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best number so far."""
        self.best = state_dict["best"]

    def _save_if_better(self, trainer: Any) -> None:
        value = self.measured(trainer)
        if value is not None and self.improves(value) and not trainer.fast_dev_run:
            self.best = value
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt")


class StopWithoutProgress(_Follower, Callback):
    """Ends training when `patience` measurements in a row were no improvement on the best one.

    Args:
        monitor: a metric that is measured now and then, as of `BestCheckpoint`.
        patience: measurements without progress after which training ends, at least 1.
        least_gain: by how much a number must be better to count as progress, at least 0.
        mode: "max" where the larger number is the better one, "min" where the smaller is.

    Raises:
        ValueError: for a number out of its range or another mode.
    """

    def __init__(
        self,
        monitor: str = "evaluate/return",
        patience: int = 5,
        least_gain: float = 0.0,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(monitor, mode)
        at_least(1, patience=patience)
        at_least(0, least_gain=least_gain)
        self.patience = patience
        self.least_gain = least_gain
        self.without_progress = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Counts a measurement that was made in this batch."""
        self._count(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts a measurement that was made after this epoch."""
        self._count(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Saves the best number so far, and how many measurements followed it."""
        return {"best": self.best, "without_progress": self.without_progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.best = state_dict["best"]
        self.without_progress = state_dict["without_progress"]

    def _count(self, trainer: Any) -> None:
        value = self.measured(trainer)
        if value is None:
            return
        if self.improves(value, self.least_gain):
            self.best, self.without_progress = value, 0
            return
        self.without_progress += 1
        if self.without_progress >= self.patience:
            trainer.should_stop = True
            rank_zero_warn(
                f"{self.monitor} has not been better than {self.best:.6g} for {self.patience} measurements: "
                "training ends; raise patience to train on"
            )
