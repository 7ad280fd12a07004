"""Writing episodes beside playing them: `InBackground`."""

import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from datamodules.writer import EpisodeWriter

LOT = 32
"""Calls that are handed over together: waking the thread for each would cost more than what it does."""
WAITING = 4096
"""Most calls that may wait to be carried out; at 64x64 pixels a step is 12 kB."""


class InBackground:
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

    def __enter__(self) -> "InBackground":
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
