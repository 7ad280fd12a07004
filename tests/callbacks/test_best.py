"""A return counts for the weights that it was measured with, and for no others."""

import io
import re

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from online_support import fit

from wmlightning import load
from wmlightning.callbacks.best import BestCheckpoint, StopWithoutProgress
from wmlightning.callbacks.evaluate import Evaluate
from wmlightning.tools.evaluate import evaluate


def earned(path):
    return evaluate(load(path), episodes=4, num_envs=2)["mean"]


def test_a_model_checkpoint_is_named_by_the_return_that_its_weights_have(tmp_path):
    name = "{evaluate/return:.4f}"
    saving = ModelCheckpoint(tmp_path / "top", name, monitor="evaluate/return", mode="max", save_top_k=3)
    fit(tmp_path, [Evaluate(every_epochs=2, episodes=4, num_envs=2)], saving=[saving], max_epochs=6)
    files = [path for path in (tmp_path / "top").rglob("*.ckpt") if "=" in path.name]
    assert len(files) == 3, "epochs 2, 4 and 6 were evaluated"
    for path in files:
        assert earned(path) == pytest.approx(float(re.search(r"return=(-?[\d.]+\d)", path.name)[1]), abs=1e-3)


def test_early_stopping_counts_measurements_and_waits_for_the_first(tmp_path):
    stopping = EarlyStopping("evaluate/return", min_delta=1e9, patience=2, mode="max")
    with pytest.warns(UserWarning, match="its patience counts measurements"):
        run = fit(tmp_path, [Evaluate(every_epochs=2, episodes=2), stopping], max_epochs=20)
    assert run.trainer.current_epoch == 6, "the first measurement, and two without a gain"


def test_the_best_weights_are_kept_beside_the_last(tmp_path):
    run = fit(tmp_path, [Evaluate(every_epochs=1, episodes=4, num_envs=2)], saving=[BestCheckpoint()], max_epochs=5)
    returns = [value for _, value in run.curves.named("evaluate/return")]
    assert earned(tmp_path / "checkpoints" / "best.ckpt") == pytest.approx(max(returns))


def test_training_ends_after_measurements_without_progress(tmp_path):
    callbacks = [Evaluate(every_epochs=2, episodes=2), StopWithoutProgress(patience=2, least_gain=1e9)]
    with pytest.warns(UserWarning, match="not been better than .* for 2 measurements"):
        run = fit(tmp_path, callbacks, max_epochs=20)
    assert run.trainer.current_epoch == 6


def test_a_measured_return_is_among_the_results_of_the_fit(tmp_path):
    run = fit(tmp_path, [Evaluate(every_epochs=2, episodes=2)], max_epochs=3)
    assert float(run.trainer.callback_metrics["evaluate/return"]) == pytest.approx(
        run.curves.named("evaluate/return")[-1][1]
    )


def test_what_was_best_is_known_after_a_cut():
    for callback in (BestCheckpoint(), StopWithoutProgress()):
        callback.best = 3.5
        again = type(callback)()
        again.load_state_dict(torch.load(_saved(callback.state_dict()), weights_only=True))
        assert again.best == 3.5
        assert not again.improves(3.5)


def _saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
