"""Fills a folder with a policy's episodes; stopped at any moment and called again, it goes on where it was."""

import time
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from datamodules.files import DamagedEpisode, Reader, with_file
from datamodules.store import EpisodeStore
from datamodules.writer import EpisodeWriter
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies.exploration import ExplorationPolicy
from wmlightning.seeds import derive_seed


def collect(
    environment: EnvFactory,
    policy: ExplorationPolicy,
    path: str,
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 8,
    num_workers: int = 0,
    compression: str | None = None,
) -> dict[str, Any]:
    """Records episodes 0 to episodes - 1 of a policy; those that the folder holds already are not played again.

    Episode k is a function of (seed, k): its environment seed and the policy's noise come from them alone. So a
    collection that was interrupted and continued is the same as one that was not, with any number of environments and
    workers.

    Args:
        environment: where to play.
        policy: how to act.
        path: folder of the episodes; made if it is not there.
        episodes: how many the folder shall hold in the end.
        seed: names the collection.
        num_envs: environments played side by side, which the policy sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.
        compression: null for raw frames, gzip for files about ten times smaller that read slowly.

    Returns:
        `episodes`, `decisions` and `mean_return` of the whole folder, and of this call alone `new_episodes`,
        `env_steps` and `seconds`.

    Raises:
        ValueError: if the folder holds other episodes than these, or the policy does not fit the environment.
    """
    started = time.monotonic()
    store = EpisodeStore(path, compression=compression)
    check_same_collection(store, environment, seed)
    present = set(store.indices.tolist())
    missing = [index for index in range(episodes) if index not in present]
    env_steps, total = 0, 0.0
    if missing:
        seeds = [episode_seed(seed, index) for index in missing]
        with (
            environment.vector(min(num_envs, len(missing)), num_workers) as envs,
            tqdm(total=episodes, initial=episodes - len(missing), desc="collect", unit="episode") as bar,
        ):

            def progress(finished: int, _: int, decisions: int) -> None:
                new = finished + bar.initial - bar.n
                if new:
                    rate = decisions / (time.monotonic() - began)
                    bar.set_postfix_str(f"{decisions} decisions, {rate:.0f}/s", refresh=False)
                    bar.update(new)

            began = time.monotonic()
            results = rollout(envs, policy, seeds, indices=missing, writer=EpisodeWriter(store), progress=progress)
        env_steps = sum(result.env_steps for result in results)
    returns = store_returns(store)
    total = float(np.mean(returns)) if returns else 0.0
    return {
        "episodes": len(store),
        "decisions": store.num_steps,
        "mean_return": total,
        "new_episodes": len(missing),
        "env_steps": env_steps,
        "seconds": time.monotonic() - started,
    }


def episode_seed(seed: int, index: int, rank: int = 0) -> int:
    """The environment seed of an episode of a collection."""
    return derive_seed(seed, rank, index)


def check_same_collection(store: EpisodeStore, environment: EnvFactory, seed: int) -> None:
    """Refuses to mix: the first readable episode must come from this environment and this seed.

    Raises:
        ValueError: naming what differs.
    """
    for name in store.listing:
        with suppress(DamagedEpisode):
            metadata = store.contents(name).metadata
            wanted = {
                "environment": environment.id,
                "action_repeat": environment.action_repeat,
                "seed": episode_seed(seed, name.index, name.rank),
            }
            for key, value in wanted.items():
                if metadata.get(key) != value:
                    raise ValueError(
                        f"{store.path} holds episodes with {key} {metadata.get(key)} but {value} is asked for: collect "
                        "into another folder, or with the settings it was begun with"
                    )
            return


def store_returns(store: EpisodeStore) -> list[float]:
    """The return of every readable episode, without reading a frame."""
    returns = []
    for name in store.listing:
        with suppress(DamagedEpisode):
            contents, rewards = store.contents(name), np.empty(name.rows - 1, np.float32)
            with_file(contents.path, contents.offsets, partial(_read_rewards, rewards))
            returns.append(float(rewards.sum(dtype=np.float64)))
    return returns


def _read_rewards(rewards: np.ndarray, read: Reader) -> None:
    read("rewards", 0, rewards)
