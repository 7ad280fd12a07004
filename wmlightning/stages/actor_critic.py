"""The actor and the critic of Dreamer, which learn from trajectories imagined in a world model."""

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
"""Standard normal numbers for the actions and for the latent states of a dream."""


@dataclass
class Dream:
    """N trajectories of H steps, imagined by an actor in a world model.

        index         0      1     ...    H-1     H          (unlike in a Batch, an action is
        states       start   s1    ...    sH-1    sH          taken AT the state of its index)
        action        a0     a1    ...    aH-1
        policy        p0     p1    ...    pH-1

    Args:
        states: the start and the imagined states, (N, H + 1); their `params` are left out.
        action: the actions taken, (N, H, A).
        policy: the actor's outputs at those states, the parameters of its `ActionDistribution`, with their gradient,
            (N, H, P).
        cont: whether the recorded episode goes on from the start, in the units of the world model's `cont`, (N).
    """

    states: State
    action: Tensor
    policy: Tensor
    cont: Tensor


@dataclass
class DreamReturns:
    """Predicted rewards, discounts and values of a dream, and the returns computed from them.

        index             0      1     ...    H-1     H
        states           s0     s1     ...    sH-1    sH       with the start T = H; without it everything below
        reward           r0     r1     ...    rH-1             begins at index 1, and T = H - 1
        discount         d0     d1     ...    dH-1
        weight           w0     w1     ...    wH-1
        target_value     v0     v1     ...    vH-1    vH       the last one bootstraps
        returns          G0     G1     ...    GH-1
        value            V0     V1     ...    VH-1

    Args:
        reward: predicted reward for arriving at each state, (N, T).
        discount: discount factor times the predicted probability that the episode goes on, or, at the start, the
            recorded flag, (N, T).
        weight: product of the discounts of earlier states, without gradient, (N, T). Without the start, dreams from the
            end of an episode have weight 0.
        target_value: values that the returns are made of, those of the target critic, (N, T + 1). Without a critic they
            are zeros and, last, the reward of the last state.
        returns: lambda-returns, (N, T).
        value: the critic's own values, whose gradient reaches the critic and nothing else, (N, T); None without one.
    """

    reward: Tensor
    discount: Tensor
    weight: Tensor
    target_value: Tensor
    returns: Tensor
    value: Tensor | None


@dataclass
class BehaviourOutput:
    """The losses of an actor-critic on one dream.

    Args:
        actor_loss: minimised by the actor, a scalar.
        critic_loss: minimised by the critic, a scalar; 0 without a critic.
        metrics: named scalars without gradient, ready to be logged.
    """

    actor_loss: Tensor
    critic_loss: Tensor
    metrics: dict[str, Tensor]


