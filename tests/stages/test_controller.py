"""CMAESController: evolves, resumes exactly, is the same for any number of processes, and acts from its file alone."""

import json

import numpy as np
import pytest
import torch
from controller_support import CUTS, AskToStop, Notes, WriteDown, assert_same, everything, tiny_model, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from wmlightning.callbacks.evaluate import evaluation_seeds
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies.exploration import SmoothNoisePolicy
from wmlightning.stages.checkpoints import load
from wmlightning.stages.controller import CMAESController
from wmlightning.stages.fitness import RealFitness
from wmlightning.tools.collect import collection_seed

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def make(model=None, environment=None, **changes):
    settings = {
        "population": 6,
        "episodes": 1,
        "evaluate_every": 3,
        "evaluation_episodes": 2,
        "generations_per_epoch": 4,
        "num_workers": 0,
        "seed": 3,
    }
    dummy = EnvFactory("wmlightning/DummyPixels-v0", time_limit=4)
    return CMAESController(model or tiny_model(), environment or dummy, **(settings | changes))


def play(stage, policy, episodes=16):
    envs = stage.environment.vector(8)
    try:
        return np.mean([r.total_reward for r in rollout(envs, policy, list(range(10_000, 10_000 + episodes)))])
    finally:
        envs.close()


def test_evolution_beats_random_actions_and_the_first_controller(tmp_path):
    stage = make(
        environment=EnvFactory("wmlightning/DummyPixels-v0", time_limit=12), population=8, episodes=2, sigma=0.5
    )
    first, random = play(stage, stage.policy()), play(stage, SmoothNoisePolicy(2))
    trainer(tmp_path, 8).fit(stage)
    evolved = play(stage, stage.policy(explore=True))
    assert evolved > random + 1
    assert evolved > first + 1


@pytest.mark.parametrize("cut", CUTS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, cut):
    generations, saving = CUTS[cut]
    whole, notes = make(), Notes()
    uninterrupted = trainer(tmp_path, 7, logger=notes)
    uninterrupted.fit(whole)

    saver = ModelCheckpoint(tmp_path / "checkpoints", filename="cut", save_top_k=1, **saving)
    before, after = Notes(), Notes()
    trainer(tmp_path, generations, saver, logger=before).fit(make())
    resumed, second = make(), trainer(tmp_path, 7, logger=after)
    second.fit(resumed, ckpt_path=tmp_path / "checkpoints" / "cut.ckpt", weights_only=True)

    assert second.global_step == uninterrupted.global_step == 7
    assert_same(everything(resumed, second), everything(whole, uninterrupted))
    assert before.lines + after.lines == notes.lines


def test_an_interrupted_generation_changes_nothing_and_is_played_again(tmp_path):
    whole, uninterrupted = make(), trainer(tmp_path, 5)
    uninterrupted.fit(whole)
    saver = ModelCheckpoint(
        tmp_path / "checkpoints", filename="stopped", save_on_exception=True, every_n_train_steps=99
    )
    cut, stopped = make(), trainer(tmp_path, 5, AskToStop(2), saver)
    with pytest.raises(SIGTERMException):
        stopped.fit(cut)
    assert stopped.global_step == cut.trainer.optimizers[0].generation == 2
    assert cut.fitness.envs is None
    (file,) = (tmp_path / "checkpoints").iterdir()
    resumed, second = make(), trainer(tmp_path, 5)
    second.fit(resumed, ckpt_path=file, weights_only=True)
    assert_same(everything(resumed, second), everything(whole, uninterrupted))


def test_two_processes_find_exactly_what_one_finds(tmp_path):
    alone, one = make(), trainer(tmp_path, 3)
    one.fit(alone)
    trainer(tmp_path, 3, WriteDown(tmp_path), strategy="ddp_fork", devices=2).fit(make())
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True), everything(alone, one))


def test_results_do_not_depend_on_how_many_environments_run_side_by_side(tmp_path):
    thetas = []
    for num_envs in (2, 5, 8):
        stage = make(num_envs=num_envs)
        trainer(tmp_path, 3).fit(stage)
        thetas.append(stage.controller.theta.detach())
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(thetas[0], thetas[2])


def test_a_step_is_a_generation_and_environment_steps_are_on_the_x_axis(tmp_path):
    stage, notes = make(episodes=2), Notes()
    fitted = trainer(tmp_path, 4, logger=notes)
    fitted.fit(stage)
    assert fitted.global_step == fitted.optimizers[0].generation == 4
    steps_a_generation = 6 * 2 * 4  # population, episodes, steps an episode
    evaluations = [line for line in notes.lines if "controller/evaluated_return" in line[1]]
    assert [step for step, _ in evaluations] == [3 * steps_a_generation]
    generations = [line for line in notes.lines if line not in evaluations]
    assert [step for step, _ in generations] == [steps_a_generation * k for k in (1, 2, 3, 4)]
    names = {"fitness_best", "fitness_mean", "return_mean", "sigma", "generation", "env_steps"}
    for generation, (_, metrics) in enumerate(generations, 1):
        assert set(metrics) == {f"controller/{name}" for name in names}
        assert metrics["controller/generation"] == generation
    assert int(stage.env_steps) == 4 * steps_a_generation


