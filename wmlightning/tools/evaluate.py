"""Evaluates an agent: its mean return over many episodes, with an interval, beside baselines."""

import time
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.files import check_writable, write_atomically
from wmlightning.callbacks.evaluate import confidence_half_width, evaluation_seeds, statistics
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.interfaces import Carry, Policy
from wmlightning.pictures.driving import drive, drive_dream
from wmlightning.pictures.images import Picture, encode_gif
from wmlightning.planners.cem import CEM
from wmlightning.policies.planning import PlanningPolicy
from wmlightning.recipes import Recorded, recipe_of
from wmlightning.runtime import progress_bar
from wmlightning.stages.checkpoints import load, recipe_differences
from wmlightning.tools.compare import compare_with, read_curves, run_curve, same_task
from wmlightning.validation import at_least


def evaluate(
    agent: Any,
    environment: EnvFactory | None = None,
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 8,
    num_workers: int = 0,
    baselines: dict[str, Recorded] | None = None,
    json: str | None = None,
    video: str | None = None,
    planner: CEM | None = None,
    compare: str | None = None,
    also: list[str] | None = None,
    picture: str | None = None,
) -> dict[str, Any]:
    """Plays an agent, without exploration, for many episodes.

    Every episode has an environment seed of its own, and every baseline plays the same seeds, so that differences are
    taken episode by episode. An agent that learned in a dream is also played there, by the same controller: the
    difference between the two scores shows how far the dream is from the real environment.

    Args:
        agent: path of a checkpoint, from which alone the agent is rebuilt, or anything with a `policy(explore)`.
        environment: where to play; None takes the environment the agent was trained in.
        episodes: how many, at least 2.
        seed: names the environment seeds; other seeds give other episodes.
        num_envs: environments played side by side, which the agent sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.
        baselines: name -> policy, to play the same episodes.
        json: file to write the result to.
        video: .gif file for the first episode, played once more and filmed as the agent sees it. Of an agent with a
            dream, a dream is filmed too and written beside it: NAME_dream.gif.
        planner: the same episodes are played once more by this planner in the agent's world model: planning while
            acting (PlaNet) beside what was learnt beforehand (Dreamer), on the same weights.
        compare: CSV of published curves, to draw over those of the same task; see `wmlightning.tools.compare`.
        also: folders of further runs, of other seeds, whose returns are drawn together with the agent's run.
        picture: .png file for that drawing; None puts it beside the checkpoint's run, as pictures/compare.png.

    Returns:
        `returns`, `mean`, `std` (of a sample), `ci95` (half-width of Student's interval of the mean), `episodes`,
        `env_steps` and `env_steps_per_second`, `seeds`, `environment` (all its settings) and for each
        baseline `returns`, `mean`, `std`, `ci95`, `difference` (mean of agent minus baseline) and `difference_ci95`.
        Of an agent with a dream also `dream`: `returns`, `mean`, `std`, `ci95`, `temperature` and `episodes`.
        With a planner `ms_per_action` (milliseconds for one action in one environment, a median) and `planner`, the
        same as a baseline with its own. With curves `published`: `task`, `env_steps` of the agent, `picture`, and of
        each method that has been there `mean`, `min`, `max` and `seeds` at equal steps and where we lie, `ours`.

    Raises:
        ValueError: if the checkpoint holds nothing that acts, there is no environment to play in, or a file cannot be
            written: all of that before anything is played.
    """
    checkpoint = agent
    agent, environment = check_evaluate(
        agent,
        environment,
        episodes,
        seed,
        num_envs,
        num_workers,
        json,
        video,
        planner,
        compare,
        also,
        picture,
        baselines,
    )
    seeds = evaluation_seeds(seed, episodes)

    envs = environment.vector(min(num_envs, episodes), num_workers)
    try:
        result = _play("agent", agent.policy(explore=False), envs, seeds)
        result |= {"episodes": episodes, "seed": seed, "seeds": seeds, "baselines": {}}
        # With every rule that a score depends on: action repeat, time limit, when a lap counts.
        result["environment"] = recipe_of(environment)["init_args"]
        for name, policy in (baselines or {}).items():
            result["baselines"][name] = _beside(result, _play(name, policy, envs, seeds))  # type: ignore[arg-type]
        if planner is not None:
            result["planner"] = _beside(result, _play("planner", planning(agent, planner), envs, seeds))
    finally:
        envs.close()
    if planner is not None:
        result["ms_per_action"] = milliseconds_per_action(agent.policy(explore=False), environment, seeds[0])
        took = milliseconds_per_action(planning(agent, planner), environment, seeds[0])
        result["planner"] |= {"ms_per_action": took, "settings": recipe_of(planner)["init_args"]}
    dream = getattr(agent, "dream", None)
    if dream is not None:
        returns = agent.dreamt_returns(seeds).tolist()
        result["dream"] = statistics(returns) | {"temperature": dream.temperature, "episodes": episodes}
    if compare is not None:
        path = checkpoint if isinstance(checkpoint, str | Path) else None
        result["published"] = compare_with(compare, agent, path, environment.id, result, also or [], picture)
    if json is not None:
        write_atomically(json, lambda file: file.write((dumps(result, indent=2) + "\n").encode()))
    if video is not None:
        record(drive(agent.policy(explore=False), environment, seeds[0], frames=300), video)
        if dream is not None:
            policy, starts = agent.policy(explore=False), agent.fitness.starts
            film = drive_dream(agent.model, policy, dream, starts, seeds[0], frames=300)
            record(film, Path(video).with_name(f"{Path(video).stem}_dream.gif"))
    return result


