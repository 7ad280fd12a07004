"""Which environment row plays which job of a rollout, and the results so far."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from wmlightning.environments.rows import RESET, StepBuffer
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Carry

ATTEMPTS = 3
"""An episode that kills its worker is begun again this many times in all."""


@dataclass(frozen=True)
class EpisodeResult:
    """The result of an episode.

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


class Table:
    """The jobs of a rollout: assigned to rows, and recorded step by step.

    Args:
        envs: where they are played.
        seeds: environment seed of each job.
        indices: the episode index of each job in the store; by default its place in `seeds`.
        writer: a `datamodules.writer.EpisodeWriter`, or None to record nothing.
        progress: called with episodes finished, episodes in all, decisions made.
    """

    def __init__(
        self,
        envs: PixelVectorEnv,
        seeds: Sequence[int],
        indices: Sequence[int] | None,
        writer: Any,
        progress: Callable[[int, int, int], None] | None,
    ) -> None:
        self.envs, self.seeds, self.indices, self.writer, self.progress = envs, seeds, indices, writer, progress
        self.waiting, self.attempts = deque(range(len(seeds))), [0] * len(seeds)
        self.rows: list[EpisodeResult | None] = [None] * envs.num_envs
        self.results: dict[int, EpisodeResult] = {}
        self.decisions = 0

    @property
    def live(self) -> list[int]:
        """Rows that are playing."""
        return [row for row, playing in enumerate(self.rows) if playing is not None]

    def begin_no_more(self) -> None:
        """Drops the jobs that have not begun; one whose worker died counts as begun."""
        self.waiting = deque(job for job in self.waiting if self.attempts[job])

    def assign_jobs(self, free: Sequence[int]) -> dict[int, int]:
        """Assigns waiting jobs to these rows, as long as there are any; returns the job of each row that begins one."""
        begun = {row: self.waiting.popleft() for row in free[: len(self.waiting)]}
        for row, job in begun.items():
            self.rows[row] = EpisodeResult(self.seeds[job], 0.0, 0, 0, False, job)
        return begun

    def record(self, row: int, buffer: StepBuffer) -> None:
        """Records what a row that plays did in one step or reset."""
        playing = self.rows[row]
        assert playing is not None
        if buffer.order[row] == RESET:
            if self.writer is not None:
                index = playing.job if self.indices is None else self.indices[playing.job]
                self.writer.begin(row, _seen(row, buffer), index, {"seed": playing.seed, **self.envs.description})
            return
        reward = float(buffer.reward[row])
        terminated, truncated = bool(buffer.terminated[row]), bool(buffer.truncated[row])
        self.decisions += 1
        playing = replace(
            playing,
            total_reward=playing.total_reward + reward,
            decisions=playing.decisions + 1,
            env_steps=playing.env_steps + int(buffer.env_steps[row]),
            terminated=terminated,
        )
        if self.writer is not None:
            action = buffer.action[row].copy()
            self.writer.step(row, action, reward, terminated, truncated, _seen(row, buffer))
        over = terminated or truncated
        self.rows[row] = None if over else playing
        if over:
            self.results[playing.job] = playing

    def lose(self, row: int) -> None:
        """Drops the unfinished episode of a row whose worker died; its job will begin again.

        Raises:
            RuntimeError: if the job has killed its worker too often.
        """
        playing, self.rows[row] = self.rows[row], None
        if playing is None:
            return
        self.waiting.appendleft(playing.job)
        self.attempts[playing.job] += 1
        self._drop(row)
        if self.attempts[playing.job] == ATTEMPTS:
            raise RuntimeError(
                f"the episode with seed {playing.seed} killed its worker {ATTEMPTS} times: play it with num_workers=0 "
                "to see why"
            )

    def report_progress(self) -> None:
        """Calls `progress` with the present counts."""
        if self.progress is not None:
            self.progress(len(self.results), len(self.seeds), self.decisions)

    def leave(self) -> list[EpisodeResult]:
        """Drops the episodes that are not finished; returns the finished ones in the order of their jobs."""
        for row in self.live:
            self._drop(row)
        return [self.results[job] for job in sorted(self.results)]

    def _drop(self, row: int) -> None:
        if self.writer is not None:
            self.writer.drop(row)


def _seen(row: int, buffer: StepBuffer) -> dict[str, np.ndarray]:
    # A copy: the writer may keep it, and the buffer is overwritten.
    return {"image": buffer.image[row].copy()}


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
