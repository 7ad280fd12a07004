"""Dreamer: an agent that learns a world model from its own episodes, and behaviour from dreams in it."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.episode import Batch, Spec
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.target import frozen
from wmlightning.policies.actor import ActorPolicy, LinearDecay, check_exploration
from wmlightning.stages.actor_critic import ActorCritic
from wmlightning.stages.agent import WorldModelAgent
from wmlightning.stages.checkpoints import load
from wmlightning.stages.stage import Stage
from wmlightning.stages.world_model import WorldModel, WorldModelOutput


class Dreamer(WorldModelAgent):
    """A world model, and an actor and a critic that learn in its dreams: one loss, one backward pass, one optimizer.

        world model   a batch of windows (B, T)  ->  loss, posterior states                      dynamics learning
        dream         every posterior state      ->  H steps of the actor in the world model     behaviour learning
        losses        world model + actor + critic, all with the weights from before the update
        update        each part's gradient is clipped by its own norm; target critic every so many updates
        collect       image -> filtered state -> actor -> action, between epochs                 environment interaction

    V1 and V2, for continuous and discrete actions, are the same class with other parts: latent, cell and KL of the
    world model; actor, objective and target of the actor-critic. Logged: what `WorldModel` and `ActorCritic` log, and
    `actor/gradient_norm`, `critic/gradient_norm`.

    Args:
        world_model: the agent's world model, or the path of a checkpoint of a WorldModel, PlaNet or Dreamer to start
            from. Its weights are part of the Dreamer's checkpoint.
        actor_critic: the agent's actor and critic.
        environment: the environment that it acts in.
        exploration: standard deviation of the Gaussian noise added to collected continuous actions after they are
            sampled; they are clipped to [-1, 1] afterwards.
        epsilon: probability that a collected discrete action is drawn uniformly, by updates; null for never.
        learn_model: false trains the actor-critic alone, on a frozen world model.
        seed: seed of the learning noise.

    Raises:
        ValueError: if the parts do not fit each other, or, before training, if the environment or the store does not
            fit.

    Source: Dreamer V1 (Hafner et al. 2020), Algorithm 1; V2 (Hafner et al. 2021). The code of V1 computes all losses
    with the old weights as we do; that of V2 updates the world model first.
    """

    updates: Tensor

    def __init__(
        self,
        world_model: WorldModel | str,
        actor_critic: ActorCritic,
        environment: EnvFactory,
        exploration: float = 0.0,
        epsilon: LinearDecay | None = None,
        learn_model: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(_world_model(world_model), environment, seed)
        # The recipe must not depend on a path: the checkpoint alone rebuilds the world model too.
        self.__dict__["_arguments"]["world_model"] = self.world_model
        self.actor_critic, self.learn_model = actor_critic, learn_model
        self.exploration, self.epsilon = exploration, epsilon
        for value in (0.0,) if epsilon is None else (epsilon.start, epsilon.end):
            check_exploration(actor_critic.distribution, exploration, value)
        label, discount = self.world_model.cont_head.label, actor_critic.discount
        if label < 1 and discount < 1:
            raise ValueError(f"cont_label {label} and discount {discount} would both discount: set one of them to 1")
        if label < 1 and not actor_critic.has_critic:
            raise ValueError(
                f"cont_label {label} would discount a plain sum of rewards (has_critic: false): set it to 1"
            )
        actor_critic.build(self.world_model.dynamics.action_size, self.world_model.dynamics.feature_size)
        if not learn_model:
            self.world_model.requires_grad_(False)
        self.register_buffer("updates", torch.tensor(0))

    # ------------------------------------------------------------------------------------------------------- learning

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns dynamics from one batch of windows, and behaviour from dreams that start at their posterior states."""
        self.updates.fill_(self.global_step + 1)
        if self.actor_critic.critic is not None:
            self.actor_critic.target.renew(self.actor_critic.critic, self.global_step)

        model_output = self.learn_dynamics(batch)
        start = model_output.posterior.flatten().detach()
        cont = self.world_model.cont_head.target(batch.cont).flatten()
        with frozen(self.world_model):
            dream = self.actor_critic.imagine(self.world_model, start, cont)
            behaviour_output = self.actor_critic.learn(self.world_model, dream)

        metrics = {f"world_model/{name}": value for name, value in model_output.metrics.items()}
        self.log_dict(metrics | behaviour_output.metrics, on_step=True, on_epoch=False, sync_dist=True)
        return model_output.loss + behaviour_output.actor_loss + behaviour_output.critic_loss

    def learn_dynamics(self, batch: Batch) -> WorldModelOutput:
        """Returns the world model's loss and posterior states; a loss of 0 where it is frozen."""
        if self.learn_model:
            return self.world_model.learn(batch)
        return WorldModelOutput(batch.reward.new_zeros(()), self.world_model.observe(batch).posterior, {})

    def check_data(self, data: Any) -> None:
        """Also warns of a frozen world model that was never trained."""
        super().check_data(data)
        # Biases start at zero, and training moves all of them.
        if not self.learn_model and not self.world_model.reward_head.last.bias.any():
            rank_zero_warn(
                "the world model is frozen and was never trained, so its dreams mean nothing: give world_model the "
                "checkpoint of a WorldModel, a PlaNet or a Dreamer"
            )

    def groups(self) -> dict[str, dict[str, Any]]:
        """Returns the parameter groups of the world model, unless it is frozen, of actor and of critic."""
        return (self.world_model.groups() if self.learn_model else {}) | self.actor_critic.groups()

    # --------------------------------------------------------------------------------------------------------- acting

    def policy(self, explore: bool = False) -> ActorPolicy:
        """Returns the policy that acts with the present weights.

        Args:
            explore: sample actions, with exploration noise or random choices; false takes the policy's mode.
        """
        actor, distribution = self.actor_critic.actor, self.actor_critic.distribution
        if not explore:
            return ActorPolicy(self.world_model, actor, distribution, sample=False)
        epsilon = 0.0 if self.epsilon is None else self.epsilon(int(self.updates))
        return ActorPolicy(self.world_model, actor, distribution, True, self.exploration, epsilon)

    def check_actions(self, spec: Spec, what: str) -> None:
        """Checks that the actor's distribution suits the environment's actions; ValueError."""
        if spec.discrete != self.actor_critic.distribution.discrete:
            kind = type(self.actor_critic.distribution).__name__
            is_choice = f"chooses one of {spec.action_size} actions but {kind} gives numbers in [-1, 1]: take OneHot"
            is_number = f"takes numbers in [-1, 1] but {kind} gives one-hot actions: take TanhNormal or TruncatedNormal"
            raise ValueError(f"{what} {is_choice if spec.discrete else is_number} as actor_critic.actor")


def _world_model(given: Any) -> WorldModel:
    """Returns the given world model, or loads that of a checkpoint, alone or inside an agent."""
    stage = load(given) if not isinstance(given, Stage) else given
    model = getattr(stage, "world_model", stage)
    if not isinstance(model, WorldModel):
        kind = type(stage).__name__
        raise ValueError(f"{given} holds a {kind}: give the checkpoint of a WorldModel, a PlaNet or a Dreamer")
    return model
