"""What an actor dreams, and what its critic makes of it: `LogBehaviour`."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from wmlightning.callbacks.charts import bar_chart, heat_map, line_chart, scatter_chart
from wmlightning.callbacks.images import Picture, captioned, scale_for, stack, to_frames
from wmlightning.callbacks.pictures import LogPictures, PictureBook
from wmlightning.callbacks.predictions import newest_windows
from wmlightning.callbacks.reckoning import play, reckon, reckoning_chart
from wmlightning.dynamics.state import State, stack_states
from wmlightning.objectives.returns import lambda_return
from wmlightning.stages.actor_critic import Dream

BINS = 20
"""Bins of a histogram of actions in [-1, 1]."""
LINES = 6
"""Action dimensions that are told apart by colours; more are drawn as a map."""


def dream_on(agent: Any, start: State, cont: Float[Tensor, "rows"], steps: int) -> Dream:
    """Dreams as `ActorCritic.imagine` does, for as long as is asked for, without a graph.

    Args:
        agent: a `Dreamer`.
        start: states to begin at, (N).
        cont: whether the episode goes on from there, in the units of the world model's `cont`, (N).
        steps: actions in the dream.
    """
    teacher, states, actions, policies = agent.actor_critic, [start], [], []
    with torch.no_grad():
        for _ in range(steps):
            policies.append(teacher.actor(states[-1].features).float())
            actions.append(teacher.distribution.sample(policies[-1]))
            states.append(agent.world_model.dynamics.imagine_step(states[-1], actions[-1]))
    return Dream(stack_states(states, 1), torch.stack(actions, 1), torch.stack(policies, 1), cont)


def judged(agent: Any, dream: Dream) -> dict[str, Tensor]:
    """Reward and critic's value at every state of a dream, each (N, H + 1), and the returns made of them, (N, H).

    `returns` are those that the critic learns towards, by the target critic's values. Without a critic `value` is
    missing, and returns are what the dream still pays.

    Args:
        agent: a `Dreamer`.
        dream: one of its dreams.
    """
    model, teacher, features = agent.world_model, agent.actor_critic, dream.states.features
    reward, cont = model.reward(features).mean, model.cont(features).mean
    # Of the start it is known whether the episode goes on.
    discount = teacher.discount * torch.cat([dream.cont[:, None].to(cont), cont[:, 1:]], 1)[:, :-1]
    if teacher.critic is None:
        value = torch.cat([torch.zeros_like(reward[:, :-1]), reward[:, -1:]], 1)
        return {"reward": reward, "returns": lambda_return(reward[:, :-1], value, discount, 1.0)}
    value = teacher.target.of(teacher.critic)(features).float()[..., 0]
    returns = lambda_return(reward[:, :-1], value, discount, teacher.lambda_)
    return {"reward": reward, "value": teacher.critic(features).float()[..., 0], "returns": returns}


def written_frames(agent: Any, dream: Dream, found: dict[str, Tensor]) -> list[Picture]:
    """Dreams side by side, decoded, with the predicted reward and the critic's value written below each.

    Args:
        agent: a `Dreamer`.
        dream: a few dreams.
        found: what `judged` says of them.
    """
    images = to_frames(agent.world_model.decode(dream.states.features))
    reward, value = found["reward"].tolist(), found["value"].tolist() if "value" in found else None
    scale = scale_for(images.shape[2], 256)

    def one(row: int, t: int) -> Picture:
        text = f"+{t}  reward {reward[row][t]:.3g}"
        return captioned(images[row, t], text if value is None else f"{text}  value {value[row][t]:.3g}", scale)

    gap = np.full((images.shape[2] * scale + 22, 6, 3), 255, np.uint8)
    frames = []
    for t in range(images.shape[1]):
        parts = [part for row in range(len(images)) for part in (one(row, t), gap)]
        frames.append(np.concatenate(parts[:-1], 1))
    return frames


def return_chart(found: dict[str, Tensor]) -> Picture:
    """Lambda-return beside the critic's value: means over the steps of a dream, and each against the other.

    Args:
        found: from `judged`.
    """
    returns = found["returns"]
    lines = {"lambda-return": returns.mean(0), "reward": found["reward"][:, :-1].mean(0)}
    points = {}
    if "value" in found:
        value = found["value"][:, :-1]
        lines = {"critic": value.mean(0)} | lines
        points = {"": (returns.flatten().tolist()[:2000], value.flatten().tolist()[:2000])}
    steps = list(range(returns.shape[1]))
    curves = {name: (steps, line.tolist()) for name, line in lines.items()}
    left = line_chart(curves, f"What dreams pay, over {len(returns)} of them", "step of the dream", "", (560, 300))
    if not points:
        return left
    right = scatter_chart(points, "", "lambda-return", "critic", (300, 300))
    return np.concatenate([left, right], 1)


def action_chart(actions: Float[Tensor, "rows action"], discrete: bool, title: str) -> Picture:
    """How often each action is chosen, or how the numbers of each dimension are spread over [-1, 1].

    Args:
        actions: one-hot, or in [-1, 1].
        discrete: which of the two.
        title: one line above.
    """
    size = actions.shape[-1]
    if discrete:
        return bar_chart(actions.mean(0).tolist(), [str(k) for k in range(size)], title, "action", "share", (640, 240))
    edges = np.linspace(-1, 1, BINS + 1)
    values = actions.float().cpu().numpy().clip(-1, 1)
    shares = np.stack([np.histogram(values[:, k], edges)[0] / len(values) for k in range(size)])
    if size > LINES:
        names = [str(k) for k in range(size)]
        return heat_map(shares, names, title, f"bin of {BINS}, from -1 to 1, a row an action dimension", (640, 300))
    centres = (0.5 * (edges[1:] + edges[:-1])).tolist()
    curves = {f"dimension {k}" if size > 1 else "": (centres, shares[k].tolist()) for k in range(size)}
    return line_chart(curves, title, "action", "share of a bin", (640, 240))


class LogBehaviour(LogPictures):
    """Shows what a Dreamer dreams of doing, and how far that is true; all under `behaviour/`.

    `dreams`: dreams of the present policy as a GIF, with predicted reward and value written below. `returns`: the
    lambda-returns of dreams beside the critic. `entropy`: of the policy, by steps of the dream. `actions`: histograms,
    dreamt and recorded. `reckoning`: an episode played without exploration; the imagined return of the next decisions
    beside what they paid, and the critic's value beside the Monte-Carlo return. As scalars, means over that episode:
    `imagined`, `realised` and their difference `exploited` (how far the actor exploits its model), `value`,
    `monte_carlo` and their difference `overestimated`; and `dream_entropy`, at the end of dreams. All returns are
    discounted, and squashed where the rewards that are learnt are.

    Dreams begin at the newest episodes that are held out, or, where the run holds none out, trained on. The episode is
    always the same one and counts nowhere.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        dreams: dreams in the GIF, at most 8.
        steps: length of those.
        decisions: most decisions played; 0 plays nothing.
        seed: of the episode.

    Raises:
        ValueError: for a number out of range; in training, if the stage has no actor.
    """

    def __init__(
        self, every: int = 5000, dreams: int = 3, steps: int = 45, decisions: int = 500, seed: int = 1_000_003
    ) -> None:
        super().__init__(every)
        if not (1 <= dreams <= 8 and steps >= 1 and decisions >= 0):
            raise ValueError(
                f"dreams is {dreams}, steps {steps}, decisions {decisions}: ask for 1 to 8, at least 1 and at least 0"
            )
        self.dreams, self.steps, self.decisions, self.seed = dreams, steps, decisions, seed
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuses a stage that has learnt nothing in dreams.

        Raises:
            ValueError: saying which stage does.
        """
        if not hasattr(pl_module, "actor_critic"):
            name = type(pl_module).__name__
            raise ValueError(f"LogBehaviour shows what an actor dreams, but {name} has none: use it with Dreamer")

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Dreams, plays and draws."""
        horizon = stage.actor_critic.horizon
        found = newest_windows(trainer, 1, max(horizon, 8))
        if isinstance(found, str):
            if not self._warned:
                rank_zero_warn(f"LogBehaviour draws no dreams: {found}")
            self._warned = True
        else:
            self._draw_dreams(stage, book, step, found[1].to(stage.device))
        if self.decisions:
            played = play(stage.policy(explore=False), stage.environment, self.seed, self.decisions)
            reckoning = reckon(stage, played, horizon)
            book.add("behaviour/reckoning", reckoning_chart(reckoning), step)
            book.add_scalars({f"behaviour/{name}": value for name, value in reckoning.scalars.items()}, step)

    def _draw_dreams(self, stage: Any, book: PictureBook, step: int, batch: Any) -> None:
        model, distribution = stage.world_model, stage.actor_critic.distribution
        posterior, _ = model.dynamics.observe(model.encode(batch.observation["image"]), batch.action, batch.is_first)
        cont = model.cont_head.target(batch.cont)
        few = dream_on(stage, posterior[: self.dreams, -1], cont[: self.dreams, -1], self.steps)
        book.add_gif("behaviour/dreams", written_frames(stage, few, judged(stage, few)), step, 10)

        dream = dream_on(stage, posterior.flatten(), cont.flatten(), stage.actor_critic.horizon)
        book.add("behaviour/returns", return_chart(judged(stage, dream)), step)
        entropy = distribution.entropy(dream.policy).mean(0)
        steps = list(range(len(entropy)))
        title = "Entropy of the policy in dreams"
        chart = line_chart({"": (steps, entropy.tolist())}, title, "step of the dream", "nats", (640, 240))
        book.add("behaviour/entropy", chart, step)
        recorded = batch.action[~batch.is_first]
        charts = [
            action_chart(actions, distribution.discrete, f"{name} actions")
            for name, actions in (("Dreamt", dream.action.flatten(0, 1)), ("Recorded", recorded))
            if len(actions)
        ]
        book.add("behaviour/actions", stack(charts, gap=6), step)
        book.add_scalars({"behaviour/dream_entropy": float(entropy[-1])}, step)
