"""PlaNet: an agent that learns a world model from its own episodes and acts by planning in it."""

from typing import Any

from torch import Tensor

from datamodules.episode import Batch, Spec
from wmlightning.environments.factory import EnvFactory
from wmlightning.planners.cem import CEM
from wmlightning.policies.planning import PlanningPolicy
from wmlightning.stages.agent import WorldModelAgent
from wmlightning.stages.world_model import WorldModel


class PlaNet(WorldModelAgent):
    """A world model and a planner that searches in it, without a policy network.

        learning:   episodes -> world model                                           C updates, an epoch
        acting:     image -> filtered state -> CEM in the world model -> action       an episode, between epochs

    A training step is the world model's. `callbacks.collect.Collect` collects episodes with `policy(explore=True)`
    between epochs and `callbacks.evaluate.Evaluate` evaluates `policy(explore=False)`. Logged: what `WorldModel` logs.

    Args:
        world_model: the only part that learns; its `dynamics.action_size` must be the environment's.
        planner: searches for actions in the world model.
        environment: the environment that the agent acts in.
        exploration: standard deviation of the Gaussian noise on collected actions, which are clipped to [-1, 1]
            afterwards.
        seed: seed of the learning noise.

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
        """Returns the policy that plans with the present weights, with exploration noise or without."""
        return PlanningPolicy(self.world_model, self.planner, self.exploration if explore else 0.0)

    def check_actions(self, spec: Spec, what: str) -> None:
        """Checks that the environment's actions are continuous; ValueError."""
        if spec.discrete:
            raise ValueError(
                f"{what} chooses one of {spec.action_size} actions but CEM searches numbers in [-1, 1]: take an "
                "environment with continuous actions"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns from one batch and logs the parts of the loss."""
        output = self.world_model.learn(batch)
        metrics = {f"world_model/{name}": value for name, value in output.metrics.items()}
        self.log_dict(metrics, on_step=True, on_epoch=False, sync_dist=True)
        return output.loss

    def groups(self) -> dict[str, dict[str, Any]]:
        """Returns the world model's parameter group."""
        return self.world_model.groups()
