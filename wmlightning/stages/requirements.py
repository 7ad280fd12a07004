"""What stages require of their data, checked before training, and of files that a preflight expects.

    preflight         `preflight` opens a registry, `expect` writes it, `expected_at` and `check_expected` read it
    data              `check_images`, `check_action_size`, `check_windows`, `check_min_window_rows`, `check_held_out`
    origin of codes   `codes_of_other_vaes`, `check_codes_origin`

A pipeline is checked as a whole before its first stage runs, when most of the folders and checkpoints that its later
stages read do not exist. So each stage that is checked registers what it will write, and later stages find it there:

    path                        registered value
    runs/vae/.../last.ckpt      the untrained stage, which stands in for its checkpoint
    runs/episodes               the `Spec` of the episodes
    runs/episodes/MAX_ROWS      rows of the longest episode that there can be
    runs/episodes/NUM_EPISODES  how many episodes there will be
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.episode import Spec
from datamodules.files import DamagedEpisode, EpisodeName
from datamodules.store import EpisodeStore

MAX_ROWS = "rows"
"""Under a folder of episodes: where a preflight registers the rows of the longest episode that there can be."""
NUM_EPISODES = "episodes"
"""Under a folder of episodes: where a preflight registers how many episodes there will be."""
_REGISTRIES: list[dict[str, Any]] = []
"""Absolute path -> what will be there, one registry for each open `preflight`; the last one is in use."""


@contextlib.contextmanager
def preflight() -> Iterator[None]:
    """Opens a registry of what stages will write: inside, `expected_at` finds what `expect` registered."""
    _REGISTRIES.append({})
    try:
        yield
    finally:
        _REGISTRIES.pop()


def expect(path: str | Path, what: Any) -> None:
    """Registers what will be at a path; does nothing outside a preflight.

    Args:
        path: of a checkpoint or of a folder of episodes, or a quantity of the latter (see the table above).
        what: a stage for its checkpoint, a `Spec` for a folder of episodes, or a number; None for unknown.
    """
    if _REGISTRIES:
        _REGISTRIES[-1][os.path.abspath(path)] = what


def expected_at(path: str | Path) -> Any:
    """Returns what is registered for a path; None where nothing is, or outside a preflight."""
    return _REGISTRIES[-1].get(os.path.abspath(path)) if _REGISTRIES else None


def check_expected(path: str | Path) -> None:
    """Checks during a preflight that a folder to be read has files, or that an earlier stage will write some.

    Raises:
        ValueError: if it is empty and nothing is registered for it.
    """
    if _REGISTRIES and expected_at(path) is None and not (os.path.isdir(path) and os.listdir(path)):
        raise ValueError(f"there is nothing in {path} and no stage before this one writes there: correct the path")


def check_images(spec: Spec, what: str, channels: int, setting: str) -> None:
    """Checks that observations contain images of 64x64 pixels with a given number of channels.

    Args:
        spec: of a store or of an environment.
        what: the plural noun that names them in the error.
        channels: channels that the encoder reads.
        setting: the setting of the encoder's channels, for the error.

    Raises:
        ValueError: if they do not.
    """
    shape, kind = spec.observation.get("image", ((), ""))
    if tuple(shape) == (64, 64, channels) and kind == "uint8":
        return
    if not shape:
        codes = "mean" in spec.observation
        cure = (
            "give data.path a folder of episodes, not of codes" if codes else "record the picture under the key image"
        )
    elif len(shape) != 3 or tuple(shape)[:2] != (64, 64) or shape[2] not in (1, 3):
        cure = "record images of 64x64, of shape (64, 64, 1) or (64, 64, 3)"
    else:
        cure = "record them as uint8" if kind != "uint8" else f"set {setting} to {shape[2]}"
    found = f"{kind} images of {tuple(shape)}" if shape else f"{', '.join(spec.observation)} but no image"
    raise ValueError(f"{what} have {found} but uint8 (64, 64, {channels}) is read: {cure}")


def check_action_size(found: int, wanted: int, what: str) -> None:
    """Checks that actions have as many numbers as the dynamics take.

    Args:
        found: numbers in an action of the data.
        wanted: numbers that the dynamics take.
        what: the data, named in the error.

    Raises:
        ValueError: if the two differ.
    """
    if found != wanted:
        raise ValueError(
            f"{what}: actions have {found} numbers but the dynamics expect {wanted}: give dynamics action_size={found}"
        )


def check_windows(longest: int | None, data: Any, what: str) -> None:
    """Checks that the windows of a datamodule fit into the longest episode that there can be.

    Args:
        longest: rows of that episode; None where unknown.
        data: the datamodule; one without a sampler of this package passes.
        what: the episodes, named in the error.

    Raises:
        ValueError: if the episode is shorter than the shortest window that the sampler accepts.
    """
    needed = getattr(getattr(getattr(data, "dataset", None), "sampler", None), "min_rows", 1)
    if longest is not None and longest < needed:
        raise ValueError(
            f"windows need {needed} rows but {what} have {longest} at most: lower the sampler's length, or use "
            "ChainedWindows"
        )


def window_rows(data: Any) -> int | None:
    """Returns the rows of a datamodule's windows; None without a sampler of this package."""
    return getattr(getattr(getattr(data, "dataset", None), "sampler", None), "length", None)


