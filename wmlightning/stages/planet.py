"""PlaNet: learns a world model from its own episodes, and acts by planning in it."""

from typing import Any

from torch import Tensor

from datamodules.episode import Batch, Spec
from wmlightning.environments.factory import EnvFactory
from wmlightning.planners.cem import CEM
from wmlightning.policies.planning import PlanningPolicy
from wmlightning.stages.agent import WorldModelAgent
from wmlightning.stages.world_model import WorldModel


class PlaNet(WorldModelAgent):
    """A world model and a planner that searches in it: there is no policy network and nothing else to learn.

        learning:   episodes -> world model                                       C updates, an epoch
        acting:     image -> belief -> CEM in the world model -> action           an episode, collected between epochs

    A training step is the world model's. `callbacks.collect.Collect` plays `policy(explore=True)` between epochs and
    `callbacks.evaluate.Evaluate` plays `policy(explore=False)`. Logged: what `WorldModel` logs.

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
        super().__init__(world_model, environment, seed)
        if not exploration >= 0:
            raise ValueError(f"exploration is {exploration} but is a standard deviation: give 0 or more")
        self.planner, self.exploration = planner, exploration

    def policy(self, explore: bool = False) -> PlanningPolicy:
        """Plans with the present weights; exploring adds noise."""
        return PlanningPolicy(self.world_model, self.planner, self.exploration if explore else 0.0)

    def check_actions(self, spec: Spec, what: str) -> None:
        """Refuses an environment in which the planner cannot act."""
        if spec.discrete:
            raise ValueError(
                f"{what} chooses one of {spec.action_size} actions but CEM searches numbers in [-1, 1]: take an "
                "environment with continuous actions"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns from one batch and logs the parts of the loss."""
        learned = self.world_model.learn(batch)
        named = {f"world_model/{name}": value for name, value in learned.metrics.items()}
        self.log_dict(named, on_step=True, on_epoch=False, sync_dist=True)
        return learned.loss

    def groups(self) -> dict[str, dict[str, Any]]:
        """The world model's."""
        return self.world_model.groups()
