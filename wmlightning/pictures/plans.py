"""What a planner sees: how its search narrows down, what it promises, and what then happens."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from wmlightning.dynamics.state import State
from wmlightning.environments.factory import EnvFactory
from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import line_chart
from wmlightning.pictures.films import play
from wmlightning.pictures.images import Picture, error_map, evenly, stack, table, to_frames


@dataclass
class PlannedEpisode:
    """One episode and what the planner thought at each of its D decisions.

    Args:
        beliefs: the state planned from.
        plans: mean of the search, (H, A) each.
        elites: predicted returns of every iteration's elites, best first, (iterations, elites) each.
        predicted: the return that the search promises for the next H decisions, one number each.
        images: what was seen, D + 1 or, cut off, a few more decisions than images.
        rewards: reward of each decision.
    """

    beliefs: list[State] = field(default_factory=list)
    plans: list[Tensor] = field(default_factory=list)
    elites: list[np.ndarray] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """Decisions that a plan looks ahead."""
        return len(self.plans[0])

    @property
    def realised(self) -> np.ndarray:
        """What the H decisions from each one on really paid; only where all of them were played, (D - H + 1,)."""
        sums = np.cumsum([0.0, *self.rewards])
        return sums[self.horizon :] - sums[: len(sums) - self.horizon]

    @property
    def gap(self) -> np.ndarray:
        """The predicted return minus the realised one, for the same decisions as `realised`."""
        realised = self.realised
        return np.array(self.predicted[: len(realised)]) - realised


class _SearchRecorder:
    """Stands in for a policy's planner and takes down what it thinks."""

    def __init__(self, planner: Any) -> None:
        self.planner, self.watched = planner, PlannedEpisode()

    def plan(self, model: Any, state: State, seeds: Any) -> Tensor:
        """Searches, and keeps what was found for the one row there is."""
        search, watched = self.planner.search(model, state, seeds), self.watched
        watched.beliefs.append(state[:1])
        watched.plans.append(search.mean[0])
        watched.elites.append(search.returns[0].float().cpu().numpy())
        watched.predicted.append(float(search.predicted[0]))
        return search.mean[:, 0]


def watch(policy: Any, environment: EnvFactory, seed: int, decisions: int = 100) -> PlannedEpisode:
    """Plays one episode, or its beginning, and takes down what the planner thinks.

    Args:
        policy: a `PlanningPolicy`; its planner is put back afterwards.
        environment: where; played in this process.
        seed: environment seed.
        decisions: most of them that are played.
    """
    planner = policy.planner
    policy.planner = recorder = _SearchRecorder(planner)
    try:
        seen = play(policy, environment, seed, decisions)
    finally:
        policy.planner = planner
    return replace(recorder.watched, images=seen.images, rewards=seen.rewards[1:])


def elite_chart(watched: PlannedEpisode) -> Picture:
    """Predicted returns of the elites over the iterations: best, mean and worst, averaged over decisions."""
    elites = np.stack(watched.elites)
    iterations = list(range(1, elites.shape[1] + 1))
    lines = {
        "best elite": elites[:, :, 0].mean(0),
        "mean of the elites": elites.mean((0, 2)),
        "worst elite": elites[:, :, -1].mean(0),
    }
    title = f"What {elites.shape[2]} elites promise, averaged over {len(elites)} decisions"
    curves = {name: (iterations, values.tolist()) for name, values in lines.items()}
    return line_chart(
        curves, title, "iteration of the search", f"predicted return of {watched.horizon} decisions", (760, 300)
    )


def predicted_return_chart(watched: PlannedEpisode) -> Picture:
    """Predicted and realised return of the next H decisions over an episode, and the difference."""
    realised, gap = watched.realised, watched.gap
    steps, known = list(range(len(watched.predicted))), list(range(len(realised)))
    lines = {"promised": (steps, watched.predicted), "realised": (known, realised.tolist())}
    what = f"return of the next {watched.horizon} decisions"
    above = line_chart(lines, "What the planner promises, and what the episode then pays", "decision", what, (760, 280))
    mean = f", {gap.mean():+.2f} on average" if len(gap) else ": the episode is shorter than a plan"
    below = {"promised - realised": (known, gap.tolist()), "as promised": ([0, max(1, len(steps) - 1)], [0.0, 0.0])}
    return stack([above, line_chart(below, f"Promised minus realised{mean}", "decision", what, (760, 220))], gap=8)


def plan_strips(model: Any, watched: PlannedEpisode, count: int = 2) -> Picture:
    """What a plan was expected to look like, and what happened; a few decisions of the episode.

    What happened is the episode as it was played, with a new plan at every decision, so that the two part where the
    planner changed its mind.

    Args:
        model: a `LatentModel`.
        watched: the episode.
        count: decisions drawn, evenly spread over those whose whole plan was played.
    """
    tables = []
    for decision in evenly(len(watched.realised), count + 2)[1:-1] or [0]:
        belief, plan = watched.beliefs[decision], watched.plans[decision]
        dream = model.dynamics.imagine(belief, plan[None]).features[0]
        planned = to_frames(model.decode(torch.cat([belief.features, dream])))
        happened = to_frames(np.stack(watched.images[decision : decision + len(planned)]))
        rows = {"planned": planned, "happened": happened, "error": error_map(happened, planned[: len(happened)])}
        note = f"promised {watched.predicted[decision]:.2f}"
        if decision < len(watched.realised):
            note += f", realised {watched.realised[decision]:.2f}"
        captions = ["now", *(f"+{k}" for k in range(1, len(planned)))]
        tables.append(table(rows, captions, f"Decision {decision}", note, None, divide_at=1))
    return stack(tables, gap=6)


class LogPlans(LogPictures):
    """Shows what an agent's planner thinks during an episode played without exploration; all under `planet/`.

    `elite_returns`: predicted returns of the elites by iteration: a search that still rises at its end wants more
    iterations. `promises`: the predicted return of the next H decisions, what they then paid, and the difference, which
    is how far the planner exploits its model; as scalars `promised`, `realised` and their difference `exploited`, means
    over the episode. `plan`: the images that a plan was expected to give, and those that came.

    The episode is always the same one, and counts nowhere.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        decisions: most decisions played; each is one search.
        seed: of the episode.
        plans: decisions drawn in `plan`.
    """

    def __init__(self, every: int = 5000, decisions: int = 100, seed: int = 1_000_003, plans: int = 2) -> None:
        super().__init__(every)
        if decisions < 1 or plans < 1:
            raise ValueError(f"decisions is {decisions} and plans {plans}: ask for at least 1 of each")
        self.decisions, self.seed, self.plans = decisions, seed, plans

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuses a stage that does not plan.

        Raises:
            ValueError: saying which stage does.
        """
        if not hasattr(pl_module, "planner"):
            name = type(pl_module).__name__
            raise ValueError(f"LogPlans shows what a planner thinks, but {name} has none: use it with PlaNet")

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Plays and draws."""
        watched = watch(stage.policy(explore=False), stage.environment, self.seed, self.decisions)
        book.add("planet/elite_returns", elite_chart(watched), step)
        book.add("planet/promises", predicted_return_chart(watched), step)
        book.add("planet/plan", plan_strips(stage.world_model, watched, self.plans), step)
        if len(watched.realised):
            known = len(watched.realised)
            numbers = {"promised": np.mean(watched.predicted[:known]), "realised": np.mean(watched.realised)}
            numbers["exploited"] = np.mean(watched.gap)
            book.add_scalars({f"planet/{name}": float(value) for name, value in numbers.items()}, step)
