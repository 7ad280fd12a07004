"""Films of C as it acts, in the real environment or in its dream, and its fitness over the generations."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning import Trainer
from torch import Tensor

from wmlightning.environments.dream import DreamEnv, DreamRules
from wmlightning.environments.factory import EnvFactory
from wmlightning.interfaces import Policy
from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import line_chart
from wmlightning.pictures.films import film, play
from wmlightning.pictures.images import Picture

CURVES = {
    "best": ("controller/fitness_best", "fitness of the best candidate"),
    "mean": ("controller/fitness_mean", "mean fitness of the candidates"),
    "evaluated": ("controller/evaluated_return", "return of the distribution's mean"),
}
"""Curves of the chart: metric of the stage, and its name in the legend."""


def drive(policy: Policy, environment: EnvFactory, seed: int, frames: int = 150, note: str = "") -> list[Picture]:
    """Plays one episode and returns its images, with step and return written below each.

    Args:
        policy: how to act.
        environment: where; one episode is played in this process.
        seed: environment seed.
        frames: longer episodes are thinned out to this many, evenly.
        note: put before step and return.
    """
    return play(policy, environment, seed).film(frames, note)


def drive_dream(
    model: Any,
    policy: Any,
    dream: DreamRules,
    starts: Float[Tensor, "starts embed"],
    seed: int,
    frames: int = 150,
    note: str = "",
) -> list[Picture]:
    """Dreams one episode and returns its decoded images, captioned as those of `drive`.

    Args:
        model: the world dreamt in.
        policy: a `LatentPolicy`; its controller acts on the dream's own states.
        dream: rules of the dream: temperature, length, reward.
        starts: embeds of first frames, (S, E).
        seed: of first frame and noise.
        frames: longer dreams are thinned out to this many, evenly.
        note: put before step and return.
    """
    env, act = DreamEnv(model, dream, starts, policy.discrete), _actions(policy)
    features, total, over = env.reset(seed=seed)[0], 0.0, False
    pictures, returns = [env.render()], [0.0]
    while not over:
        features, reward, terminated, truncated, _ = env.step(act(features))
        total, over = total + reward, terminated or truncated
        pictures.append(env.render())
        returns.append(total)
    return film(pictures, returns, frames, note)


def _actions(policy: Any) -> Callable[[np.ndarray], Any]:
    owner = torch.zeros(1, dtype=torch.int64, device=policy.candidates.device)

    def act(features: np.ndarray) -> Any:
        action = policy.controller.act(policy.candidates, torch.from_numpy(features)[None].to(owner.device), owner)[0]
        return int(action.argmax()) if policy.discrete else action.cpu().numpy()

    return act


class LogFilms(LogPictures):
    """Films the controller (abstract), an episode of the distribution's mean, and draws `controller/fitness`, a chart.

    The film is always of the same episode, so that films can be compared. The chart's numbers are kept in the
    checkpoint, so that a resumed run draws the whole curve.

    Args:
        every: generations between two drawings; 0 draws only when training ends.
        seed: of the episode filmed.
        frames: longer episodes are thinned out to this many pictures.
        fps: pictures a second.
    """

    def __init__(self, every: int = 10, seed: int = 1_000_003, frames: int = 150, fps: float | int = 15) -> None:
        super().__init__(every)
        self.seed, self.frames, self.fps = seed, frames, fps
        self.history: dict[str, list[list[float]]] = {name: [] for name in CURVES}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the generation's numbers for the chart, and draws when it is due."""
        generation, metrics = trainer.global_step, trainer.callback_metrics
        evaluated = pl_module.evaluate_every and generation % pl_module.evaluate_every == 0
        for name, (metric, _) in CURVES.items():
            # `callback_metrics` keeps the last value of a metric that this generation did not log.
            if metric in metrics and (name != "evaluated" or evaluated):
                self.history[name].append([float(generation), float(metrics[metric])])
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """Returns the curves so far."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the curves of the checkpoint."""
        self.history = state_dict["history"]

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Draws the chart and the film."""
        book.add("controller/fitness", self.chart(), step)
        name, film = self.film(stage, f"generation {step}  ")
        book.add_gif(name, film, step, self.fps)

    @abstractmethod
    def film(self, stage: Any, note: str) -> tuple[str, list[Picture]]:
        """Returns the picture's name and the frames of one episode of the present mean."""

    def chart(self) -> Picture:
        """Draws fitness and evaluated return over the generations."""
        curves = {
            text: zip(*self.history[name], strict=True) for name, (_, text) in CURVES.items() if self.history[name]
        }
        lines = {text: (list(x), list(y)) for text, (x, y) in curves.items()}
        title = "CMA-ES: fitness of the candidates, and return of the distribution's mean"
        return line_chart(lines, title, "generation", "return of an episode", (760, 320))


class LogDriving(LogFilms):
    """Films the present mean in the real environment: `controller/driving`; see `LogFilms`."""

    def film(self, stage: Any, note: str) -> tuple[str, list[Picture]]:
        """Plays one real episode; it is neither stored nor counted."""
        film = drive(stage.policy(explore=True), stage.environment, self.seed, self.frames, note)
        return "controller/driving", film


class LogDreamDriving(LogFilms):
    """Films the present mean in the dream it is trained in: `controller/dream`; see `LogFilms`.

    A controller that exploits its model's mistakes shows here what it exploits.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuses a controller that has no dream.

        Raises:
            ValueError: saying which callback to use instead.
        """
        if getattr(pl_module, "dream", None) is None:
            raise ValueError("LogDreamDriving films dreams but this controller has none: use LogDriving, or set dream")

    def film(self, stage: Any, note: str) -> tuple[str, list[Picture]]:
        """Dreams one episode."""
        policy, starts = stage.policy(explore=True), stage.fitness.starts
        film = drive_dream(stage.model, policy, stage.dream, starts, self.seed, self.frames, note)
        return "controller/dream", film
