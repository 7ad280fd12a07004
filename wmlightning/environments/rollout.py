"""The one loop in which policies meet environments.

A rollout is a list of jobs, one episode each, named by its environment seed. Jobs are handed to rows as rows become
free. What an episode holds depends on its job alone: not on how many rows or processes there are, nor on which row
it got.

    tick                 k          k+1        k+2        k+3        rows reset while others step
    row 0                step       step, end  reset      step       next job begins at once
    row 1                step       step       step       step
    policy sees          both       both       both       both       a row that ends or rests is stale and ignored
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wmlightning.environments.rows import IDLE, RESET, STEP
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Carry, Policy
from wmlightning.seeds import derive_seed
from wmlightning.threads import torch_threads

ATTEMPTS = 3
"""An episode that kills its worker is begun again this many times in all."""


@dataclass(frozen=True)
class EpisodeResult:
    """What an episode came to.

    Args:
        seed: environment seed.
        total_reward: undiscounted sum of rewards.
        decisions: actions chosen.
        env_steps: environment steps made, at most decisions times action repeat.
        terminated: whether it ended by itself rather than by a time limit.
        job: its place in the rollout's `seeds`.
    """

    seed: int
    total_reward: float
    decisions: int
    env_steps: int
    terminated: bool
    job: int


@dataclass
class _Playing:
    """The episode that a row is playing."""

    job: int
    total_reward: float = 0.0
    decisions: int = 0
    env_steps: int = 0


def rollout(
    envs: PixelVectorEnv,
    policy: Policy,
    seeds: list[int],
    begin: Callable[[list[int]], Carry] | None = None,
    indices: list[int] | None = None,
    writer: Any = None,
    progress: Callable[[int, int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[EpisodeResult]:
    """Plays one episode per seed.

    The policy is always called with all n rows, so that its batch keeps one size; rows that rest carry stale data.
    An episode whose worker died is dropped and begun again with the same seed; the others go on.

    Args:
        envs: from `EnvFactory.vector`.
        policy: acts; its carry is a dict of tensors with one row an environment.
        seeds: environment seed of each job.
        begin: gives the fresh carry of some jobs; by default `policy.initial` with seeds derived from the jobs' own.
        indices: the episode index of each job in the store; by default its place in `seeds`.
        writer: a `datamodules.writer.EpisodeWriter`, or None to record nothing.
        progress: called after every tick with episodes finished, episodes in all, decisions made.
        should_stop: polled every tick; when true, unfinished episodes are dropped and the finished ones returned.

    Returns:
        One result per job, in the order of `seeds`; fewer only if `should_stop` stopped it.

    Raises:
        RuntimeError: if an environment raises, or an episode killed its worker three times.
        ValueError: if the policy's actions do not have the environment's size.
    """
    n = envs.num_envs
    waiting, attempts = deque(range(len(seeds))), [0] * len(seeds)
    rows: list[_Playing | None] = [None] * n
    results: dict[int, EpisodeResult] = {}
    carry: Carry | None = None
    actions, row_seeds = np.zeros(envs.action_space.shape or (), np.float32), np.full(n, -1, np.int64)
    decisions = 0

    with torch.no_grad(), torch_threads(torch.get_num_threads() - envs.num_workers):
        while waiting or any(rows):
            if should_stop is not None and should_stop():
                break
            order = np.array([STEP if playing else IDLE for playing in rows], np.uint8)
            starting = [row for row in range(n) if rows[row] is None][: len(waiting)]
            jobs = [waiting.popleft() for _ in starting]
            for row, job in zip(starting, jobs, strict=True):
                rows[row], row_seeds[row], order[row] = _Playing(job), seeds[job], RESET
            if starting:
                fresh = begin(jobs) if begin else policy.initial(len(jobs), [_noise(seeds[j]) for j in jobs])
                carry = write_rows(carry, fresh, starting, n)

            crashed, observation, board = envs.tick(order, actions, row_seeds), envs.look(), envs.board
            for row, playing in enumerate(rows):
                if playing is None:
                    continue
                job, here = playing.job, {key: value[row] for key, value in observation.items()}
                if crashed[row]:
                    rows[row] = None
                    waiting.appendleft(job)
                    attempts[job] += 1
                    if writer is not None and order[row] == STEP:
                        writer.drop(row)
                    if attempts[job] == ATTEMPTS:
                        raise RuntimeError(
                            f"the episode with seed {seeds[job]} killed its worker {ATTEMPTS} times: play it with "
                            "num_workers=0 to see why"
                        )
                elif order[row] == RESET:
                    if writer is not None:
                        index = job if indices is None else indices[job]
                        writer.begin(row, here, index, {"seed": seeds[job], **envs.description})
                else:
                    reward, terminated, truncated = board.reward[row], board.terminated[row], board.truncated[row]
                    decisions += 1
                    playing.decisions += 1
                    playing.total_reward += float(reward)
                    playing.env_steps += int(board.env_steps[row])
                    if writer is not None:
                        writer.step(row, actions[row].copy(), float(reward), bool(terminated), bool(truncated), here)
                    if terminated or truncated:
                        rows[row] = None
                        sums = playing.total_reward, playing.decisions, playing.env_steps
                        results[job] = EpisodeResult(seeds[job], *sums, bool(terminated), job)
            if progress is not None:
                progress(len(results), len(seeds), decisions)
            if carry is not None and any(rows):
                actions, carry = policy(observation, order == RESET, carry)
                if actions.shape != envs.action_space.shape:
                    raise ValueError(
                        f"the policy acts with {actions.shape[1:]} numbers but the environment takes "
                        f"{envs.single_action_space.shape}: give the policy this action_size"
                    )
                # Box2D aborts the whole process on a NaN.
                live = [row for row in range(n) if rows[row] is not None]
                if not np.isfinite(actions[live]).all():
                    raise ValueError(f"the policy acts with {actions[live]}: actions must be finite; mend the policy")
    for row, playing in enumerate(rows):
        if playing is not None and writer is not None:
            writer.drop(row)
    return [results[job] for job in sorted(results)]


def write_rows(carry: Carry | None, fresh: Carry, rows: list[int], n: int) -> Carry:
    """Puts fresh rows into a carry of n rows; where there is none yet, resting rows get a copy of the first."""
    if carry is None:
        place = torch.zeros(n, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        return {key: value[place.to(value.device)] for key, value in fresh.items()}
    written = {}
    for key, value in carry.items():
        # A copy: the policy may still hold the old tensor, or have made it in inference mode.
        written[key] = value.clone()
        written[key][torch.tensor(rows, device=value.device)] = fresh[key].to(value)
    return written


def _noise(seed: int) -> int:
    """The policy's seed that goes with an environment seed."""
    return derive_seed(seed, 1)
