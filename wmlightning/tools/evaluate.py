"""How well an agent does: its mean return over many episodes, with an interval, beside simpler ways to act."""

import time
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wmlightning.callbacks.driving import drive
from wmlightning.callbacks.images import encode_gif
from datamodules.files import write_atomically
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.interfaces import Policy
from wmlightning.recipes import Recorded
from wmlightning.seeds import derive_seed
from wmlightning.stages.stage import load


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
) -> dict[str, Any]:
    """Plays an agent, without exploration, for many episodes.

    Every episode has an environment seed of its own, and every baseline plays the same seeds, so that differences are
    taken episode by episode.

    Args:
        agent: path of a checkpoint, from which alone the agent is rebuilt, or anything with a `policy(explore)`.
        environment: where to play; None takes the environment the agent was trained in.
        episodes: how many, at least 2.
        seed: names the environment seeds; other seeds give other episodes.
        num_envs: environments played side by side, which the agent sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.
        baselines: name -> policy, to play the same episodes.
        json: file to write the result to.
        video: .gif file for the first episode, played once more and filmed as the agent sees it.

    Returns:
        `returns`, `mean`, `std` (of a sample), `ci95` (half-width of Student's interval of the mean), `episodes`,
        `env_steps` and `env_steps_per_second`, `seeds`, `environment` (its recipe is in the checkpoint) and for each
        baseline `returns`, `mean`, `std`, `ci95`, `difference` (mean of agent minus baseline) and `difference_ci95`.

    Raises:
        ValueError: if the checkpoint holds nothing that acts, or there is no environment to play in.
    """
    if episodes < 2:
        raise ValueError(f"episodes is {episodes}, but an interval needs at least 2: ask for more")
    if isinstance(agent, str | Path):
        agent = load(agent)
    if not hasattr(agent, "policy"):
        raise ValueError(f"a {type(agent).__name__} does not act: evaluate a controller's checkpoint")
    environment = environment or getattr(agent, "environment", None)
    if environment is None:
        raise ValueError("there is no environment to play in: name one, --environment.id=CarRacing-v3")
    # Consecutive, so that no two episodes share a seed.
    first = derive_seed(seed, 4)
    seeds = [(first + episode) % 2**32 for episode in range(episodes)]

    envs = environment.vector(min(num_envs, episodes), num_workers)
    try:
        result = _play("agent", agent.policy(explore=False), envs, seeds)
        result |= {"episodes": episodes, "seed": seed, "seeds": seeds, "environment": environment.id, "baselines": {}}
        for name, policy in (baselines or {}).items():
            beside = _play(name, policy, envs, seeds)  # type: ignore[arg-type]
            gain = np.subtract(result["returns"], beside["returns"])
            beside |= {"difference": float(gain.mean()), "difference_ci95": interval(gain)}
            result["baselines"][name] = beside
    finally:
        envs.close()
    if video is not None:
        record(agent.policy(explore=False), environment, seeds[0], video)
    if json is not None:
        write_atomically(json, lambda file: file.write((dumps(result, indent=2) + "\n").encode()))
    return result


def _play(name: str, policy: Policy, envs: Any, seeds: list[int]) -> dict[str, Any]:
    started = time.monotonic()
    with tqdm(total=len(seeds), desc=f"evaluate {name}", unit="episode") as bar:

        def progress(finished: int, total: int, decisions: int) -> None:
            if finished > bar.n:
                bar.update(finished - bar.n)

        results = rollout(envs, policy, seeds, progress=progress)
    returns = [result.total_reward for result in results]
    env_steps = sum(result.env_steps for result in results)
    return {
        "returns": returns,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns, ddof=1)),
        "ci95": interval(returns),
        "env_steps": env_steps,
        "env_steps_per_second": env_steps / (time.monotonic() - started),
    }


def interval(values: Any) -> float:
    """Half-width of Student's 95% interval of the mean of independent values, at least 2 of them."""
    n = len(values)
    return float(student_quantile(n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def student_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t, right to a thousandth.

    Source: Abramowitz and Stegun, 26.7.5, beyond the four degrees where the expansion is not good enough.
    """
    if degrees <= 4:
        return (12.706, 4.303, 3.182, 2.776)[degrees - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def record(policy: Policy, environment: EnvFactory, seed: int, path: str | Path) -> None:
    """Plays one episode and writes it as an animated GIF, as the agent sees it, with step and return below.

    Raises:
        ValueError: if the file's name does not end in .gif.
    """
    if Path(path).suffix != ".gif":
        raise ValueError(f"--video {path}: videos are written as animated GIF, so end the name in .gif")
    film = encode_gif(drive(policy, environment, seed, frames=300))
    write_atomically(path, lambda file: file.write(film))
