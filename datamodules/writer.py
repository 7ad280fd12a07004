"""Steps of parallel environments -> whole episodes -> store: `EpisodeWriter`."""

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

    Only finished episodes reach the disk. EpisodeBuffer may begin and end at different times.

    Args:
        store: where finished episodes go.
        rank: the process that records.
        birth: the batch count from which on these episodes may be trained on.
    """

    def __init__(self, store: EpisodeStore, rank: int = 0, birth: int = 0) -> None:
        self.store, self.rank, self.birth = store, rank, birth
        self._open: dict[int, _Recording] = {}

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
            part: its place, if it is a part of an episode; the observation is the one that the part before ended with.

        Raises:
            ValueError: if the row's episode has not ended; call `drop` to forget it.
        """
        if row in self._open:
            raise ValueError(f"row {row} begins an episode but its last one has not ended: drop it first")
        self._open[row] = _Recording(index, metadata or {}, observation, part)

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
            ValueError: if the row has not begun, the reward is not finite, or the observation is of another kind than
                the first.
        """
        if row not in self._open:
            raise ValueError(f"row {row} steps but has not begun an episode: call begin with the reset's observation")
        recording = self._open[row]
        if not np.isfinite(reward):
            raise ValueError(
                f"step {len(recording.rewards)} of episode {recording.index} has reward {reward}: rewards must be "
                "finite; mend the environment"
            )
        recording.add(observation, action, reward, terminated)
        if not (terminated or truncated):
            return None
        del self._open[row]
        return self.keep(recording.episode(), recording.index, recording.part)

    def keep(self, episode: Episode, index: int, part: int = 0) -> str | None:
        """Stores a finished episode and returns its file's name. A subclass may do without it and return None."""
        return self.store.append(episode, index, self.rank, self.birth, part)

    def drop(self, row: int) -> None:
        """Forgets the unfinished episode of a row, if it has one (its worker was killed)."""
        self._open.pop(row, None)


class _Recording:
    def __init__(self, index: int, metadata: dict[str, Any], observation: dict[str, np.ndarray], part: int) -> None:
        self.index, self.metadata, self.part = index, metadata, part
        self.kind = _kind(observation)
        self.observations = [_copied(observation)]
        self.actions: list[np.ndarray] = []
        self.rewards, self.ends = [0.0], [False]

    def add(self, observation: dict[str, np.ndarray], action: np.ndarray, reward: float, terminated: bool) -> None:
        if (kind := _kind(observation)) != self.kind:
            now, began = ({key: (dtype.name, shape) for key, (dtype, shape) in k.items()} for k in (kind, self.kind))
            raise ValueError(
                f"step {len(self.rewards)} of episode {self.index} observes {now} but the episode began with {began}: "
                "mend the environment"
            )
        self.observations.append(_copied(observation))
        self.actions.append(np.array(action, np.float32))
        self.rewards.append(float(reward))
        self.ends.append(bool(terminated))

    def episode(self) -> Episode:
        first = np.zeros(len(self.rewards), np.bool_)
        first[0] = True
        return Episode(
            {key: np.stack([row[key] for row in self.observations]) for key in self.observations[0]},
            np.stack([np.zeros_like(self.actions[0]), *self.actions]),
            np.array(self.rewards, np.float32),
            first,
            np.array(self.ends, np.bool_),
            self.metadata,
        )


def _kind(observation: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {key: (value.dtype, value.shape) for key, value in observation.items()}


def _copied(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Vector environments hand out the same memory at every step.
    return {key: np.array(value) for key, value in observation.items()}


LOT = 32
"""Calls that are handed over together: waking the thread for each would cost more than what it does."""
WAITING = 4096
"""Most calls that may wait to be carried out; at 64x64 pixels a step is 12 kB."""


class BackgroundWriter:
    """An `EpisodeWriter` whose calls are carried out by a thread, in their order, while the caller goes on.

    Encoding and syncing a file takes as long as several steps of a quick environment. Calls are handed over some at a
    time. Leaving the `with` block waits
    until everything is on disk, also when an exception ends it: no finished episode is lost.

    Args:
        writer: does the work. Its results are not told; look into its store after the block.

    Raises:
        Exception: what the writer raised, at the next call or at the end of the block.
    """

    def __init__(self, writer: EpisodeWriter) -> None:
        self.writer = writer
        self._lot: list[Callable[[], Any]] = []
        self._lots: queue.Queue[list[Callable[[], Any]] | None] = queue.Queue(WAITING // LOT)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="episode writer", daemon=True)

    def __enter__(self) -> "BackgroundWriter":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lots.put(self._lot)
        self._lots.put(None)
        self._thread.join()
        if error is None:
            self._complain()

    def begin(self, *args: Any) -> None:
        """See `EpisodeWriter.begin`. The arguments must not change afterwards."""
        self._put(partial(self.writer.begin, *args))

    def step(self, *args: Any) -> None:
        """See `EpisodeWriter.step`. The arguments must not change afterwards."""
        self._put(partial(self.writer.step, *args))

    def drop(self, row: int) -> None:
        """See `EpisodeWriter.drop`."""
        self._put(partial(self.writer.drop, row))

    def _put(self, call: Callable[[], Any]) -> None:
        self._complain()
        self._lot.append(call)
        if len(self._lot) == LOT:
            self._lots.put(self._lot)
            self._lot = []

    def _complain(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (lot := self._lots.get()) is not None:
            # After an error the rest is taken from the queue and left alone, so that nobody waits for a place in it.
            if self._error is None:
                try:
                    for call in lot:
                        call()
                except BaseException as error:
                    self._error = error
