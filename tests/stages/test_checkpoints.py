"""Checkpoints of an older format have today's names when read, and training resumes where their counters say."""

import copy

import pytest
import torch

from wmlightning.callbacks.schedule import CollectionProgress
from wmlightning.recipes import FORMAT
from wmlightning.stages.checkpoints import migrate_checkpoint, repair_loop_counters


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
def test_between_two_epochs_every_batch_is_complete_and_none_has_begun(saved):
    repair_loop_counters(saved)
    assert saved == checkpoint((2, 2, 2, 2), (8, 8, 8, 8), (0, 0, 0, 0), step=8)


def test_in_the_middle_of_an_epoch_only_the_epochs_are_counted_again():
    saved = checkpoint((3, 3, 3, 3), (6, 6, 6, 5), (2, 2, 2, 1), step=5)
    repair_loop_counters(saved)
    assert saved == checkpoint((2, 2, 1, 1), (6, 6, 6, 5), (2, 2, 2, 1), step=5)


def test_counters_of_epochs_of_another_length_stay_as_they_are():
    for saved in (
        checkpoint((2, 2, 1, 1), (7, 7, 7, 6), (2, 2, 2, 1)),
        checkpoint((2, 2, 1, 1), (6, 6, 6, 5), (2, 2, 2, 1), per_epoch=0),
        {"state_dict": {}},
    ):
        before = copy.deepcopy(saved)
        repair_loop_counters(saved)
        assert saved == before


def test_a_checkpoint_of_format_1_is_given_todays_names():
    progress = {"begun": [2], "decisions": 8, "env_steps": 16, "prefilled": [0, 2, 8], "view": [2, 8], "open": []}
    saved = {
        "recipe": {"class_path": "wmlightning.stages.controller.CMAESController", "init_args": {}},
        "state_dict": {"games.starts": torch.ones(2), "theta_best": torch.zeros(3)},
        "callbacks": {"Collect": {"ledger": progress}, "Evaluate": {"evaluated_at": 4, "last": {}}},
    }
    migrate_checkpoint(saved)
    assert saved["format"] == FORMAT
    assert saved["state_dict"].keys() == {"fitness.starts", "theta_best"}
    assert CollectionProgress(**saved["callbacks"]["Collect"]["progress"]).state() == {
        "begun": [2],
        "decisions": 8,
        "env_steps": 16,
        "prefilled": [0, 2, 8],
        "visible": [2, 8],
        "open": [],
    }
    again = copy.deepcopy(saved)
    assert migrate_checkpoint(again).keys() == saved.keys()
    assert again["callbacks"] == saved["callbacks"]
