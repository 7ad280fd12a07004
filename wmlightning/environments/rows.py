"""Several environments that read their orders from one set of arrays and write their results there.

The arrays (`StepBuffer`) lie in ordinary memory, or in memory shared with worker processes; nothing else passes between
a policy's process and an environment's. Workers have many buffers, so that orders can be given for several steps at
once. This file and what it imports stay free of torch, so workers start quickly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

IDLE, STEP, RESET = 0, 1, 2
NUM_BUFFERS = 32
"""Buffers that workers share. The operating system gives no memory to those that are never written to."""


@dataclass
class StepBuffer:
    """The orders of one step and its results, one row an environment.

    Args:
        order: uint8 (n,), what each row does next: IDLE, STEP or RESET.
        seed: int64 (n,), read at a RESET; negative for none.
        action: float32 (n, A), read at a STEP.
        image: uint8 (n, size, size, channels), what was seen last.
        reward: float64 (n,), of the last STEP.
        terminated: bool (n,), whether the last STEP ended the episode by itself.
        truncated: bool (n,), whether a time limit cut it.
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


def buffer_over(
    shared: memoryview | None, num_rows: int, action_size: int, size: int, channels: int = 3
) -> tuple[StepBuffer, int]:
    """Lays a buffer over shared memory, or over fresh memory without it. Returns it and the bytes it needs."""
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
    memory = memoryview(bytearray(total)) if shared is None else shared
    arrays = {
        name: np.ndarray(shape, kind, memory, offset=starts[name])  # type: ignore[call-overload]
        for name, (shape, kind) in layout.items()
    }
    return StepBuffer(**arrays), total


def buffers_over(shared: memoryview | None, *sizes: int) -> tuple[list[StepBuffer], int]:
    """Lays all buffers over shared memory, each as `buffer_over` does. Returns them and the bytes they need."""
    each = -(-buffer_over(None, *sizes)[1] // 64) * 64
    memory = memoryview(bytearray(NUM_BUFFERS * each)) if shared is None else shared
    return [
        buffer_over(memory[buffer_index * each :], *sizes)[0] for buffer_index in range(NUM_BUFFERS)
    ], NUM_BUFFERS * each


class Rows:
    """The environments of some rows, in the process that runs them.

    Args:
        make: builds one environment (see `suites.make_env`).
        buffers: where orders are read and results written, one a step.
        rows: the rows of the buffers whose environments run here.
    """

    def __init__(self, make: Callable[[], gym.Env], buffers: Sequence[StepBuffer], rows: Sequence[int]) -> None:
        self.buffers, self.envs = buffers, {row: make() for row in rows}
        self.seeds: dict[int, int] = {}

    def run(self, buffer_indices: range) -> None:
        """Carries out the orders of some buffers, row by row.

        A step that was ordered before its episode's end was known is skipped.

        Raises:
            RuntimeError: naming the row, if an environment raises.
        """
        for row in self.envs:
            for buffer_index in buffer_indices:
                self._run_order(row, self.buffers[buffer_index])

    def _run_order(self, row: int, buffer: StepBuffer) -> None:
        env, order = self.envs[row], buffer.order[row]
        if order == RESET:
            self.seeds[row] = int(buffer.seed[row])
        if order == IDLE or row not in self.seeds:
            return
        seed, over = self.seeds[row], False
        try:
            if order == RESET:
                observation, _ = env.reset(seed=seed if seed >= 0 else None)
            else:
                observation, reward, terminated, truncated, info = env.step(buffer.action[row].copy())
                buffer.reward[row], buffer.env_steps[row] = reward, info["env_steps"]
                buffer.terminated[row], buffer.truncated[row] = terminated, truncated
                over = terminated or truncated
        except Exception as error:
            raise RuntimeError(
                f"environment {row} of {len(buffer.order)}, begun with seed {seed}, failed in "
                f"{'reset' if order == RESET else 'step'} with {type(error).__name__}: {error}"
            ) from error
        buffer.image[row] = observation["image"]
        if over:
            del self.seeds[row]

    def close(self) -> None:
        """Closes every environment."""
        for env in self.envs.values():
            env.close()
