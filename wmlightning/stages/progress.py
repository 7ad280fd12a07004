"""Loop counters of a checkpoint, made plain: where in which epoch training goes on."""

from typing import Any

PER_EPOCH = "batches_per_epoch"
"""Where a checkpoint says how many batches an epoch had."""


def settle_progress(checkpoint: dict[str, Any]) -> None:
    """Writes the counters of a checkpoint's loops as if it had been saved in a plain place.

    Lightning 2.6 reads from its counters on which hook a checkpoint was written, and guesses wrong where one was
    written while a resumed run had not got going yet, or where a run that stopped in the middle of an epoch is given
    a longer limit of another kind: epochs are counted twice, or a batch is trained again. So the epochs are counted
    from the batches, and between two epochs all that came before is complete and nothing has begun.

    Args:
        checkpoint: as given to `on_load_checkpoint`, changed in place; one that is not a Trainer's is left alone.
    """
    loops, per_epoch = checkpoint.get("loops", {}).get("fit_loop"), checkpoint.get(PER_EPOCH)
    if not loops or not per_epoch:
        return
    batches = loops["epoch_loop.batch_progress"]
    trained = batches["total"]["processed"]
    into_epoch = batches["current"]["processed"] % per_epoch
    epochs, rest = divmod(trained - into_epoch, per_epoch)
    if rest:
        return  # epochs had another length once: the counters are all there is to go by
    begun = epochs + (into_epoch > 0)
    for progress in loops["epoch_progress"].values():
        progress.update(ready=begun, started=begun, processed=epochs, completed=epochs)
    if not into_epoch:
        for key, count in (("total", trained), ("current", 0)):
            batches[key].update(ready=count, started=count, processed=count, completed=count)
        batches["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
