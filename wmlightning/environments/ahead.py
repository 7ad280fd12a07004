"""A rollout of a policy that ignores observations: workers and this process do not wait for each other.

The actions of such a policy can be chosen before the environments step. So every worker is sent its rows' decisions in
batches, and the next batch waits in its queue while this process records the results of the last one:

    buffers         0 ... 15           16 ... 31           0 ... 15
    worker          steps              steps               steps
    this process    -                  records 0-15,       records 16-31, ...
                                       chooses new actions

The first buffer of a batch is for resets. Where an episode ends within a batch, the worker skips the row's other steps,
also those of the batch that is in its queue; the row begins its next job with the batch after that.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

from wmlightning.environments.jobs import Table, write_rows
from wmlightning.environments.rows import IDLE, RESET, STEP
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Carry, Policy


def play_ahead(
    envs: PixelVectorEnv,
    policy: Policy,
    begin: Callable[[list[int]], Carry],
    table: Table,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Plays the jobs of a table; see `rollout.rollout`. Needs workers, and a policy that is `blind`."""
    assert envs.workers is not None
    envs.recall()  # Skips the orders that an interrupted rollout has left.
    workers = [_WorkerRows(envs, worker, table) for worker in range(envs.num_workers)]
    while should_stop is None or not should_stop():
        for worker_rows in workers:
            while worker_rows.free and worker_rows.send(policy, begin):
                pass
        if not envs.workers.busy:
            break
        done, lost = envs.receive()
        for worker_rows in workers:
            if lost[worker_rows.rows[0]]:
                worker_rows.lose()
        for worker, buffer_indices in done:
            workers[worker].record(buffer_indices)
        table.report_progress()
    envs.recall()


class _WorkerRows:
    """The rows of one worker, the batches of decisions it was sent, and the buffers that are free."""

    def __init__(self, envs: PixelVectorEnv, worker: int, table: Table) -> None:
        assert envs.workers is not None
        self.envs, self.worker, self.table, self.rows = envs, worker, table, envs.workers.rows[worker]
        self.carry: Carry | None = None
        self._clear()

    def _clear(self) -> None:
        half = len(self.envs.buffers) // 2
        self.free = deque([range(half), range(half, 2 * half)])
        self.sent: deque[dict[int, int]] = deque()

    def send(self, policy: Policy, begin: Callable[[list[int]], Carry]) -> bool:
        """Chooses a batch of actions and sends it to the worker; returns False where no job is left for its rows."""
        begun = self.table.assign_jobs([row for row in self.rows if self.table.rows[row] is None])
        jobs = {row: playing.job for row in self.rows if (playing := self.table.rows[row]) is not None}
        if not jobs:
            return False
        buffer_indices, first = self.free.popleft(), self.rows[0]
        starting, playing = [row - first for row in begun], [row - first for row in jobs]
        order = np.full((len(buffer_indices), len(self.rows)), IDLE, np.uint8)
        seeds = np.full(len(self.rows), -1, np.int64)
        order[0, starting], order[1:, playing] = RESET, STEP
        if begun:
            seeds[starting] = [self.table.seeds[job] for job in begun.values()]
            self.carry = write_rows(self.carry, begin(list(begun.values())), starting, len(self.rows))
        assert self.carry is not None
        is_first, actions = order[0] == RESET, []
        for _ in buffer_indices[1:]:
            action, self.carry = policy({}, is_first, self.carry)
            actions.append(action)
            is_first = np.zeros_like(is_first)
        self.envs.check(np.concatenate(actions))
        self.envs.ahead(self.worker, buffer_indices, order, seeds, actions)
        self.sent.append(jobs)
        return True

    def record(self, buffer_indices: range) -> None:
        """Records the oldest batch that was sent and is not recorded yet."""
        for row, job in self.sent.popleft().items():
            for buffer_index in buffer_indices:
                playing, buffer = self.table.rows[row], self.envs.buffers[buffer_index]
                # The episode had ended before this step.
                if playing is None or playing.job != job:
                    break
                if buffer.order[row] != IDLE:
                    self.table.record(row, buffer)
        self.free.append(buffer_indices)

    def lose(self) -> None:
        """Drops the unfinished episodes of the rows, because their worker died."""
        self._clear()
        for row in self.rows:
            self.table.lose(row)
