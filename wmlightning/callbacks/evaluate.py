"""How well an agent does while it trains: `Evaluate`."""

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
    """Plays the agent between epochs, without exploration noise; nothing of it is stored or counted.

    Every evaluation plays the same episodes, each with an environment seed of its own: those of `wmlightning evaluate`
    with the same `seed` and `episodes`, which therefore finds the same return in the checkpoint written then. Several
    processes share the episodes out.

    Logged against environment steps: `evaluate/return`, the mean; `evaluate/return_ci95`, half of its 95% interval, of
    two episodes and more; and `evaluate/episode`, the first episode as a film.

    Args:
        every_epochs: epochs between evaluations.
        episodes: episodes in each.
        num_envs: environments side by side in each process, which the agent sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.
        video: film the first episode.
        seed: names the episodes.
        frames: longer episodes are thinned out to this many pictures.
        fps: pictures a second.

    Raises:
        ValueError: for a number below 1, or if the stage does not act.
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
        self.every_epochs, self.episodes, self.video, self.seed = every_epochs, episodes, video, seed
        self.frames, self.fps = frames, fps
        self.evaluated_at, self.last = 0, dict[str, float]()

    def state_dict(self) -> dict[str, Any]:
        """When the agent was last evaluated, and what came of it."""
        return {"evaluated_at": self.evaluated_at, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the last evaluation known."""
        self.evaluated_at, self.last = state_dict["evaluated_at"], state_dict["last"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates where a cut came between."""
        wait_for_measurements(trainer, MEASURED)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates, if the epoch is whole and it is time."""
        super().on_train_epoch_end(trainer, pl_module)
        pass_over_unmeasured(trainer, MEASURED)

    def turn(self, trainer: Any, agent: Any) -> None:
        """Evaluates, if it is time and not done."""
        batches = batches_trained(trainer)
        epochs = batches // max(1, int(trainer.num_training_batches))
        if batches == self.evaluated_at or not epochs or epochs % self.every_epochs:
            return
        rank, world = trainer.global_rank, trainer.world_size
        seeds, film = evaluation_seeds(self.seed, self.episodes), FirstEpisode()
        mine = seeds[rank::world]
        results, stopped = [], False
        if mine:
            writer = film if self.video and rank == 0 else None
            results, stopped = self.play(trainer, agent, agent.policy(explore=False), mine, writer=writer)
        # Every process sends as many numbers.
        missing = -(-len(seeds) // world) - len(results)
        sent = [result.total_reward for result in results] + [float("nan")] * missing
        rows = self.exchange(trainer, stopped, sent)
        returns = [rows[k % world][k // world] for k in range(len(seeds))]
        self.evaluated_at, self.last = batches, {"evaluate/return": float(np.mean(returns))}
        if len(returns) > 1:
            self.last["evaluate/return_ci95"] = interval(returns)
        publish(trainer, self.last)
        if trainer.is_global_zero:
            book = PictureBook.of(trainer)
            book.add_scalars(self.last, trainer.global_step)
            if self.video:
                book.add_gif("evaluate/episode", film.film(self.frames), trainer.global_step, self.fps)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the last evaluation among the results of the fit."""
        publish(trainer, self.last)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Withdraws the last evaluation, which other weights had, and shows it on the progress bar."""
        withdraw(trainer, MEASURED)
        if self.last and batch_idx == 0:
            shown = {"evaluated": self.last["evaluate/return"]}
            pl_module.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Environment seeds of an evaluation; consecutive, so that no two episodes share one."""
    # The number itself is that of C's generation 4 too: zeros at the end of a name do not count.
    first = derive_seed(seed, 4) + 1
    return [(first + episode) % 2**32 for episode in range(episodes)]


def statistics(returns: list[float]) -> dict[str, Any]:
    """`returns` with their `mean`, `std` (of a sample) and `ci95` (see `interval`)."""
    return {
        "returns": returns,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns, ddof=1)),
        "ci95": interval(returns),
    }


def interval(values: Any) -> float:
    """Half-width of Student's 95% interval of the mean of independent values, at least 2 of them."""
    n = len(values)
    return float(student_quantile(n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def student_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t, right to a thousandth.

    Source: Abramowitz and Stegun, 26.7.5, beyond the four degrees where the expansion is not good enough.
    """
    if degrees <= 4:
        return (12.706, 4.303, 3.182, 2.776)[degrees - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
