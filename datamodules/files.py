"""The file of an episode: its name, its contents, how it is written atomically and how rows are read from it.

    ep-00000123-0-4500-501.h5       index 123, rank 0, recorded after batch 4500, 501 rows (500 steps and the reset)

        observations/image   (501, 64, 64, 3) uint8          names and order of Gymnasium and Minari:
        actions              (500, 3)         float32        one observation more than actions
        rewards              (500,)           float32
        terminations         (500,)           bool
        truncations          (500,)           bool
        root attributes      the episode's metadata

A very long episode is several files, its parts: ep-00000123-0-4500-1001.h5, then ep-00000123-0-4600-1001-1.h5, and so
on. Each begins with the observation that the one before it ended with; `datamodules.segments` reads them as one.

A file is written once, under a temporary name, and renamed when it is complete. So a file with an episode's name is
always complete, and no locks are needed.
"""

import errno
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np

from datamodules.episode import Spec

COLUMNS = {
    "actions": (2, "float32"),
    "rewards": (1, "float32"),
    "terminations": (1, "bool"),
    "truncations": (1, "bool"),
}
"""Axes and dtype of every dataset but the observations."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's error numbers for a full disk and a full quota."""
CHUNK = 16
"""Frames in one compressed chunk: a window of 50 unpacks 14 frames too many on average."""

Reader = Callable[[str, int, np.ndarray], None]
"""`read(name, first, array)` fills `array` with rows first, first + 1, ... of one dataset of a file."""


class DamagedEpisode(OSError):
    """An episode file that is truncated, foreign or inconsistent; the text says which and why, in one line."""


class EpisodeName(NamedTuple):
    """The numbers in a file's name; they make a folder's listing the index, so that no file is opened to be counted.

    Args:
        index: the number of the episode, >= 0.
        rank: the process that recorded it, >= 0.
        birth: the batch count from which on it may be trained on, >= 0.
        rows: steps + 1.
        part: its number among the parts of an episode that is written in several files, else 0.
    """

    index: int
    rank: int
    birth: int
    rows: int
    part: int = 0

    def __str__(self) -> str:
        return f"ep-{self.index:08d}-{self.rank}-{self.birth}-{self.rows}{f'-{self.part}' if self.part else ''}.h5"

    @property
    def place(self) -> tuple[int, int, int]:
        """(index, rank, part), which is unique in a store and sorts its listing."""
        return self.index, self.rank, self.part

    @property
    def arrival(self) -> tuple[int, int, int, int]:
        """(birth, index, rank, part), which sorts files by when they were recorded, the oldest first."""
        return self.birth, *self.place

    def follows(self, other: "EpisodeName") -> bool:
        """Returns whether this file is the next part of the other's episode."""
        return self.place == (other.index, other.rank, other.part + 1)

    @classmethod
    def parse(cls, name: str) -> "EpisodeName | None":
        """Returns the numbers in a file's name, or None if it is not an episode's."""
        match = re.fullmatch(r"ep-(\d{8,})-(\d+)-(\d+)-(\d+)(?:-(\d+))?\.h5", name)
        parsed = cls(*map(int, match.groups(default="0"))) if match else None
        return parsed if parsed is not None and str(parsed) == name and parsed.rows >= 2 else None


class Contents(NamedTuple):
    """The result of `inspect`: spec, the byte at which each dataset begins (None: read through HDF5), and metadata."""

    path: str
    spec: Spec
    offsets: dict[str, int] | None
    metadata: dict[str, Any]


def encode(arrays: dict[str, np.ndarray], metadata: dict[str, Any], compression: str | None = None) -> bytes:
    """Returns the bytes of an HDF5 file that holds these arrays.

    The file is composed in memory and written in one go, because HDF5 does not recover cleanly when the disk is full.

    Args:
        arrays: datasets by path, e.g. `observations/image`.
        metadata: bool, int (64 bits), float or str by name; kept as attributes of the root.
        compression: None for contiguous raw arrays, "gzip" to pack observations in chunks of 16 frames.

    Raises:
        ValueError: for metadata that an attribute cannot hold.
    """
    with h5py.File("episode", "w", driver="core", backing_store=False) as file:
        for name, array in arrays.items():
            if compression and name.startswith("observations/"):
                chunks = (min(CHUNK, len(array)), *array.shape[1:])
                file.create_dataset(name, data=array, chunks=chunks, compression=compression, compression_opts=1)
            else:
                file.create_dataset(name, data=array)
        for key, value in metadata.items():
            plain = value.item() if isinstance(value, np.generic) else value
            try:
                if isinstance(plain, str) and "\0" not in plain:
                    # Of fixed length: HDF5 can hang for ever in a damaged heap of variable-length strings.
                    text = plain.encode()
                    file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
                elif isinstance(plain, bool | int | float):
                    file.attrs[key] = plain
                else:
                    raise TypeError(f"it is a {type(value).__name__}")
            except (TypeError, ValueError, OverflowError, OSError, RuntimeError) as error:
                raise ValueError(
                    f"metadata[{key!r}] cannot be kept ({error}): give it as a bool, a 64-bit int, a float or a str"
                ) from error
        file.flush()
        return file.id.get_file_image()


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that it is there whole or not at all, even if the process is killed or the power fails.

    Temporary name in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: the file; its folder is made if it is missing.
        write: called with the open binary file.

    Raises:
        OSError: if it cannot be written; for a full disk in one line that says what to do.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(path, write)
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = megabytes(shutil.disk_usage(path.parent).free)
        full = OSError(
            f"the disk under {path.parent} is full ({free} free), {path.name} was not written: free some space"
        )
        full.errno = error.errno
        raise full from error


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    # Beside the target, because a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_writable(path: str | Path) -> None:
    """Checks that a file can be written at a path, where missing folders can be made; leaves no file there.

    Raises:
        ValueError: if it cannot.
    """
    path = Path(path).absolute()
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}): name a place you may write to"
        ) from error


