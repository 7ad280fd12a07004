"""Runs of Dreamers: cut and resumed they are the uninterrupted run, and two processes are one with a double batch."""

import re

import pytest
import torch
from dreamer_support import DOTS, actor_critic, data, dreamer, world
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_support import CUTS, assert_resumes, assert_two_processes_are_one, episode, trainer
from torch.testing import assert_close

from datamodules import EpisodeStore
from wmlightning.callbacks.collect import Collect
from wmlightning.callbacks.evaluate import Evaluate
from wmlightning.networks.target import TargetNetwork
from wmlightning.stages.dreamer import Dreamer
from wmlightning.stages.world_model import WorldModel

SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("v2 dmc", "v2 mixed")]


def recorded(path, kind):
    """A store of four episodes of noise with the actions that this kind of agent takes."""
    made, generator = EpisodeStore(path), torch.Generator().manual_seed(0)
    actions = {"action_size": 3, "discrete": True} if "atari" in kind else {}
    for index in range(4):
        image = torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8, generator=generator).numpy()
        made.append(episode(8, {"image": image}, index, **actions), index=index)
    return path


def assert_same(resumed, whole):
    """Weights and optimizers, bit for bit."""
    (agent, optimizer), (wanted, its_optimizer) = resumed, whole
    assert_close(agent.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    assert_close(optimizer.state_dict()["state"], its_optimizer.state_dict()["state"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("cut", list(CUTS)[:2])
@pytest.mark.parametrize("kind", ["v1", "v2 atari", *SLOW])
def test_a_run_cut_and_resumed_is_the_uninterrupted_run(tmp_path, kind, cut):
    """The target critic, which is renewed at updates 0, 2, 4 and so on, among what is resumed."""
    store = recorded(tmp_path / "episodes", kind)
    logs = {"actor/loss", "world_model/loss", "actor/gradient_norm"}
    assert_resumes(tmp_path, lambda: dreamer(kind), lambda: data(store), cut, logs)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("kind", ["v1", "v2 atari"])
def test_an_online_run_cut_and_resumed_is_the_uninterrupted_run(tmp_path, kind):
    """The episodes that it plays and learns from afterwards among what must be the same."""

    def fit(folder, ckpt_path=None, **limit):
        agent = dreamer(kind, **({"exploration": 0.3} if kind == "v1" else {}))
        collect = Collect(prefill_episodes=2, episodes_per_epoch=2, num_envs=2)
        saving = ModelCheckpoint(folder, "cut", every_n_train_steps=3)
        run = trainer([collect, Evaluate(1, 2, 2, video=False), saving], default_root_dir=folder, **limit)
        run.fit(agent, data(folder / "episodes"), ckpt_path=ckpt_path, weights_only=True)
        return agent, run.optimizers[0]

    whole = fit(tmp_path / "whole", max_steps=8)
    fit(tmp_path / "cut", max_steps=3)
    resumed = fit(tmp_path / "cut", tmp_path / "cut" / "cut.ckpt", max_steps=8)
    assert_same(resumed, whole)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "episodes").glob("*.h5")}
        for name in ("whole", "cut")
    ]
    assert files[0] == files[1]


def test_a_resumed_learning_rate_that_differs_from_the_configured_one_gives_a_warning(tmp_path):
    store, run = recorded(tmp_path / "episodes", "v1"), trainer(max_steps=1)
    run.fit(dreamer(), data(store))
    run.save_checkpoint(tmp_path / "agent.ckpt")
    other = dreamer(behaviour={"actor_learning_rate": 0.5})
    with pytest.warns(UserWarning, match=re.escape("learning_rate is [0.001, 0.5, 8e-05] but the checkpoint's")):
        trainer(max_steps=2).fit(other, data(store), ckpt_path=tmp_path / "agent.ckpt")


class ModeModel(WorldModel):
    """A world model without noise, so that two processes see the same numbers as one."""

    def observe(self, batch, noise=None):
        rows, time = batch.shape
        return super().observe(batch, (None, torch.zeros(rows, time, self.dynamics.latent.noise_size)))


class ModeDreamer(Dreamer):
    """A Dreamer without noise."""

    def training_step(self, batch, batch_idx):
        behaviour, rows = self.actor_critic, batch.reward.numel()
        size, latent = behaviour.sizes[0], self.world_model.dynamics.latent.noise_size
        noise = (torch.zeros(rows, 4, width) for width in (behaviour.distribution.noise_size(size), latent))
        imagine, drawn = type(behaviour).imagine, tuple(noise)
        behaviour.imagine = lambda *arguments: imagine(behaviour, *arguments, drawn)
        return super().training_step(batch, batch_idx)


def without_noise(kind):
    torch.manual_seed(0)
    made = world(kind, 3 if "atari" in kind else 2)
    given = made.__dict__["_arguments"] | {"max_norm": 1e9}
    behaviour = actor_critic(kind, max_norm=1e9, target=TargetNetwork(2))
    return ModeDreamer(ModeModel(**given), behaviour, DOTS)


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["v1", "v2 atari"])
def test_two_processes_stay_equal_and_have_the_gradient_of_one_with_the_double_batch(tmp_path, kind, precision):
    store = recorded(tmp_path / "episodes", kind)

    def make():
        agent = without_noise(kind)
        agent.environment = dreamer(kind).environment
        return agent

    near = (1e-5, 1e-5) if precision == "32-true" else (0.1, 0.03)
    parts = ("world_model", "actor_critic.actor", "actor_critic.critic")
    assert_two_processes_are_one(
        tmp_path, make, lambda size: data(store, batch_size=size), parts=parts, near=near, precision=precision
    )
