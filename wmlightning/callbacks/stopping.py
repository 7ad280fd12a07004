"""`StopTogether`: SIGTERM stops all processes of a fit between the same two batches."""

import signal
import threading
from functools import partial
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback


class StopTogether(Callback):
    """Ends a fit of several processes at SIGTERM, between two batches or during a collection, with a checkpoint.

    Lightning's own signal handler starts a collective operation inside the signal, which deadlocks if another process
    is in another collective operation at that moment. This handler only records that the signal came and passes it on
    to the processes that this one has launched. The processes then agree to stop where they communicate anyway: after a
    batch, or after each has played its share. So any one of them, or several, may receive the signal. `wmlightning fit`
    adds it by default; in Python list it before the callbacks that play.

    A fit of one process keeps Lightning's handler. A controller's generation is finished first. With
    `strategy=ddp_fork` all processes save and end too, but Lightning's launcher then waits for a result that none of
    them sends: kill it.

    Attributes:
        signalled: whether this process has received SIGTERM.
    """

    def __init__(self) -> None:
        self.signalled = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Replaces Lightning's signal handler; Lightning restores the original one when the fit ends."""
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, partial(self._on_signal, trainer))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Makes Lightning stop after this batch if any process has received the signal."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.signalled, all=False):
            trainer._signal_connector.received_sigterm = True

    def _on_signal(self, trainer: Any, number: int, _: Any) -> None:
        if not self.signalled and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        self.signalled = True


def asked_to_stop(trainer: Any) -> bool:
    """Whether this process has received SIGTERM; other processes may not have yet."""
    signalled = any(isinstance(callback, StopTogether) and callback.signalled for callback in trainer.callbacks)
    return trainer.received_sigterm or signalled