def check_min_window_rows(least: int, data: Any, why: str) -> None:
    """Checks that the windows of a datamodule have at least a number of rows.

    Args:
        least: that number.
        data: the datamodule; one whose windows are unknown passes.
        why: the reason, for the error.

    Raises:
        ValueError: if they have fewer.
    """
    rows = window_rows(data)
    if rows is not None and rows < least:
        raise ValueError(f"the sampler's length is {rows} but {why}: set it to {least} or more")


def check_held_out(episodes: int | None, data: Any, what: str, ranks: int = 1) -> None:
    """Checks that validation will have an episode; the first that a rank holds out is its episode with index 1.

    Args:
        episodes: how many episodes there will be; None where unknown.
        data: the datamodule.
        what: the number of episodes, named in the error.
        ranks: processes that collect the episodes.

    Raises:
        ValueError: if none would be held out.
    """
    validates = getattr(data, "validation_fraction", 0) and getattr(data, "validation_batches", 0)
    if validates and episodes is not None and episodes <= ranks:
        raise ValueError(
            f"{what} is {episodes} but a validation holds some of them out: collect at least {ranks + 1}, or set "
            "data.validation_fraction to 0"
        )


def codes_of_other_vaes(store: EpisodeStore, fingerprint: str) -> Iterator[tuple[EpisodeName, str]]:
    """Yields the episodes of a store whose codes another V wrote, each with the fingerprint of that V.

    Skips episodes of images, which no V wrote, and damaged files, which training does not read.

    Args:
        store: of codes, or of images.
        fingerprint: of the V that the codes should come from, see `VAE.fingerprint`.
    """
    for name in store.listing:
        writer = None
        with suppress(DamagedEpisode):
            writer = store.contents(name).metadata.get("vae")
        if writer not in (None, fingerprint):
            yield name, str(writer)


def check_codes_origin(store: EpisodeStore, fingerprint: str) -> None:
    """Checks that V's codes come from a given V: with another one training runs, but decoded dreams are nonsense.

    Args:
        store: of codes, or of images.
        fingerprint: of that V, see `VAE.fingerprint`.

    Raises:
        ValueError: naming the first episode that another V wrote, and both V.
    """
    for name, writer in codes_of_other_vaes(store, fingerprint):
        raise ValueError(
            f"the codes in {store.path}/{name} were written by V {writer}, but this model's V is {fingerprint}: write "
            "codes with this V, or give the model the V that wrote them"
        )
