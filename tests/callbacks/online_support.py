"""Shared by the tests of online runs: an agent with few weights, and runs of it that can be cut anywhere."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.samplers import UniformWindows
from wmlightning.callbacks.collect import Collect
from wmlightning.environments.factory import EnvFactory
from wmlightning.policies.exploration import row_generator
from wmlightning.stages.stage import Stage

BATCHES = 4
"""Batches in an epoch."""


class Chaser(Stage):
    """Acts by weights that learn (nothing useful) from windows and noise, so that any inexact resume shows in them."""

    def __init__(self, environment, seed=0, learning_rate=0.1):
        super().__init__(seed)
        self.environment, self.learning_rate = environment, learning_rate
        self.layer = nn.Linear(3, 2)

    def means(self, image):
        return image.float().mean((-3, -2)) / 255

    def policy(self, explore):
        return ChaserPolicy(self, 0.3 * explore)

    def training_step(self, batch, batch_idx):
        guess = self.layer(self.means(batch.observation["image"])) + 0.1 * torch.randn(2)
        loss = (guess - batch.action).square().mean() + (guess.sum(-1) - batch.reward).square().mean()
        self.log("chaser/loss", loss, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class ChaserPolicy:
    """Acts by the agent's present weights, with noise that is a function of (seed, step)."""

    def __init__(self, agent, scale):
        self.agent, self.scale = agent, scale

    def initial(self, n, seeds=None):
        return {"seed": torch.tensor(seeds), "step": torch.zeros(n, dtype=torch.int64)}

    def __call__(self, observation, is_first, carry):
        assert not self.agent.training, "one acts in evaluation mode"
        rows = zip(carry["seed"].tolist(), carry["step"].tolist(), strict=True)
        noise = np.stack([row_generator(*row).standard_normal(2) for row in rows])
        action = torch.tanh(self.agent.layer(self.agent.means(torch.from_numpy(observation["image"])))).numpy()
        return np.clip(action + self.scale * noise, -1, 1).astype(np.float32), carry | {"step": carry["step"] + 1}


class Curves(Logger):
    """Every logged point: (name, x) -> values in the order they came."""

    def __init__(self):
        super().__init__()
        self.points = {}

    name, version = "curves", 0

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.points.setdefault((name, step), []).append(value)

    def log_hyperparams(self, *args, **kwargs):
        pass

    def named(self, name):
        """(x, value) of one curve."""
        return [(x, value) for (other, x), values in self.points.items() if other == name for value in values]

    @property
    def exact(self):
        """All curves but those that depend on the time of day."""
        return {key: values for key, values in self.points.items() if not key[0].endswith("per_second")}


def environment(id="wmlightning/DummyPixels-v0", action_repeat=2, **kwargs):
    """Episodes of 7 environment steps in 4 decisions: the last one is cut short."""
    return EnvFactory(id, action_repeat, size=16, kwargs={"steps": 7, **kwargs})


def agent(seed=0, **options):
    torch.manual_seed(seed)
    return Chaser(environment(**options), seed)


def data(folder, batch_size=3, **options):
    options = {"updates_per_epoch": BATCHES, "validation_fraction": 0.0} | options
    return EpisodeDataModule(f"{folder}/episodes", WindowDataset(UniformWindows(3)), batch_size, **options)


def collector(**options):
    return Collect(**({"prefill_episodes": 3, "episodes_per_epoch": 2, "num_envs": 2} | options))


def files(folder):
    """Every episode's bytes by file name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "episodes").glob("*.h5"))}


def continued(first, second, whole):
    """Asserts that two logs together are the log of the uninterrupted run, with repeated steps logged twice."""
    assert {*first, *second} == {*whole}
    for key, values in whole.items():
        before, after = first.get(key, []), second.get(key, [])
        assert before == values[: len(before)], key
        assert after == values[len(values) - len(after) :], key
        assert len(before) + len(after) >= len(values), key


def fit(folder, callbacks=(), collect=None, player=None, ckpt_path=None, saving=(), settings=None, **limit):
    """Fits an agent in a folder, and returns the parts of the run."""
    run = SimpleNamespace(curves=Curves(), agent=player or agent(), collect=collect or collector(), folder=Path(folder))
    run.data = data(folder, **(settings or {}))
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    run.trainer = Trainer(
        default_root_dir=folder,
        callbacks=[run.collect, *callbacks, *saving],
        logger=run.curves,
        enable_checkpointing=bool(saving),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=limit.pop("log_every_n_steps", 1),
        **(options | limit),
    )
    run.trainer.fit(run.agent, run.data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return run
