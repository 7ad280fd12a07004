"""How a fit of several processes is asked to stop, so that all of them stop between the same two batches."""

import signal
import threading
from functools import partial
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback


class StopTogether(Callback):
    """Lets SIGTERM end a fit of several processes between two batches, or while they collect, with a checkpoint.

    Lightning's own handler speaks to the other processes from inside the signal, and one that is waiting for them in
    another exchange meanwhile never answers. This one only notes that the signal came, passes it on to the processes
    that this one has launched, and lets all of them agree where they meet anyway: after a batch, or after what each has
    played. So it does not matter which of them is told, nor how many. `wmlightning fit` has it unasked; elsewhere name
    it before the callbacks that play.

    Of one process nothing is changed. A controller's generation is finished first. With `strategy=ddp_fork` all of
    them save and end as well, but Lightning's launcher then waits for a result that none of them sends: kill it.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Takes the place of Lightning's handler, which the end of the fit takes away again."""
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, partial(self._ask, trainer))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Asks Lightning to stop after this batch if any process was asked to."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer._signal_connector.received_sigterm = True

    def _ask(self, trainer: Any, number: int, _: Any) -> None:
        if not self.asked and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        self.asked = True


def asked_to_stop(trainer: Any) -> bool:
    """Whether this process was asked to stop, though others may not know it yet."""
    return trainer.received_sigterm or any(getattr(callback, "asked", False) for callback in trainer.callbacks)
