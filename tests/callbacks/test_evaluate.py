"""Evaluation during training: without exploration, always the same episodes, never stored."""

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from online_support import Chaser, environment, files, fit
from PIL import Image

from wmlightning.callbacks.evaluate import Evaluate, evaluation_seeds
from wmlightning.tools.evaluate import evaluate


def test_it_measures_the_return_of_the_command_evaluate_and_changes_nothing_else(tmp_path):
    callbacks = [Evaluate(every_epochs=2, episodes=4, num_envs=2)]
    run = fit(tmp_path / "with", callbacks, max_epochs=4)
    returns, intervals = (run.curves.named(f"evaluate/{name}") for name in ("return", "return_ci95"))
    # Against environment steps: 3 episodes of the prefill and 2 an epoch, of 7 steps.
    assert [x for x, _ in returns] == [7 * 7, 11 * 7]
    found = evaluate(run.agent.eval(), episodes=4, num_envs=2)
    assert returns[-1][1] == found["mean"]
    assert intervals[-1][1] == pytest.approx(found["ci95"])
    without = fit(tmp_path / "without", max_epochs=4)
    assert files(run.folder) == files(without.folder)
    assert run.collect.progress == without.collect.progress


def test_every_episode_has_a_seed_of_its_own():
    assert len(set(evaluation_seeds(0, 100))) == 100
    assert not set(evaluation_seeds(0, 100)) & set(evaluation_seeds(1, 100))


def test_the_first_episode_is_filmed_from_reset_to_end(tmp_path):
    fit(tmp_path, [Evaluate(every_epochs=1, episodes=3, num_envs=2)], max_epochs=1)
    with Image.open(tmp_path / "pictures/episode.gif") as film:
        assert film.n_frames == 5, "four decisions and the reset"


def test_checkpoints_can_be_chosen_by_it(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor="evaluate/return", mode="max")
    run = fit(tmp_path, [Evaluate(every_epochs=1, episodes=2)], saving=[best], max_epochs=3)
    assert float(best.best_model_score) == pytest.approx(max(value for _, value in run.curves.named("evaluate/return")))


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every_epochs is 0 but must be at least 1"):
        Evaluate(every_epochs=0)
    with pytest.raises(ValueError, match="seed is -1"):
        Evaluate(seed=-1)
    player = Chaser(environment())
    del player.environment
    with pytest.raises(ValueError, match="Evaluate wants an agent with a policy and an environment"):
        Evaluate().setup(Trainer(logger=False), player, "fit")
