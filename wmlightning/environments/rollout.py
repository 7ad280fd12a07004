"""The one loop in which policies meet environments.

A rollout is a list of jobs, one episode each, named by its environment seed. Jobs are handed to rows as rows become
free. What an episode holds depends on its job alone: not on how many rows or processes there are, nor on which row
it got.

    tick                 k          k+1        k+2        k+3        rows reset while others step
    row 0                step       step, end  reset      step       next job begins at once
    row 1                step       step       step       step
    policy sees          both       both       both       both       a row that ends or rests is stale and ignored

With worker processes and rows enough, half of the rows step while the policy thinks about the other half:

    workers      half 1     half 2     half 1     half 2
    policy                  half 1     half 2     half 1
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
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


TWO_HALVES = 8
"""Rows from which on workers and policy take turns: half of them still fill the batches that policies pad to."""


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

    The policy is always called with as many rows, so that its batch keeps one size; rows that rest carry stale data.
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
    fresh = begin or (lambda some: policy.initial(len(some), [derive_seed(seeds[job], 1) for job in some]))
    jobs = _Jobs(seeds, fresh, indices, writer)
    tables = [_Table(envs, policy, jobs, rows) for rows in _halves(envs)]
    with torch.no_grad(), torch_threads(torch.get_num_threads() - envs.num_workers):
        tables[0].start_tick()
        for now, after in cycle(zip(tables, tables[1:] + tables[:1], strict=True)):
            crashed = envs.finish()
            observation = now.look()
            if after is not now:
                after.start_tick()
            now.note(crashed, observation)
            if progress is not None:
                progress(len(jobs.results), len(seeds), jobs.decisions)
            if jobs.over(tables) or (should_stop is not None and should_stop()):
                break
            now.decide(observation)
            if after is now:
                now.start_tick()
        envs.finish()
    for table in tables:
        table.leave()
    return [jobs.results[job] for job in sorted(jobs.results)]


def _halves(envs: PixelVectorEnv) -> list[np.ndarray]:
    """The rows that tick together; neighbours share a worker, so every other row gives each worker its part of both."""
    rows, halves = np.arange(envs.num_envs), 2 if envs.num_workers and envs.num_envs >= TWO_HALVES else 1
    return [rows[half::halves] for half in range(halves)]


class _Jobs:
    """The episodes to play: who waits, who was tried how often, and what has come of them."""

    def __init__(
        self, seeds: list[int], fresh: Callable[[list[int]], Carry], indices: list[int] | None, writer: Any
    ) -> None:
        self.seeds, self.fresh, self.indices, self.writer = seeds, fresh, indices, writer
        self.waiting, self.attempts = deque(range(len(seeds))), [0] * len(seeds)
        self.results: dict[int, EpisodeResult] = {}
        self.decisions = 0

    def over(self, tables: list["_Table"]) -> bool:
        """Whether nobody waits or plays."""
        return not self.waiting and not any(table.live for table in tables)

    def again(self, playing: EpisodeResult) -> None:
        """Puts an episode that lost its worker back to the front. Raises RuntimeError if it was not the first time."""
        self.waiting.appendleft(playing.job)
        self.attempts[playing.job] += 1
        if self.attempts[playing.job] == ATTEMPTS:
            raise RuntimeError(
                f"the episode with seed {playing.seed} killed its worker {ATTEMPTS} times: play it with num_workers=0 "
                "to see why"
            )


class _Table:
    """Some rows that tick together: which plays which job, and what the policy knows of them.

    Places are counted within the table; `rows` says which row of the environments each of them is.
    """

    def __init__(self, envs: PixelVectorEnv, policy: Policy, jobs: _Jobs, rows: np.ndarray) -> None:
        self.envs, self.policy, self.jobs, self.rows = envs, policy, jobs, rows
        self.playing: list[EpisodeResult | None] = [None] * len(rows)
        self.order, self.seeds = np.full(len(rows), IDLE, np.uint8), np.full(len(rows), -1, np.int64)
        self.actions = envs.board.action[rows].copy()
        self.carry: Carry | None = None

    @property
    def live(self) -> list[int]:
        """Places that are playing."""
        return [place for place, playing in enumerate(self.playing) if playing is not None]

    def start_tick(self) -> None:
        """Gives waiting jobs to free places, and sets everybody going."""
        self.order = np.array([IDLE if playing is None else STEP for playing in self.playing], np.uint8)
        free = [place for place, playing in enumerate(self.playing) if playing is None][: len(self.jobs.waiting)]
        begun = [self.jobs.waiting.popleft() for _ in free]
        for place, job in zip(free, begun, strict=True):
            seed = self.jobs.seeds[job]
            self.playing[place] = EpisodeResult(seed, 0.0, 0, 0, False, job)
            self.seeds[place], self.order[place] = seed, RESET
        if free:
            self.carry = write_rows(self.carry, self.jobs.fresh(begun), free, len(self.rows))
        self.envs.start(self.order, self.actions, self.seeds, self.rows)

    def look(self) -> dict[str, np.ndarray]:
        """What the last tick let these rows see, a copy."""
        return {key: value[self.rows] for key, value in self.envs.look().items()}

    def note(self, crashed: np.ndarray, observation: dict[str, np.ndarray]) -> None:
        """Takes down what a tick did to every place that plays."""
        for place in self.live:
            here = {key: value[place] for key, value in observation.items()}
            if crashed[self.rows[place]]:
                self._begin_again(place)
            elif self.order[place] == RESET:
                self._begin(place, here)
            else:
                self._step(place, here)

    def decide(self, observation: dict[str, np.ndarray]) -> None:
        """Asks the policy, where anybody plays."""
        live = self.live
        if self.carry is not None and live:
            self.actions, self.carry = self.policy(observation, self.order == RESET, self.carry)
            _check(self.actions, live, self.envs)

    def leave(self) -> None:
        """Drops the episodes that are not finished."""
        for place in self.live:
            if self.jobs.writer is not None:
                self.jobs.writer.drop(int(self.rows[place]))

    def _begin(self, place: int, here: dict[str, np.ndarray]) -> None:
        playing, jobs = self.playing[place], self.jobs
        if jobs.writer is not None and playing is not None:
            index = playing.job if jobs.indices is None else jobs.indices[playing.job]
            jobs.writer.begin(int(self.rows[place]), here, index, {"seed": playing.seed, **self.envs.description})

    def _step(self, place: int, here: dict[str, np.ndarray]) -> None:
        board, before, row = self.envs.board, self.playing[place], int(self.rows[place])
        assert before is not None
        reward = float(board.reward[row])
        terminated, truncated = bool(board.terminated[row]), bool(board.truncated[row])
        self.jobs.decisions += 1
        playing = replace(
            before,
            total_reward=before.total_reward + reward,
            decisions=before.decisions + 1,
            env_steps=before.env_steps + int(board.env_steps[row]),
            terminated=terminated,
        )
        if self.jobs.writer is not None:
            self.jobs.writer.step(row, self.actions[place].copy(), reward, terminated, truncated, here)
        over = terminated or truncated
        self.playing[place] = None if over else playing
        if over:
            self.jobs.results[playing.job] = playing

    def _begin_again(self, place: int) -> None:
        playing, self.playing[place] = self.playing[place], None
        assert playing is not None
        if self.jobs.writer is not None and self.order[place] == STEP:
            self.jobs.writer.drop(int(self.rows[place]))
        self.jobs.again(playing)


def _check(actions: np.ndarray, live: list[int], envs: PixelVectorEnv) -> None:
    if actions.shape[1:] != envs.single_action_space.shape:
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
