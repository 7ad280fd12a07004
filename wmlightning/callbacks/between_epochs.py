"""Playing between two epochs, once each time, however the run is cut and resumed: `BetweenEpochs`."""

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

STREAM = 5
"""Sets the seeds of collected episodes apart from all others."""


def batches_trained(trainer: Trainer) -> int:
    """Batches processed since training began, resumes included."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return progress.total.processed


def between_epochs(trainer: Trainer) -> bool:
    """Whether a whole epoch has just been trained, or none has begun."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return progress.current.processed % max(1, int(trainer.num_training_batches)) == 0


class BetweenEpochs(Callback, ABC):
    """Plays in the agent's environment between two epochs (abstract).

    A turn comes when training starts and after every whole epoch. Both are needed, because a checkpoint of an epoch's
    last batch resumes behind that epoch's end, and one of its end goes through it twice: so what is done in a turn must
    know from its own saved state whether it has been done already. Nothing is done in the middle of an epoch, so a run
    that is cut there and resumed plays at the same updates as one that is not.

    The environments stay open from the first turn to the end of the fit.

    Args:
        num_envs: environments side by side in each process, which the agent sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.
    """

    def __init__(self, num_envs: int = 1, num_workers: int = 0) -> None:
        if num_envs < 1 or num_workers < 0:
            raise ValueError(f"num_envs is {num_envs} and num_workers {num_workers}: ask for at least 1 and 0")
        self.num_envs, self.num_workers = num_envs, num_workers
        self._envs: PixelVectorEnv | None = None

    @abstractmethod
    def turn(self, trainer: Any, agent: Any) -> None:
        """Does what is due; called by every process, inside `undisturbed(agent)`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a stage that does not act."""
        if stage == "fit" and not (hasattr(pl_module, "policy") and hasattr(pl_module, "environment")):
            name, stage_name = type(self).__name__, type(pl_module).__name__
            raise ValueError(f"{name} wants an agent with a policy and an environment, which {stage_name} is not")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A turn, unless training goes on in the middle of an epoch."""
        self._turn(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A turn, if the epoch is whole."""
        self._turn(trainer, pl_module)

    def _turn(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if between_epochs(trainer):
            with undisturbed(pl_module):
                self.turn(trainer, pl_module)

    def envs(self, agent: Any) -> PixelVectorEnv:
        """The environments, made when first asked for."""
        envs = self._envs or agent.environment.vector(self.num_envs, self.num_workers)
        self._envs = envs
        return envs

    def play(
        self, trainer: Trainer, agent: Any, policy: Policy, seeds: Sequence[int], **options: Any
    ) -> tuple[list[EpisodeResult], bool]:
        """A rollout that ends early when the process is asked to stop; says whether it was."""
        stopped = False

        def should_stop() -> bool:
            nonlocal stopped
            stopped = asked_to_stop(trainer)
            return stopped

        return rollout(self.envs(agent), policy, seeds, should_stop=should_stop, **options), stopped

    def exchange(self, trainer: Trainer, stopped: bool, numbers: list[Any]) -> list[list[float]]:
        """The numbers of every process, when all have come here.

        Raises:
            SIGTERMException: in all of them, if any was asked to stop.
        """
        mine = torch.tensor([float(stopped), *numbers], dtype=torch.float64, device=trainer.strategy.root_device)
        rows = [mine] if trainer.world_size == 1 else list(trainer.strategy.all_gather(mine))
        told = [row.tolist() for row in rows]
        if any(row[0] for row in told):
            raise SIGTERMException
        return [row[1:] for row in told]

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
    """The environment seeds of a process's episodes first, first + 1, ..., each made when it is asked for."""

    def __init__(self, seed: int, rank: int, first: int, number: int) -> None:
        self.seed, self.rank, self.first, self.number = seed, rank, first, number

    def __len__(self) -> int:
        """How many."""
        return self.number

    def __getitem__(self, job: int) -> int:  # type: ignore[override]
        """The seed of the job-th of them."""
        return online_episode_seed(self.seed, self.rank, self.first + job)


def online_episode_seed(seed: int, rank: int, index: int) -> int:
    """The environment seed of the index-th episode that a process begins."""
    return derive_seed(seed, rank, index, STREAM)