def check_evaluate(
    agent: Any,
    environment: EnvFactory | None,
    episodes: int,
    seed: int,
    num_envs: int,
    num_workers: int,
    json: str | None,
    video: str | None,
    planner: CEM | None = None,
    compare: str | None = None,
    also: list[str] | None = None,
    picture: str | None = None,
    baselines: dict[str, Recorded] | None = None,
) -> tuple[Any, EnvFactory]:
    """Checks an evaluation's arguments, without playing; gives the agent and its environment. Raises as `evaluate`."""
    if episodes < 2:
        raise ValueError(f"episodes is {episodes}, but an interval needs at least 2: ask for more")
    at_least(0, seed=seed, num_workers=num_workers)
    at_least(1, num_envs=num_envs)
    for option, path, kind, suffix in (
        ("video", video, "videos are written as animated GIF", ".gif"),
        ("picture", picture, "the drawing is written as PNG", ".png"),
    ):
        if path is not None and Path(path).suffix != suffix:
            raise ValueError(f"--{option} {path}: {kind}, so end the name in {suffix}")
    for path in (json, video, picture):
        if path is not None:
            check_writable(path)
    if (also or picture) and compare is None:
        raise ValueError("also and picture belong to a comparison: name a file of curves with --compare")
    curves = None if compare is None else read_curves(compare)
    for run in also or []:
        run_curve(run)
    if isinstance(agent, str | Path):
        agent = load(agent)
    if not hasattr(agent, "policy"):
        raise ValueError(
            f"a {type(agent).__name__} does not act: evaluate the checkpoint of a controller, a PlaNet or a Dreamer"
        )
    own = getattr(agent, "environment", None)
    if environment is not None and own is not None:
        changed = recipe_differences(recipe_of(environment), recipe_of(own), "environment")
        if changes := [f"{place} {old} is now {new}" for place, new, old in changed]:
            rank_zero_warn(f"this is not where the agent was trained: {', '.join(changes)}")
    environment = environment or own
    if environment is None:
        raise ValueError("there is no environment to play in: name one, --environment.id=CarRacing-v3")
    if curves is not None:
        same_task(curves, environment.id, str(compare))
        if (limit := recipe_of(environment)["init_args"]["time_limit"]) is not None:
            rank_zero_warn(f"episodes end after {limit} steps here: published returns compare only if theirs did too")
    if hasattr(agent, "check_environment"):
        agent.check_environment(environment)
    if planner is not None:
        check_planner(agent, environment)
    for name, policy in (baselines or {}).items():
        environment.check_policy(policy, f"baseline {name}")
    return agent, environment


def _beside(result: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """Adds to a baseline's result its difference from the agent's, taken episode by episode."""
    gain = np.subtract(result["returns"], beside["returns"])
    return beside | {"difference": float(gain.mean()), "difference_ci95": confidence_half_width(gain)}


def _play(name: str, policy: Policy, envs: Any, seeds: list[int]) -> dict[str, Any]:
    started = time.monotonic()
    with progress_bar(total=len(seeds), desc=f"evaluate {name}", unit="episode") as bar:

        def progress(finished: int, total: int, decisions: int) -> None:
            if finished > bar.n:
                bar.update(finished - bar.n)

        results = rollout(envs, policy, seeds, progress=progress)
    returns = [result.total_reward for result in results]
    env_steps = sum(result.env_steps for result in results)
    return statistics(returns) | {
        "env_steps": env_steps,
        "env_steps_per_second": env_steps / (time.monotonic() - started),
    }


def record(film: list[Picture], path: str | Path) -> None:
    """Writes pictures as an animated GIF, atomically."""
    encoded = encode_gif(film)
    write_atomically(path, lambda file: file.write(encoded))


def check_planner(agent: Any, environment: EnvFactory) -> None:
    """Makes sure that a planner can act in an agent's place.

    Args:
        agent: the agent with the world model.
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
    """A policy that records the seconds of each of its calls.

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
