"""Long episodes that were written in parts are read as one: `SegmentedEpisodes`."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from datamodules.files import EpisodeName


class FileRows(NamedTuple):
    """EpisodeBuffer start, start + 1, ... of one file, `rows` of them, counted as in memory."""

    name: EpisodeName
    start: int
    rows: int


class SegmentedEpisodes:
    """The episodes of a listing as samplers count them: files that are parts of one, each following the last, are one.

        row of the episode    0    1    2    3    4    5    6
        part 0, 4 rows        0    1    2    3
        part 1, 4 rows                  (0)  1    2    3          its row 0 is what part 0 ended with, and is not read

    So every decision is there once, and windows run on where a file ends. Where a part is missing in between (it was
    damaged, or left under a cap), what follows is an episode of its own that begins in the middle, with the gap's last
    observation left out, for its action and its reward went with the part that is gone.

    Args:
        names: files, the parts of an episode in order, as in `EpisodeStore.listing`.
    """

    def __init__(self, names: Iterable[EpisodeName]) -> None:
        self.names = names = list(names)
        # Most have no part: what is quick for them is quick.
        self._begins = [k for k, name in enumerate(names) if not (name.part and k and name.follows(names[k - 1]))]
        self._own = [name.rows - (name.part > 0) for name in names]
        own = np.array(self._own, np.int64)
        self.lengths = np.add.reduceat(own, self._begins) if names else own

    @classmethod
    def of(cls, episodes: "SegmentedEpisodes | Iterable[EpisodeName]") -> "SegmentedEpisodes":
        """The same, if it is one already: joining costs a look at every name."""
        return episodes if isinstance(episodes, SegmentedEpisodes) else cls(episodes)

    def __len__(self) -> int:
        return len(self._begins)

    def parts(self, episode: int) -> list[EpisodeName]:
        """The files of an episode, in order."""
        ends = [*self._begins[1:], len(self.names)]
        return self.names[self._begins[episode] : ends[episode]]

    def files(self, episode: int, start: int, rows: int) -> Iterator[FileRows]:
        """Where `rows` rows of an episode lie, from its row `start` on, in order."""
        position = self._begins[episode]
        while rows:
            name, own = self.names[position], self._own[position]
            if start < own:
                taken = min(rows, own - start)
                yield FileRows(name, start + name.rows - own, taken)
                start, rows = start + taken, rows - taken
            start, position = start - own, position + 1
