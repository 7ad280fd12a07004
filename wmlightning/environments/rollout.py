"""The loop in which policies act in environments.

A rollout is a list of jobs, one episode each, named by its environment seed. Jobs are handed to rows as rows become
free. What an episode holds depends on its job alone: not on how many rows or processes there are, nor on which row
it got.

    tick                 k          k+1        k+2        k+3        rows reset while others step
    row 0                step       step, end  reset      step       next job begins at once
    row 1                step       step       step       step
    policy sees          both       both       both       both       a row that ends or rests is stale and ignored

A policy that ignores observations need not wait for them: in worker processes `environments.ahead` plays it, without
ticks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from wmlightning.environments.ahead import play_ahead
from wmlightning.environments.jobs import EpisodeResult, Table, write_rows
from wmlightning.environments.rows import IDLE, RESET, STEP
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Carry, Policy
from wmlightning.runtime import torch_threads
from wmlightning.seeds import derive_seed


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

    The policy is always called with all n rows, so that its batch keeps one size; rows that rest carry stale data. A
    policy that is `blind` is called with one row and an empty observation where there are workers, and their rows do
    not wait for each other; unless there is `may_begin`, whose answers must not depend on which worker is quicker.

    An episode whose worker died is dropped and begun again with the same seed; the others go on.

    Args:
        envs: from `EnvFactory.vector`.
        policy: acts; its carry is a dict of tensors with one row an environment.
        seeds: environment seed of each job.
        begin: gives the fresh carry of some jobs; by default `policy.initial` with seeds derived from the jobs' own.
        indices: the episode index of each job in the store; by default its place in `seeds`.
        writer: a `datamodules.writer.EpisodeWriter`, or None to record nothing.
        progress: called after every tick, or batch of decisions, with episodes finished, episodes in all and decisions
            made.
        should_stop: polled as often; when true, unfinished episodes are dropped and the finished ones returned.
        may_begin: asked every tick with the decisions made so far; once false, no further episode begins and those that
            have begun are finished.

    Returns:
        One result per job, in the order of `seeds`; fewer only if `should_stop` or `may_begin` ended it.

    Raises:
        RuntimeError: if an environment raises, or an episode killed its worker three times.
        ValueError: if the policy's actions do not have the environment's size.
    """
    table = Table(envs, seeds, indices, writer, progress)
    begin = begin or (lambda jobs: policy.initial(len(jobs), [derive_seed(seeds[job], 1) for job in jobs]))
    with torch.no_grad(), torch_threads(torch.get_num_threads() - envs.num_workers):
        # With `may_begin`, which episodes begin depends on earlier steps: rows in step repeat that exactly.
        if envs.workers is not None and getattr(policy, "blind", False) and may_begin is None:
            play_ahead(envs, policy, begin, table, should_stop)
        else:
            _in_step(envs, policy, begin, table, should_stop, may_begin)
    return table.leave()


def _in_step(
    envs: PixelVectorEnv,
    policy: Policy,
    begin: Callable[[list[int]], Carry],
    table: Table,
    should_stop: Callable[[], bool] | None,
    may_begin: Callable[[int], bool] | None,
) -> None:
    carry, actions, seeds = None, None, np.full(envs.num_envs, -1, np.int64)
    while table.waiting or table.live:
        if should_stop is not None and should_stop():
            break
        if may_begin is not None and not may_begin(table.decisions):
            table.begin_no_more()
        order = np.array([IDLE if playing is None else STEP for playing in table.rows], np.uint8)
        if begun := table.assign_jobs(np.flatnonzero(order == IDLE).tolist()):
            rows, jobs = list(begun), list(begun.values())
            order[rows], seeds[rows] = RESET, [table.seeds[job] for job in jobs]
            carry = write_rows(carry, begin(jobs), rows, envs.num_envs)
        crashed = envs.tick(order, actions, seeds)
        observation = envs.look()
        for row in table.live:
            if crashed[row]:
                table.lose(row)
            else:
                table.record(row, envs.buffer)
        table.report_progress()
        if carry is not None and table.live:
            actions, carry = policy(observation, order == RESET, carry)
            envs.check(actions, table.live)
