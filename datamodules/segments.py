"""Long episodes that were written in parts, read as one: `SegmentedEpisodes`."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from datamodules.files import EpisodeName


class FileRows(NamedTuple):
    """Rows start, start + 1, ... of one file, `rows` of them, counted as in memory."""

    name: EpisodeName
    start: int
    rows: int


class SegmentedEpisodes:
    """The episodes of a listing as samplers count them: files that are consecutive parts of an episode count as one.

        row of the episode    0    1    2    3    4    5    6
        part 0, 4 rows        0    1    2    3
        part 1, 4 rows                  (0)  1    2    3        row 0 repeats the observation of row 3 above

    So every decision occurs once, and windows continue where a file ends. Where a part is missing in between (it was
    damaged, or removed by a cap), the parts after it form an episode that begins in the middle. Its first row is row 1
    of its first file: row 0 lacks the action and the reward, which were in the missing part.

    Args:
        names: files, the parts of an episode in order, as in `EpisodeStore.listing`.
    """

    def __init__(self, names: Iterable[EpisodeName]) -> None:
        names = list(names)
        self.names = names
        # `name.part` is tested first because it is quick, and 0 for nearly all files.
        self._first_files = [k for k, name in enumerate(names) if not (name.part and k and name.follows(names[k - 1]))]
        self._rows_read = [name.rows - (name.part > 0) for name in names]
        rows = np.array(self._rows_read, np.int64)
        self.lengths = np.add.reduceat(rows, self._first_files) if names else rows

    @classmethod
    def of(cls, episodes: "SegmentedEpisodes | Iterable[EpisodeName]") -> "SegmentedEpisodes":
        """Returns the argument itself if it is one already, since building one reads every name."""
        return episodes if isinstance(episodes, SegmentedEpisodes) else cls(episodes)

    def __len__(self) -> int:
        return len(self._first_files)

    def parts(self, episode: int) -> list[EpisodeName]:
        """Returns the files of an episode, in order."""
        ends = [*self._first_files[1:], len(self.names)]
        return self.names[self._first_files[episode] : ends[episode]]

    def files(self, episode: int, start: int, rows: int) -> Iterator[FileRows]:
        """Yields the pieces of files that hold `rows` rows of an episode from its row `start` on, in order."""
        position = self._first_files[episode]
        while rows:
            name = self.names[position]
            rows_read = self._rows_read[position]
            if start < rows_read:
                count = min(rows, rows_read - start)
                yield FileRows(name, start + name.rows - rows_read, count)
                start += count
                rows -= count
            start -= rows_read
            position += 1