class ActorCritic(JointStage):
    """An actor that learns in dreams, and a critic that estimates the return beyond their horizon.

        dream     a[t] ~ actor(sg(s[t])),   s[t+1] ~ dynamics(s[t], a[t])                    t = 0 .. H-1
        heads     r[t], c[t], v[t] predicted from s[t];   d[t] = discount * c[t];   v of the target critic
        return    G[t] = r[t] + d[t] ((1 - lambda) v[t+1] + lambda G[t+1]),   G of the last state is its v
        weight    w = 1, then the product of all d before t                   steps after a predicted end weigh nothing
        actor     loss = mean of w[t] (objective(ln pi(a[t] | s[t]), G[t], v[t]) - entropy * H[pi(. | s[t])])
        critic    loss = mean of w[t] (v(sg(s[t])) - sg(G[t]))^2 / 2

    The start s[0] is the posterior state of a recorded step. With `include_start` (Dreamer V2) it has a term of its
    own, in which c[0] is the recorded flag; without it (V1) the first term is that of s[1], with a weight of 1, and
    dreams from the end of an episode weigh nothing. The actor's inputs are detached.

        index                    0      1    ...    H-1     H
        terms of V2              w0     w1   ...    wH-1          H of them
        terms of V1                     w1   ...    wH-1          H - 1
        terms of V2's code       w0     w1   ...                  `shifted`: G[t+1] - v[t] at w[t], H - 1 for the actor

    `imagine` makes a dream, `returns` reads rewards, discounts, values and returns off it, and `learn` turns these into
    losses; pictures of dreams draw what the first two give. It learns inside a `Dreamer`, which brings the world model,
    whose weights must be frozen meanwhile (`frozen`). Logged: `actor/loss`, `actor/entropy` (nats, at the starts),
    `critic/loss`, and means weighted by w: `critic/value`, `dream/return`, `dream/reward`, `dream/cont`.

    Args:
        actor: distribution of actions given the actor's outputs: TanhNormal, TruncatedNormal or OneHot.
        objective: gradient estimator of the actor: DynamicsBackprop, Reinforce or Mixed.
        actor_layers: hidden layers of the actor.
        actor_units: their width.
        critic_layers: hidden layers of the critic.
        critic_units: their width.
        has_critic: false for returns that end with the dream: the plain sum of its rewards, the last state's included.
            `discount`, `lambda_` and the critic's settings then have no effect.
        target: the target network whose values the returns are made of; null for the critic itself.
        horizon: actions in a dream, H.
        discount: discount factor of one step, above 0 and at most 1; 1 where the label of the cont head contains it.
        lambda_: weight of longer returns, in [0, 1].
        entropy: weight of the policy's entropy.
        include_start: whether the start has a term of its own.
        shifted: the actor's term t uses G[t+1], with the target critic's value as its baseline.
        actor_learning_rate: Adam's.
        critic_learning_rate: Adam's.
        epsilon: Adam's.
        max_norm: gradients of actor and critic are each clipped to this norm.
        decay: weight decay, the share of every weight removed at an update.
        activation: "elu" or "relu".
        action_size: length of the action vector; null takes that of the world model in the same agent.
        feature_size: width of the world model's features; null takes that of the world model in the same agent.
        seed: seed of the learning noise; inside an agent the agent's seed is used.

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
        self.include_start, self.shifted, self.horizon = include_start, shifted, horizon
        least = 1 + (not include_start) + shifted
        if horizon < least:
            raise ValueError(f"horizon is {horizon}, which leaves no step to learn from: give at least {least}")
        if not 0 < discount <= 1:
            raise ValueError(f"discount is {discount} but must be above 0 and at most 1")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ is {lambda_} but must be in [0, 1]: 1 trusts long returns, 0 the critic")
        if objective.needs_value and not has_critic:
            raise ValueError(f"{type(objective).__name__} compares with a critic: set has_critic, or DynamicsBackprop")
        self.distribution = actor
        self.objective = objective
        self.discount = discount if has_critic else 1.0
        self.lambda_, self.entropy = lambda_, entropy
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
        """Builds the networks, or checks the size of those that are already built.

        Raises:
            ValueError: if they were built for other sizes.
        """
        if self.sizes is None:
            activation = self.activation
            params = self.distribution.param_size(action_size)
            self.actor = MLP(feature_size, params, *self._actor_layers, activation=activation)
            self.critic = MLP(feature_size, 1, *self._critic_layers, activation=activation) if self.has_critic else None
            if self.critic is not None:
                self.target.attach(self.critic)
            self.sizes = action_size, feature_size
            # A checkpoint of the actor-critic alone can then be loaded without its world model.
            vars(self)["_arguments"].update(action_size=action_size, feature_size=feature_size)
        if self.sizes != (action_size, feature_size):
            raise ValueError(
                f"the actor-critic was made for action_size and feature_size {self.sizes} but the world model has "
                f"{(action_size, feature_size)}: give it these, or neither"
            )

    def imagine(
        self,
        world_model: Any,
        start: State,
        cont: Float[Tensor, "rows"],
        noise: Noise | None = None,
        horizon: int | None = None,
        sample: bool = True,
    ) -> Dream:
        """Imagines a trajectory from every start, acting by the present policy.

        The graph through the dynamics is kept only where the objective needs it. Otherwise the trajectory is imagined
        without gradients, and the actor is evaluated once more, with its gradient, on all of its states together.

        Args:
            world_model: a `LatentModel`, its weights frozen.
            start: posterior states of recorded steps, (N), detached.
            cont: whether the recorded episode goes on from there, 1 or 0, or its label, (N).
            noise: for the actions and the dynamics; None draws it from torch's generator.
            horizon: actions in the dream; None for the horizon that is learned from.
            sample: draw actions from the policy, or take its mode.
        """
        through_dynamics = self.objective.through_dynamics
        states, actions, policies = [_without_params(start)], [], []
        with contextlib.nullcontext() if through_dynamics else _without_gradients(self.actor):
            for t in range(self.horizon if horizon is None else horizon):
                action_noise, state_noise = (None, None) if noise is None else (noise[0][:, t], noise[1][:, t])
                policy = self.actor(states[-1].features.detach()).float()
                action = self.distribution.sample(policy, action_noise) if sample else self.distribution.mode(policy)
                state = world_model.dynamics.imagine_step(states[-1], action, noise=state_noise)
                policies.append(policy)
                actions.append(action)
                states.append(_without_params(state))
        trajectory = stack_states(states, 1)
        if through_dynamics or not torch.is_grad_enabled():
            policy = torch.stack(policies, 1)
        else:
            policy = self.actor(trajectory.features[:, :-1].contiguous()).float()
        return Dream(trajectory, torch.stack(actions, 1), policy, cont)

    def returns(self, world_model: Any, dream: Dream, include_start: bool | None = None) -> DreamReturns:
        """Predicts rewards, discounts and values along a dream, and computes its lambda-returns.

        Args:
            world_model: the one that the dream was imagined in, its weights frozen.
            dream: from `imagine`.
            include_start: whether the first term is that of the start; None as in learning.
        """
        include_start = self.include_start if include_start is None else include_start
        features = dream.states.features
        # One copy of the states with a term, as networks read contiguous rows.
        here = features[:, int(not include_start) : -1].contiguous()
        last = features[:, -1:]
        reward = world_model.reward(here).mean
        discount, weight = self._discounts_and_weights(world_model.cont(here).mean, dream.cont, include_start)
        if self.critic is None:
            target_value = torch.cat([torch.zeros_like(reward), world_model.reward(last).mean], 1)
            returns = lambda_return(reward, target_value, discount, 1.0)
            return DreamReturns(reward, discount, weight, target_value, returns, None)
        with frozen(self.critic):
            target_value = torch.cat([_value(self.target.of(self.critic), part) for part in (here, last)], 1)
        returns = lambda_return(reward, target_value, discount, self.lambda_)
        return DreamReturns(reward, discount, weight, target_value, returns, _value(self.critic, here.detach()))

    def learn(self, world_model: Any, dream: Dream) -> BehaviourOutput:
        """Computes the losses of actor and critic.

        Args:
            world_model: the one that the dream was imagined in, its weights frozen.
            dream: from `imagine`.
        """
        predicted = self.returns(world_model, dream)
        returns, weight, value = predicted.returns, predicted.weight, predicted.value
        critic_loss = returns.new_zeros(())
        if value is not None:
            critic_loss = _mean(weight * 0.5 * (value - returns.detach()).square(), weight)

        # Term t of the actor uses G[t], or, shifted, G[t + 1]; the last term then has no return.
        terms = slice(0, -1) if self.shifted else slice(None)
        first = int(not self.include_start)
        policy = dream.policy[:, first:]
        log_prob, baseline = None, None
        if self.objective.needs_value and value is not None:
            log_prob = self.distribution.log_prob(policy, dream.action[:, first:].detach())[:, terms]
            baseline = (predicted.target_value[:, :-1] if self.shifted else value).detach()[:, terms]
        loss = self.objective(log_prob, returns[:, int(self.shifted) :], baseline)
        if self.entropy:
            loss = loss - self.entropy * self.distribution.entropy(policy[:, terms])
        actor_loss = _mean(weight[:, terms] * loss, weight[:, terms])

        with torch.no_grad():
            share = weight / weight.sum().clamp(min=1e-8)
            metrics = {
                "actor/loss": actor_loss,
                "actor/entropy": self.distribution.entropy(dream.policy[:, 0]).mean(),
                "dream/return": (share * returns).sum(),
                "dream/reward": (share * predicted.reward).sum(),
                "dream/cont": (share * predicted.discount).sum() / self.discount,
            }
            if value is not None:
                metrics |= {"critic/loss": critic_loss, "critic/value": (share * value).sum()}
        return BehaviourOutput(actor_loss, critic_loss, {name: number.detach() for name, number in metrics.items()})

    def _discounts_and_weights(
        self, cont: Float[Tensor, "rows terms"], true_cont: Float[Tensor, "rows"], include_start: bool
    ) -> tuple[Float[Tensor, "rows terms"], Float[Tensor, "rows terms"]]:
        """Returns d and w of every state with a term.

        Args:
            cont: predicted, of these states.
            true_cont: recorded, of the starts, whether they have a term or not.
            include_start: whether they have one.
        """
        if include_start:
            # The recorded flag is known: a dream from the end of an episode counts in its first state only.
            cont = torch.cat([true_cont[:, None].to(cont), cont[:, 1:]], 1)
        discount = self.discount * cont
        weight = discount_weights(discount)
        return discount, weight if include_start else weight * (true_cont > 0)[:, None]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Refuses to train without a world model.

        Raises:
            ValueError: always.
        """
        raise ValueError("an ActorCritic learns in the dreams of a world model: fit a Dreamer, with learn_model=false")

    def groups(self) -> dict[str, dict[str, Any]]:
        """Returns the parameter groups of actor and critic, for the optimizer of their agent."""
        parts = {"actor": self.actor, "critic": self.critic}
        shared = self.epsilon, self.max_norm, self.decay
        rates = zip(parts.items(), self.learning_rates, strict=True)
        return {name: parameter_group(part, rate, *shared) for (name, part), rate in rates if part is not None}


@contextlib.contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Disables gradients and freezes the weights, which autocast would else cache as copies without a gradient."""
    with torch.no_grad(), frozen(module):
        yield


def _value(critic: Any, features: Tensor) -> Tensor:
    return critic(features).float()[..., 0]


def _without_params(state: State) -> State:
    """Drops the distribution's parameters, which a dream never uses and which would be most of its memory."""
    return State(state.deter, state.stoch, state.stoch[..., :0])


def _mean(loss: Tensor, weight: Tensor) -> Tensor:
    assert loss.shape == weight.shape, f"a loss is {tuple(loss.shape)}, not {tuple(weight.shape)}, before its mean"
    return loss.mean()
