"""A rollout of a policy that looks at nothing: nobody waits for anybody.

What such a policy does next is known before it is done. So every worker is sent its rows' next decisions a lot at a
time, and the next lot already waits in its queue while the results of the last one are taken down here:

    slots           0 ... 15           16 ... 31           0 ... 15
    worker          plays              plays               plays
    this process    -                  takes down 0-15,    takes down 16-31, ...
                                       decides them anew

The first slot of a lot is for resets. Where an episode ends in the middle of a lot, the worker leaves out the row's
other steps, also those of the lot that is under way; the row begins its next job with the lot after it.
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
    """Plays a table's jobs; see `rollout.rollout`. Wants workers, and a policy that is `blind`."""
    assert envs.workers is not None
    envs.recall()  # What an interrupted rollout has left.
    shares = [_Share(envs, worker, table) for worker in range(envs.num_workers)]
    while should_stop is None or not should_stop():
        for share in shares:
            while share.free and share.send(policy, begin):
                pass
        if not envs.workers.busy:
            break
        done, lost = envs.receive()
        for share in shares:
            if lost[share.rows[0]]:
                share.lose()
        for worker, slots in done:
            shares[worker].note(slots)
        table.tell()
    envs.recall()


class _Share:
    """The rows of one worker, what it was sent, and the slots it was not."""

    def __init__(self, envs: PixelVectorEnv, worker: int, table: Table) -> None:
        assert envs.workers is not None
        self.envs, self.worker, self.table, self.rows = envs, worker, table, envs.workers.rows[worker]
        self.carry: Carry | None = None
        self._forget()

    def _forget(self) -> None:
        half = len(self.envs.boards) // 2
        self.free = deque([range(half), range(half, 2 * half)])
        self.sent: deque[dict[int, int]] = deque()

    def send(self, policy: Policy, begin: Callable[[list[int]], Carry]) -> bool:
        """Decides a lot and sends it, if there is anything to play."""
        begun = self.table.hand_out([row for row in self.rows if self.table.rows[row] is None])
        jobs = {row: playing.job for row in self.rows if (playing := self.table.rows[row]) is not None}
        if not jobs:
            return False
        slots, first = self.free.popleft(), self.rows[0]
        starting, playing = [row - first for row in begun], [row - first for row in jobs]
        order, seeds = np.full((len(slots), len(self.rows)), IDLE, np.uint8), np.full(len(self.rows), -1, np.int64)
        order[0, starting], order[1:, playing] = RESET, STEP
        if begun:
            seeds[starting] = [self.table.seeds[job] for job in begun.values()]
            self.carry = write_rows(self.carry, begin(list(begun.values())), starting, len(self.rows))
        assert self.carry is not None
        is_first, actions = order[0] == RESET, []
        for _ in slots[1:]:
            action, self.carry = policy({}, is_first, self.carry)
            actions.append(action)
            is_first = np.zeros_like(is_first)
        self.envs.check(np.concatenate(actions))
        self.envs.ahead(self.worker, slots, order, seeds, actions)
        self.sent.append(jobs)
        return True

    def note(self, slots: range) -> None:
        """Takes down the lot that was sent first of those that are not taken down."""
        for row, job in self.sent.popleft().items():
            for slot in slots:
                playing, board = self.table.rows[row], self.envs.boards[slot]
                # The job was over already when the worker came to this step.
                if playing is None or playing.job != job:
                    break
                if board.order[row] != IDLE:
                    self.table.note(row, board)
        self.free.append(slots)

    def lose(self) -> None:
        """Forgets what the rows were playing."""
        self._forget()
        for row in self.rows:
            self.table.lose(row)
