"""`ProgressLines`: the progress of training as lines of text, for runs without a terminal."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """Prints what a progress bar shows to stderr, at regular times and when training ends.

        update 540 of 2250 (2.1/s): episodes 17, env_steps 3400, return -861.7

    Args:
        seconds: least time from one line to the next.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.enabled = True
        # Time and update of the last line and of the start.
        self._last = (0.0, 0)
        self._start = (0.0, 0)

    def disable(self) -> None:
        """Stops printing."""
        self.enabled = False

    def enable(self) -> None:
        """Starts printing again."""
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = (time.monotonic(), trainer.global_step)
        self._last = self._start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line if enough time has passed."""
        if time.monotonic() - self._last[0] >= self.seconds:
            self._print_line(trainer, pl_module, self._last)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last line, with the mean speed of the whole fit."""
        self._print_line(trainer, pl_module, self._start)

    def _print_line(self, trainer: Trainer, pl_module: LightningModule, since: tuple[float, int]) -> None:
        """Prints a line whose speed is the mean since a time and update."""
        now = (time.monotonic(), trainer.global_step)
        self._last = now
        if not (self.enabled and trainer.is_global_zero):
            return
        end = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        speed = (now[1] - since[1]) / max(now[0] - since[0], 1e-9)
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        text = ", ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        print(f"update {now[1]}{end} ({speed:.3g}/s){': ' if text else ''}{text}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    """A number in few digits; any other value as text."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
