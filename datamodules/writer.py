"""Steps of parallel environments -> whole episodes -> store.

`EpisodeWriter` gathers the steps and appends each episode when it ends; `BackgroundWriter` does so in a thread.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from datamodules.episode import Episode
from datamodules.store import EpisodeStore


class EpisodeWriter:
    """Gathers the steps of several environment rows and appends each episode to a store when it ends.

    Only finished episodes reach the disk. Rows may begin and end their episodes at different times.

    Args:
        store: where finished episodes go.
        rank: the process that records.
        birth: the batch count from which on these episodes may be trained on.
    """

    def __init__(self, store: EpisodeStore, rank: int = 0, birth: int = 0) -> None:
        self.store = store
        self.rank = rank
        self.birth = birth
        self._recordings: dict[int, _Recording] = {}

    def begin(
        self,
        row: int,
        observation: dict[str, np.ndarray],
        index: int,
        metadata: dict[str, Any] | None = None,
        part: int = 0,
    ) -> None:
        """Starts an episode with the observation of its reset.

        Args:
            row: the environment row.
            observation: one observation, copied, e.g. `{"image": uint8 (H, W, C)}`.
            index: the episode's number in the store.
            metadata: plain values kept with it.
            part: its number, from 1 on, if it continues an episode that is written in parts; the observation is then
                the last one of the part before.

        Raises:
            ValueError: if the row's last episode has not ended; call `drop` to discard it.
        """
        if row in self._recordings:
            raise ValueError(f"row {row} begins an episode but its last one has not ended: drop it first")
        self._recordings[row] = _Recording(index, metadata or {}, observation, part)

    def step(
        self,
        row: int,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        observation: dict[str, np.ndarray],
    ) -> str | None:
        """Records one decision of a row: the action and what it led to.

        Returns:
            The name of the episode's file if this step ended it and it was stored, otherwise None.

        Raises:
            ValueError: if the row has not begun, the reward is not finite, or the observation differs from the first in
                shape or dtype.
        """
        if row not in self._recordings:
            raise ValueError(f"row {row} steps but has not begun an episode: call begin with the reset's observation")
        recording = self._recordings[row]
        if not np.isfinite(reward):
            raise ValueError(
                f"step {len(recording.rewards)} of episode {recording.index} has reward {reward}: rewards must be "
                "finite; fix the environment"
            )
        recording.add(observation, action, reward, terminated)
        if not (terminated or truncated):
            return None
        del self._recordings[row]
        return self.keep(recording.episode(), recording.index, recording.part)

    def keep(self, episode: Episode, index: int, part: int = 0) -> str | None:
        """Stores a finished episode and returns its file's name; a subclass may discard it and return None."""
        return self.store.append(episode, index, self.rank, self.birth, part)

    def drop(self, row: int) -> None:
        """Discards the unfinished episode of a row, if it has one (its worker was killed)."""
        self._recordings.pop(row, None)


class _Recording:
    """One unfinished episode: the observation of its reset and the steps since."""

    def __init__(self, index: int, metadata: dict[str, Any], observation: dict[str, np.ndarray], part: int) -> None:
        self.index = index
        self.metadata = metadata
        self.part = part
        self.arrays = _dtypes_and_shapes(observation)
        self.observations = [_copy(observation)]
        self.actions: list[np.ndarray] = []
        self.rewards = [0.0]
        self.is_terminal = [False]

    def add(self, observation: dict[str, np.ndarray], action: np.ndarray, reward: float, terminated: bool) -> None:
        arrays = _dtypes_and_shapes(observation)
        if arrays != self.arrays:
            now = {key: (dtype.name, shape) for key, (dtype, shape) in arrays.items()}
            began = {key: (dtype.name, shape) for key, (dtype, shape) in self.arrays.items()}
            raise ValueError(
                f"step {len(self.rewards)} of episode {self.index} observes {now} but the episode began with {began}: "
                "fix the environment"
            )
        self.observations.append(_copy(observation))
        self.actions.append(np.array(action, np.float32))
        self.rewards.append(float(reward))
        self.is_terminal.append(bool(terminated))

    def episode(self) -> Episode:
        is_first = np.zeros(len(self.rewards), np.bool_)
        is_first[0] = True
        return Episode(
            {key: np.stack([row[key] for row in self.observations]) for key in self.observations[0]},
            np.stack([np.zeros_like(self.actions[0]), *self.actions]),
            np.array(self.rewards, np.float32),
            is_first,
            np.array(self.is_terminal, np.bool_),
            self.metadata,
        )


def _dtypes_and_shapes(observation: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {key: (value.dtype, value.shape) for key, value in observation.items()}


def _copy(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Vector environments hand out the same memory at every step.
    return {key: np.array(value) for key, value in observation.items()}


CALLS_PER_BATCH = 32
"""Calls that are handed to the thread together: waking it for each would cost more than what it does."""
MAX_WAITING_CALLS = 4096
"""Calls that may wait in the queue; at 64x64 pixels a step is 12 kB."""


class BackgroundWriter:
    """Runs the calls of an `EpisodeWriter` in a thread, in their order, while the caller goes on.

    Encoding and syncing a file takes as long as several steps of a quick environment. Calls are handed to the thread in
    batches. Leaving the `with` block waits until everything is on disk, also when an exception ends it, so that no
    finished episode is lost.

    Args:
        writer: runs the calls. Their results are dropped: read its store after the block.

    Raises:
        Exception: what the writer raised, at the next call or at the end of the block.
    """

    def __init__(self, writer: EpisodeWriter) -> None:
        self.writer = writer
        self._batch: list[Callable[[], Any]] = []
        self._queue: queue.Queue[list[Callable[[], Any]] | None] = queue.Queue(MAX_WAITING_CALLS // CALLS_PER_BATCH)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="episode writer", daemon=True)

    def __enter__(self) -> "BackgroundWriter":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._queue.put(self._batch)
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise_error()

    def begin(self, *args: Any) -> None:
        """See `EpisodeWriter.begin`. The arguments must not change afterwards."""
        self._enqueue(partial(self.writer.begin, *args))

    def step(self, *args: Any) -> None:
        """See `EpisodeWriter.step`. The arguments must not change afterwards."""
        self._enqueue(partial(self.writer.step, *args))

    def drop(self, row: int) -> None:
        """See `EpisodeWriter.drop`."""
        self._enqueue(partial(self.writer.drop, row))

    def _enqueue(self, call: Callable[[], Any]) -> None:
        self._raise_error()
        self._batch.append(call)
        if len(self._batch) == CALLS_PER_BATCH:
            self._queue.put(self._batch)
            self._batch = []

    def _raise_error(self) -> None:
        """Raises in the caller's thread what the writer raised in the background."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            # After an error the remaining batches are dropped, so that the caller never waits for room in the queue.
            if self._error is None:
                try:
                    for call in batch:
                        call()
                except BaseException as error:
                    self._error = error
