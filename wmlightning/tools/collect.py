"""Collects a policy's episodes into a folder; stopped at any moment and called again, it resumes."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.episode import Episode
from datamodules.files import DamagedEpisode, EpisodeName, Reader, check_writable, with_file
from datamodules.store import EpisodeStore
from datamodules.writer import BackgroundWriter, EpisodeWriter
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.interfaces import Policy
from wmlightning.policies.exploration import ExplorationPolicy
from wmlightning.policies.noisy import NoisyPolicy
from wmlightning.recipes import recipe_of
from wmlightning.runtime import progress_bar
from wmlightning.seeds import derive_seed
from wmlightning.stages.checkpoints import load
from wmlightning.stages.requirements import MAX_ROWS, NUM_EPISODES, expect
from wmlightning.validation import at_least

MAX_DISCARDED = 10
"""Times as many episodes as are wanted may be discarded before a collection gives up."""
MAX_RECIPE_LENGTH = 16384
"""Characters of a recipe that an episode keeps; HDF5 takes no attribute beyond 64 KB."""


def collect(
    environment: EnvFactory,
    policy: ExplorationPolicy | None = None,
    path: str = "runs/episodes",
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 8,
    num_workers: int = 0,
    compression: str | None = None,
    agent: str | None = None,
    noise: ExplorationPolicy | None = None,
    min_decisions: int = 0,
    iteration: int = 0,
) -> dict[str, Any]:
    """Collects a number of a policy's episodes; those in the folder are not played again.

    Episode k is a function of (seed, k) and of the policy: its environment seed and all noise come from these alone.
    So a collection that was interrupted and continued is the same as one that was not, with any number of environments
    and workers.

    Several collections may share a folder, one an iteration, each with an agent of its own: every one numbers its
    episodes on from the last of those before it, and so has environment seeds that none had before.

    Args:
        environment: where to play.
        policy: how to act; or name an agent instead.
        path: folder of the episodes; made if it is not there.
        episodes: how many this collection shall have stored in the end. Where episodes are discarded it plays more.
        seed: names the folder's episodes; the same for every iteration.
        num_envs: environments played side by side, which the policy sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.
        compression: null for raw frames, gzip for files about ten times smaller that read slowly.
        agent: checkpoint of an agent that acts, exploring if it can, instead of the policy.
        noise: a policy whose actions are added to the agent's, such as SmoothNoisePolicy: a mean that CMA-ES found
            does not explore by itself.
        min_decisions: episodes of fewer decisions are played and counted but not stored.
        iteration: number of this collection; its episodes carry it as their birth. Those before it must be complete.

    Returns:
        `episodes`, `decisions` and `mean_return` of the whole folder; of this collection `collected`, `discarded`,
        `collected_return` and `collected_env_steps` (both with the discarded); and of this call alone `new_episodes`,
        `env_steps` and `seconds`. Files tell decisions, not environment steps: of a stored episode that ended by itself
        in the middle of an action repeat, `collected_env_steps` counts the whole repeat.

    Raises:
        ValueError: if the folder holds episodes of other settings, policies or seeds than these, the policy does not
            fit the environment, both or none of policy and agent are given, or nearly every episode is too short.
    """
    started = time.monotonic()
    acting = check_collect(environment, path, policy, agent, noise, episodes, seed, num_envs, num_workers, compression)
    store = EpisodeStore(path, compression=compression)
    made = described(environment, policy, agent, noise)
    check_same_collection(store, environment, seed, iteration, made)
    first = 1 + max((name.index for name in store.listing if name.birth < iteration), default=-1)
    later = sorted({name.birth for name in store.listing if name.birth > iteration})
    if later:
        raise ValueError(f"{path} holds episodes of iteration {later[0]}, after this one ({iteration}): delete them")
    writer = LongEpisodeWriter(store, min_decisions, iteration)
    new, played, end = 0, {}, first + episodes
    # Short ones are not in the folder, so a collection that goes on plays them again: that way they are counted once.
    while missing := [index for index in range(first, end) if index not in writer.stored | writer.discarded.keys()]:
        before = len(writer.stored)
        seeds = [collection_seed(seed, index) for index in missing]
        # An agent rounds alike in batches of one size only.
        rows = num_envs if agent else min(num_envs, len(missing))
        with (
            environment.vector(rows, num_workers) as envs,
            episode_bar(episodes, before) as progress,
            BackgroundWriter(writer) as background,
        ):
            envs.description |= made
            results = rollout(envs, acting, seeds, indices=missing, writer=background, progress=progress)
        played |= {missing[result.job]: result for result in results}
        new += len(writer.stored) - before
        end = first + episodes + len(writer.discarded)
        if len(writer.discarded) > MAX_DISCARDED * (episodes + 1):
            raise ValueError(
                f"{len(writer.discarded)} episodes were shorter than min_decisions={min_decisions} and "
                f"{len(writer.stored)} were not: lower min_decisions, or give a better policy"
            )
    returns = store_returns(store)
    own = [value for name, value in returns.items() if name.birth == iteration]
    short = list(writer.discarded.values())
    # From the files, not from `played`: a collection that goes on finds some of its episodes there and counts alike.
    longest = math.inf if environment.time_limit is None else environment.time_limit
    steps = [(name.rows - 1) * environment.action_repeat for name in returns if name.birth == iteration]
    steps = [min(made, longest) for made in steps] + [played[index].env_steps for index in writer.discarded]
    return {
        "episodes": len(store),
        "decisions": store.num_steps,
        "mean_return": mean(list(returns.values())),
        "collected": len(own),
        "discarded": len(short),
        "collected_return": mean(own + short),
        "collected_env_steps": sum(steps),
        "new_episodes": new,
        "env_steps": sum(result.env_steps for result in played.values()),
        "seconds": time.monotonic() - started,
    }


def check_collect(
    environment: EnvFactory,
    path: str | Path,
    policy: ExplorationPolicy | None,
    agent: str | None,
    noise: ExplorationPolicy | None,
    episodes: int,
    seed: int,
    num_envs: int,
    num_workers: int,
    compression: str | None,
) -> Policy:
    """Checks a collection's arguments, without playing; gives the policy that acts.

    Raises:
        ValueError: unless there is one policy, or one agent, noisy or not, and the numbers make sense.
    """
    check_writable(Path(path) / "episode.h5")
    at_least(1, episodes=episodes, num_envs=num_envs)
    at_least(0, seed=seed, num_workers=num_workers)
    EpisodeStore(path, compression=compression)
    expect(path, environment.spec)
    expect(Path(path) / MAX_ROWS, environment.longest)
    expect(Path(path) / NUM_EPISODES, episodes)
    for name, part in (("policy", policy), ("noise", noise)):
        environment.check_policy(part, name)
    if (policy is None) == (agent is None):
        raise ValueError("a collection wants either a policy or an agent: give one of them, --policy or --agent")
    if policy is not None:
        if noise is not None:
            raise ValueError("noise is for an agent that does not explore by itself: leave it out beside a policy")
        return policy
    stage = load(str(agent))
    if not hasattr(stage, "policy"):
        raise ValueError(f"{agent} holds a {type(stage).__name__}, which does not act: give a controller's checkpoint")
    acting: Any = stage.policy(explore=True)  # type: ignore[operator]
    return acting if noise is None else NoisyPolicy(acting, noise)


class LongEpisodeWriter(EpisodeWriter):
    """Writes episodes of enough decisions and counts the others.

    Args:
        store: where they go.
        min_decisions: fewer are not stored.
        birth: the number of the collection.
    """

    def __init__(self, store: EpisodeStore, min_decisions: int, birth: int) -> None:
        super().__init__(store, birth=birth)
        self.min_decisions = min_decisions
        self.discarded: dict[int, float] = {}
        """Return of each episode that was not stored, by its index."""

    @property
    def stored(self) -> set[int]:
        """Indices of this collection's episodes in the store."""
        return {name.index for name in self.store.listing if name.birth == self.birth}

    def keep(self, episode: Episode, index: int, part: int = 0) -> str | None:
        """Stores the episode, or records its return if it is too short."""
        if episode.num_steps >= self.min_decisions:
            return super().keep(episode, index, part)
        self.discarded[index] = episode.total_reward
        return None


