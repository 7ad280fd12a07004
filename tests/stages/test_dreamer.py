"""Dreamer: one step that teaches every part its own, agents of every kind, and what it refuses."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from dreamer_support import CORRIDOR, DOTS, KINDS, data, dreamer, grads, windows_for, world
from lightning import Callback, Trainer
from stage_support import episode, trainer
from torch.testing import assert_close

import wmlightning
from datamodules import EpisodeDataModule, EpisodeStore, UniformWindows, WindowDataset
from wmlightning.callbacks.collect import Collect
from wmlightning.callbacks.guards import StopOnNonFinite
from wmlightning.distributions.bounded import OneHot, TanhNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import RNN, RSSM, SSM
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.target import TargetNetwork
from wmlightning.objectives.actor import DynamicsBackprop, Reinforce
from wmlightning.objectives.divergence import BalancedKL, FreeNatsKL
from wmlightning.planners import CEM
from wmlightning.policies.actor import LinearDecay
from wmlightning.policies.exploration import HeldActionsPolicy
from wmlightning.seeds import derive_seed
from wmlightning.stages.actor_critic import ActorCritic
from wmlightning.stages.checkpoints import check_resumable
from wmlightning.stages.dreamer import Dreamer
from wmlightning.stages.planet import PlaNet
from wmlightning.stages.world_model import WorldModel
from wmlightning.tools.evaluate import evaluate


def step(agent, batch, seed=0):
    """The loss of one training step outside a Trainer, and the metrics that it logged."""
    logged = {}
    agent.log_dict = lambda named, **options: logged.update(named)
    torch.manual_seed(seed)
    return agent.training_step(batch, 0), logged


@pytest.fixture
def store(tmp_path):
    """Episodes with one-hot actions of three, which end."""
    made = EpisodeStore(tmp_path / "walks")
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
        made.append(episode(8, {"image": image}, index, action_size=3, discrete=True), index=index)
    return tmp_path / "walks"


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_adds_three_losses_and_every_weight_that_learns_has_a_gradient(kind):
    agent = dreamer(kind)
    loss, logged = step(agent, windows_for(agent, terminal=[(0, 3)]))
    parts = [logged["world_model/loss"], logged["actor/loss"], logged.get("critic/loss", 0.0)]
    assert_close(loss.detach(), torch.as_tensor(sum(parts)))
    loss.backward()
    still = {name for name, parameter in agent.named_parameters() if parameter.grad is None}
    assert still == {name for name, parameter in agent.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith("actor_critic.target") for name in still)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_world_models_gradient_is_that_of_its_own_loss_bit_for_bit(kind, precision):
    agent = dreamer(kind)
    batch, mixed = windows_for(agent, terminal=[(0, 3)]), precision == torch.bfloat16
    with torch.autocast("cpu", precision, enabled=mixed):
        joint, _ = step(agent, batch)
        torch.manual_seed(0)
        alone = agent.world_model.learn(batch).loss
    for found, wanted in zip(grads(joint, agent.world_model), grads(alone, agent.world_model), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dynamics", [RNN, SSM])
def test_other_designs_of_a_world_run_through_the_same_lines(dynamics):
    agent = dreamer(world_model=world(dynamics=dynamics))
    step(agent, windows_for(agent))[0].backward()
    assert all(parameter.grad is not None for parameter in agent.parameters())


def test_all_parts_learn_from_weights_before_the_update(store):
    """All losses are computed before the update: behaviour learns in dreams of the old world model."""
    batches = []

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append(batch)

    agent, alone = dreamer("v2 atari"), dreamer("v2 atari")
    trainer([Keep()], max_steps=1).fit(agent, data(store))
    loss, _ = step(alone, batches[0], derive_seed(alone.seed, 0, 0))
    optimizer = alone.configure_optimizers()
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], group["max_norm"])
    optimizer.step()
    assert_close(dict(agent.named_parameters()), dict(alone.named_parameters()), rtol=1e-5, atol=1e-7)


def test_each_part_is_learnt_in_its_own_way():
    behaviour = {"actor_learning_rate": 2e-4, "critic_learning_rate": 1e-4, "epsilon": 1e-5, "max_norm": 50.0}
    agent = dreamer("v2 atari", behaviour=behaviour | {"decay": 1e-6}, model={"learning_rate": 4e-4, "decay": 1e-6})
    groups = dict(zip(agent.groups(), agent.configure_optimizers().param_groups, strict=True))
    assert list(groups) == ["world_model", "actor", "critic"]
    assert [group["lr"] for group in groups.values()] == [4e-4, 2e-4, 1e-4]
    assert [group["eps"] for group in groups.values()] == [1e-4, 1e-5, 1e-5]
    assert [group["max_norm"] for group in groups.values()] == [1000.0, 50.0, 50.0]
    assert [group["weight_decay"] for group in groups.values()] == pytest.approx([2.5e-3, 5e-3, 1e-2])
    counts = [sum(parameter.numel() for parameter in group["params"]) for group in groups.values()]
    assert sum(counts) == sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad)


def test_each_part_is_clipped_by_its_own_norm(store):
    norms = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for name, group in pl_module.groups().items():
                norms[name] = torch.stack([p.grad.norm() for p in group["params"]]).norm().item()

    agent = dreamer("v2 atari", behaviour={"max_norm": 1e-4}, model={"max_norm": 1e-2})
    run = trainer([Look()], max_steps=1)
    run.fit(agent, data(store))
    assert norms == pytest.approx({"world_model": 1e-2, "actor": 1e-4, "critic": 1e-4}, rel=1e-2)
    assert run.callback_metrics["world_model/gradient_norm"] > 1 > run.callback_metrics["actor/gradient_norm"] > 1e-4


def test_the_target_critic_is_renewed_in_time(store):
    ages = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            behaviour = pl_module.actor_critic
            pair = zip(behaviour.critic.parameters(), behaviour.target.copy.parameters(), strict=True)
            ages.append(max((new - old).abs().max().item() for new, old in pair) > 0)

    trainer([Look()], max_steps=7).fit(dreamer("v2 atari", behaviour={"target": TargetNetwork(3)}), data(store))
    assert ages == [False, True, True, False, True, True, False]


def test_accumulated_batches_count_as_one_update(store):
    agent = dreamer("v2 atari", epsilon=LinearDecay(1.0, 0.0, 10))
    trainer(max_steps=2, accumulate_grad_batches=2).fit(agent, data(store))
    assert agent.updates == 2
    assert agent.policy(explore=True).epsilon == pytest.approx(0.8)


def test_held_out_windows_are_measured(episodes):
    run = trainer(max_steps=4)
    run.fit(dreamer(), data(episodes.path, validation_fraction=0.5, validation_batches=1))
    assert {"world_model/val_loss", "world_model/val_psnr", "critic/value"} <= set(run.callback_metrics)


# ------------------------------------------------------------------------------------------- a world model that rests


def offline(store, tmp_path, kind="v2 atari"):
    """A world model trained from a store, without any agent; its checkpoint."""
    model, run = world(kind, 3), trainer(max_steps=1)
    run.fit(model, data(store))
    run.save_checkpoint(tmp_path / "world.ckpt")
    return str(tmp_path / "world.ckpt")


def test_behaviour_learns_alone_on_a_world_model_trained_offline(store, tmp_path):
    path = offline(store, tmp_path)
    agent = dreamer("v2 atari", world_model=path, learn_model=False)
    before = copy.deepcopy(agent.state_dict())
    run = trainer(max_steps=2)
    run.fit(agent, data(store))
    after = agent.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("world_model")} <= same
    assert not {name for name in same if name.startswith(("actor_critic.actor", "actor_critic.critic"))}
    assert list(agent.groups()) == ["actor", "critic"]
    assert "actor/loss" in run.callback_metrics
    assert "world_model/loss" not in run.callback_metrics


def test_behaviour_alone_on_a_world_model_that_was_never_trained_gives_a_warning(store, tmp_path):
    with pytest.warns(UserWarning, match="the world model is frozen and was never trained"):
        trainer(max_steps=1).fit(dreamer("v2 atari", learn_model=False), data(store))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="lightning")
        learnt = dreamer("v2 atari", world_model=offline(store, tmp_path), learn_model=False)
        learnt.check_data(None)


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("world_model.reward_head", "world_model/reward is nan"),
        ("actor_critic.critic", "critic/value is nan"),
        ("actor_critic.actor", "actor/entropy is nan"),
    ],
)
def test_the_part_of_a_dreamer_that_breaks_is_named_with_its_batch(where, named, store, tmp_path):
    agent = dreamer("v2 atari")
    agent.get_submodule(where).register_forward_hook(lambda module, inputs, output: output * float("nan"))
    run = trainer([StopOnNonFinite()], max_steps=2, default_root_dir=tmp_path)
    with pytest.raises(RuntimeError, match=f"batch 0 is not finite: {named}"):
        run.fit(agent, data(store))


def test_a_frozen_world_models_pictures_are_not_drawn():
    agent = dreamer("v2 atari", learn_model=False)
    agent.world_model.decoder.maps = None
    step(agent, windows_for(agent))[0].backward()


def test_a_checkpoint_holds_the_world_model_that_it_came_with(store, tmp_path):
    path = offline(store, tmp_path)
    agent, run = dreamer("v2 atari", world_model=path, learn_model=False), trainer(max_steps=1)
    run.fit(agent, data(store))
    run.save_checkpoint(tmp_path / "agent.ckpt")
    (tmp_path / "world.ckpt").unlink()
    again = wmlightning.load(tmp_path / "agent.ckpt")
    assert isinstance(again, wmlightning.Dreamer)
    assert not any(parameter.requires_grad for parameter in again.world_model.parameters())
    assert_close(again.state_dict(), agent.state_dict(), rtol=0, atol=0)


def test_a_world_model_is_taken_out_of_the_agent_that_learnt_it(store, tmp_path):
    path = offline(store, tmp_path)
    first, run = dreamer("v2 atari", world_model=path), trainer(max_steps=1)
    run.fit(first, data(store))
    run.save_checkpoint(tmp_path / "agent.ckpt")
    second = dreamer("v2 atari", world_model=str(tmp_path / "agent.ckpt"))
    assert_close(second.world_model.state_dict(), first.world_model.state_dict(), rtol=0, atol=0)


def test_planets_world_model_serves_an_actor_too(episodes, tmp_path):
    planner = CEM(horizon=2, candidates=8, elites=2, iterations=1)
    planet, run = PlaNet(world(), planner, DOTS), trainer(max_steps=1)
    run.fit(planet, data(episodes.path))
    run.save_checkpoint(tmp_path / "planet.ckpt")
    agent = dreamer(world_model=str(tmp_path / "planet.ckpt"), learn_model=False)
    assert_close(agent.world_model.state_dict(), planet.world_model.state_dict(), rtol=0, atol=0)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "environment", "words"),
    [
        ("v1", CORRIDOR, "DummyCorridor-v0 chooses one of 3 actions but TanhNormal gives numbers"),
        ("v2 atari", DOTS, "DummyPixels-v0 takes numbers in [-1, 1] but OneHot gives one-hot actions"),
        ("v1", EnvFactory("wmlightning/DummyPixels-v0", size=32), "images of 64x64"),
    ],
)
def test_an_environment_it_cannot_act_in_is_refused_before_anything_is_played(kind, environment, words, tmp_path):
    agent = dreamer(kind, environment=environment)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        trainer([Collect()], max_steps=1).fit(agent, data(tmp_path / "episodes"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "episodes").glob("*.h5"))


def test_an_environment_of_other_actions_is_refused_with_the_cure(tmp_path):
    with pytest.raises(ValueError, match="give dynamics action_size=2"):
        trainer([Collect()], max_steps=1).fit(dreamer(world_model=world(action_size=5)), data(tmp_path))


def test_a_store_of_other_actions_is_refused(episodes):
    with pytest.raises(ValueError, match="the episodes in .*actions have 2 numbers .* expect 3"):
        trainer(max_steps=1).fit(dreamer("v2 atari"), data(episodes.path))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("v1", {"exploration": -0.1}, "standard deviation"),
        ("v1", {"epsilon": LinearDecay(0.4, 0.1, 9)}, "TanhNormal gives continuous ones"),
        ("v2 atari", {"exploration": 0.3}, "OneHot gives one-hot ones"),
        ("v2 atari", {"epsilon": LinearDecay(0.4, 1.1, 9)}, "epsilon is 1.1"),
        ("v1", {"behaviour": {"action_size": 2, "feature_size": 99}}, r"\(2, 99\) but the world model has \(2, 11\)"),
        ("v1", {"world_model": "nowhere.ckpt"}, "there is no checkpoint at nowhere.ckpt"),
        ("v2 atari", {"model": {"cont_label": 0.9}, "behaviour": {"discount": 0.9}}, "would both discount"),
        ("v1 without a value", {"model": {"cont_layers": 1, "cont_label": 0.9}}, "a plain sum of rewards"),
    ],
)
def test_parts_that_do_not_fit_are_refused(kind, options, words):
    with pytest.raises(ValueError, match=words) as error:
        dreamer(kind, **options)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_something_else_is_no_world_model(tmp_path):
    run = trainer(max_steps=0)
    run.strategy.connect(dreamer().actor_critic)
    run.save_checkpoint(tmp_path / "actor.ckpt")
    with pytest.raises(ValueError, match="holds a ActorCritic: give the checkpoint of a WorldModel"):
        dreamer(world_model=str(tmp_path / "actor.ckpt"))


# ------------------------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("kind", ["v1", "v2 atari", "v2 dmc"])
def test_exploring_samples_and_evaluating_does_not(kind):
    agent = dreamer(kind, **({} if kind == "v2 atari" else {"exploration": 0.3}))
    loud, quiet = agent.policy(explore=True), agent.policy(explore=False)
    assert (loud.sample, quiet.sample, quiet.exploration, quiet.epsilon) == (True, False, 0.0, 0.0)
    assert loud.exploration == agent.exploration


def test_epsilon_decays_with_updates(store):
    agent = dreamer("v2 atari", epsilon=LinearDecay(0.4, 0.1, 6))
    assert agent.policy(explore=True).epsilon == 0.4
    trainer(max_steps=3).fit(agent, data(store))
    assert agent.policy(explore=True).epsilon == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["v1", "v2 atari"])
def test_its_checkpoint_alone_acts_as_it_did(kind, store, episodes, tmp_path):
    agent, run = dreamer(kind), trainer(max_steps=1)
    run.fit(agent, data(store if "atari" in kind else episodes.path))
    run.save_checkpoint(tmp_path / "alone.ckpt")
    again = wmlightning.load(tmp_path / "alone.ckpt")
    image, first = {"image": np.full((2, 64, 64, 3), 99, np.uint8)}, np.ones(2, bool)
    policies = agent.eval().policy(explore=True), again.policy(explore=True)
    actions = [policy(image, first, policy.initial(2, [4, 9]))[0] for policy in policies]
    assert np.array_equal(*actions)
    result = evaluate(tmp_path / "alone.ckpt", episodes=2, num_envs=2)
    assert result["environment"]["id"] == agent.environment.id


# ----------------------------------------------------------------------------------------------------------- learning


def learns(model, behaviour, environment, folder, length, prefill, exploration=0.0):
    """Trains an agent online; how much better it then is than random actions, and by how much chance may differ."""
    agent = Dreamer(model, behaviour, environment, exploration)
    module = EpisodeDataModule(str(folder), WindowDataset(UniformWindows(length)), 16, 50, validation_fraction=0.0)
    trainer([Collect(prefill, episodes_per_epoch=4, num_envs=4)], max_steps=400).fit(agent, module)
    spec = environment.spec
    random = HeldActionsPolicy(spec.action_size, 1, spec.discrete)
    result = evaluate(agent.eval(), episodes=30, num_envs=10, baselines={"random": random})
    beside = result["baselines"]["random"]
    return beside["difference"], beside["difference_ci95"]


SIZES = {"actor_layers": 2, "actor_units": 64, "critic_layers": 2, "critic_units": 64, "horizon": 8, "discount": 0.95}
RATES = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
HEADS = {"depth": 8, "reward_layers": 2, "reward_units": 64, "reward_scale": 100.0, "pixels": "centred"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_v1_learns_to_drive_to_the_dot(tmp_path):
    torch.manual_seed(0)
    dynamics = RSSM(GaussianLatent(10), 2, 256, 64, 64, cell="keras_gru", activation="elu")
    model = WorldModel(dynamics, FreeNatsKL(1.0, per_element=False), activation="elu", **HEADS)
    behaviour = ActorCritic(TanhNormal(), DynamicsBackprop(), include_start=False, **SIZES, **RATES)
    dots = EnvFactory("wmlightning/DummyPixels-v0", time_limit=25)
    difference, chance = learns(model, behaviour, dots, tmp_path, length=10, prefill=10, exploration=0.3)
    assert difference > chance


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_v2_learns_to_walk_down_the_corridor(tmp_path):
    torch.manual_seed(0)
    dynamics = RSSM(CategoricalLatent(8, 8), 3, 256, 64, 64, cell="layer_norm_gru", activation="elu")
    model = WorldModel(dynamics, BalancedKL(0.8, 1.0), activation="elu", cont_layers=2, cont_units=64, **HEADS)
    behaviour = ActorCritic(OneHot(), Reinforce(), target=TargetNetwork(50), entropy=3e-3, **SIZES, **RATES)
    corridor = EnvFactory("wmlightning/DummyCorridor-v0", time_limit=25)
    difference, chance = learns(model, behaviour, corridor, tmp_path, length=6, prefill=30)
    assert difference > 3 * chance


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"behaviour": {"actor": TanhNormal()}}, "model.actor_critic.actor is TruncatedNormal .* but TanhNormal here"),
        ({"behaviour": {"objective": Reinforce()}}, "actor_critic.objective is DynamicsBackprop .* but Reinforce here"),
        ({"model": {"kl": FreeNatsKL()}}, "model.world_model.kl is BalancedKL .* but FreeNatsKL here"),
        ({"learn_model": False}, "model.learn_model is True .* but False here"),
    ],
    ids=["actor", "objective", "kl", "learn_model"],
)
def test_a_checkpoint_with_other_parts_is_refused_though_every_weight_fits(tmp_path, other, says):
    run = Trainer(accelerator="cpu", max_steps=0, logger=False)
    run.strategy.connect(dreamer("v2 dmc"))
    run.save_checkpoint(tmp_path / "agent.ckpt")
    with pytest.raises(ValueError, match=says):
        check_resumable(dreamer("v2 dmc", **other), tmp_path / "agent.ckpt")


def test_other_settings_of_the_same_parts_give_a_warning_and_an_optimizers_do_not(tmp_path):
    run = Trainer(accelerator="cpu", max_steps=0, logger=False)
    run.strategy.connect(dreamer("v2 dmc"))
    run.save_checkpoint(tmp_path / "agent.ckpt")
    with pytest.warns(UserWarning, match=r"resumes with those given: model.actor_critic.horizon 4 is now 5$"):
        check_resumable(dreamer("v2 dmc", behaviour={"horizon": 5, "max_norm": 5.0}), tmp_path / "agent.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_resumable(dreamer("v2 dmc"), tmp_path / "agent.ckpt")
