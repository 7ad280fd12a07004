"""What the stages of a pipeline will leave behind, known while they are checked and none of them has run."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.episode import Spec
from datamodules.files import DamagedEpisode, EpisodeName
from datamodules.store import EpisodeStore

ROWS = "rows"
"""In a folder of episodes, where the rows of the longest that it can hold are promised."""
EPISODES = "episodes"
"""In a folder of episodes, where their number is promised."""
_REHEARSALS: list[dict[str, Any]] = []


@contextlib.contextmanager
def rehearsal() -> Iterator[None]:
    """While it lasts, `promised` finds what `promise` named."""
    _REHEARSALS.append({})
    try:
        yield
    finally:
        _REHEARSALS.pop()


def promise(path: str | Path, what: Any) -> None:
    """Says what will be there, if this is a rehearsal: a stage for its checkpoint, a Spec for a folder of episodes."""
    if _REHEARSALS:
        _REHEARSALS[-1][os.path.abspath(path)] = what


def check_there(path: str | Path) -> None:
    """Makes sure that a folder which is read holds something by then; outside a rehearsal nothing is checked.

    Raises:
        ValueError: if it is empty and nothing was promised there.
    """
    if _REHEARSALS and promised(path) is None and not (os.path.isdir(path) and os.listdir(path)):
        raise ValueError(f"there is nothing in {path} and no stage before this one writes there: correct the path")


def promised(path: str | Path) -> Any:
    """What was promised to be there; None without a promise."""
    return _REHEARSALS[-1].get(os.path.abspath(path)) if _REHEARSALS else None


def check_images(spec: Spec, what: str, channels: int, setting: str) -> None:
    """Makes sure that there are images of 64x64 pixels with so many channels.

    Args:
        spec: of a store or of an environment.
        what: names it in the error, in the plural.
        channels: those that the encoder reads.
        setting: where they are set.

    Raises:
        ValueError: if there are not.
    """
    shape, kind = spec.observation.get("image", ((), ""))
    if tuple(shape) == (64, 64, channels) and kind == "uint8":
        return
    if not shape:
        codes = "logvar" in spec.observation
        cure = (
            "give data.path a folder of episodes, not of codes" if codes else "record the picture under the key image"
        )
    elif len(shape) != 3 or tuple(shape)[:2] != (64, 64) or shape[2] not in (1, 3):
        cure = "record images of 64x64, of shape (64, 64, 1) or (64, 64, 3)"
    else:
        cure = "record them as uint8" if kind != "uint8" else f"set {setting} to {shape[2]}"
    found = f"{kind} images of {tuple(shape)}" if shape else f"{', '.join(spec.observation)} but no image"
    raise ValueError(f"{what} have {found} but uint8 (64, 64, {channels}) is read: {cure}")


def check_windows(longest: int | None, data: Any, what: str) -> None:
    """Makes sure that the windows of a datamodule fit into the longest episode that there can be.

    Args:
        longest: its rows; None where that is not known.
        data: the datamodule; one without a sampler of ours is taken.
        what: the episodes, named in the error.

    Raises:
        ValueError: if they do not.
    """
    needed = getattr(getattr(getattr(data, "dataset", None), "sampler", None), "min_rows", 1)
    if longest is not None and longest < needed:
        raise ValueError(
            f"windows need {needed} rows but {what} have {longest} at most: lower the sampler's length, or use "
            "ChainedWindows"
        )


def check_held_out(episodes: int | None, data: Any, what: str, ranks: int = 1) -> None:
    """Makes sure that a validation finds an episode: that with index 1 is the first of a rank that is held out.

    Args:
        episodes: how many there will be; None where that is not known.
        data: the datamodule.
        what: their number, named in the error.
        ranks: processes that collect them.

    Raises:
        ValueError: if none would be held out.
    """
    validates = getattr(data, "validation_fraction", 0) and getattr(data, "validation_batches", 0)
    if validates and episodes is not None and episodes <= ranks:
        raise ValueError(
            f"{what} is {episodes} but a validation holds some of them out: collect at least {ranks + 1}, or set "
            "data.validation_fraction to 0"
        )


def window_rows(data: Any) -> int | None:
    """Rows of a datamodule's windows; None where there is no sampler of ours."""
    return getattr(getattr(getattr(data, "dataset", None), "sampler", None), "length", None)


def check_least(least: int, data: Any, why: str) -> None:
    """Makes sure that windows, where they are known, have at least so many rows; ValueError with the reason if not."""
    rows = window_rows(data)
    if rows is not None and rows < least:
        raise ValueError(f"the sampler's length is {rows} but {why}: set it to {least} or more")


def check_action_size(found: int, wanted: int, what: str) -> None:
    """Makes sure that actions have as many numbers as the dynamics take; raises ValueError in the same way."""
    if found != wanted:
        raise ValueError(
            f"{what}: actions have {found} numbers but the dynamics expect {wanted}: give dynamics action_size={found}"
        )


def foreign_codes(store: EpisodeStore, fingerprint: str) -> Iterator[tuple[EpisodeName, str]]:
    """The episodes of a store that another V wrote, each with that V's fingerprint.

    Episodes of images were written by no V and are not among them, nor are damaged files, which nobody reads.

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


def check_codes(store: EpisodeStore, fingerprint: str) -> None:
    """Refuses codes that another V wrote: nothing else would tell, but decoded dreams would be nonsense.

    Raises:
        ValueError: naming the first such episode and both V.
    """
    for name, writer in foreign_codes(store, fingerprint):
        raise ValueError(
            f"the codes in {store.path}/{name} were written by V {writer}, but this model's V is {fingerprint}: write "
            "codes with this V, or give the model the V that wrote them"
        )
