"""Pictures of what an actor imagines, and of how it compares with a real episode: `LogBehaviour`."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from wmlightning.dynamics.state import State
from wmlightning.environments.factory import EnvFactory
from wmlightning.interfaces import Carry
from wmlightning.pictures import films
from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import bar_chart, heat_map, line_chart, scatter_chart
from wmlightning.pictures.images import Picture, captioned, scale_for, stack, to_frames
from wmlightning.pictures.predictions import newest_windows
from wmlightning.stages.actor_critic import Dream, DreamReturns

BINS = 20
"""Bins of a histogram of actions in [-1, 1]."""
LINES = 6
"""Most action dimensions drawn as coloured lines; more are drawn as a heat map."""


@torch.no_grad()
def captioned_dreams(agent: Any, dream: Dream) -> list[Picture]:
    """Decodes a few dreams side by side, with predicted reward and the critic's value written below each frame.

    Args:
        agent: a `Dreamer`.
        dream: from its `actor_critic.imagine`.
    """
    features, critic = dream.states.features, agent.actor_critic.critic
    images = to_frames(agent.world_model.decode(features))
    reward = agent.world_model.reward(features).mean.tolist()
    value = None if critic is None else critic(features).float()[..., 0].tolist()
    scale = scale_for(images.shape[2], 256)

    def frame(row: int, t: int) -> Picture:
        text = f"step {t}  reward {reward[row][t]:.3g}"
        return captioned(images[row, t], text if value is None else f"{text}  value {value[row][t]:.3g}", scale)

    gap = np.full((images.shape[2] * scale + 22, 6, 3), 255, np.uint8)
    frames = []
    for t in range(images.shape[1]):
        parts = [part for row in range(len(images)) for part in (frame(row, t), gap)]
        frames.append(np.concatenate(parts[:-1], 1))
    return frames


def return_chart(predicted: DreamReturns) -> Picture:
    """Draws lambda-returns beside the critic's values: means over the steps of a dream, and each against the other.

    Args:
        predicted: from `ActorCritic.returns`, at every state of a dream but the last.
    """
    name = "return" if predicted.value is None else "lambda-return"
    lines = {name: predicted.returns.mean(0), "predicted reward": predicted.reward.mean(0)}
    points = {}
    if predicted.value is not None:
        lines = {"critic's value": predicted.value.mean(0)} | lines
        points = {"": (predicted.returns.flatten().tolist()[:2000], predicted.value.flatten().tolist()[:2000])}
    rows, horizon = predicted.returns.shape
    steps = list(range(horizon))
    curves = {name: (steps, line.tolist()) for name, line in lines.items()}
    title = f"Returns in dreams, mean of {rows} dreams"
    left = line_chart(curves, title, "step of the dream", "return or reward", (560, 300))
    if not points:
        return left
    right = scatter_chart(points, "", "lambda-return", "critic's value", (300, 300))
    return np.concatenate([left, right], 1)


def action_chart(actions: Float[Tensor, "rows action"], discrete: bool, title: str) -> Picture:
    """Draws how often each discrete action is chosen, or a histogram over [-1, 1] of each action dimension.

    Args:
        actions: one-hot, or in [-1, 1].
        discrete: whether they are one-hot.
        title: one line above.
    """
    size = actions.shape[-1]
    if discrete:
        return bar_chart(
            actions.mean(0).tolist(), [str(k) for k in range(size)], title, "action", "share of actions", (640, 240)
        )
    edges = np.linspace(-1, 1, BINS + 1)
    values = actions.float().cpu().numpy().clip(-1, 1)
    shares = np.stack([np.histogram(values[:, k], edges)[0] / len(values) for k in range(size)])
    if size > LINES:
        names = [str(k) for k in range(size)]
        return heat_map(
            shares,
            names,
            f"{title}, share in each bin",
            f"bin of {BINS}, from -1 to 1; rows: action dimensions",
            (640, 300),
        )
    centres = (0.5 * (edges[1:] + edges[:-1])).tolist()
    curves = {f"dimension {k}" if size > 1 else "": (centres, shares[k].tolist()) for k in range(size)}
    return line_chart(curves, title, "action", "share of actions in a bin", (640, 240))


class LogBehaviour(LogPictures):
    """Draws what a Dreamer imagines, and compares it with a real episode; all under `behaviour/`.

    `dreams`: dreams of the present policy as a GIF, with predicted reward and value written below. `returns`: the
    lambda-returns of dreams beside the critic's values. `entropy`: of the policy, by steps of the dream. `actions`:
    histograms of actions in dreams and in recorded episodes. `imagined_and_realised`: an episode played without
    exploration; the imagined return of the next decisions beside the realised one, and the critic's value beside the
    Monte-Carlo return. As scalars, means over that episode: `imagined`, `realised` and their difference `exploited`
    (how far the actor exploits its model), `value`, `monte_carlo` and their difference `overestimated`; and
    `dream_entropy`, at the end of dreams. All returns are discounted, and rewards are squashed where the learned ones
    are. Dreams and returns come from `ActorCritic.imagine` and `returns`, as in learning.

    Dreams start from the newest held-out episodes, or, where the run holds none out, from training episodes. The
    episode has the same seed every time, and is neither stored nor counted.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
        dreams: dreams in the GIF, at most 8.
        steps: length of those dreams.
        decisions: most decisions of the episode; 0 plays none.
        seed: environment seed of the episode.

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
        """Checks that the stage has an actor.

        Raises:
            ValueError: if it has none.
        """
        if not hasattr(pl_module, "actor_critic"):
            name = type(pl_module).__name__
            raise ValueError(f"LogBehaviour draws what an actor imagines, but {name} has none: use it with Dreamer")

    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Draws dreams and an episode."""
        horizon = stage.actor_critic.horizon
        windows = newest_windows(trainer, 1, max(horizon, 8))
        if isinstance(windows, str):
            if not self._warned:
                rank_zero_warn(f"LogBehaviour draws no dreams: {windows}")
            self._warned = True
        else:
            self._draw_dreams(stage, book, step, windows[1].to(stage.device))
        if self.decisions:
            played = play_with_states(stage.policy(explore=False), stage.environment, self.seed, self.decisions)
            comparison = compare_returns(stage, played, horizon)
            book.add("behaviour/imagined_and_realised", return_comparison_chart(comparison), step)
            book.add_scalars({f"behaviour/{name}": value for name, value in comparison.scalars.items()}, step)

    def _draw_dreams(self, stage: Any, book: PictureBook, step: int, batch: Any) -> None:
        model, actor_critic = stage.world_model, stage.actor_critic
        distribution = actor_critic.distribution
        posterior, _ = model.dynamics.observe(model.encode(batch.observation["image"]), batch.action, batch.is_first)
        cont = model.cont_head.target(batch.cont)
        few = actor_critic.imagine(model, posterior[: self.dreams, -1], cont[: self.dreams, -1], horizon=self.steps)
        book.add_gif("behaviour/dreams", captioned_dreams(stage, few), step, 10)

        dream = actor_critic.imagine(model, posterior.flatten(), cont.flatten())
        book.add("behaviour/returns", return_chart(actor_critic.returns(model, dream, include_start=True)), step)
        entropy = distribution.entropy(dream.policy).mean(0)
        curve = {"": (list(range(len(entropy))), entropy.tolist())}
        title = f"Entropy of the policy, mean of {len(dream.policy)} dreams"
        chart = line_chart(curve, title, "step of the dream", "entropy in nats", (640, 240))
        book.add("behaviour/entropy", chart, step)
        charts = [
            action_chart(actions, distribution.discrete, title)
            for title, actions in (
                ("Actions in dreams", dream.action.flatten(0, 1)),
                ("Actions in recorded episodes", batch.action[~batch.is_first]),
            )
            if len(actions)
        ]
        book.add("behaviour/actions", stack(charts, gap=6), step)
        book.add_scalars({"behaviour/dream_entropy": float(entropy[-1])}, step)


@dataclass
class PlayedEpisode:
    """An episode of D decisions, or its beginning, with the filtered state at each of them.

    Args:
        states: the posterior state that the policy acted on, (1) each.
        rewards: the reward of each decision.
        terminated: whether the episode ended in a terminal state, after which there is no reward.
    """

    states: list[State] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


class _StateRecorder:
    """A policy that acts like another one and records its filtered states."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.states: list[State] = []

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        return self.policy.initial(n, seeds)

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        action, carry = self.policy(observation, is_first, carry)
        # A copy, as tensors made in inference mode cannot take part in a graph.
        deter, stoch = (carry[name].clone() for name in ("deter", "stoch"))
        self.states.append(State(deter, stoch, stoch[:, :0]))
        return action, carry


