"""From chosen windows to tensors: what one batch of a stage is made of.

A dataset is injected into `EpisodeDataModule`. It holds no data and no position: it turns (store, seed, batch count)
into a `Batch`, reading each window from its file straight into the batch's memory.
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from datamodules.buffers import EpisodeBuffer
from datamodules.episode import Batch
from datamodules.files import DamagedEpisode, EpisodeName
from datamodules.hashing import mix
from datamodules.samplers import Sampler, ShuffledFrames, Window
from datamodules.segments import SegmentedEpisodes
from datamodules.store import EpisodeStore

ATTEMPTS = 100
"""Windows tried in place of one that cannot be read, before only whole files are chosen from."""


class Unreadable(ValueError):
    """Nothing is left to draw from: the text says of which folder, and what to do, in one line."""


class EpisodeDataset(ABC):
    """Makes batches of what its sampler chooses (abstract)."""

    sampler: Sampler

    def draw(
        self,
        store: EpisodeStore,
        episodes: SegmentedEpisodes | Sequence[EpisodeName],
        seed: int,
        batch: int,
        size: int,
        share: slice = slice(None),
    ) -> Batch:
        """Reads a batch, a pure function of the arguments and of what the files hold.

        Args:
            store: where the episodes are.
            episodes: those that may be sampled, of one split; parts of one are joined.
            seed: names the random stream.
            batch: number of the global batch.
            size: windows in the global batch, of all processes together.
            share: the windows of this process.

        Returns:
            Tensors (B, T, ...) on the CPU, in the dtypes of the store; B as `share` says, T the sampler's length.

        Raises:
            ValueError: if nothing can be sampled. A damaged file is replaced by another window, with a counted warning.
            Unreadable: if files are damaged and what is left is too little for a window.
        """
        joined = left = SegmentedEpisodes.of(episodes)
        windows = self.sampler.sample(joined.lengths, seed, batch, size)[share]
        rows = EpisodeBuffer.empty(store.spec, (len(windows), self.sampler.length))
        for place, window in enumerate(windows):
            attempt, left = 0, joined
            # The replacement depends on which files are damaged, not on when that was noticed: it resumes exactly.
            while not _filled(rows.part(place), window, store, left):
                attempt += 1
                other_seed = int(mix(seed, attempt)[0])
                if attempt > ATTEMPTS:
                    left = SegmentedEpisodes(name for name in left.names if store.readable(name))
                try:
                    window = self.sampler.sample(left.lengths, other_seed, batch, size)[share][place]
                except ValueError as error:  # all episodes together were enough, or nothing would have been sampled
                    raise Unreadable(
                        f"{len(joined.names) - len(left.names)} of {len(joined.names)} episodes in {store.path} cannot "
                        "be read"
                        + (f" and of the others {error}" if left else "")
                        + f": `wmlightning data verify {store.path}` names them"
                    ) from None
        return rows.batch()


def _filled(rows: EpisodeBuffer, window: Window, store: EpisodeStore, episodes: SegmentedEpisodes) -> bool:
    filled = 0
    try:
        for name, start, length in (file for piece in window.pieces for file in episodes.files(*piece)):
            whole = length == len(rows.reward)
            store.read_into(name, start, rows if whole else rows.part(slice(filled, filled + length)))
            filled += length
    except DamagedEpisode:
        return False
    if window.is_start:
        rows.is_first[0] = True
    return True


class WindowDataset(EpisodeDataset):
    """Sequences of rows for whatever steps through time; reads stores of frames and stores of codes alike.

    Args:
        sampler: which windows, e.g. UniformWindows(length=50).
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler


class FrameDataset(EpisodeDataset):
    """Single frames in shuffled order, each once a pass, as windows of one row: (B, 1, ...)."""

    def __init__(self) -> None:
        self.sampler = ShuffledFrames()


@dataclass
class WholeEpisode:
    """One episode from reset to end, or one part of it, for prediction.

    Args:
        batch: its rows, (1, steps + 1, ...).
        index: its number in the store; `rank`, `birth` and `part` complete its name.
        metadata: what was recorded with it.
    """

    batch: Batch
    index: int
    metadata: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    birth: int = 0
    part: int = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """(index, rank, part), see `EpisodeName`."""
        return self.index, self.rank, self.part

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "WholeEpisode":
        """The same episode on another device (Lightning calls this)."""
        return replace(self, batch=self.batch.to(device, non_blocking))

    @classmethod
    def read(cls, store: EpisodeStore, name: EpisodeName) -> "WholeEpisode":
        """Reads an episode. Raises DamagedEpisode if its file cannot be read."""
        contents = store.contents(name)
        rows = EpisodeBuffer.empty(contents.spec, (1, name.rows))
        store.read_into(name, 0, rows.part(0))
        return cls(rows.batch(), name.index, dict(contents.metadata), name.rank, name.birth, name.part)
