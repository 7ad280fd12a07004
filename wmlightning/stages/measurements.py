"""Numbers that are measured now and then, such as `evaluate/return`, among the metrics of a Lightning Trainer.

Lightning keeps a metric until it is logged again, so that a number measured after one epoch would be taken for that of
every later one: a `ModelCheckpoint` would name weights by a return they never had. Here the code that measures a
number adds it to the metrics, and removes it when the next batch begins.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn


def publish(trainer: Any, values: Mapping[str, float]) -> None:
    """Puts freshly measured numbers among the Trainer's metrics."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def withdraw(trainer: Any, names: Iterable[str]) -> None:
    """Removes measured numbers: they are of the weights before the batch that now begins."""
    for name in names:
        trainer.callback_metrics.pop(name, None)


def pass_over_unmeasured(trainer: Any, names: Collection[str]) -> None:
    """Lets Lightning's `ModelCheckpoint` pass over an epoch in which the number that it monitors was not measured."""
    for callback in trainer.checkpoint_callbacks:
        monitor = str(getattr(callback, "monitor", None))
        if isinstance(callback, ModelCheckpoint) and monitor in names and monitor not in trainer.callback_metrics:
            # As if it had saved this step already; without the number it would warn, or raise.
            callback._last_global_step_saved = trainer.global_step


def wait_for_measurements(trainer: Any, names: Collection[str]) -> None:
    """Lets Lightning's `EarlyStopping` wait for a number that is not measured in every epoch, and says so."""
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.monitor in names and callback.strict:
            callback.strict = False
            rank_zero_warn(
                f"EarlyStopping monitors {callback.monitor}, which is not measured after every epoch: its patience "
                "counts measurements"
            )