def play_with_states(policy: Any, environment: EnvFactory, seed: int, decisions: int) -> PlayedEpisode:
    """Plays one episode, or its beginning, and records the policy's filtered states.

    Args:
        policy: an `ActorPolicy`, or another whose carry holds `deter` and `stoch`.
        environment: the environment, stepped in this process.
        seed: environment seed.
        decisions: most decisions made.
    """
    recorder = _StateRecorder(policy)
    episode = films.play(recorder, environment, seed, decisions)
    # The policy may have acted once more than the environment was stepped.
    return PlayedEpisode(recorder.states[: episode.decisions], episode.rewards[1:], episode.terminated)


@dataclass(frozen=True)
class ReturnComparison:
    """Imagined and realised returns of an episode, at each of its D decisions.

    Args:
        imagined: discounted return of the next H decisions, imagined from the filtered state, (D).
        realised: the same return of the real episode; NaN where it was cut off within H decisions, (D).
        value: the critic's value, (D), or None without a critic.
        monte_carlo: discounted sum of all rewards from the state's own arrival on, which is what the critic estimates;
            an episode without a terminal state is continued by the value of its last state, (D).
        horizon: H.
    """

    imagined: Float[np.ndarray, "decisions"]
    realised: Float[np.ndarray, "decisions"]
    value: Float[np.ndarray, "decisions"] | None
    monte_carlo: Float[np.ndarray, "decisions"] | None
    horizon: int

    @property
    def scalars(self) -> dict[str, float]:
        """Means over the decisions: `imagined`, `realised`, `exploited` (their difference), `value`, `monte_carlo`,
        `overestimated` (their difference). Those that cannot be computed are left out."""
        known = np.isfinite(self.realised)
        numbers = {}
        if known.any():
            numbers = {"imagined": self.imagined[known].mean(), "realised": self.realised[known].mean()}
            numbers["exploited"] = numbers["imagined"] - numbers["realised"]
        if self.value is not None and self.monte_carlo is not None:
            numbers |= {"value": self.value.mean(), "monte_carlo": self.monte_carlo.mean()}
            numbers["overestimated"] = numbers["value"] - numbers["monte_carlo"]
        return {name: float(number) for name, number in numbers.items()}