def test_weight_decay_rewards_small_parameters(tmp_path, monkeypatch):
    zeros = torch.zeros(2, 6, 1, dtype=torch.float64)
    monkeypatch.setattr(RealFitness, "play", lambda *_: (zeros[0], zeros[1].long()))
    stage, notes = make(weight_decay=10.0, evaluate_every=0), Notes()
    candidates = stage.configure_optimizers().ask()
    trainer(tmp_path, 1, logger=notes).fit(stage)
    smallest = candidates.square().mean(1).min()
    assert notes.lines[0][1]["controller/fitness_best"] == pytest.approx(-10 * smallest.item())


def test_the_mean_that_is_evaluated_is_the_one_the_step_leads_to(tmp_path, monkeypatch):
    seen = []
    evaluate = CMAESController._evaluate
    monkeypatch.setattr(CMAESController, "_evaluate", lambda self, theta: seen.append(theta) or evaluate(self, theta))
    stage = make()
    trainer(tmp_path, 3).fit(stage)
    assert len(seen) == 1
    assert torch.equal(seen[0].float(), stage.controller.theta.detach())
    assert torch.equal(stage.theta_best, stage.controller.theta.detach())


def test_the_best_evaluated_mean_acts_and_exploring_is_the_present_mean():
    stage = make()
    stage.controller.theta.data.fill_(1.0)
    stage.theta_best.fill_(2.0)
    assert (stage.policy(explore=False).candidates == 1).all(), "nothing was evaluated yet"
    stage.return_best.fill_(-5.0)
    assert (stage.policy(explore=False).candidates == 2).all()
    assert (stage.policy(explore=True).candidates == 1).all()


def test_a_checkpoint_alone_rebuilds_an_agent_that_acts_alike(tmp_path):
    model_file = tmp_path / "model.ckpt"
    model = tiny_model()
    fitted = trainer(tmp_path, 1)
    fitted.strategy.connect(model)
    fitted.save_checkpoint(model_file)
    saver = ModelCheckpoint(tmp_path, filename="c", every_n_train_steps=3)
    stage = make(model=str(model_file))
    trainer(tmp_path, 3, saver).fit(stage)
    model_file.unlink()

    recipe = torch.load(tmp_path / "c.ckpt", weights_only=True)["recipe"]
    assert "model.ckpt" not in json.dumps(recipe)
    again = load(tmp_path / "c.ckpt")
    assert isinstance(CMAESController.load_from_checkpoint(tmp_path / "c.ckpt"), CMAESController)
    for explore in (False, True):
        assert play(again, again.policy(explore), 4) == play(stage, stage.policy(explore), 4)


def test_v_and_m_do_not_learn_and_stay_in_evaluation_mode(tmp_path):
    stage = make()
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    trainer(tmp_path, 2).fit(stage)
    assert_same(dict(stage.model.state_dict()), before)
    assert not any(module.training for module in stage.model.modules())
    assert not any(parameter.requires_grad for parameter in stage.model.parameters())
    assert stage.controller.training


@pytest.mark.parametrize(("mode", "different"), [("shared", 2), ("antithetic", 6), ("independent", 12)])
def test_seeds_are_shared_as_configured_and_new_in_every_generation(mode, different):
    stage = make(seeds=mode, episodes=2)
    seeds = stage.generation_seeds(5)
    assert len(seeds) == 12
    assert len(set(seeds)) == different
    assert not set(seeds) & set(stage.generation_seeds(6))
    if mode == "antithetic":
        assert seeds[:6] == seeds[6:]


def test_an_evaluation_uses_every_seed_once_and_none_of_training():
    stage = make(evaluation_episodes=500, seeds="independent")
    evaluation = stage.evaluation_seeds()
    assert len(set(evaluation)) == 500
    trained = {seed for generation in range(50) for seed in stage.generation_seeds(generation)}
    assert not set(evaluation) & trained
    assert not set(evaluation_seeds(stage.seed, 500)) & trained, "Of the evaluation after training too."
    assert not {*evaluation, *evaluation_seeds(stage.seed, 500)} & {collection_seed(stage.seed, k) for k in range(100)}


def test_an_error_in_an_environment_closes_all_of_them(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the track is flooded")

    monkeypatch.setattr("wmlightning.stages.fitness.rollout", broken)
    stage = make()
    with pytest.raises(RuntimeError, match="flooded"):
        trainer(tmp_path, 1).fit(stage)
    assert stage.fitness.envs is None


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="make it even"):
        make(population=7, seeds="antithetic")
    with pytest.raises(ValueError, match="give C the environment that M's episodes came from"):
        make(environment=EnvFactory("wmlightning/DummyCorridor-v0")).policy()
