"""PlaNet: learns a world model from its own episodes, and acts by planning in it."""

from typing import Any

from torch import Tensor

from datamodules.episode import Batch
from wmlightning.environments.factory import EnvFactory
from wmlightning.planners.cem import CEM
from wmlightning.policies.planning import PlanningPolicy
from wmlightning.stages.optimization import clip_groups, say_kept_norms
from wmlightning.stages.stage import Stage
from wmlightning.stages.world_model import WorldModel


class PlaNet(Stage):
    """A world model and a planner that searches in it: there is no policy network and nothing else to learn.

        learning:   episodes -> world model                                       C updates, an epoch
        acting:     image -> belief -> CEM in the world model -> action           an episode, collected between epochs

    A training step is the world model's. `callbacks.collect.Collect` plays `policy(explore=True)` between epochs and
    `callbacks.evaluate.EvaluateAgent` plays `policy(explore=False)`. Logged: what `WorldModel` logs.

    Args:
        world_model: what is learnt; its `dynamics.action_size` must be the environment's.
        planner: how it is searched for actions.
        environment: where the agent lives.
        exploration: standard deviation of the noise on actions that are collected, clipped to [-1, 1] afterwards.
        seed: names the stream of learning noise.

    Raises:
        ValueError: before training, if the environment's actions are one-hot, have another size than the dynamics
            expect, or its images have another shape than the world model reads.

    Source: PlaNet (Hafner et al. 2019), Algorithm 1.
    """

    def __init__(
        self,
        world_model: WorldModel,
        planner: CEM,
        environment: EnvFactory,
        exploration: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if exploration < 0:
            raise ValueError(f"exploration is {exploration} but is a standard deviation: give 0 or more")
        self.world_model, self.planner = world_model, planner
        self.environment, self.exploration = environment, exploration

    @property
    def learning_rate(self) -> float:
        """The world model's."""
        return self.world_model.learning_rate

    def policy(self, explore: bool = False) -> PlanningPolicy:
        """Plans with the present weights; exploring adds noise."""
        return PlanningPolicy(self.world_model, self.planner, self.exploration if explore else 0.0)

    def setup(self, stage: str) -> None:
        """Refuses an environment in which the planner cannot act, before anything is played or learnt."""
        if stage != "fit":
            return
        spec, name = self.environment.spec, self.environment.id
        if spec.discrete:
            raise ValueError(
                f"{name} chooses one of {spec.action_size} actions but CEM searches numbers in [-1, 1]: take an "
                "environment with continuous actions"
            )
        if spec.action_size != self.world_model.dynamics.action_size:
            raise ValueError(
                f"actions of {name} have {spec.action_size} numbers but the dynamics expect "
                f"{self.world_model.dynamics.action_size}: set model.world_model.dynamics.action_size to "
                f"{spec.action_size}"
            )
        self.world_model.check_spec(spec, name)

    def on_fit_start(self) -> None:
        """Refuses a store whose episodes the world model cannot read."""
        store = getattr(getattr(self.trainer, "datamodule", None), "store", None)
        if store is not None and len(store):
            self.world_model.check_spec(store.spec, f"the episodes in {store.path}")

    def on_train_start(self) -> None:
        """Says so where a resumed optimizer's settings, which win, are not the ones asked for."""
        super().on_train_start()
        say_kept_norms(self.trainer.optimizers, [self.world_model.max_norm])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns from one batch and logs the parts of the loss."""
        learned = self.world_model.learn(batch)
        named = {f"world_model/{name}": value for name, value in learned.metrics.items()}
        self.log_dict(named, on_step=True, on_epoch=False, sync_dist=True)
        return learned.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and quality of reconstructions on held-out windows, where there are any."""
        for name, metric in self.world_model.measure(batch).items():
            self.log(f"world_model/{name}", metric, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        """The world model's."""
        return self.world_model.configure_optimizers()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the world model's `max_norm`, then as the Trainer's flags say. Raises ValueError under 16-mixed."""
        clip_groups(optimizer, self.trainer)
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