@contextmanager
def episode_bar(episodes: int, done: int) -> Iterator[Callable[[int, int, int], None]]:
    """Shows a progress bar of episodes; gives the function that `rollout` calls to advance it."""
    began = time.monotonic()
    with progress_bar(total=episodes, initial=done, desc="collect", unit="episode") as bar:

        def progress(finished: int, _: int, decisions: int) -> None:
            new = finished + bar.initial - bar.n
            if new:
                rate = decisions / (time.monotonic() - began)
                bar.set_postfix_str(f"{decisions} decisions, {rate:.0f}/s", refresh=False)
                bar.update(new)

        yield progress


def collection_seed(seed: int, index: int, rank: int = 0) -> int:
    """The environment seed of an episode of a collection."""
    return derive_seed(seed, rank, index)


def described(
    environment: EnvFactory, policy: ExplorationPolicy | None, agent: str | None, noise: ExplorationPolicy | None
) -> dict[str, str]:
    """Returns how episodes are made, for their metadata: recipes as JSON, an agent as the digest of its checkpoint."""
    parts = {"settings": environment, "policy": policy, "noise": noise}
    made = {name: _recipe_text(part) for name, part in parts.items() if part is not None}
    return made if agent is None else made | {"agent": hashlib.sha256(Path(agent).read_bytes()).hexdigest()[:16]}


