"""Several environments that read their orders from, and write what happened to, one set of arrays.

The arrays (`Board`) lie in ordinary memory, or in memory shared with worker processes; nothing else passes between a
policy's process and an environment's. Workers have many boards (slots), so that orders can be given for several steps
at once. This file and what it imports stay free of torch, so workers start quickly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

IDLE, STEP, RESET = 0, 1, 2
SLOTS = 32
"""Boards that workers have. Memory that is never written to is never taken: acting in step, all but the first."""


@dataclass
class Board:
    """One row an environment.

    Args:
        order: uint8 (n,), what each row shall do next: IDLE, STEP or RESET.
        seed: int64 (n,), read at a RESET; negative for none.
        action: float32 (n, A), read at a STEP.
        image: uint8 (n, size, size, channels), what was seen last.
        reward: float64 (n,), of the last STEP.
        terminated: bool (n,), whether the last STEP ended the world.
        truncated: bool (n,), whether it was cut.
        env_steps: int64 (n,), raw steps made by the last STEP.
    """

    order: np.ndarray
    seed: np.ndarray
    action: np.ndarray
    image: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    env_steps: np.ndarray


def board_over(
    buffer: memoryview | None, num_rows: int, action_size: int, size: int, channels: int = 3
) -> tuple[Board, int]:
    """Lays a board over a buffer; without one, over fresh memory. Returns it and the bytes it needs."""
    layout = {
        "order": ((num_rows,), np.uint8),
        "seed": ((num_rows,), np.int64),
        "action": ((num_rows, action_size), np.float32),
        "image": ((num_rows, size, size, channels), np.uint8),
        "reward": ((num_rows,), np.float64),
        "terminated": ((num_rows,), np.bool_),
        "truncated": ((num_rows,), np.bool_),
        "env_steps": ((num_rows,), np.int64),
    }
    sizes = {name: int(np.prod(shape)) * np.dtype(kind).itemsize for name, (shape, kind) in layout.items()}
    # Every array starts on a cache line of its own.
    starts = dict(zip(sizes, np.cumsum([0, *(-(-used // 64) * 64 for used in sizes.values())]).tolist(), strict=False))
    total = starts["env_steps"] + sizes["env_steps"]
    memory = memoryview(bytearray(total)) if buffer is None else buffer
    arrays = {
        name: np.ndarray(shape, kind, memory, offset=starts[name])  # type: ignore[call-overload]
        for name, (shape, kind) in layout.items()
    }
    return Board(**arrays), total


def boards_over(buffer: memoryview | None, *sizes: int) -> tuple[list[Board], int]:
    """Lays all slots over a buffer, each board as `board_over` does. Returns them and the bytes they need."""
    each = -(-board_over(None, *sizes)[1] // 64) * 64
    memory = memoryview(bytearray(SLOTS * each)) if buffer is None else buffer
    return [board_over(memory[slot * each :], *sizes)[0] for slot in range(SLOTS)], SLOTS * each


class Rows:
    """The environments of some rows, in the process that runs them.

    Args:
        make: builds one environment (see `suites.make_env`).
        boards: where orders are read and results written, one a slot.
        rows: the rows of the boards that live here.
    """

    def __init__(self, make: Callable[[], gym.Env], boards: Sequence[Board], rows: Sequence[int]) -> None:
        self.boards, self.envs = boards, {row: make() for row in rows}
        self.seeds: dict[int, int] = {}

    def run(self, slots: range) -> None:
        """Carries out the orders of some slots, row by row.

        A step that comes after an episode's end, ordered by somebody who could not know, is left out.

        Raises:
            RuntimeError: naming the row, if an environment raises.
        """
        for row in self.envs:
            for slot in slots:
                self._obey(row, self.boards[slot])

    def _obey(self, row: int, board: Board) -> None:
        env, order = self.envs[row], board.order[row]
        if order == RESET:
            self.seeds[row] = int(board.seed[row])
        if order == IDLE or row not in self.seeds:
            return
        seed, over = self.seeds[row], False
        try:
            if order == RESET:
                observation, _ = env.reset(seed=seed if seed >= 0 else None)
            else:
                observation, reward, terminated, truncated, info = env.step(board.action[row].copy())
                board.reward[row], board.env_steps[row] = reward, info["env_steps"]
                board.terminated[row], board.truncated[row] = terminated, truncated
                over = terminated or truncated
        except Exception as error:
            raise RuntimeError(
                f"environment {row} of {len(board.order)}, begun with seed {seed}, failed in "
                f"{'reset' if order == RESET else 'step'} with {type(error).__name__}: {error}"
            ) from error
        board.image[row] = observation["image"]
        if over:
            del self.seeds[row]

    def close(self) -> None:
        """Closes every environment."""
        for env in self.envs.values():
            env.close()
