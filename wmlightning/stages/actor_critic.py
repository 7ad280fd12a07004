"""The actor and the critic of Dreamer: they live in dreams of a world model, and learn from them how to act."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wmlightning.distributions.bounded import ActionDistribution
from wmlightning.dynamics.state import State, stack_states
from wmlightning.networks.activations import Activation
from wmlightning.networks.mlp import MLP
from wmlightning.networks.target import TargetNetwork, frozen
from wmlightning.objectives.actor import ActorLoss
from wmlightning.objectives.returns import discount_weights, lambda_return
from wmlightning.stages.optimization import JointStage, parameter_group
from wmlightning.validation import above, at_least, below

Noise = tuple[Float[Tensor, "rows horizon action"], Float[Tensor, "rows horizon latent"]]
"""Standard normal numbers for the actions and for the states that are dreamt."""


@dataclass
class Dream:
    """What an actor does in a world model, from N starts for H steps.

        index         0      1     ...    H-1     H          (unlike in a Batch, an action is
        states       start   s1    ...    sH-1    sH          taken AT the state of its index)
        action        a0     a1    ...    aH-1
        policy        p0     p1    ...    pH-1

    Args:
        states: the start and what was dreamt, (N, H + 1); their `params` are left out.
        action: what was done, (N, H, A).
        policy: the actor's numbers there, which `ActionDistribution` reads, with their gradient, (N, H, P).
        cont: whether the episode truly goes on from the start, in the units of the world model's `cont`, (N).
    """

    states: State
    action: Tensor
    policy: Tensor
    cont: Tensor


@dataclass
class BehaviourOutput:
    """What an actor-critic makes of a dream.

    Args:
        actor_loss: what the actor minimises.
        critic_loss: what the critic minimises; 0 where there is none.
        metrics: named numbers without gradient.
    """

    actor_loss: Tensor
    critic_loss: Tensor
    metrics: dict[str, Tensor]


class ActorCritic(JointStage):
    """An actor that is taught by dreams, and a critic that says what comes after they end.

        dream     a[t] ~ actor(sg(s[t])),   s[t+1] ~ dynamics(s[t], a[t])                    t = 0 .. H-1
        heads     r[t], c[t], v[t] read off s[t];   d[t] = discount * c[t];   v of the target critic
        return    G[t] = r[t] + d[t] ((1 - lambda) v[t+1] + lambda G[t+1]),   G of the last state is its v
        weight    w = 1, then the product of all d before t                   what is dreamt after an end counts nothing
        actor     loss = mean of w[t] (objective(ln pi(a[t] | s[t]), G[t], v[t]) - entropy * H[pi(. | s[t])])
        critic    loss = mean of w[t] (v(sg(s[t])) - sg(G[t]))^2 / 2

    The start s[0] is a state that was really visited: with `include_start` (Dreamer V2) it has a term of its own, in
    which c[0] is the true flag; without it (V1) the first term is that of s[1], with a weight of 1, and dreams from the
    end of an episode count nothing. Gradients never run backwards through what the actor reads.

        index                    0      1    ...    H-1     H
        terms of V2              w0     w1   ...    wH-1          H of them
        terms of V1                     w1   ...    wH-1          H - 1
        terms of V2's code       w0     w1   ...                  `shifted`: G[t+1] - v[t] at w[t], H - 1 for the actor

    It learns inside a `Dreamer`, which brings the world model, whose weights must rest meanwhile (`frozen`). Logged:
    `actor/loss`, `actor/entropy` (nats, at the starts), `critic/loss`, `critic/value`, and what is dreamt, weighted as
    it counts: `dream/return`, `dream/reward`, `dream/cont`.

    Args:
        actor: how the actor's numbers become actions: TanhNormal, TruncatedNormal or OneHot.
        objective: how returns teach the actor: DynamicsBackprop, Reinforce or Mixed.
        actor_layers: hidden layers of the actor.
        actor_units: their width.
        critic_layers: hidden layers of the critic.
        critic_units: their width.
        has_critic: false for returns that end with the dream: the plain sum of its rewards, that of the last state
            too. `discount`, `lambda_` and what is said of the critic then play no part.
        target: what gives the values that returns are made of; null for the critic itself.
        horizon: actions in a dream, H.
        discount: what a reward is worth one step later, above 0 and at most 1; 1 where the cont head holds it.
        lambda_: trust in longer returns, in [0, 1].
        entropy: weight of the policy's entropy.
        include_start: whether the start has a term of its own.
        shifted: the actor's term t is about G[t+1], with the target critic's value as its baseline.
        actor_learning_rate: Adam's.
        critic_learning_rate: Adam's.
        epsilon: Adam's.
        max_norm: the gradients of actor and critic are each scaled down to this norm where they are longer.
        decay: share of every weight that is lost at an update.
        activation: "elu" or "relu".
        action_size: numbers in an action, and
        feature_size: width of the world model's features; null for those of the world model it is put beside.
        seed: names the stream of learning noise; inside an agent the agent's holds.

    Raises:
        ValueError: if a number is out of its range, the horizon leaves no term, or the objective needs a critic and
            there is none.

    Source: Hafner et al. 2020 (Dreamer V1), section 3, equations 4 to 8; 2021 (V2), equations 4 to 6. The paper's
    baseline is the critic; V2's released code shifts the actor's terms, and takes the target critic.
    """

    def __init__(
        self,
        actor: ActionDistribution,
        objective: ActorLoss,
        actor_layers: int = 4,
        actor_units: int = 400,
        critic_layers: int = 4,
        critic_units: int = 400,
        has_critic: bool = True,
        target: TargetNetwork | None = None,
        horizon: int = 15,
        discount: float = 0.99,
        lambda_: float = 0.95,
        entropy: float = 0.0,
        include_start: bool = True,
        shifted: bool = False,
        actor_learning_rate: float = 8e-5,
        critic_learning_rate: float = 8e-5,
        epsilon: float = 1e-5,
        max_norm: float = 100.0,
        decay: float = 0.0,
        activation: Activation = "elu",
        action_size: int | None = None,
        feature_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        at_least(0, entropy=entropy, decay=decay, actor_layers=actor_layers, critic_layers=critic_layers)
        at_least(1, actor_units=actor_units, critic_units=critic_units)
        above(0, actor_learning_rate=actor_learning_rate, critic_learning_rate=critic_learning_rate)
        above(0, epsilon=epsilon, max_norm=max_norm)
        below(1, decay=decay)
        self.first, self.shifted, self.horizon = int(not include_start), shifted, horizon
        if horizon - self.first - shifted < 1:
            least = 1 + self.first + shifted
            raise ValueError(f"horizon is {horizon}, which leaves no step to learn from: give at least {least}")
        if not 0 < discount <= 1:
            raise ValueError(f"discount is {discount} but must be above 0 and at most 1")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ is {lambda_} but must be in [0, 1]: 1 trusts long returns, 0 the critic")
        if objective.needs_value and not has_critic:
            raise ValueError(f"{type(objective).__name__} compares with a critic: set has_critic, or DynamicsBackprop")
        self.distribution, self.objective = actor, objective
        self.discount, self.lambda_, self.entropy = discount if has_critic else 1.0, lambda_, entropy
        self.learning_rates = actor_learning_rate, critic_learning_rate
        self.epsilon, self.max_norm, self.decay = epsilon, max_norm, decay
        self.target = target or TargetNetwork(1, 1.0)
        self.sizes: tuple[int, int] | None = None
        self.has_critic = has_critic
        self.activation: Activation = activation
        self._actor_layers, self._critic_layers = (actor_layers, actor_units), (critic_layers, critic_units)
        if action_size is not None and feature_size is not None:
            self.build(action_size, feature_size)

    def build(self, action_size: int, feature_size: int) -> None:
        """Makes the networks; where they are there already, makes sure that they fit.

        Raises:
            ValueError: if they are there, for other sizes.
        """
        if self.sizes is None:
            kind, params = self.activation, self.distribution.param_size(action_size)
            self.actor = MLP(feature_size, params, *self._actor_layers, activation=kind)
            self.critic = MLP(feature_size, 1, *self._critic_layers, activation=kind) if self.has_critic else None
            if self.critic is not None:
                self.target.attach(self.critic)
            self.sizes = action_size, feature_size
            # So that it can be built again without a world model.
            vars(self)["_arguments"].update(action_size=action_size, feature_size=feature_size)
        if self.sizes != (action_size, feature_size):
            raise ValueError(
                f"the actor-critic was made for action_size and feature_size {self.sizes} but the world model has "
                f"{(action_size, feature_size)}: give it these, or neither"
            )

    def imagine(self, world_model: Any, start: State, cont: Float[Tensor, "rows"], noise: Noise | None = None) -> Dream:
        """Dreams H steps from every start, acting by the present policy.

        The graph through the dynamics is kept where the objective needs it; otherwise nothing is, and the actor is
        evaluated once more on all states together.

        Args:
            world_model: a `LatentModel`, its weights frozen.
            start: states that were really visited, (N), detached.
            cont: whether the episode truly goes on from there, 1 or 0, or its label, (N).
            noise: for the actions and the dynamics; None draws it from torch's generator.
        """
        through = self.objective.through_dynamics
        states, actions, policies = [_bare(start)], [], []
        with contextlib.nullcontext() if through else _at_rest(self.actor):
            for t in range(self.horizon):
                for_action, for_state = (None, None) if noise is None else (noise[0][:, t], noise[1][:, t])
                policies.append(self.actor(states[-1].features.detach()).float())
                actions.append(self.distribution.sample(policies[-1], for_action))
                there = world_model.dynamics.imagine_step(states[-1], actions[-1], noise=for_state)
                states.append(_bare(there))
        dreamt = stack_states(states, 1)
        policy = torch.stack(policies, 1) if through else self.actor(dreamt.features[:, :-1].contiguous()).float()
        return Dream(dreamt, torch.stack(actions, 1), policy, cont)

    def learn(self, world_model: Any, dream: Dream) -> BehaviourOutput:
        """The losses of actor and critic.

        Args:
            world_model: the one that was dreamt in, its weights frozen.
            dream: from `imagine`.
        """
        first, features = self.first, dream.states.features
        # One copy of the states with a term: networks want their rows side by side.
        here, last = features[:, first:-1].contiguous(), features[:, -1:]
        reward = world_model.reward(here).mean
        discount, weight = self.discounts_and_weights(world_model.cont(here).mean, dream.cont)
        if self.critic is None:
            # A return that ends with the reward of the last state.
            value = torch.cat([torch.zeros_like(reward), world_model.reward(last).mean], 1)
            baseline, critic_loss = value[:, :-1], reward.new_zeros(())
            returns = lambda_return(reward, value, discount, 1.0)
        else:
            with frozen(self.critic):
                value = torch.cat([_value(self.target.of(self.critic), part) for part in (here, last)], 1)
            returns = lambda_return(reward, value, discount, self.lambda_)
            online = _value(self.critic, here.detach())
            baseline = (value[:, :-1] if self.shifted else online).detach()
            critic_loss = _mean(weight * 0.5 * (online - returns.detach()).square(), weight)

        policy, action = dream.policy[:, first:], dream.action[:, first:].detach()
        needed = self.objective.needs_value
        log_prob = self.distribution.log_prob(policy, action) if needed else None
        # Term t of the actor is about G[t], or, shifted, about G[t + 1]; the last term then has no return.
        terms = slice(0, -1) if self.shifted else slice(None)
        chosen = None if log_prob is None else log_prob[:, terms]
        loss = self.objective(chosen, returns[:, int(self.shifted) :], baseline[:, terms] if needed else None)
        if self.entropy:
            loss = loss - self.entropy * self.distribution.entropy(policy[:, terms])
        actor_loss = _mean(weight[:, terms] * loss, weight[:, terms])

        with torch.no_grad():
            share = weight / weight.sum().clamp(min=1e-8)
            metrics = {
                "actor/loss": actor_loss,
                "actor/entropy": self.distribution.entropy(dream.policy[:, 0]).mean(),
                "dream/return": (share * returns).sum(),
                "dream/reward": (share * reward).sum(),
                "dream/cont": (share * discount).sum() / self.discount,
            }
            if self.critic is not None:
                metrics |= {"critic/loss": critic_loss, "critic/value": (share * online).sum()}
        return BehaviourOutput(actor_loss, critic_loss, {name: number.detach() for name, number in metrics.items()})

    def discounts_and_weights(
        self, cont: Float[Tensor, "rows terms"], true_cont: Float[Tensor, "rows"]
    ) -> tuple[Float[Tensor, "rows terms"], Float[Tensor, "rows terms"]]:
        """d and w of every state with a term.

        Args:
            cont: predicted, of these states.
            true_cont: of the starts, whether they are among these states or not.
        """
        if not self.first:
            # What happened is known: a dream from the end of an episode counts in its first state only.
            cont = torch.cat([true_cont[:, None].to(cont), cont[:, 1:]], 1)
        discount = self.discount * cont
        weight = discount_weights(discount)
        return discount, weight * (true_cont > 0)[:, None] if self.first else weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Refuses to learn without a world model to dream in."""
        raise ValueError("an ActorCritic learns in the dreams of a world model: fit a Dreamer, with learn_model=false")

    def groups(self) -> dict[str, dict[str, Any]]:
        """Actor and critic, for the optimizer of the agent that they are part of."""
        parts = {"actor": self.actor, "critic": self.critic}
        shared = self.epsilon, self.max_norm, self.decay
        rates = zip(parts.items(), self.learning_rates, strict=True)
        return {name: parameter_group(part, rate, *shared) for (name, part), rate in rates if part is not None}


@contextlib.contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    with torch.no_grad(), frozen(module):
        yield


def _value(critic: Any, features: Tensor) -> Tensor:
    return critic(features).float()[..., 0]


def _bare(state: State) -> State:
    """Without its parameters, which nobody reads in a dream: they would be most of what it holds."""
    return State(state.deter, state.stoch, state.stoch[..., :0])


def _mean(loss: Tensor, weight: Tensor) -> Tensor:
    assert loss.shape == weight.shape, f"a loss is {tuple(loss.shape)}, not {tuple(weight.shape)}, before its mean"
    return loss.mean()