@torch.no_grad()
def compare_returns(agent: Any, played: PlayedEpisode, horizon: int) -> ReturnComparison:
    """Compares the returns of an episode with those that the agent imagines from each of its states.

        decision      0     1     2             state[t] is filtered from images up to image[t] and includes reward[t],
        state        s0    s1    s2             the reward for arriving there; decision t earns reward[t+1]
        reward       r1    r2    r3
        imagined[0]       r1 + g r2 + g^2 r3 + ...  in a dream from s0        H terms, by the policy's mode
        value[1]          critic(s1)  against  r1 + g r2 + g^2 r3 + ...       to the end

    Where a world model learns squashed rewards, those of the episode are squashed too. g is the discount of a step
    after which the episode goes on; in dreams the discount times the predicted `cont` takes its place.

    Args:
        agent: a `Dreamer`.
        played: one of its episodes, of at least one decision.
        horizon: decisions imagined, H.
    """
    model, actor_critic = agent.world_model, agent.actor_critic
    start = State(*(torch.cat([getattr(one, name) for one in played.states]) for name in ("deter", "stoch", "params")))
    cont = torch.ones(len(played.states), device=start.stoch.device)
    # Only states at which an action is taken have a term: one more action gives state H its own.
    dream = actor_critic.imagine(model, start, cont, horizon=horizon + 1, sample=False)
    predicted = actor_critic.returns(model, dream, include_start=False)
    imagined = _numpy((predicted.weight * predicted.reward).sum(1))

    rewards = model.reward_head.target(torch.tensor(played.rewards)).double().numpy()
    gamma = actor_critic.discount * model.cont_head.label
    realised = _realised(rewards, gamma, horizon, played.terminated)
    if actor_critic.critic is None:
        return ReturnComparison(imagined, realised, None, None, horizon)
    value = _numpy(actor_critic.critic(start.features).float()[..., 0])
    # The reward for arriving at state t is that of decision t - 1; the first state has none.
    arrival = np.concatenate([[0.0], rewards[:-1]])
    monte_carlo = np.empty_like(arrival)
    monte_carlo[-1] = arrival[-1] + gamma * rewards[-1] if played.terminated else value[-1]
    for t in range(len(arrival) - 2, -1, -1):
        monte_carlo[t] = arrival[t] + gamma * monte_carlo[t + 1]
    return ReturnComparison(imagined, realised, value, monte_carlo, horizon)


def _realised(
    rewards: Float[np.ndarray, "decisions"], gamma: float, horizon: int, terminated: bool
) -> Float[np.ndarray, "decisions"]:
    """Returns discounted sums of the next H rewards, which are zero after a terminal state and NaN after a cut."""
    padded = np.concatenate([rewards, np.full(horizon, 0.0 if terminated else np.nan)])
    weights = gamma ** np.arange(horizon)
    return np.array([padded[t : t + horizon] @ weights for t in range(len(rewards))])


def _numpy(values: Tensor) -> Float[np.ndarray, "decisions"]:
    return values.double().cpu().numpy()


def return_comparison_chart(comparison: ReturnComparison) -> Picture:
    """Draws imagined and realised returns over an episode and against each other; below, values and Monte-Carlo
    returns."""
    scalars = comparison.scalars
    title = f"Return of the next {comparison.horizon} decisions, imagined and realised"
    if "exploited" in scalars:
        title += f": mean difference {scalars['exploited']:+.3g}"
    rows = [_curves_and_scatter({"imagined": comparison.imagined, "realised": comparison.realised}, title)]
    if comparison.value is not None and comparison.monte_carlo is not None:
        title = f"Critic's value and Monte-Carlo return: mean difference {scalars['overestimated']:+.3g}"
        lines = {"critic's value": comparison.value, "Monte-Carlo return": comparison.monte_carlo}
        rows.append(_curves_and_scatter(lines, title))
    return stack(rows, gap=8)


def _curves_and_scatter(lines: dict[str, np.ndarray], title: str) -> Picture:
    (predicted_name, predicted), (true_name, true) = lines.items()
    steps = list(range(len(predicted)))
    curves = {name: (steps, values.tolist()) for name, values in lines.items()}
    left = line_chart(curves, title, "decision", "discounted return", (600, 280))
    right = scatter_chart({"": (true.tolist(), predicted.tolist())}, "", true_name, predicted_name, (280, 280))
    return np.concatenate([left, right], 1)
