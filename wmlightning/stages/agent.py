"""What agents with a world model have in common around what they learn."""

from abc import ABC, abstractmethod
from typing import Any

from datamodules.episode import Batch, Spec
from wmlightning.environments.factory import EnvFactory
from wmlightning.stages.optimization import JointStage
from wmlightning.stages.requirements import check_windows
from wmlightning.stages.world_model import WorldModel


class WorldModelAgent(JointStage, ABC):
    """An agent that has a world model and an environment to live in (abstract).

    `callbacks.collect.Collect` plays `policy(explore=True)` between epochs and `callbacks.evaluate.Evaluate` plays
    `policy(explore=False)`. An environment or a store that does not fit is refused before anything is played or learnt.

    Args:
        world_model: what the agent knows.
        environment: where it lives.
        seed: names the stream of learning noise.
    """

    def __init__(self, world_model: WorldModel, environment: EnvFactory, seed: int = 0) -> None:
        super().__init__(seed)
        self.world_model, self.environment = world_model, environment
        self.warmup = world_model.warmup

    @abstractmethod
    def check_actions(self, spec: Spec, what: str) -> None:
        """Raises ValueError, in one line that says what to do, if the agent cannot act in such an environment."""

    def setup(self, stage: str) -> None:
        """Refuses an environment that does not fit."""
        if stage == "fit":
            self.check_parts()

    def check_parts(self) -> None:
        """The environment must suit the agent."""
        self.check_environment(self.environment)

    def check_environment(self, environment: EnvFactory) -> None:
        """Refuses an environment that does not suit the actor, the dynamics and the encoder; ValueError."""
        self.check_actions(environment.spec, environment.id)
        self.world_model.check_spec(environment.spec, environment.id)

    def check_data(self, data: Any) -> None:
        """The world model must be able to read the episodes, and they must have been recorded in the environment."""
        check_windows(self.environment.longest, data, f"episodes of {self.environment.id}")
        self.world_model.check_data(data)
        store = getattr(data, "store", None)
        if store is not None:
            self.environment.check_recorded(store)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and quality of reconstructions on held-out windows, where there are any."""
        for name, metric in self.world_model.measure(batch).items():
            self.log(f"world_model/{name}", metric, on_step=False, on_epoch=True)
