"""Pictures of planning: how the search converges, and predicted against realised returns and images: `LogPlans`."""

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
    """An episode and the planner's search at each of its D decisions.

    Args:
        states: the filtered state that was planned from, (1) each.
        plans: mean of the search, (H, A) each.
        elites: predicted returns of every iteration's elites, best first, (iterations, elites) each.
        predicted: predicted return of the plan, over the next H decisions, one number each.
        images: the episode's images, D + 1. An episode that was cut off may have a few more plans than images.
        rewards: reward of each decision.
    """

    states: list[State] = field(default_factory=list)
    plans: list[Tensor] = field(default_factory=list)
    elites: list[np.ndarray] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """Decisions in a plan, H."""
        return len(self.plans[0])

    @property
    def realised(self) -> np.ndarray:
        """Sum of the next H rewards of each decision after which H decisions were played, (D - H + 1,)."""
        sums = np.cumsum([0.0, *self.rewards])
        return sums[self.horizon :] - sums[: max(0, len(sums) - self.horizon)]

    @property
    def gap(self) -> np.ndarray:
        """Predicted minus realised return, for the same decisions as `realised`."""
        realised = self.realised
        return np.array(self.predicted[: len(realised)]) - realised


class _SearchRecorder:
    """A planner that plans like another one and records its searches."""

    def __init__(self, planner: Any) -> None:
        self.planner = planner
        self.episode = PlannedEpisode()

    def plan(self, model: Any, state: State, seeds: Any) -> Tensor:
        """Searches, and records the search of the first row."""
        search = self.planner.search(model, state, seeds)
        self.episode.states.append(state[:1])
        self.episode.plans.append(search.mean[0])
        self.episode.elites.append(search.returns[0].float().cpu().numpy())
        self.episode.predicted.append(float(search.predicted[0]))
        return search.mean[:, 0]


def play_with_plans(policy: Any, environment: EnvFactory, seed: int, decisions: int = 100) -> PlannedEpisode:
    """Plays one episode, or its beginning, and records the planner's searches.

    Args:
        policy: a `PlanningPolicy`; its planner is replaced meanwhile, and put back afterwards.
        environment: the environment, stepped in this process.
        seed: environment seed.
        decisions: most decisions made.
    """
    planner = policy.planner
    policy.planner = recorder = _SearchRecorder(planner)
    try:
        episode = play(policy, environment, seed, decisions)
    finally:
        policy.planner = planner
    return replace(recorder.episode, images=episode.images, rewards=episode.rewards[1:])


def elite_chart(episode: PlannedEpisode) -> Picture:
    """Draws the elites' predicted returns over the iterations: best, mean and worst, averaged over decisions."""
    elites = np.stack(episode.elites)
    decisions, iterations, count = elites.shape
    lines = {
        "best elite": elites[:, :, 0].mean(0),
        "mean of the elites": elites.mean((0, 2)),
        "worst elite": elites[:, :, -1].mean(0),
    }
    steps = list(range(1, iterations + 1))
    curves = {name: (steps, values.tolist()) for name, values in lines.items()}
    title = f"Predicted return of {count} elites, {episode.horizon} decisions ahead, mean of {decisions} searches"
    return line_chart(curves, title, "iteration of the search", "predicted return", (760, 300))


def predicted_return_chart(episode: PlannedEpisode) -> Picture:
    """Draws predicted and realised return of the next H decisions over an episode, and the difference."""
    realised, gap = episode.realised, episode.gap
    steps = list(range(len(episode.predicted)))
    known = list(range(len(realised)))
    title = f"Return of the next {episode.horizon} decisions, predicted by the planner and realised by the episode"
    lines = {"predicted": (steps, episode.predicted), "realised": (known, realised.tolist())}
    above = line_chart(lines, title, "decision", "return, sum of rewards", (760, 280))
    mean = f", {gap.mean():+.2f} on average" if len(gap) else ": none, the episode is shorter than a plan"
    lines = {"predicted - realised": (known, gap.tolist()), "no difference": ([0, max(1, len(steps) - 1)], [0.0, 0.0])}
    below = line_chart(lines, f"Predicted minus realised return{mean}", "decision", "difference", (760, 220))
    return stack([above, below], gap=8)


def plan_strips(model: Any, episode: PlannedEpisode, count: int = 2) -> Picture:
    """Draws the images that a plan predicts above those of the episode, for a few decisions.

    The episode plans anew at every decision, so the two rows also differ where a later plan chose other actions.

    Args:
        model: a `LatentModel`.
        episode: from `play_with_plans`.
        count: decisions drawn, evenly spread over those whose whole plan was played.
    """
    tables = []
    for decision in evenly(len(episode.realised), count + 2)[1:-1] or [0]:
        state, plan = episode.states[decision], episode.plans[decision]
        dream = model.dynamics.imagine(state, plan[None]).features[0]
        predicted = to_frames(model.decode(torch.cat([state.features, dream])))
        real = to_frames(np.stack(episode.images[decision : decision + len(predicted)]))
        rows = {"predicted": predicted, "truth": real, "error": error_map(real, predicted[: len(real)])}
        note = f"predicted return {episode.predicted[decision]:.2f}"
        if decision < len(episode.realised):
            note += f", realised {episode.realised[decision]:.2f}"
        captions = ["now", *(f"+{k}" for k in range(1, len(predicted)))]
        tables.append(table(rows, captions, f"Plan at decision {decision}", note, None, divide_at=1))
    return stack(tables, gap=6)


class LogPlans(LogPictures):
    """Draws an agent's plans during an episode played without exploration; all under `planet/`.

    `elite_returns`: predicted returns of the elites by iteration; a search that still rises at its end needs more
    iterations. `predicted_return`: predicted and realised return of the next H decisions, and the difference, which is
    how far the planner exploits its model; as scalars `predicted`, `realised` and their difference `exploited`, means
    over the episode. `plan`: the images that a plan predicts, and those of the episode.

    The episode has the same seed every time, and is neither stored nor counted.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        decisions: most decisions of the episode; each is one search.
        seed: environment seed of the episode.
        plans: decisions drawn in `plan`.
    """

    def __init__(self, every: int = 5000, decisions: int = 100, seed: int = 1_000_003, plans: int = 2) -> None:
        super().__init__(every)
        if decisions < 1 or plans < 1:
            raise ValueError(f"decisions is {decisions} and plans {plans}: ask for at least 1 of each")
        self.decisions, self.seed, self.plans = decisions, seed, plans

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Checks that the stage has a planner.

        Raises:
            ValueError: if it has none.
        """
        if not hasattr(pl_module, "planner"):
            name = type(pl_module).__name__
            raise ValueError(f"LogPlans draws the plans of a planner, but {name} has none: use it with PlaNet")

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Plays an episode and draws its plans."""
        policy = stage.policy(explore=False)
        episode = play_with_plans(policy, stage.environment, self.seed, self.decisions)
        book.add("planet/elite_returns", elite_chart(episode), step)
        book.add("planet/predicted_return", predicted_return_chart(episode), step)
        book.add("planet/plan", plan_strips(stage.world_model, episode, self.plans), step)
        known = len(episode.realised)
        if known:
            means = {"predicted": np.mean(episode.predicted[:known]), "realised": np.mean(episode.realised)}
            means["exploited"] = np.mean(episode.gap)
            book.add_scalars({f"planet/{name}": float(value) for name, value in means.items()}, step)