def write_episode(folder: str, name: str, content: bytes) -> None:
    """Writes an episode's file, whole or not at all.

    Raises:
        OSError: if the disk is full or the folder cannot be written, in one line that says what to do.
    """
    try:
        write_atomically(os.path.join(folder, name), lambda file: file.write(content))
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                f"{error}, or store in another folder (--path) or with compression=gzip (this episode takes "
                f"{megabytes(len(content))}); episodes already written are whole"
            ) from error
        raise OSError(
            f"cannot write episodes into {folder} ({error.strerror or error}): make it a folder you may write to, or "
            "choose another"
        ) from error


def inspect(path: str, rows: int) -> Contents:
    """Opens an episode file, checks all of it but the pixels, and closes it again.

    Args:
        path: the file.
        rows: the number of rows in its name.

    Raises:
        DamagedEpisode: if something is wrong with it; the text says what.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _inspect(file, path, rows)
    except DamagedEpisode as error:
        raise DamagedEpisode(f"{os.path.basename(path)}: {error}") from None
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        # HDF5 writes some messages on several lines.
        why = "it is a folder" if os.path.isdir(path) else " ".join(str(error).split())
        raise DamagedEpisode(f"{os.path.basename(path)}: cannot be read as an HDF5 file ({why})") from error


def _inspect(file: Any, path: str, rows: int) -> Contents:
    group = file.get("observations")
    keys = list(group) if isinstance(group, h5py.Group) else []
    expected = {f"observations/{key}": (rows, None, "") for key in keys}
    expected |= {name: (rows - 1, axes, dtype) for name, (axes, dtype) in COLUMNS.items()}
    size = os.path.getsize(path)
    shapes = {}
    dtypes = {}
    offsets: dict[str, int] | None = {}
    for name, (length, axes, kind) in expected.items():
        dataset = file.get(name)
        if not keys or not isinstance(dataset, h5py.Dataset):
            raise DamagedEpisode(f"has no dataset {name if keys else 'observations/...'}, so it is no episode")
        shape = dataset.shape
        dtype = dataset.dtype
        shapes[name] = shape
        dtypes[name] = dtype
        if not shape or shape[0] != length or axes not in (None, len(shape)):
            raise DamagedEpisode(f"{name} has shape {shape} but the file's name says {length} rows")
        if dtype.kind not in "biuf" or kind not in ("", dtype.name):
            raise DamagedEpisode(f"{name} has dtype {dtype} but must be {kind or 'a plain number'}")
        # Chunked and empty data have no offset.
        offset = dataset.id.get_offset() if dtype.isnative and hasattr(os, "preadv") else None
        end = (offset or 0) + dtype.itemsize * math.prod(shape)
        if offset is not None and end > size:
            raise DamagedEpisode(f"is truncated: {name} should end at byte {end} of {size}")
        offsets = None if offset is None or offsets is None else offsets | {name: offset}
        if name in ("actions", "rewards") and not np.isfinite(dataset[()]).all():
            raise DamagedEpisode(f"{name} holds a value that is not finite")
    # Only scalars are metadata of ours; HDF5 may hang in an array attribute whose header is damaged.
    plain = {key: file.attrs[key] for key in file.attrs if file.attrs.get_id(key).shape == ()}
    metadata = {key: _plain(value) for key, value in plain.items()}
    observation = {key: (shapes[f"observations/{key}"][1:], dtypes[f"observations/{key}"].name) for key in keys}
    return Contents(
        path, Spec(observation, shapes["actions"][1], bool(metadata.get("discrete", False))), offsets, metadata
    )


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def with_file(path: str, offsets: dict[str, int] | None, use: Callable[[Reader], None]) -> None:
    """Opens an episode file, calls `use` to read from it, and closes it: no file stays open between two windows.

    With offsets, the operating system reads rows straight into the caller's array; without, HDF5 reads them.

    Raises:
        DamagedEpisode: if the file is gone or ends too early.
    """
    # A function and not a context manager: a generator would cost as much as two of the reads.
    try:
        if offsets is None:
            with h5py.File(path, "r", locking=False) as file:
                use(partial(_read_hdf5, file))
        else:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                use(partial(_read_raw, descriptor, offsets))
            finally:
                os.close(descriptor)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise DamagedEpisode(f"{os.path.basename(path)}: {' '.join(str(error).split())}") from error


def _read_raw(descriptor: int, offsets: dict[str, int], name: str, first: int, array: np.ndarray) -> None:
    offset = offsets[name] + first * array.strides[0]
    got = os.preadv(descriptor, (array.data,), offset)
    while got < array.nbytes:  # the system reads at most 2 GB at once
        rest = array.reshape(-1).view(np.uint8)[got:].data
        more = os.preadv(descriptor, (rest,), offset + got)
        if not more:
            raise OSError(f"is truncated: {name} lacks {array.nbytes - got} bytes of rows {first} and after")
        got += more


def _read_hdf5(file: Any, name: str, first: int, array: np.ndarray) -> None:
    if len(array):
        file[name].read_direct(array, np.s_[first : first + len(array)])


def megabytes(count: int) -> str:
    """Formats a number of bytes in MB, or in GB from 1 GB on."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
