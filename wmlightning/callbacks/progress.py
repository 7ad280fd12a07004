"""How far training is, in lines of text, where there is no terminal to draw a bar on."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """Prints what a progress bar shows, every so often and when training ends, to stderr.

        update 540 of 2250 (2.1/s): episodes 17, env_steps 3400, return -861.7

    Args:
        seconds: from one line to the next, at least.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.seconds, self.enabled = seconds, True
        self._printed = self._began = (0.0, 0)

    def disable(self) -> None:
        """No more lines."""
        self.enabled = False

    def enable(self) -> None:
        """Lines again."""
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._printed = self._began = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line if it is time."""
        if time.monotonic() - self._printed[0] >= self.seconds:
            self._line(trainer, pl_module, self._printed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints where it came to, at the pace of the whole."""
        self._line(trainer, pl_module, self._began)

    def _line(self, trainer: Trainer, pl_module: LightningModule, since: tuple[float, int]) -> None:
        now = time.monotonic(), trainer.global_step
        self._printed = now
        if not (self.enabled and trainer.is_global_zero):
            return
        end = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        pace = (now[1] - since[1]) / max(now[0] - since[0], 1e-9)
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        shown = ", ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        print(f"update {now[1]}{end} ({pace:.3g}/s){': ' if shown else ''}{shown}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
