"""An online run that is cut, anywhere and in any way, and resumed equals an uninterrupted one bit for bit."""

import multiprocessing
import os
import signal

import gymnasium as gym
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from online_support import BATCHES, agent, collector, continued, data, files, fit
from torch.testing import assert_close

from wmlightning.callbacks.checkpoints import LastCheckpoint
from wmlightning.callbacks.evaluate import Evaluate
from wmlightning.environments.dummy import DummyPixels

EPOCHS = 3


class Mortal(DummyPixels):
    """Sends its process a signal in the step-th environment step of the process, counted from when it is armed."""

    countdown, sent = 0, None

    def move(self, action):
        if Mortal.countdown:
            Mortal.countdown -= 1
            if not Mortal.countdown:
                os.kill(os.getpid(), Mortal.sent)
        return super().move(action)


gym.register("tests/Mortal-v0", entry_point=Mortal)


@pytest.fixture(autouse=True)
def disarmed():
    Mortal.countdown = 0


def run(folder, arm=None, sent=signal.SIGTERM, **options):
    """A fit of an agent that plays in Mortal, evaluations included."""
    Mortal.countdown, Mortal.sent = arm or 0, sent
    return fit(
        folder,
        callbacks=[Evaluate(every_epochs=2, episodes=3, num_envs=2)],
        player=agent(id="tests/Mortal-v0"),
        log_every_n_steps=3,
        **options,
    )


def results(done):
    return dict(done.agent.named_parameters()), done.trainer.optimizers[0].state_dict()["state"], files(done.folder)


@pytest.fixture(scope="module", params=["episodes", pytest.param("decisions", marks=pytest.mark.slow)])
def whole(request, tmp_path_factory):
    """The uninterrupted run, and its schedule."""
    way = {"episodes_per_epoch": 2} if request.param == "episodes" else DECISIONS
    done = run(tmp_path_factory.mktemp("whole"), collect=collector(**way), max_epochs=EPOCHS)
    return done, way


DECISIONS = {
    "prefill_episodes": None,
    "prefill_decisions": 14,
    "episodes_per_epoch": None,
    "decisions_per_update": 2.25,
}


def assert_same(resumed, whole):
    """Weights, optimizer and every episode's bytes."""
    for got, wanted in zip(results(resumed), results(whole), strict=True):
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            if isinstance(value, bytes):
                assert got[key] == value, key
            else:
                assert_close(got[key], value, rtol=0, atol=0)


CUTS = {
    "in the middle of an epoch": ({"max_steps": 6}, {"every_n_train_steps": 6}),
    "in the middle of the first epoch": ({"max_steps": 2}, {"every_n_train_steps": 2}),
    "on its last batch": ({"max_steps": 8}, {"every_n_train_steps": 8}),
    "at its end": ({"max_epochs": 2}, {"every_n_epochs": 2, "save_on_train_epoch_end": True}),
    "in the middle, gone on before it was resumed": ({"max_steps": 11}, {"every_n_train_steps": 6, "save_top_k": 1}),
}


@pytest.mark.parametrize("limit", ["max_steps", pytest.param("max_epochs", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("stop", "save"), CUTS.values(), ids=CUTS.keys())
def test_a_run_that_is_cut_between_batches_goes_on_exactly(tmp_path, whole, stop, save, limit):
    whole, way = whole
    saving = [ModelCheckpoint(tmp_path, "cut", **save)]
    first = run(tmp_path, collect=collector(**way), saving=saving, **stop)
    end = {"max_epochs": EPOCHS} if limit == "max_epochs" else {"max_steps": EPOCHS * BATCHES}
    resumed = run(tmp_path, collect=collector(**way), ckpt_path=tmp_path / "cut.ckpt", **end)
    assert_same(resumed, whole)
    continued(first.curves.exact, resumed.curves.exact, whole.curves.exact)


STEPS = {"in the prefill": 10, "in the first collection": 32, "in the second": 47, "in an evaluation": 60}
"""Environment steps after which the signal comes. By episodes the prefill makes 21, a collection 14; by decisions 28
and 14; the evaluation after the second makes 21."""


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_run_that_is_asked_to_stop_while_it_collects_goes_on_exactly(tmp_path, whole, step):
    whole, way = whole
    curves = {}

    class Keep(LastCheckpoint):
        def on_exception(self, trainer, pl_module, exception):
            curves.update(pl_module.logger.exact)
            super().on_exception(trainer, pl_module, exception)

    saving = [Keep(0.0)]
    with pytest.raises(SIGTERMException):
        run(tmp_path, arm=step, collect=collector(**way), saving=saving, max_epochs=EPOCHS)
    assert not data(tmp_path).store.verify()
    resumed = run(tmp_path, collect=collector(**way), ckpt_path=tmp_path / "checkpoints/last.ckpt", max_epochs=EPOCHS)
    assert_same(resumed, whole)
    continued(curves, resumed.curves.exact, whole.curves.exact)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_run_that_is_killed_while_it_collects_goes_on_exactly(tmp_path, whole, step):
    whole, way = whole

    def killed():
        torch.set_num_threads(1)
        run(tmp_path, step, signal.SIGKILL, collect=collector(**way), saving=[LastCheckpoint(0.0)], max_epochs=EPOCHS)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    last = tmp_path / "checkpoints/last.ckpt"
    resumed = run(tmp_path, collect=collector(**way), ckpt_path=last if last.exists() else None, max_epochs=EPOCHS)
    assert_same(resumed, whole)
    logged = resumed.curves.exact
    assert {key: whole.curves.exact[key][-len(values) :] for key, values in logged.items()} == logged


def test_a_run_may_be_cut_again_and_again(tmp_path, whole):
    whole, way = whole

    def go_on(name, **options):
        ckpt_path = tmp_path / name if name else None
        return run(tmp_path, collect=collector(**way), ckpt_path=ckpt_path, **options)

    go_on(None, saving=[ModelCheckpoint(tmp_path, "last batch", every_n_train_steps=4)], max_steps=4)
    with pytest.raises(SIGTERMException):
        go_on("last batch.ckpt", arm=5, saving=[LastCheckpoint(0.0)], max_epochs=EPOCHS)
    go_on("checkpoints/last.ckpt", saving=[ModelCheckpoint(tmp_path, "middle", every_n_train_steps=6)], max_steps=6)
    go_on("middle.ckpt", saving=[ModelCheckpoint(tmp_path, "end", every_n_epochs=1)], max_epochs=2)
    go_on("end.ckpt", saving=[ModelCheckpoint(tmp_path, "again", every_n_train_steps=11)], max_steps=11)
    assert_same(go_on("again.ckpt", max_epochs=EPOCHS), whole)
