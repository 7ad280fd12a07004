"""`BetweenEpochs`: callbacks that play episodes between epochs, exactly once even if the run is stopped and resumed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from wmlightning.callbacks.stopping import asked_to_stop
from wmlightning.environments.rollout import EpisodeResult, rollout
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Policy
from wmlightning.pictures.book import undisturbed
from wmlightning.seeds import derive_seed

COLLECTION_STREAM = 5
"""Index of the stream from which the seeds of collected episodes are derived; no other seeds use it."""


def batches_trained(trainer: Trainer) -> int:
    """Returns the number of batches processed since training began, resumes included."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return progress.total.processed


def between_epochs(trainer: Trainer) -> bool:
    """Whether training is at the end of an epoch, or before the first batch."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return progress.current.processed % max(1, int(trainer.num_training_batches)) == 0


class BetweenEpochs(Callback, ABC):
    """Plays episodes in the agent's environment between two epochs (abstract).

    `play_between_epochs` is called when training starts and at the end of every epoch. Both calls are needed:

        training resumes from a checkpoint of     calls between epochs 0 and 1
        epoch 0's last batch                      only when training starts
        epoch 0's end                             when training starts, and at the end of epoch 0 once more

    So a subclass saves in its own state what it has done, and does nothing in a second call. Nothing is played within
    an epoch, so a run that is stopped there and resumed plays at the same updates as an uninterrupted one.

    The environments stay open from the first call to the end of the fit.

    Args:
        num_envs: environments in each process, stepped as one batch.
        num_workers: worker processes for them, in each process; 0 steps them in the process itself.
    """

    def __init__(self, num_envs: int = 1, num_workers: int = 0) -> None:
        if num_envs < 1 or num_workers < 0:
            raise ValueError(f"num_envs is {num_envs} and num_workers {num_workers}: ask for at least 1 and 0")
        self.num_envs = num_envs
        self.num_workers = num_workers
        self._envs: PixelVectorEnv | None = None

    @abstractmethod
    def play_between_epochs(self, trainer: Any, agent: Any) -> None:
        """Plays what is due; every process calls it, inside `undisturbed(agent)`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the stage is an agent, with a policy and an environment."""
        if stage == "fit" and not (hasattr(pl_module, "policy") and hasattr(pl_module, "environment")):
            raise ValueError(
                f"{type(self).__name__} wants an agent with a policy and an environment, which "
                f"{type(pl_module).__name__} is not: take the callback out, or train an agent"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plays, unless training resumes within an epoch."""
        self._play_if_between_epochs(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plays, if the epoch is complete."""
        self._play_if_between_epochs(trainer, pl_module)

    def _play_if_between_epochs(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if between_epochs(trainer):
            with undisturbed(pl_module):
                self.play_between_epochs(trainer, pl_module)

    def envs(self, agent: Any) -> PixelVectorEnv:
        """Returns the environments, which it makes at the first call."""
        envs = self._envs or agent.environment.vector(self.num_envs, self.num_workers)
        self._envs = envs
        return envs

    def play(
        self, trainer: Trainer, agent: Any, policy: Policy, seeds: Sequence[int], **options: Any
    ) -> tuple[list[EpisodeResult], bool]:
        """Runs a rollout, which ends early if the process is asked to stop.

        Args:
            trainer: the Trainer of the fit.
            agent: the stage, for its environment.
            policy: chooses the actions.
            seeds: environment seeds, one for each episode.
            options: further arguments of `rollout`.

        Returns:
            Results of the finished episodes, and whether the process was asked to stop.
        """
        stopped = False

        def should_stop() -> bool:
            nonlocal stopped
            stopped = asked_to_stop(trainer)
            return stopped

        return rollout(self.envs(agent), policy, seeds, should_stop=should_stop, **options), stopped

    def gather(self, trainer: Trainer, stopped: bool, numbers: list[Any]) -> list[list[float]]:
        """Gathers numbers of all processes, each of which waits here for the others.

        Args:
            trainer: the Trainer of the fit.
            stopped: whether this process was asked to stop.
            numbers: of this process, as many as of every other one.

        Returns:
            The numbers of each process, by rank.

        Raises:
            SIGTERMException: in all processes, if any was asked to stop.
        """
        own = torch.tensor([float(stopped), *numbers], dtype=torch.float64, device=trainer.strategy.root_device)
        gathered = [own] if trainer.world_size == 1 else list(trainer.strategy.all_gather(own))
        rows = [row.tolist() for row in gathered]
        if any(row[0] for row in rows):
            raise SIGTERMException
        return [row[1:] for row in rows]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the environments."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the environments."""
        self._close()

    def _close(self) -> None:
        envs, self._envs = self._envs, None
        if envs is not None:
            envs.close()


class EpisodeSeeds(Sequence[int]):
    """Environment seeds of a process's next episodes, each computed when it is read.

    Args:
        seed: the run's seed.
        rank: the process.
        first: index of the first episode among all that the process begins.
        num_episodes: how many there are.
    """

    def __init__(self, seed: int, rank: int, first: int, num_episodes: int) -> None:
        self.seed = seed
        self.rank = rank
        self.first = first
        self.num_episodes = num_episodes

    def __len__(self) -> int:
        """Number of episodes."""
        return self.num_episodes

    def __getitem__(self, position: int) -> int:  # type: ignore[override]
        """The seed of the episode with index first + position."""
        return online_episode_seed(self.seed, self.rank, self.first + position)


def online_episode_seed(seed: int, rank: int, index: int) -> int:
    """Returns the environment seed of the episode with this index among those that a process begins."""
    return derive_seed(seed, rank, index, COLLECTION_STREAM)
