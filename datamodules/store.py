"""A folder of episodes, to which whole files are added and from which whole files are removed: `EpisodeStore`.

Any number of processes may append (each under its own rank or its own indices) while any number read. The listing of
the folder is the index; `refresh` reads it again.
"""

import bisect
import os
import warnings
from collections.abc import Container
from contextlib import suppress

import numpy as np

from datamodules.buffers import EpisodeBuffer
from datamodules.checks import check_episode, describe_difference, verify
from datamodules.episode import Episode, Spec
from datamodules.files import Contents, DamagedEpisode, EpisodeName, Reader, encode, inspect, with_file, write_episode
from datamodules.retention import warn_of_full_disk, within_caps


def to_disk(episode: Episode) -> dict[str, np.ndarray]:
    """Shifts an episode from the alignment in memory to that of the file; only `from_disk` shifts back.

        index in memory      0     1     2     3
        observations         o0    o1    o2    o3        index as in memory
        actions              .     a0    a1    a2        index in memory - 1: the dummy row 0 is left out
        rewards              .     r1    r2    r3
        terminations         .     0     0     1
        truncations          .     0     0     0         1 at the end of an episode that is cut but not terminal

    Raises:
        ValueError: if row 0 is not a plain reset or another row is flagged as one, which the file cannot represent.
    """
    is_first = episode.is_first
    if len(episode) < 2 or not is_first[0] or is_first[1:].any():
        raise ValueError(
            f"this is not one whole episode ({len(episode)} rows, is_first at {np.flatnonzero(is_first).tolist()}): "
            "append episodes of at least one step, each begun by one reset in row 0"
        )
    if episode.action[0].any() or episode.reward[0] or episode.is_terminal[0]:
        raise ValueError("row 0 has an action, a reward or a terminal flag but is the reset: make them zero")
    truncations = np.zeros(episode.num_steps, np.bool_)
    truncations[-1] = not episode.is_terminal[-1]
    return {f"observations/{key}": value for key, value in episode.observation.items()} | {
        "actions": episode.action[1:],
        "rewards": episode.reward[1:],
        "terminations": episode.is_terminal[1:],
        "truncations": truncations,
    }


def from_disk(read: Reader, start: int, into: EpisodeBuffer) -> None:
    """Fills `into` with rows start, start + 1, ... of a file; the inverse of `to_disk`, which draws the shift.

    Args:
        read: fills an array from a dataset of the file, see `datamodules.files.with_file`.
        start: first row, counted as in memory.
        into: arrays with one leading axis, contiguous.
    """
    for key, array in into.observation.items():
        read(f"observations/{key}", start, array)
    columns = [("actions", into.action), ("rewards", into.reward), ("terminations", into.is_terminal)]
    into.is_first.fill(False)
    if start == 0:
        into.is_first[0] = True
        for _, array in columns:
            array[0] = 0
        columns = [(name, array[1:]) for name, array in columns]
        start = 1
    for name, array in columns:
        read(name, start - 1, array)


