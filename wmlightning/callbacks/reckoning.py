"""An episode played by an actor, beside what was imagined of it: dreamt returns and the critic's values."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wmlightning.callbacks import films
from wmlightning.callbacks.charts import line_chart, scatter_chart
from wmlightning.callbacks.images import Picture, stack
from wmlightning.dynamics.state import State
from wmlightning.environments.factory import EnvFactory
from wmlightning.interfaces import Carry


@dataclass
class Played:
    """One episode of D decisions, or its beginning, and what was believed at each of them.

    Args:
        beliefs: the posterior that was acted on, (1) each.
        rewards: what each decision paid.
        terminated: whether it ended by itself, so that nothing can follow.
    """

    beliefs: list[State] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


class _Witness:
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


def play(policy: Any, environment: EnvFactory, seed: int, decisions: int) -> Played:
    """Plays one episode, or its beginning, and takes down what the policy believes.

    Args:
        policy: an `ActorPolicy`, or another whose carry holds `deter` and `stoch`.
        environment: where; played in this process.
        seed: environment seed.
        decisions: most of them that are played.
    """
    witness = _Witness(policy)
    seen = films.play(witness, environment, seed, decisions)
    # A last belief may have been acted on and the action never executed.
    return Played(witness.beliefs[: seen.decisions], seen.rewards[1:], seen.terminated)


@dataclass(frozen=True)
class Reckoning:
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


def reckon(agent: Any, played: Played, horizon: int) -> Reckoning:
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
        return Reckoning(_numpy(imagined), realised, None, None, horizon)
    value = _numpy(teacher.critic(start.features).float()[..., 0])
    # The arrival at belief t was paid by decision t - 1; nobody paid for the first one.
    arrival = np.concatenate([[0.0], paid[:-1]])
    monte_carlo = np.empty_like(arrival)
    monte_carlo[-1] = arrival[-1] + gamma * paid[-1] if played.terminated else value[-1]
    for t in range(len(arrival) - 2, -1, -1):
        monte_carlo[t] = arrival[t] + gamma * monte_carlo[t + 1]
    return Reckoning(_numpy(imagined), realised, value, monte_carlo, horizon)


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


def reckoning_chart(reckoning: Reckoning) -> Picture:
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
