"""Where training goes on after a checkpoint, read from counters that Lightning may leave in disorder."""

import copy

import pytest

from wmlightning.stages.checkpoints import settle_progress


def checkpoint(epochs, total, current, is_last=False, step=0, per_epoch=4):
    """Counters (ready, started, processed, completed) of epochs, of all batches and of this epoch's."""

    def counters(numbers):
        return dict(zip(("ready", "started", "processed", "completed"), numbers, strict=True))

    loops = {
        "epoch_progress": {"total": counters(epochs), "current": counters(epochs)},
        "epoch_loop.batch_progress": {"total": counters(total), "current": counters(current), "is_last_batch": is_last},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
    }
    return {"loops": {"fit_loop": loops}, "batches_per_epoch": per_epoch, "global_step": 8}


@pytest.mark.parametrize(
    "saved",
    [
        checkpoint((2, 2, 1, 1), (8, 8, 8, 7), (4, 4, 4, 3), True, step=7),  # after the last batch
        checkpoint((2, 2, 2, 1), (8, 8, 8, 8), (4, 4, 4, 4), True, step=8),  # at the epoch's end
        checkpoint((2, 2, 2, 2), (8, 8, 8, 7), (4, 4, 4, 3), True, step=7),  # when a resumed run was starting
        checkpoint((3, 3, 3, 3), (8, 8, 8, 8), (4, 4, 4, 4), True, step=8),  # an epoch counted twice
        checkpoint((2, 2, 2, 2), (8, 8, 8, 8), (0, 0, 0, 0), step=8),
    ],
    ids=["last batch", "end", "starting", "twice", "settled"],
)
def test_between_two_epochs_all_is_complete_and_nothing_has_begun(saved):
    settle_progress(saved)
    assert saved == checkpoint((2, 2, 2, 2), (8, 8, 8, 8), (0, 0, 0, 0), step=8)


def test_in_the_middle_of_an_epoch_only_the_epochs_are_counted_again():
    saved = checkpoint((3, 3, 3, 3), (6, 6, 6, 5), (2, 2, 2, 1), step=5)
    settle_progress(saved)
    assert saved == checkpoint((2, 2, 1, 1), (6, 6, 6, 5), (2, 2, 2, 1), step=5)


def test_counters_that_tell_of_other_epochs_are_left_alone():
    for saved in (
        checkpoint((2, 2, 1, 1), (7, 7, 7, 6), (2, 2, 2, 1)),
        checkpoint((2, 2, 1, 1), (6, 6, 6, 5), (2, 2, 2, 1), per_epoch=0),
        {"state_dict": {}},
    ):
        before = copy.deepcopy(saved)
        settle_progress(saved)
        assert saved == before
