"""What an actor dreams, and what its critic makes of it: `LogBehaviour`."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from wmlightning.dynamics.state import State, stack_states
from wmlightning.environments.factory import EnvFactory
from wmlightning.interfaces import Carry
from wmlightning.objectives.returns import lambda_return
from wmlightning.pictures import films
from wmlightning.pictures.book import LogPictures, PictureBook
from wmlightning.pictures.charts import bar_chart, heat_map, line_chart, scatter_chart
from wmlightning.pictures.images import Picture, captioned, scale_for, stack, to_frames
from wmlightning.pictures.predictions import newest_windows
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


def predicted_returns(agent: Any, dream: Dream) -> dict[str, Tensor]:
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
        found: what `predicted_returns` says of them.
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
        found: from `predicted_returns`.
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
            played = play_with_states(stage.policy(explore=False), stage.environment, self.seed, self.decisions)
            reckoning = compare_returns(stage, played, horizon)
            book.add("behaviour/reckoning", return_comparison_chart(reckoning), step)
            book.add_scalars({f"behaviour/{name}": value for name, value in reckoning.scalars.items()}, step)

    def _draw_dreams(self, stage: Any, book: PictureBook, step: int, batch: Any) -> None:
        model, distribution = stage.world_model, stage.actor_critic.distribution
        posterior, _ = model.dynamics.observe(model.encode(batch.observation["image"]), batch.action, batch.is_first)
        cont = model.cont_head.target(batch.cont)
        few = dream_on(stage, posterior[: self.dreams, -1], cont[: self.dreams, -1], self.steps)
        book.add_gif("behaviour/dreams", written_frames(stage, few, predicted_returns(stage, few)), step, 10)

        dream = dream_on(stage, posterior.flatten(), cont.flatten(), stage.actor_critic.horizon)
        book.add("behaviour/returns", return_chart(predicted_returns(stage, dream)), step)
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


@dataclass
class PlayedEpisode:
    """One episode of D decisions, or its beginning, and what was believed at each of them.

    Args:
        beliefs: the posterior that was acted on, (1) each.
        rewards: what each decision paid.
        terminated: whether it ended by itself, so that nothing can follow.
    """

    beliefs: list[State] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


class _StateRecorder:
    """Stands in for a policy and takes down what it believes."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.beliefs: list[State] = []

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        return self.policy.initial(n, seeds)

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        action, carry = self.policy(observation, is_first, carry)
        # A copy: what a policy made in inference mode cannot be learnt from, nor dreamt from with a graph.
        deter, stoch = (carry[name].clone() for name in ("deter", "stoch"))
        self.beliefs.append(State(deter, stoch, stoch[:, :0]))
        return action, carry


def play_with_states(policy: Any, environment: EnvFactory, seed: int, decisions: int) -> PlayedEpisode:
    """Plays one episode, or its beginning, and takes down what the policy believes.

    Args:
        policy: an `ActorPolicy`, or another whose carry holds `deter` and `stoch`.
        environment: where; played in this process.
        seed: environment seed.
        decisions: most of them that are played.
    """
    recorder = _StateRecorder(policy)
    seen = films.play(recorder, environment, seed, decisions)
    # A last belief may have been acted on and the action never executed.
    return PlayedEpisode(recorder.beliefs[: seen.decisions], seen.rewards[1:], seen.terminated)


@dataclass(frozen=True)
class ReturnComparison:
    """What was imagined of an episode and what came of it, at each of its D decisions.

    Args:
        imagined: discounted return of the next H decisions, dreamt from the belief, (D).
        realised: what they paid; NaN where the episode was cut off before they were all played, (D).
        value: the critic's, (D), or None without a critic.
        monte_carlo: discounted sum of all that was paid from the belief's own arrival on, which is what the critic is
            asked for; an episode that did not end by itself goes on with the value of its last belief, (D).
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
        `overestimated` (theirs); without those that nothing is known of."""
        known, numbers = np.isfinite(self.realised), {}
        if known.any():
            numbers = {"imagined": self.imagined[known].mean(), "realised": self.realised[known].mean()}
            numbers["exploited"] = numbers["imagined"] - numbers["realised"]
        if self.value is not None and self.monte_carlo is not None:
            numbers |= {"value": self.value.mean(), "monte_carlo": self.monte_carlo.mean()}
            numbers["overestimated"] = numbers["value"] - numbers["monte_carlo"]
        return {name: float(number) for name, number in numbers.items()}


