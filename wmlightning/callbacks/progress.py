"""`ProgressLines`: the progress of training as lines of text, for runs without a terminal."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """Prints what a progress bar shows to stderr, at regular times and when training ends.

        update 540 of 2250 (2.1/s, 14 min left): loss 3.52, episodes 17, env_steps 3400, return -861.7

    The loss is that of the stage, or the sum of those of its parts.

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
        left = _duration((trainer.max_steps - now[1]) / speed) if trainer.max_steps > now[1] and speed else ""
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        losses = [
            float(v) for name, v in trainer.callback_metrics.items() if name.endswith("/loss") and "val" not in name
        ]
        if losses:
            metrics = {"loss": sum(losses)} | metrics
        text = ", ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        print(f"update {now[1]}{end} ({speed:.3g}/s{left}){': ' if text else ''}{text}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """A time that is left, in the largest unit of which there are two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f", {seconds / size:.0f} {unit} left"
    return f", {seconds:.0f} s left"


def _short(value: Any) -> str:
    """A number in few digits; any other value as text."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
