"""A store and a dataset as a LightningDataModule: `EpisodeDataModule`."""

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

from datamodules.datasets import EpisodeDataset, NoReadableEpisodes, WholeEpisode
from datamodules.episode import Spec
from datamodules.files import DamagedEpisode, EpisodeName
from datamodules.hashing import mix, uniform_below
from datamodules.segments import SegmentedEpisodes
from datamodules.store import EpisodeStore


def held_out(episodes: list[EpisodeName], fraction: float, seed: int) -> np.ndarray:
    """Returns which episodes are held out for validation, bool (episodes,).

    Of each block of round(1 / fraction) consecutive indices one is held out, chosen by (seed, rank, block); of the
    first block it is always index 1, so that a store of two episodes has one in each split. An episode never changes
    its split as more arrive.

    Raises:
        ValueError: unless fraction is in [0, 0.5].
    """
    if not 0 <= fraction <= 0.5:
        raise ValueError(f"validation_fraction is {fraction} but must lie between 0 and 0.5: correct it")
    if not fraction or not episodes:
        return np.zeros(len(episodes), np.bool_)
    size = round(1 / fraction)
    index = np.array([name.index for name in episodes], np.int64)
    rank = np.array([name.rank for name in episodes], np.int64)
    block, place = np.divmod(index, size)
    return place == np.where(block == 0, 1, uniform_below(size, seed, rank, block))


class Loader:
    """A data loader that reads batches by their number; the Trainer iterates over it.

    The store is not read before the first `next` of each pass, so an epoch uses what was collected until it began. The
    state is empty, because the position follows from the Trainer's own counters; that there is one allows the Trainer
    to resume in the middle of an epoch.

    Args:
        plan: called when a pass begins; returns the function that reads one item, and the numbers of the pass's items.
        length: items in a whole pass.
        num_workers: processes that read ahead; 0 reads in this one, which is fast enough for uncompressed stores.
        optional: end a pass with a warning, not an error, where damaged files leave too little to read.
    """

    def __init__(
        self,
        plan: Callable[[], tuple[Callable, Iterable[int]]],
        length: int,
        num_workers: int = 0,
        optional: bool = False,
    ) -> None:
        self._plan = plan
        self._length = length
        self._num_workers = num_workers
        self._optional = optional

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        read, numbers = self._plan()
        items: Iterable[Any] = map(read, numbers)
        if self._num_workers:
            # Its own generator: the loader must not draw from torch's global one, which makes the learning noise.
            items = DataLoader(
                _MapDataset(read),  # type: ignore[arg-type]
                batch_size=None,
                sampler=list(numbers),
                num_workers=self._num_workers,
                collate_fn=_identity,
                generator=torch.Generator(),
            )
        try:
            yield from (item for item in items if item is not None)
        except NoReadableEpisodes as error:
            if not self._optional:
                raise
            warnings.warn(f"the held-out episodes are not measured: {error}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty state; see the class."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: the state is empty."""


class _MapDataset:
    """Calls a function of an item's number, as torch's DataLoader expects of a dataset."""

    def __init__(self, read: Callable) -> None:
        self._read = read

    def __getitem__(self, number: int) -> Any:
        return self._read(number)


def _identity(item: Any) -> Any:
    return item


class EpisodeDataModule(lightning.LightningDataModule):
    """Gives a stage batches from a folder of episodes, and resumes exactly.

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
        seed: of the order of the data and of the split.
        num_workers: reading processes; 0 (in this process) unless the store is compressed. Keep 0 where it grows.
        cap_bytes: most bytes trained on, those of the newest episodes; older ones are deleted, see EpisodeStore.
        cap_decisions: most decisions trained on, likewise.
        compression: null or "gzip", for episodes that are appended.
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
        """Returns the episodes of one split, from a new listing.

        Raises:
            ValueError: if there are none, in one line that says what to do.
        """
        self.store.refresh()
        listing = self.store.in_view()
        out = held_out(listing, self.validation_fraction, self.seed)
        chosen = [name for name, is_out in zip(listing, out, strict=True) if is_out == validation]
        if not listing:
            raise ValueError(self._empty_store())
        if not chosen:
            kind = "held out" if validation else "left for training"
            raise ValueError(
                f"of the {len(listing)} episodes in {self.path} none is {kind} at validation_fraction="
                f"{self.validation_fraction}: collect more episodes or change the fraction"
            )
        return chosen

    def train_dataloader(self) -> Loader:
        """Returns the training batches of an epoch, from the one after the last batch trained on."""

        def plan() -> tuple[Callable, Iterable[int]]:
            return self._batch_reader(False, self.seed), self._batches_left()

        return Loader(plan, self.updates_per_epoch, self.num_workers)

    def val_dataloader(self) -> Loader | list:
        """Returns `validation_batches` batches of held-out windows, always the same; none without held-out episodes."""
        if not self.validation_fraction or not self.validation_batches:
            return []
        return self._held_out_loader(1, self.validation_batches)

    def test_dataloader(self) -> Loader:
        """Returns held-out windows, always the same, as many rows as the held-out episodes have, at least one batch."""
        rows = int(SegmentedEpisodes(self.episodes(validation=True)).lengths.sum())
        return self._held_out_loader(
            2, max(1, rows // (self.dataset.sampler.length * self.batch_size * self._rank_and_world_size()[1]))
        )

    def predict_dataloader(self) -> Loader:
        """Returns every whole episode of the store, held out or not, as `WholeEpisode`; ranks take turns.

        Episodes whose `place` is in `predicted` are skipped: a callback that has their predictions already adds them.

        Raises:
            ValueError: if the store is empty.
        """
        self.store.refresh()
        listing = self.store.listing
        if not listing:
            raise ValueError(self._empty_store())
        rank, world = self._rank_and_world_size()
        numbers = range(rank, len(listing), world)
        return Loader(
            lambda: (partial(_read_whole, self.store, listing, self.predicted), numbers), len(numbers), self.num_workers
        )

    def _held_out_loader(self, stream: int, count: int) -> Loader:
        seed = int(mix(self.seed, stream)[0])
        # A damaged held-out file must not end the training.
        return Loader(lambda: (self._batch_reader(True, seed), range(count)), count, self.num_workers, optional=True)

    def _batch_reader(self, validation: bool, seed: int) -> Callable:
        rank, world = self._rank_and_world_size()
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

    def _empty_store(self) -> str:
        return f"{self.path} holds no episodes: collect some (wmlightning collect), or correct the path"

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_left(self) -> range:
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return range(self.updates_per_epoch)
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        # `processed` is right in a checkpoint written on any hook; `completed` lags behind it by one on some. After a
        # checkpoint of an epoch's end this range is empty, which keeps Lightning from training on one more batch.
        first = progress.total.processed
        limit = min(self.updates_per_epoch, self.trainer.num_training_batches)
        return range(first, first + max(0, math.ceil(limit) - progress.current.ready))


def _read_batch(
    dataset: EpisodeDataset,
    store: EpisodeStore,
    episodes: SegmentedEpisodes,
    seed: int,
    size: int,
    share: slice,
    batch: int,
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
