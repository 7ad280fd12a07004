"""PlaNet: its training step is the world model's, unsuitable environments are refused, it beats chance."""

import copy
import re

import numpy as np
import pytest
import torch
from stage_support import Record, episode, trainer
from torch.testing import assert_close

import wmlightning
from datamodules import EpisodeDataModule, EpisodeStore, UniformWindows, WindowDataset
from wmlightning.callbacks.collect import Collect
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.rssm import RSSM
from wmlightning.environments.factory import EnvFactory
from wmlightning.planners import CEM
from wmlightning.policies.exploration import HeldActionsPolicy
from wmlightning.stages.planet import PlaNet
from wmlightning.stages.world_model import WorldModel
from wmlightning.tools.evaluate import evaluate

DOTS = EnvFactory("wmlightning/DummyPixels-v0", time_limit=12)


def world(action_size=2, depth=2, **changes):
    dynamics = RSSM(GaussianLatent(6), action_size, 32 * depth, 16, 16)
    return WorldModel(dynamics, depth=depth, reward_layers=1, reward_units=16, **changes)


def planet(environment=DOTS, planner=None, action_size=2, exploration=0.3, **changes):
    torch.manual_seed(0)
    planner = planner or CEM(horizon=3, candidates=20, elites=4, iterations=2)
    return PlaNet(world(action_size, **changes), planner, environment, exploration)


def data(path, **changes):
    settings = {"batch_size": 2, "updates_per_epoch": 2, "validation_fraction": 0.0} | changes
    return EpisodeDataModule(str(path), WindowDataset(UniformWindows(6)), **settings)


@pytest.fixture
def store(tmp_path):
    made = EpisodeStore(tmp_path / "episodes")
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 256, (13, 64, 64, 3), dtype=np.uint8)
        made.append(episode(12, {"image": image}, index, terminal=False), index=index)
    return tmp_path / "episodes"


def test_a_training_step_is_the_world_models(store):
    """Trained alone and inside PlaNet, the same weights come out bit for bit, and the same numbers are logged."""
    agent, logged = planet(), []
    alone = copy.deepcopy(agent.world_model)
    for stage in (agent, alone):
        record = Record()
        trainer(max_steps=3, callbacks=[record]).fit(stage, data(store))
        logged.append(record.steps)
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, agent.world_model.state_dict()[name]), name
    assert logged[0] == logged[1]


def test_held_out_windows_are_measured(store):
    lightning = trainer(max_steps=2, check_val_every_n_epoch=1)
    lightning.fit(planet(), data(store, validation_fraction=0.5, validation_batches=1))
    assert {"world_model/val_loss", "world_model/val_psnr"} <= set(lightning.callback_metrics)


def test_the_gradient_is_clipped_and_16_bit_floats_are_refused(store):
    agent = planet(max_norm=1e-9, epsilon=1.0)
    before = copy.deepcopy(agent.state_dict())
    trainer(max_steps=1).fit(agent, data(store))
    for name, weight in agent.state_dict().items():
        assert_close(weight, before[name], atol=1e-10, rtol=0)
    lightning = trainer(max_steps=1)
    lightning.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ValueError, match="bf16-mixed"):
        lightning.fit(planet(), data(store))


@pytest.mark.parametrize(
    ("environment", "action_size", "words"),
    [
        (EnvFactory("wmlightning/DummyCorridor-v0"), 3, "DummyCorridor-v0 chooses one of 3 actions but CEM searches"),
        (DOTS, 5, "give dynamics action_size=2"),
        (EnvFactory("wmlightning/DummyPixels-v0", size=32), 2, "images of 64x64"),
    ],
)
def test_an_environment_it_cannot_act_in_is_refused_before_anything_is_played(
    environment, action_size, words, tmp_path
):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        trainer(max_steps=1, callbacks=[Collect()]).fit(
            planet(environment, action_size=action_size), data(tmp_path / "episodes")
        )
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "episodes").glob("*.h5"))