def _recipe_text(part: Any) -> str:
    """A part's recipe, 1 and 1.0 alike; its class where it has none, a digest where that is too long for a file."""
    try:
        recipe = json.loads(json.dumps(recipe_of(part)), parse_int=float)
    except TypeError:
        return f"{type(part).__module__}.{type(part).__qualname__}"
    words = json.dumps(recipe["init_args"] if isinstance(part, EnvFactory) else recipe)
    return words if len(words) < MAX_RECIPE_LENGTH else hashlib.sha256(words.encode()).hexdigest()


def check_same_collection(
    store: EpisodeStore, environment: EnvFactory, seed: int, iteration: int, made: dict[str, str]
) -> None:
    """Refuses to mix: the folder's first readable episode must come from this environment and this seed.

    The first of this iteration must also have been made alike in all that `described` says, where it says anything.

    Raises:
        ValueError: naming what differs.
    """
    unchecked = {True, False}
    for name in store.listing:
        own = name.birth == iteration
        if own not in unchecked:
            continue
        with suppress(DamagedEpisode):
            metadata = store.contents(name).metadata
            wanted: dict[str, Any] = {
                "environment": environment.id,
                "action_repeat": environment.action_repeat,
                "seed": collection_seed(seed, name.index, name.rank),
                "conventions": environment.conventions,
            }
            if own and "settings" in metadata:
                wanted |= {key: made.get(key) for key in ("settings", "policy", "noise", "agent")}
            for key, value in wanted.items():
                if metadata.get(key) != value:
                    raise ValueError(
                        f"{store.path} holds episodes with {key} {metadata.get(key)} but {value} is asked for: collect "
                        "into another folder, or with the settings it was begun with"
                    )
            unchecked.remove(own)


def store_returns(store: EpisodeStore) -> dict[EpisodeName, float]:
    """The return of every readable episode, without reading a frame."""
    returns = {}
    for name in store.listing:
        with suppress(DamagedEpisode):
            contents, rewards = store.contents(name), np.empty(name.rows - 1, np.float32)
            with_file(contents.path, contents.offsets, partial(_read_rewards, rewards))
            returns[name] = float(rewards.sum(dtype=np.float64))
    return returns


def mean(values: list[float]) -> float:
    """Returns the mean; 0 for no numbers."""
    return float(np.mean(values)) if values else 0.0


def _read_rewards(rewards: np.ndarray, read: Reader) -> None:
    read("rewards", 0, rewards)
