"""A store and an injected dataset, as the Lightning Trainer wants them: `EpisodeDataModule`."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from datamodules.datasets import EpisodeDataset, Unreadable, WholeEpisode
from datamodules.episode import Spec
from datamodules.files import DamagedEpisode, EpisodeName
from datamodules.hashing import mix, uniform_below
from datamodules.segments import SegmentedEpisodes
from datamodules.store import EpisodeStore


def held_out(episodes: list[EpisodeName], fraction: float, seed: int) -> np.ndarray:
    """Which episodes are kept from training: bool (episodes,).

    Of each block of round(1 / fraction) consecutive indices one is held out, chosen by (seed, rank, block); of the
    first block it is always index 1, so that a store of two episodes has one of either kind. What is said of an episode
    never changes as more arrive.

    Raises:
        ValueError: unless fraction is in [0, 0.5].
    """
    if not 0 <= fraction <= 0.5:
        raise ValueError(f"validation_fraction is {fraction} but must lie between 0 and 0.5")
    if not fraction or not episodes:
        return np.zeros(len(episodes), np.bool_)
    size = round(1 / fraction)
    index = np.array([name.index for name in episodes], np.int64)
    rank = np.array([name.rank for name in episodes], np.int64)
    block, place = np.divmod(index, size)
    return place == np.where(block == 0, 1, uniform_below(size, seed, rank, block))


class Loader:
    """Batches by number: what the Trainer iterates over.

    Nothing is looked at before the first `next` of each pass, so an epoch sees what was collected until it began. The
    empty state tells the Trainer that it may resume in the middle of an epoch: the position is in its own counters.

    Args:
        plan: called when a pass begins; gives the function that reads one item, and the numbers of the pass's items.
        length: items in a whole pass.
        num_workers: processes that read ahead; 0 reads in this one, which is fast enough for uncompressed stores.
        optional: end a pass with a warning where damaged files have left nothing to read.
    """

    def __init__(
        self,
        plan: Callable[[], tuple[Callable, Iterable[int]]],
        length: int,
        num_workers: int = 0,
        optional: bool = False,
    ) -> None:
        self._plan, self._length, self._num_workers, self._optional = plan, length, num_workers, optional

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        read, numbers = self._plan()
        items: Iterable[Any] = map(read, numbers)
        if self._num_workers:
            # A generator of its own: the loader must not draw from torch's, which makes the learning noise.
            items = DataLoader(
                _Items(read),  # type: ignore[arg-type]
                batch_size=None,
                sampler=list(numbers),
                num_workers=self._num_workers,
                collate_fn=_same,
                generator=torch.Generator(),
            )
        try:
            yield from (item for item in items if item is not None)
        except Unreadable as error:
            if not self._optional:
                raise
            warnings.warn(f"what is held out is not measured: {error}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class _Items:
    def __init__(self, read: Callable) -> None:
        self._read = read

    def __getitem__(self, number: int) -> Any:
        return self._read(number)


def _same(item: Any) -> Any:
    return item


class EpisodeDataModule(lightning.LightningDataModule):
    """Feeds a stage from a folder of episodes, and resumes exactly.

    Batch b is a function of (seed, b, episodes in the store), where b counts the batches trained since training began;
    of W processes with B windows each, process r takes rows r * B to (r + 1) * B of the global batch of W * B. An epoch
    is `updates_per_epoch` batches; the store is listed anew when it begins. The Trainer needs
    `use_distributed_sampler=False`.

    Args:
        path: folder of episodes, or of codes.
        dataset: what a batch is made of: WindowDataset or FrameDataset.
        batch_size: windows per process and batch.
        updates_per_epoch: batches in an epoch.
        validation_fraction: share of the episodes kept from training, fixed by seed; in [0, 0.5].
        validation_batches: batches in a validation, the same windows every time.
        seed: names the order of the data and the split.
        num_workers: reading processes; 0 (in this process) unless the store is compressed. Keep 0 where it grows.
        cap_bytes: most bytes learned from: the newest episodes; older ones leave the folder, see EpisodeStore.
        cap_decisions: most decisions learned from, likewise.
        compression: null or "gzip", for whoever appends.
    """

    def __init__(
        self,
        path: str,
        dataset: EpisodeDataset,
        batch_size: int,
        updates_per_epoch: int,
        validation_fraction: float = 0.1,
        validation_batches: int = 4,
        seed: int = 0,
        num_workers: int = 0,
        cap_bytes: int | None = None,
        cap_decisions: int | None = None,
        compression: str | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("batch_size", batch_size), ("updates_per_epoch", updates_per_epoch)):
            if count < 1:
                raise ValueError(f"{name} is {count} but must be at least 1")
        for name, count in (("validation_batches", validation_batches), ("num_workers", num_workers)):
            if count < 0:
                raise ValueError(f"{name} is {count} but must be at least 0")
        held_out([], validation_fraction, seed)
        self.path = os.fspath(path)
        self.dataset = dataset
        self.batch_size = batch_size
        self.updates_per_epoch = updates_per_epoch
        self.validation_fraction = validation_fraction
        self.validation_batches = validation_batches
        self.seed = seed
        self.num_workers = num_workers
        self.store = EpisodeStore(path, cap_bytes, compression, cap_decisions)
        self.predicted: set[tuple[int, int, int]] = set()

    @property
    def spec(self) -> Spec:
        """Shapes of observations and actions in the store. Raises ValueError if it is empty."""
        self.store.refresh()
        return self.store.spec

    def episodes(self, validation: bool) -> list[EpisodeName]:
        """The episodes of one split, from a new listing.

        Raises:
            ValueError: if there are none, in one line that says what to do.
        """
        self.store.refresh()
        listing = self.store.in_view()
        out = held_out(listing, self.validation_fraction, self.seed)
        chosen = [name for name, is_out in zip(listing, out, strict=True) if is_out == validation]
        if not listing:
            raise ValueError(self._nothing())
        if not chosen:
            kind = "held out" if validation else "left for training"
            raise ValueError(
                f"of the {len(listing)} episodes in {self.path} none is {kind} at validation_fraction="
                f"{self.validation_fraction}: collect more episodes or change the fraction"
            )
        return chosen

    def train_dataloader(self) -> Loader:
        """The training batches of an epoch, from the one after the last batch trained on."""

        def plan() -> tuple[Callable, Iterable[int]]:
            return self._reader(False, self.seed), self._batches_left()

        return Loader(plan, self.updates_per_epoch, self.num_workers)

    def val_dataloader(self) -> Loader | list:
        """`validation_batches` batches of held-out windows, always the same ones; none where nothing is held out."""
        if not self.validation_fraction or not self.validation_batches:
            return []
        return self._fixed(1, self.validation_batches)

    def test_dataloader(self) -> Loader:
        """Held-out windows, always the same ones, as many rows as the held-out episodes have (one batch at least)."""
        rows = int(SegmentedEpisodes(self.episodes(validation=True)).lengths.sum())
        return self._fixed(2, max(1, rows // (self.dataset.sampler.length * self.batch_size * self._world()[1])))

    def predict_dataloader(self) -> Loader:
        """Every whole episode of the store, held out or not, as `WholeEpisode`; ranks take turns.

        Those whose `place` is in `predicted` are not read: a callback that has their predictions says so. Raises
        ValueError if there is none.
        """
        self.store.refresh()
        listing = self.store.listing
        if not listing:
            raise ValueError(self._nothing())
        rank, world = self._world()
        numbers = range(rank, len(listing), world)
        return Loader(
            lambda: (partial(_read_whole, self.store, listing, self.predicted), numbers), len(numbers), self.num_workers
        )

    def _fixed(self, stream: int, count: int) -> Loader:
        seed = int(mix(self.seed, stream)[0])
        # A damaged file must not end a training that can do without it.
        return Loader(lambda: (self._reader(True, seed), range(count)), count, self.num_workers, optional=True)

    def _reader(self, validation: bool, seed: int) -> Callable:
        rank, world = self._world()
        share = slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        episodes = SegmentedEpisodes(self.episodes(validation))
        short = int((episodes.lengths < self.dataset.sampler.min_rows).sum())
        if 0 < short < len(episodes):
            warnings.warn(
                f"{short} of {len(episodes)} episodes in {self.path} are shorter than a window of "
                f"{self.dataset.sampler.min_rows} rows and never sampled: ChainedWindows would use them",
                stacklevel=2,
            )
        return partial(_read_batch, self.dataset, self.store, episodes, seed, world * self.batch_size, share)

    def _nothing(self) -> str:
        return f"{self.path} holds no episodes: collect some (wmlightning collect), or correct the path"

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_left(self) -> range:
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return range(self.updates_per_epoch)
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        # `processed` is right in a checkpoint written on any hook; `completed` lags behind it by one on some. After a
        # checkpoint of an epoch's end, nothing is left, and saying so keeps Lightning from training on one batch more.
        first = progress.total.processed
        limit = min(self.updates_per_epoch, self.trainer.num_training_batches)
        return range(first, first + max(0, math.ceil(limit) - progress.current.ready))


def _read_batch(
    dataset: EpisodeDataset, store: Any, episodes: SegmentedEpisodes, seed: int, size: int, share: slice, batch: int
):
    return dataset.draw(store, episodes, seed, batch, size, share)


def _read_whole(
    store: EpisodeStore, listing: list[EpisodeName], predicted: set[tuple[int, int, int]], number: int
) -> WholeEpisode | None:
    if listing[number].place in predicted:
        return None
    try:
        return WholeEpisode.read(store, listing[number])
    except DamagedEpisode:
        return None
