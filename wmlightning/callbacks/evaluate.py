"""`Evaluate`: an agent's mean return during training, and the statistics of returns."""

from typing import Any

import numpy as np
from lightning import LightningModule, Trainer

from wmlightning.callbacks.between_epochs import BetweenEpochs, batches_trained
from wmlightning.pictures.book import PictureBook
from wmlightning.pictures.films import FirstEpisode
from wmlightning.seeds import derive_seed
from wmlightning.stages.measurements import pass_over_unmeasured, publish, wait_for_measurements, withdraw
from wmlightning.validation import at_least

MEASURED = ("evaluate/return", "evaluate/return_ci95")
"""What an evaluation measures."""


class Evaluate(BetweenEpochs):
    """Lets the agent play evaluation episodes between epochs, without exploration; they are not stored or counted.

    Every evaluation plays the same episodes, each with its own environment seed. They are those of `wmlightning
    evaluate` with the same `seed` and `episodes`, which therefore measures the same return with the checkpoint saved
    then. Several processes divide the episodes.

    Logged against environment steps: `evaluate/return`, the mean return; with two episodes or more
    `evaluate/return_ci95`, the half-width of its 95% confidence interval; and `evaluate/episode`, a film of the first
    episode.

    Args:
        every_epochs: epochs from one evaluation to the next.
        episodes: episodes in an evaluation.
        num_envs: environments in each process, stepped as one batch.
        num_workers: worker processes for them, in each process; 0 steps them in the process itself.
        video: whether to film the first episode.
        seed: seed of the episodes.
        frames: most frames of the film; a longer episode is subsampled.
        fps: frames per second of the film.

    Raises:
        ValueError: for a number below 1, or if the stage is no agent.
    """

    def __init__(
        self,
        every_epochs: int = 10,
        episodes: int = 10,
        num_envs: int = 1,
        num_workers: int = 0,
        video: bool = True,
        seed: int = 0,
        frames: int = 150,
        fps: float | int = 15,
    ) -> None:
        super().__init__(num_envs, num_workers)
        at_least(1, every_epochs=every_epochs, episodes=episodes, frames=frames)
        at_least(0, seed=seed)
        self.every_epochs = every_epochs
        self.episodes = episodes
        self.video = video
        self.seed = seed
        self.frames = frames
        self.fps = fps
        self.evaluated_at = 0
        self.last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Saves at which batch the last evaluation was, and its metrics."""
        return {"evaluated_at": self.evaluated_at, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the last evaluation."""
        self.evaluated_at = state_dict["evaluated_at"]
        self.last = state_dict["last"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes an evaluation that was due when the run was stopped."""
        wait_for_measurements(trainer, MEASURED)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates, if the epoch is complete and an evaluation is due."""
        super().on_train_epoch_end(trainer, pl_module)
        pass_over_unmeasured(trainer, MEASURED)

    def play_between_epochs(self, trainer: Any, agent: Any) -> None:
        """Evaluates, if an evaluation is due and has not been made."""
        batches = batches_trained(trainer)
        epochs = batches // max(1, int(trainer.num_training_batches))
        if batches == self.evaluated_at or not epochs or epochs % self.every_epochs:
            return
        rank = trainer.global_rank
        world = trainer.world_size
        seeds = evaluation_seeds(self.seed, self.episodes)
        own_seeds = seeds[rank::world]
        film = FirstEpisode()
        own_returns: list[float] = []
        stopped = False
        if own_seeds:
            writer = film if self.video and rank == 0 else None
            results, stopped = self.play(trainer, agent, agent.policy(explore=False), own_seeds, writer=writer)
            own_returns = [result.total_reward for result in results]
        # Padded, because every process has to send equally many numbers.
        most = -(-len(seeds) // world)
        rows = self.gather(trainer, stopped, own_returns + [float("nan")] * (most - len(own_returns)))
        returns = [rows[episode % world][episode // world] for episode in range(len(seeds))]
        self.evaluated_at = batches
        self.last = {"evaluate/return": float(np.mean(returns))}
        if len(returns) > 1:
            self.last["evaluate/return_ci95"] = confidence_half_width(returns)
        publish(trainer, self.last)
        if trainer.is_global_zero:
            book = PictureBook.of(trainer)
            book.add_scalars(self.last, trainer.global_step)
            if self.video:
                book.add_gif("evaluate/episode", film.film(self.frames), trainer.global_step, self.fps)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the metrics of the last evaluation to the results of the fit."""
        publish(trainer, self.last)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Removes the last evaluation, which is of earlier weights, from the metrics; the progress bar shows it."""
        withdraw(trainer, MEASURED)
        if self.last and batch_idx == 0:
            metrics = {"evaluated": self.last["evaluate/return"]}
            pl_module.log_dict(metrics, prog_bar=True, logger=False, on_step=True, on_epoch=False)


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Returns the environment seeds of an evaluation: consecutive numbers, so that all are different."""
    # Without the + 1 it could be a seed of C's generation 4, since derive_seed ignores zeros at the end of its indices.
    first = derive_seed(seed, 4) + 1
    return [(first + episode) % 2**32 for episode in range(episodes)]


def statistics(returns: list[float]) -> dict[str, Any]:
    """Returns `returns` with their `mean`, sample `std` and `ci95` (see `confidence_half_width`)."""
    return {
        "returns": returns,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns, ddof=1)),
        "ci95": confidence_half_width(returns),
    }


def confidence_half_width(values: Any) -> float:
    """Returns the half-width of Student's 95% confidence interval of the mean of at least 2 independent values."""
    count = len(values)
    return float(student_quantile(count - 1) * np.std(values, ddof=1) / np.sqrt(count))


def student_quantile(degrees: int) -> float:
    """Returns the 0.975 quantile of Student's t: the t that |T| exceeds in one of 20 draws.

        P(|T| > t) = I[n / (n + t^2)](n / 2, 1 / 2) = 0.05,    n degrees of freedom, I the regularised incomplete beta

    Source: Abramowitz and Stegun, 26.7.1 and 26.5.27; mpmath has I and finds t.
    """
    import mpmath

    def excess(t: Any) -> Any:
        return mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t**2), regularized=True) - 0.05

    # All quantiles lie between the normal one, 1.96, and that of one degree, 12.71.
    return float(mpmath.findroot(excess, (1.9, 12.8), solver="anderson"))
