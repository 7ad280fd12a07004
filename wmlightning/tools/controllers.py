"""One world model, two ways to act in it: planning at every decision, or by an actor that has learnt beforehand."""

import time
from typing import Any

import numpy as np

from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.interfaces import Carry, Policy
from wmlightning.planners.cem import CEM
from wmlightning.policies.planning import PlanningPolicy


def check_planner(agent: Any, environment: EnvFactory) -> None:
    """Makes sure that a planner can act in an agent's place.

    Args:
        agent: who has the world model.
        environment: where to act.

    Raises:
        ValueError: if it cannot, in one line that says what to do.
    """
    name = type(agent).__name__
    if not hasattr(agent, "world_model"):
        raise ValueError(f"a {name} has no world model to plan in: evaluate a Dreamer's or a PlaNet's checkpoint")
    if environment.spec.discrete:
        raise ValueError(f"{environment.id} chooses one of several actions, which CEM cannot search: leave planner out")


def planning(agent: Any, planner: CEM) -> PlanningPolicy:
    """The policy that plans in an agent's world model, without exploring."""
    return PlanningPolicy(agent.world_model, planner)


class Stopwatch:
    """A policy, and how long it took for every call.

    Args:
        policy: what acts.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.seconds = policy, list[float]()

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """The policy's."""
        return self.policy.initial(n, seeds)

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts and takes the time; the actions are on the CPU by then, so a GPU has finished."""
        began = time.perf_counter()
        acted = self.policy(observation, is_first, carry)
        self.seconds.append(time.perf_counter() - began)
        return acted


def milliseconds_per_action(policy: Policy, environment: EnvFactory, seed: int, decisions: int = 30) -> float:
    """What one action in one environment takes, image to action: the median, after three that are not counted.

    Args:
        policy: what acts.
        environment: where.
        seed: of the first episode; where it is short, the next ones follow.
        decisions: actions that are timed.
    """
    watch = Stopwatch(policy)
    with environment.vector(1) as envs:
        seeds = [(seed + k) % 2**32 for k in range(decisions + 3)]
        rollout(envs, watch, seeds, should_stop=lambda: len(watch.seconds) >= decisions + 3)
    return 1000 * float(np.median(watch.seconds[min(3, len(watch.seconds) - 1) :]))
