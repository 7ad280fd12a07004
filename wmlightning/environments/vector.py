"""Many environments side by side, in this process or in worker processes, behind gymnasium's `VectorEnv`.

Nothing resets by itself (`AutoresetMode.DISABLED`): a row that ended rests until it is reset, so no fake transition
ever exists.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wmlightning.environments.rows import IDLE, RESET, STEP, Rows, buffer_over
from wmlightning.environments.workers import Workers


class PixelVectorEnv(VectorEnv):
    """n environments that step together; each row is on its own.

    In a `tick` every row either rests, steps or resets; gymnasium's `step` and `reset` are made of it. Rows that have
    ended, or were never reset, rest during a `step`: reward 0, no flag, no env steps. `env_steps_made` counts all
    steps, those of dropped episodes included.

    Where there are workers, rows can also run `ahead`, several steps at a time.

    Args:
        make: builds one environment; picklable if there are workers.
        num_envs: rows.
        num_workers: processes among which the rows are shared out; 0 runs all of them here.
        timeout: seconds after which a worker that does not answer (to a tick, or to one `ahead`) counts as hung,
            killed and restarted.
        description: plain values that recorded episodes carry with them (environment id, action repeat).
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        make: Callable[[], gym.Env],
        num_envs: int,
        num_workers: int = 0,
        timeout: float = 120.0,
        description: dict[str, Any] | None = None,
    ) -> None:
        if num_envs < 1 or num_workers < 0:
            raise ValueError(f"num_envs is {num_envs} and num_workers {num_workers}: ask for at least 1 and 0")
        example = make()
        observation, action = example.observation_space, example.action_space
        example.close()
        assert isinstance(observation, spaces.Dict)
        assert isinstance(action, spaces.Box)
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space = batch_space(observation, num_envs)
        self.action_space = batch_space(action, num_envs)
        self.num_envs, self.num_workers, self.description = num_envs, min(num_workers, num_envs), description or {}
        self.running = np.zeros(num_envs, bool)
        self.env_steps_made = 0
        side, _, channels = observation["image"].shape  # type: ignore[misc]
        sizes = num_envs, int(np.prod(action.shape)), side, channels
        if num_workers:
            self.workers: Workers | None = Workers(make, sizes, self.num_workers, timeout)
            self.buffers, self.local = self.workers.buffers, None
        else:
            self.workers = None
            self.buffers = [buffer_over(None, *sizes)[0]]
            self.local = Rows(make, self.buffers, range(num_envs))
        self.buffer = self.buffers[0]

    def tick(self, order: np.ndarray, actions: np.ndarray | None = None, seeds: np.ndarray | None = None) -> np.ndarray:
        """Lets every row rest, step or reset, all at once; the results stand in `self.buffer`.

        Args:
            order: uint8 (n,) of `rows.IDLE`, `rows.STEP`, `rows.RESET`.
            actions: float32 (n, A), read for rows that step.
            seeds: int64 (n,), read for rows that reset; negative for none.

        Returns:
            bool (n,), rows whose worker died: they must be reset, and what they did since their last reset is lost.

        Raises:
            RuntimeError: if an environment raises, naming it.
        """
        buffer, lost = self.buffer, self.recall()
        buffer.order[:] = np.where(lost & (order == STEP), IDLE, order)
        if actions is not None:
            buffer.action[:] = actions
        if seeds is not None:
            buffer.seed[:] = seeds
        buffer.reward[:], buffer.env_steps[:] = 0.0, 0
        buffer.terminated[:], buffer.truncated[:] = False, False
        crashed = lost & (order == STEP)
        if self.local is not None:
            self.local.run(range(1))
        if self.workers is not None:
            crashed |= self.workers.tick()
        self.env_steps_made += int(buffer.env_steps.sum())
        self.running = (self.running & ~lost) | (order == RESET)
        self.running &= ~(buffer.terminated | buffer.truncated | crashed)
        return crashed

    def ahead(
        self, worker: int, buffer_indices: range, order: np.ndarray, seeds: np.ndarray, actions: Sequence[np.ndarray]
    ) -> None:
        """Sends a worker orders for its r rows, `workers.rows[worker]`. Does not wait for them.

        Its rows must not be read or `tick`ed before `receive` says that they are done. Steps after an episode's end
        are skipped: their buffers hold no results.

        Args:
            worker: number of the worker.
            buffer_indices: indices of `buffers`, the first for rests and resets only.
            order: uint8 (number of buffers, r), as of `tick`.
            seeds: int64 (r,), read for rows that reset.
            actions: of every buffer but the first, float32 (r, A).
        """
        assert self.workers is not None
        rows = self.workers.rows[worker]
        mine = slice(rows[0], rows[-1] + 1)
        buffers = [self.buffers[buffer_index] for buffer_index in buffer_indices]
        buffers[0].seed[mine] = seeds
        for buffer, now in zip(buffers, order, strict=True):
            buffer.order[mine], buffer.env_steps[mine] = now, 0
        for buffer, action in zip(buffers[1:], actions, strict=True):
            buffer.action[mine] = action
        self.running[mine] = False
        self.workers.send(worker, buffer_indices)

    def receive(self) -> tuple[list[tuple[int, range]], np.ndarray]:
        """Waits until something sent by `ahead` is done, or a worker died.

        Returns:
            Workers and the buffers that they have done; and bool (n,), rows whose worker died and lost its orders.

        Raises:
            RuntimeError: if an environment raises, naming it.
        """
        assert self.workers is not None
        done, lost = self.workers.receive()
        for worker, buffer_indices in done:
            rows = self.workers.rows[worker]
            self.env_steps_made += sum(
                int(self.buffers[buffer_index].env_steps[rows].sum()) for buffer_index in buffer_indices
            )
        return done, lost

    def recall(self) -> np.ndarray:
        """Has the workers skip what they have not done yet, and waits for them; returns rows whose worker died."""
        lost = np.zeros(self.num_envs, bool)
        if self.workers is not None and self.workers.busy:
            for buffer in self.buffers:
                buffer.order[:] = IDLE
            while self.workers.busy:
                lost |= self.receive()[1]
        return lost

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Resets all rows, or those of `options={"reset_mask": bool (n,)}`.

        Args:
            seed: one per row, or one number s for s, s + 1, ...
            options: "reset_mask"; other keys are ignored.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs)), bool)
        if seed is None:
            seeds = np.full(self.num_envs, -1)
        elif isinstance(seed, int):
            seeds = seed + np.arange(self.num_envs)
        else:
            seeds = np.array([-1 if value is None else value for value in seed])
        crashed = self.tick(np.where(mask, RESET, IDLE), seeds=seeds)
        return self.look(), {"crashed": crashed}

    def step(  # type: ignore[override]
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every running row. infos: `env_steps` (n,), and `crashed` (n,), rows that lost their worker."""
        crashed = self.tick(np.where(self.running, STEP, IDLE), np.asarray(actions, np.float32))
        buffer = self.buffer
        infos = {"env_steps": buffer.env_steps.copy(), "crashed": crashed}
        return self.look(), buffer.reward.copy(), buffer.terminated.copy(), buffer.truncated.copy(), infos

    def check(self, actions: np.ndarray, rows: list[int] | None = None) -> None:
        """Checks the actions (n, A) of a policy, in these rows or in all.

        Raises:
            ValueError: if actions do not have the environment's size, or are not finite.
        """
        wanted = self.single_action_space.shape
        if actions.shape[1:] != wanted:
            raise ValueError(
                f"the policy acts with {actions.shape[1:]} numbers but the environment takes {wanted}: give the policy "
                "this action_size"
            )
        # Box2D aborts the whole process on a NaN.
        if not np.isfinite(meant := actions if rows is None else actions[rows]).all():
            wrong = meant[~np.isfinite(meant).all(1)][0].tolist()
            raise ValueError(f"the policy acts with {wrong}: actions must be finite; fix the policy")

    def look(self) -> dict[str, np.ndarray]:
        """A copy of the last observation of every row, {"image": uint8 (n, size, size, channels)}."""
        return {"image": self.buffer.image.copy()}

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments and ends the workers."""
        if self.local is not None:
            self.local.close()
        if self.workers is not None:
            self.workers.close()

    def __enter__(self) -> "PixelVectorEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only what __init__ had created before it failed.
        if "workers" in self.__dict__:
            self.close()
