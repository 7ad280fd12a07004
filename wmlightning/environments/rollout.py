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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


def rollout(
    envs: PixelVectorEnv,
    policy: Policy,
    seeds: Sequence[int],
    begin: Callable[[list[int]], Carry] | None = None,
    indices: Sequence[int] | None = None,
    writer: Any = None,
    progress: Callable[[int, int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    may_begin: Callable[[int], bool] | None = None,
) -> list[EpisodeResult]:
    """Plays one episode per seed, or as many of them as `may_begin` lets begin.

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
        may_begin: asked every tick with the decisions made so far; once false, no further episode begins and those that
            have begun are finished.

    Returns:
        One result per job, in the order of `seeds`; fewer only if `should_stop` or `may_begin` ended it.

    Raises:
        RuntimeError: if an environment raises, or an episode killed its worker three times.
        ValueError: if the policy's actions do not have the environment's size.
    """
    table, carry, actions = _Table(envs, seeds, indices, writer), None, None
    with torch.no_grad(), torch_threads(torch.get_num_threads() - envs.num_workers):
        while table.waiting or table.live:
            if should_stop is not None and should_stop():
                break
            if may_begin is not None and not may_begin(table.decisions):
                table.begin_no_more()
            rows, jobs = table.hand_out()
            if rows:
                fresh = begin(jobs) if begin else policy.initial(len(jobs), [derive_seed(seeds[j], 1) for j in jobs])
                carry = write_rows(carry, fresh, rows, envs.num_envs)
            crashed = envs.tick(table.order, actions, table.seeds)
            observation = envs.look()
            table.note(crashed, observation, actions)
            if progress is not None:
                progress(len(table.results), len(seeds), table.decisions)
            if carry is not None and table.live:
                actions, carry = policy(observation, table.order == RESET, carry)
                _check(actions, table.live, envs)
    table.leave()
    return [table.results[job] for job in sorted(table.results)]


class _Table:
    """Which row plays which job, and what has come of it."""

    def __init__(self, envs: PixelVectorEnv, seeds: Sequence[int], indices: Sequence[int] | None, writer: Any) -> None:
        self.envs, self.job_seeds, self.indices, self.writer = envs, seeds, indices, writer
        self.waiting, self.attempts = deque(range(len(seeds))), [0] * len(seeds)
        self.rows: list[EpisodeResult | None] = [None] * envs.num_envs
        self.results: dict[int, EpisodeResult] = {}
        self.order, self.seeds = np.full(envs.num_envs, IDLE, np.uint8), np.full(envs.num_envs, -1, np.int64)
        self.decisions = 0

    @property
    def live(self) -> list[int]:
        """Rows that are playing."""
        return [row for row, playing in enumerate(self.rows) if playing is not None]

    def begin_no_more(self) -> None:
        """Forgets the jobs that have not begun; one whose worker died has."""
        self.waiting = deque(job for job in self.waiting if self.attempts[job])

    def hand_out(self) -> tuple[list[int], list[int]]:
        """Gives waiting jobs to free rows and orders the next tick; returns those rows and their jobs."""
        self.order = np.array([IDLE if playing is None else STEP for playing in self.rows], np.uint8)
        free = [row for row, playing in enumerate(self.rows) if playing is None][: len(self.waiting)]
        jobs = [self.waiting.popleft() for _ in free]
        for row, job in zip(free, jobs, strict=True):
            seed = self.job_seeds[job]
            self.rows[row] = EpisodeResult(seed, 0.0, 0, 0, False, job)
            self.seeds[row], self.order[row] = seed, RESET
        return free, jobs

    def note(self, crashed: np.ndarray, observation: dict[str, np.ndarray], actions: np.ndarray | None) -> None:
        """Takes down what a tick did to every row that plays."""
        for row in self.live:
            here = {key: value[row] for key, value in observation.items()}
            if crashed[row]:
                self._begin_again(row)
            elif self.order[row] == RESET:
                self._begin(row, here)
            else:
                assert actions is not None
                self._step(row, actions[row], here)

    def leave(self) -> None:
        """Drops the episodes that are not finished."""
        for row in self.live:
            if self.writer is not None:
                self.writer.drop(row)

    def _begin(self, row: int, here: dict[str, np.ndarray]) -> None:
        playing = self.rows[row]
        if self.writer is not None and playing is not None:
            index = playing.job if self.indices is None else self.indices[playing.job]
            self.writer.begin(row, here, index, {"seed": playing.seed, **self.envs.description})

    def _step(self, row: int, action: np.ndarray, here: dict[str, np.ndarray]) -> None:
        board, before = self.envs.board, self.rows[row]
        assert before is not None
        reward = float(board.reward[row])
        terminated, truncated = bool(board.terminated[row]), bool(board.truncated[row])
        self.decisions += 1
        playing = replace(
            before,
            total_reward=before.total_reward + reward,
            decisions=before.decisions + 1,
            env_steps=before.env_steps + int(board.env_steps[row]),
            terminated=terminated,
        )
        if self.writer is not None:
            self.writer.step(row, action.copy(), reward, terminated, truncated, here)
        over = terminated or truncated
        self.rows[row] = None if over else playing
        if over:
            self.results[playing.job] = playing

    def _begin_again(self, row: int) -> None:
        playing, self.rows[row] = self.rows[row], None
        assert playing is not None
        self.waiting.appendleft(playing.job)
        self.attempts[playing.job] += 1
        if self.writer is not None and self.order[row] == STEP:
            self.writer.drop(row)
        if self.attempts[playing.job] == ATTEMPTS:
            raise RuntimeError(
                f"the episode with seed {playing.seed} killed its worker {ATTEMPTS} times: play it with num_workers=0 "
                "to see why"
            )


def _check(actions: np.ndarray, live: list[int], envs: PixelVectorEnv) -> None:
    if actions.shape != envs.action_space.shape:
        raise ValueError(
            f"the policy acts with {actions.shape[1:]} numbers but the environment takes "
            f"{envs.single_action_space.shape}: give the policy this action_size"
        )
    # Box2D aborts the whole process on a NaN.
    if not np.isfinite(actions[live]).all():
        raise ValueError(f"the policy acts with {actions[live]}: actions must be finite; mend the policy")


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
