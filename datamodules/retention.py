"""Which episodes stay in a store: its caps, a folder for superseded ones, and a warning before the disk is full."""

import os
import shutil
import time
import warnings
from collections.abc import Iterable

from datamodules.files import EpisodeName, megabytes


def within_caps(
    listing: Iterable[EpisodeName], sizes: dict[EpisodeName, int], cap_bytes: int | None, cap_decisions: int | None
) -> set[EpisodeName]:
    """Returns the newest episodes that fit into the caps, at least one.

    They are the last ones in the order of `EpisodeName.arrival`. So an episode that has dropped out never returns, and
    the result does not depend on which of the older files are still on disk.

    Args:
        listing: episodes.
        sizes: bytes of each; read only under a cap in bytes.
        cap_bytes: most bytes, or None for no limit.
        cap_decisions: most decisions, or None for no limit.
    """
    kept: set[EpisodeName] = set()
    size = 0
    decisions = 0
    for name in sorted(listing, key=lambda name: name.arrival, reverse=True):
        decisions += name.rows - 1
        size += 0 if cap_bytes is None else sizes[name]
        full = (cap_bytes is not None and size > cap_bytes) or (cap_decisions is not None and decisions > cap_decisions)
        if full and kept:
            break
        kept.add(name)
    return kept


def set_aside(folder: str, names: Iterable[EpisodeName]) -> str | None:
    """Moves episodes into a new subfolder `superseded-<time>`, which no listing reads.

    Returns:
        The new folder; None if there were no episodes to move.
    """
    names = list(names)
    if not names:
        return None
    stem = f"{folder}/superseded-{time.strftime('%Y%m%d-%H%M%S')}"
    target = stem
    number = 1
    while os.path.exists(target):
        number += 1
        target = f"{stem}-{number}"
    os.mkdir(target)
    for name in names:
        os.rename(f"{folder}/{name}", f"{target}/{name}")
    return target


def warn_of_full_disk(path: str, episode_bytes: int, growth: int, warned_below: float) -> float:
    """Warns when less is free than the store is expected to need, and again each time that half of the rest is gone.

    Args:
        path: the store's folder.
        episode_bytes: size of the episode just written.
        growth: bytes that the store is expected to grow by.
        warned_below: bytes that were free at the last warning; infinity before the first.

    Returns:
        `warned_below` for the next call.
    """
    free = shutil.disk_usage(path).free
    if free >= growth or free >= warned_below / 2:
        return warned_below
    warnings.warn(
        f"{megabytes(free)} are free under {path} and an episode takes {megabytes(episode_bytes)}: about "
        f"{free // episode_bytes} more fit; free some space, or store in another folder or with compression=gzip",
        stacklevel=4,
    )
    return float(free)