def test_a_store_of_other_actions_is_refused(tmp_path):
    made = EpisodeStore(tmp_path)
    image = np.zeros((13, 64, 64, 3), np.uint8)
    made.append(episode(12, {"image": image}, 0, action_size=3), index=0)
    with pytest.raises(ValueError, match="action_size=3"):
        trainer(max_steps=1).fit(planet(), data(tmp_path))


def test_exploring_adds_noise_and_evaluating_does_not():
    agent = planet()
    assert agent.policy(explore=True).exploration == 0.3
    assert agent.policy(explore=False).exploration == 0.0
    with pytest.raises(ValueError, match="standard deviation"):
        planet(exploration=-1.0)


def test_its_checkpoint_alone_acts_as_it_did(store, tmp_path):
    agent, lightning = planet(), trainer(max_steps=1)
    lightning.fit(agent, data(store))
    lightning.save_checkpoint(tmp_path / "alone.ckpt")
    again = wmlightning.load(tmp_path / "alone.ckpt")
    assert isinstance(again, wmlightning.PlaNet)
    image, first = {"image": np.full((2, 64, 64, 3), 99, np.uint8)}, np.ones(2, bool)
    policies = agent.eval().policy(explore=True), again.policy(explore=True)
    actions = [policy(image, first, policy.initial(2, [4, 9]))[0] for policy in policies]
    assert np.array_equal(*actions)
    result = evaluate(tmp_path / "alone.ckpt", episodes=2, num_envs=2, video=str(tmp_path / "film.gif"))
    assert result["environment"]["id"] == DOTS.id
    assert result["returns"] == pytest.approx(evaluate(again, episodes=2, num_envs=1)["returns"], rel=1e-2)
    assert (tmp_path / "film.gif").stat().st_size > 0


@pytest.mark.slow
def test_it_learns_to_drive_to_the_dot(tmp_path):
    """From nothing, online: better than random actions on the same episodes, by more than chance gives."""
    environment = EnvFactory("wmlightning/DummyPixels-v0", time_limit=25)
    torch.manual_seed(0)
    dynamics = RSSM(GaussianLatent(10), 2, 256, 64, 64)
    model = WorldModel(dynamics, depth=8, reward_layers=2, reward_units=64, reward_scale=100.0)
    agent = PlaNet(model, CEM(horizon=8, candidates=200, elites=20, iterations=4), environment)
    module = EpisodeDataModule(str(tmp_path), WindowDataset(UniformWindows(20)), 16, 50, validation_fraction=0.0)
    collect = Collect(prefill_episodes=10, episodes_per_epoch=2, num_envs=2)
    trainer(max_steps=600, callbacks=[collect]).fit(agent, module)
    result = evaluate(agent.eval(), episodes=20, num_envs=10, baselines={"random": HeldActionsPolicy(2, 1)})
    beside = result["baselines"]["random"]
    assert beside["difference"] > 3 * beside["difference_ci95"], (result["mean"], beside["mean"])


@pytest.mark.parametrize(
    ("recorded", "says"),
    [
        ({"action_repeat": 2}, "action_repeat 2 but the agent has 1"),
        ({"environment": "Other-v0"}, "environment Other-v0 but the agent has"),
    ],
)
def test_a_store_of_another_environment_is_refused_where_nothing_is_collected(tmp_path, recorded, says):
    store = EpisodeStore(tmp_path / "episodes")
    image = np.zeros((13, 64, 64, 3), np.uint8)
    store.append(episode(12, {"image": image}, 0, **({"environment": DOTS.id, "action_repeat": 1} | recorded)))
    with pytest.raises(ValueError, match=says):
        trainer(max_steps=1).fit(planet(), data(tmp_path / "episodes"))


def test_a_random_policy_for_other_actions_is_refused_before_anything_is_played(tmp_path):
    for name in ("prefill_policy", "policy"):
        collect = Collect(prefill_episodes=1, episodes_per_epoch=1, **{name: HeldActionsPolicy(3)})
        with pytest.raises(
            ValueError, match=f"Collect's {name} acts with 3 numbers but .* takes 2: set its action_size"
        ):
            trainer([collect], max_steps=1).fit(planet(), data(tmp_path / "episodes"))
    assert not list(tmp_path.glob("episodes/*.h5"))
