"""Datasets: they read the windows that a sampler chooses into a batch of tensors.

A dataset is injected into `EpisodeDataModule`. It has no data and no position: it turns (store, seed, batch count) into
a `Batch`, reading each window from its file straight into the batch's memory.
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
"""Other windows tried in place of one that cannot be read, before all files are checked and damaged ones left out."""


class NoReadableEpisodes(ValueError):
    """Damaged files leave too few rows for a window; the text says in which folder and what to do, in one line."""


class EpisodeDataset(ABC):
    """Reads the windows that its sampler chooses (abstract)."""

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
            episodes: those that may be sampled, of one split; the parts of an episode count as one.
            seed: of the random stream.
            batch: number of the global batch.
            size: windows in the global batch, of all processes together.
            share: the windows that this process reads.

        Returns:
            Tensors (B, T, ...) on the CPU, in the dtypes of the store; B windows in `share`, T the sampler's length.

        Raises:
            ValueError: if nothing can be sampled. A damaged file is replaced by another window, with a counted warning.
            NoReadableEpisodes: if files are damaged and the others have too few rows for a window.
        """
        all_episodes = SegmentedEpisodes.of(episodes)
        windows = self.sampler.sample(all_episodes.lengths, seed, batch, size)[share]
        buffer = EpisodeBuffer.empty(store.spec, (len(windows), self.sampler.length))
        for row, window in enumerate(windows):
            attempt = 0
            candidates = all_episodes
            # The replacement depends on which files are damaged, not on when that was noticed: it resumes exactly.
            while not _read_window(store, candidates, window, buffer.view(row)):
                attempt += 1
                other_seed = int(mix(seed, attempt)[0])
                if attempt > ATTEMPTS:
                    candidates = SegmentedEpisodes(name for name in candidates.names if store.readable(name))
                try:
                    window = self.sampler.sample(candidates.lengths, other_seed, batch, size)[share][row]
                except ValueError as error:  # all episodes were enough for a window, the readable ones are not
                    count = len(all_episodes.names)
                    raise NoReadableEpisodes(
                        f"{count - len(candidates.names)} of {count} episodes in {store.path} cannot be read"
                        + (f" and of the others {error}" if candidates else "")
                        + f": `wmlightning data verify {store.path}` names them"
                    ) from None
        return buffer.to_batch()


def _read_window(store: EpisodeStore, episodes: SegmentedEpisodes, window: Window, into: EpisodeBuffer) -> bool:
    """Reads a window into memory (T, ...) and returns True, or False if one of its files is damaged."""
    filled = 0
    try:
        for name, start, length in (file for piece in window.pieces for file in episodes.files(*piece)):
            whole = length == len(into.reward)
            store.read_into(name, start, into if whole else into.view(slice(filled, filled + length)))
            filled += length
    except DamagedEpisode:
        return False
    if window.is_start:
        into.is_first[0] = True
    return True


class WindowDataset(EpisodeDataset):
    """Sequences of rows, (B, T, ...), for models that step through time; reads stores of frames and stores of codes.

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
    """One episode from reset to end, or one of its parts, for prediction.

    Args:
        batch: its rows, (1, steps + 1, ...).
        index: its number in the store; `rank`, `birth` and `part` are the other numbers of its name.
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
        """Returns the episode on another device (Lightning calls this)."""
        return replace(self, batch=self.batch.to(device, non_blocking))

    @classmethod
    def read(cls, store: EpisodeStore, name: EpisodeName) -> "WholeEpisode":
        """Reads an episode. Raises DamagedEpisode if its file cannot be read."""
        contents = store.contents(name)
        buffer = EpisodeBuffer.empty(contents.spec, (1, name.rows))
        store.read_into(name, 0, buffer.view(0))
        return cls(buffer.to_batch(), name.index, dict(contents.metadata), name.rank, name.birth, name.part)
