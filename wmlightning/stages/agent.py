"""The checks and the validation that agents with a world model share."""

from abc import ABC, abstractmethod
from typing import Any

from datamodules.episode import Batch, Spec
from wmlightning.environments.factory import EnvFactory
from wmlightning.stages.optimization import JointStage
from wmlightning.stages.requirements import check_windows
from wmlightning.stages.world_model import WorldModel


class WorldModelAgent(JointStage, ABC):
    """An agent with a world model and an environment (abstract).

    `callbacks.collect.Collect` collects episodes with `policy(explore=True)` between epochs and
    `callbacks.evaluate.Evaluate` evaluates `policy(explore=False)`. An environment or a store that does not fit the
    agent is refused before an episode is played or a batch is learned from.

    Args:
        world_model: the agent's world model.
        environment: the environment that it acts in.
        seed: seed of the learning noise.
    """

    def __init__(self, world_model: WorldModel, environment: EnvFactory, seed: int = 0) -> None:
        super().__init__(seed)
        self.world_model, self.environment = world_model, environment
        self.warmup = world_model.warmup

    @abstractmethod
    def check_actions(self, spec: Spec, what: str) -> None:
        """Checks that the agent can act in an environment.

        Args:
            spec: of the environment.
            what: its name, for the error.

        Raises:
            ValueError: if it cannot.
        """

    def setup(self, stage: str) -> None:
        """Checks the environment before training; ValueError."""
        if stage == "fit":
            self.check_parts()

    def check_parts(self) -> None:
        """Checks that the environment fits the agent; ValueError."""
        self.check_environment(self.environment)

    def check_environment(self, environment: EnvFactory) -> None:
        """Checks that an environment fits the actor, the dynamics and the encoder; ValueError."""
        self.check_actions(environment.spec, environment.id)
        self.world_model.check_spec(environment.spec, environment.id)

    def check_data(self, data: Any) -> None:
        """Checks that the world model can read the episodes, and that they are the environment's; ValueError."""
        check_windows(self.environment.longest, data, f"episodes of {self.environment.id}")
        self.world_model.check_data(data)
        store = getattr(data, "store", None)
        if store is not None:
            self.environment.check_recorded(store)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss and the quality of reconstructions on held-out windows."""
        for name, metric in self.world_model.measure(batch).items():
            self.log(f"world_model/{name}", metric, on_step=False, on_epoch=True)