class EpisodeStore:
    """A folder of immutable HDF5 files, one finished episode each.

    Appending is atomic and synced: a process killed at any moment leaves every finished episode whole. Reading opens a
    file, reads a window at a known offset straight into the caller's memory and closes it again, so neither memory nor
    descriptors grow with the store.

    Args:
        path: the folder; made by the first `append`.
        cap_bytes: when the files take more bytes than this, the oldest episodes are removed, never the newest one: they
            leave `in_view` at once, and the next `append` deletes their files.
        compression: None for raw frames, which are fastest to read; "gzip" for archives about ten times smaller, to be
            read with DataLoader workers.
        cap_decisions: as cap_bytes, in decisions (steps).

    Raises:
        ValueError: for a cap below 1 or an unknown compression.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        cap_bytes: int | None = None,
        compression: str | None = None,
        cap_decisions: int | None = None,
    ) -> None:
        for name, cap in (("cap_bytes", cap_bytes), ("cap_decisions", cap_decisions)):
            if cap is not None and cap < 1:
                raise ValueError(f"{name} is {cap} but must be at least 1: leave it null to keep everything")
        if compression not in (None, "gzip"):
            raise ValueError(f"compression is {compression!r} but only null (raw) and 'gzip' are known")
        self.path = os.fspath(path)
        self.cap_bytes = cap_bytes
        self.cap_decisions = cap_decisions
        self.compression = compression
        self._contents: dict[EpisodeName, Contents] = {}
        self._damaged: dict[EpisodeName, str] = {}
        self._sizes: dict[EpisodeName, int] = {}
        self._spec: Spec | None = None
        self._warned_below = float("inf")
        self.refresh()

    def refresh(self) -> None:
        """Lists the folder again: episodes that other processes have finished appear, deleted ones vanish."""
        try:
            parsed = map(EpisodeName.parse, os.listdir(self.path))
        except FileNotFoundError:
            parsed = iter(())
        except OSError as error:
            raise OSError(f"cannot list {self.path} ({error.strerror}): give the folder that holds episodes") from error
        self._set_listing(sorted((name for name in parsed if name is not None), key=lambda name: name.place))

    def _set_listing(self, listing: list[EpisodeName]) -> None:
        self._listing = listing
        self._places = {name.place for name in listing}
        self._lengths: np.ndarray | None = None
        present = set(listing)
        for cache in (self._contents, self._damaged, self._sizes):
            for name in cache.keys() - present:
                del cache[name]

    def __len__(self) -> int:
        return len(self._listing)

    @property
    def listing(self) -> list[EpisodeName]:
        """The numbers in every file's name, sorted by `place`; `read` takes a position in this list."""
        return list(self._listing)

    @property
    def names(self) -> list[str]:
        """File names in the order of the listing."""
        return [str(name) for name in self._listing]

    @property
    def indices(self) -> np.ndarray:
        """The episode index of each file."""
        return np.array([name.index for name in self._listing], np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each file: steps + 1."""
        if self._lengths is None:
            self._lengths = np.array([name.rows for name in self._listing], np.int64)
        return self._lengths

    @property
    def num_steps(self) -> int:
        """Decisions in the store: the sum of rows - 1."""
        return int(self.lengths.sum()) - len(self)

    @property
    def num_bytes(self) -> int:
        """Bytes that the episodes take on disk."""
        return sum(self._file_sizes().values())

    def _file_sizes(self) -> dict[EpisodeName, int]:
        for name in self._listing:
            if name not in self._sizes:
                self._sizes[name] = 0
                with suppress(FileNotFoundError):
                    self._sizes[name] = os.path.getsize(f"{self.path}/{name}")
        return self._sizes

    @property
    def damaged(self) -> int:
        """Number of files in the listing found to be damaged so far."""
        return len(self._damaged)

    @property
    def spec(self) -> Spec:
        """The spec of the first readable episode, which every other episode shares.

        `discrete` is taken from the metadata of that episode; it is False if missing there.

        Raises:
            ValueError: if the store holds no readable episode.
        """
        if self._find_spec() is None:
            found = f"{len(self)} episodes, none of them readable" if len(self) else "no episodes"
            raise ValueError(
                f"{self.path} holds {found}: collect some first (wmlightning collect), or correct the path"
            )
        assert self._spec is not None
        return self._spec

    def _find_spec(self) -> Spec | None:
        for name in self._listing if self._spec is None else ():
            with suppress(DamagedEpisode):
                self._spec = self._inspect(name).spec
                break
        return self._spec

    def contents(self, name: EpisodeName) -> Contents:
        """Returns spec, offsets and metadata of an episode; the file is inspected only once.

        Raises:
            DamagedEpisode: if it cannot be read; the first time with a warning that counts such episodes.
        """
        contents = self._contents.get(name)
        if contents is None:
            spec = self._find_spec()
            contents = self._inspect(name)
            if spec is not None and describe_difference(contents.spec, spec):
                raise self._mark_damaged(name, f"{name}: {describe_difference(contents.spec, spec)}")
            self._contents[name] = contents
        return contents

    def readable(self, name: EpisodeName) -> bool:
        """Returns whether an episode is not known to be damaged, inspecting its file if that was not done before."""
        with suppress(DamagedEpisode):
            self.contents(name)
        return name not in self._damaged

    def _inspect(self, name: EpisodeName) -> Contents:
        if name in self._damaged:
            raise DamagedEpisode(self._damaged[name])
        try:
            return inspect(f"{self.path}/{name}", name.rows)
        except DamagedEpisode as error:
            raise self._mark_damaged(name, str(error)) from None

    def _mark_damaged(self, name: EpisodeName, reason: str) -> DamagedEpisode:
        if name not in self._damaged:
            self._damaged[name] = reason
            warnings.warn(
                f"{len(self._damaged)} of {len(self)} episodes in {self.path} cannot be read and are skipped; the "
                f"latest is {reason}; `wmlightning data verify {self.path}` names them all",
                stacklevel=4,
            )
        return DamagedEpisode(reason)

    def read(self, index: int, start: int = 0, rows: int | None = None) -> Episode:
        """Reads an episode, or a piece of one.

        Args:
            index: position in the listing.
            start: first row, counted as in memory (row 0 is the reset).
            rows: number of rows; None for all from `start` on.

        Raises:
            DamagedEpisode: if the file cannot be read.
            IndexError: if the episode has no such rows.
        """
        name = self._listing[index]
        rows = name.rows - start if rows is None else rows
        if start < 0 or rows < 1 or start + rows > name.rows:
            raise IndexError(
                f"rows {start} to {start + rows} of {name} were asked for but it has {name.rows}: ask for fewer"
            )
        contents = self.contents(name)
        into = EpisodeBuffer.empty(contents.spec, (rows,))
        self.read_into(name, start, into)
        return Episode(*into, metadata=dict(contents.metadata))

    def read_into(self, name: EpisodeName, start: int, into: EpisodeBuffer) -> None:
        """Fills `into` with rows of a file from `start` on. Raises DamagedEpisode as `read` does."""
        contents = self.contents(name)
        try:
            with_file(contents.path, contents.offsets, lambda read: from_disk(read, start, into))
        except DamagedEpisode as error:
            raise self._mark_damaged(name, str(error)) from None

    def append(self, episode: Episode, index: int | None = None, rank: int = 0, birth: int = 0, part: int = 0) -> str:
        """Writes a finished episode and returns its file's name; from then on the episode survives a power failure.

        Args:
            episode: one whole episode, with the shapes and dtypes of those already in the store.
            index: its number; None takes the next free one.
            rank: the process that recorded it.
            birth: the batch count from which on it may be trained on.
            part: its number, from 1 on, if it continues an episode that is written in parts; its row 0 then holds the
                last observation of the part before.

        Raises:
            ValueError: if the episode does not fit the store, or its number is taken.
            OSError: if the disk is full or the folder cannot be written.
        """
        if index is None:
            self.refresh()
            index = 1 + max((name.index for name in self._listing), default=-1)
        name = EpisodeName(index, rank, birth, len(episode), part)
        if name.place in self._places:
            which = f"part {part} of episode {index}" if part else f"episode {index}"
            raise ValueError(
                f"{which} of rank {rank} is in {self.path} already, and files never change: give another index"
            )
        check_episode(episode, self._find_spec())
        content = encode(to_disk(episode), episode.metadata, self.compression)
        write_episode(self.path, str(name), content)
        bisect.insort(self._listing, name, key=lambda name: name.place)
        self._places.add(name.place)
        self._lengths = None
        self._sizes[name] = len(content)
        self._spec = self._spec or episode.spec
        if self.cap_bytes is not None or self.cap_decisions is not None:
            self.prune(spared=(name,))
        self._warn_of_full_disk(len(content))
        return str(name)

    def verify(self) -> list[str]:
        """Reads every file of the folder and deletes none; see `datamodules.checks.verify`."""
        return verify(self.path)

    def in_view(self) -> list[EpisodeName]:
        """Returns the newest episodes of the listing, as many as fit into the caps; see `within_caps`."""
        if self.cap_bytes is None and self.cap_decisions is None:
            return self.listing
        kept = within_caps(self._listing, self._file_sizes(), self.cap_bytes, self.cap_decisions)
        return [name for name in self._listing if name in kept]

    def prune(self, spared: Container[EpisodeName] = ()) -> list[EpisodeName]:
        """Deletes the episodes that do not fit into the caps, except for the `spared` ones.

        Returns:
            The spared episodes that do not fit.
        """
        self.refresh()
        kept = set(self.in_view())
        beyond_caps = [name for name in self._listing if name not in kept]
        for name in beyond_caps:
            if name not in spared:
                with suppress(FileNotFoundError):  # another rank may have deleted it already
                    os.unlink(f"{self.path}/{name}")
        self._set_listing([name for name in self._listing if name in kept or name in spared])
        return [name for name in beyond_caps if name in spared]

    def _warn_of_full_disk(self, episode_bytes: int) -> None:
        growth = 100 * episode_bytes
        if self.cap_bytes is not None:
            growth = min(growth, self.cap_bytes - self.num_bytes)
        self._warned_below = warn_of_full_disk(self.path, episode_bytes, growth, self._warned_below)