def compare_returns(agent: Any, played: PlayedEpisode, horizon: int) -> ReturnComparison:
    """Compares an episode with what the agent imagines from each of its beliefs.

        decision      0     1     2             belief[t] has seen image[t] and includes reward[t], for arriving there;
        belief       s0    s1    s2             decision t pays reward[t+1]
        pays         r1    r2    r3
        imagined[0]       dreamt r1 + g r2 + g^2 r3 + ...                     H terms, by the likeliest actions
        value[1]          critic(s1)  against  r1 + g r2 + g^2 r3 + ...       to the end

    Where a world model learns squashed rewards, what the episode paid is squashed too. g is the discount of a step that
    goes on; in dreams the predicted `cont` stands in for it.

    Args:
        agent: a `Dreamer`.
        played: one of its episodes, of at least one decision.
        horizon: decisions dreamt, H.
    """
    model, teacher = agent.world_model, agent.actor_critic
    start = State(*(torch.cat([getattr(one, name) for one in played.beliefs]) for name in ("deter", "stoch", "params")))
    gamma = teacher.discount * model.cont_head.label
    state, imagined, weight = start, 0.0, 1.0
    for _ in range(horizon):
        action = teacher.distribution.mode(teacher.actor(state.features).float())
        state = model.dynamics.imagine_step(state, action)
        imagined = imagined + weight * model.reward(state.features).mean
        weight = weight * teacher.discount * model.cont(state.features).mean

    paid = model.reward_head.target(torch.tensor(played.rewards)).double().numpy()
    realised = _realised(paid, gamma, horizon, played.terminated)
    if teacher.critic is None:
        return ReturnComparison(_numpy(imagined), realised, None, None, horizon)
    value = _numpy(teacher.critic(start.features).float()[..., 0])
    # The arrival at belief t was paid by decision t - 1; nobody paid for the first one.
    arrival = np.concatenate([[0.0], paid[:-1]])
    monte_carlo = np.empty_like(arrival)
    monte_carlo[-1] = arrival[-1] + gamma * paid[-1] if played.terminated else value[-1]
    for t in range(len(arrival) - 2, -1, -1):
        monte_carlo[t] = arrival[t] + gamma * monte_carlo[t + 1]
    return ReturnComparison(_numpy(imagined), realised, value, monte_carlo, horizon)


def _realised(
    paid: Float[np.ndarray, "decisions"], gamma: float, horizon: int, terminated: bool
) -> Float[np.ndarray, "decisions"]:
    """Discounted sums of the next H payments; after an end nothing is paid, after a cut nothing is known."""
    after = np.concatenate([paid, np.full(horizon, 0.0 if terminated else np.nan)])
    weights = gamma ** np.arange(horizon)
    return np.array([after[t : t + horizon] @ weights for t in range(len(paid))])


def _numpy(values: Any) -> Float[np.ndarray, "decisions"]:
    assert isinstance(values, Tensor)
    return values.double().cpu().numpy()


def return_comparison_chart(reckoning: ReturnComparison) -> Picture:
    """Imagined and realised returns over the episode and against each other; below, values and Monte-Carlo returns."""
    h, found = reckoning.horizon, reckoning.scalars
    title = f"Discounted return of the next {h} decisions"
    if "exploited" in found:
        title += f": imagined - realised is {found['exploited']:+.3g} on average"
    rows = [_pair({"imagined": reckoning.imagined, "realised": reckoning.realised}, title)]
    if reckoning.value is not None and reckoning.monte_carlo is not None:
        title = f"Value and Monte-Carlo return: the difference is {found['overestimated']:+.3g} on average"
        rows.append(_pair({"value": reckoning.value, "Monte-Carlo": reckoning.monte_carlo}, title))
    return stack(rows, gap=8)


def _pair(lines: dict[str, np.ndarray], title: str) -> Picture:
    (guess, guessed), (truth, true) = lines.items()
    steps = list(range(len(guessed)))
    curves = {name: (steps, values.tolist()) for name, values in lines.items()}
    left = line_chart(curves, title, "decision", "return", (560, 280))
    right = scatter_chart({"": (true.tolist(), guessed.tolist())}, "", truth, guess, (280, 280))
    return np.concatenate([left, right], 1)
