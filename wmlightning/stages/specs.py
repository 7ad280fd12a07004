"""What a stage wants of the episodes it is given, refused in words before anything is learnt."""

from typing import Any

from datamodules.episode import Spec


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
        cure = "give data.path a folder of episodes, not of codes"
    else:
        cure = f"set {setting} to {shape[-1]}" if tuple(shape)[:2] == (64, 64) else "record images of 64x64"
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
