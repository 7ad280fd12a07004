"""Counts what a folder of episodes holds, and finds damaged files."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.checks import unfinished_files
from datamodules.segments import SegmentedEpisodes
from datamodules.store import EpisodeStore
from wmlightning.tools.collect import store_returns


def info(path: str | Path) -> dict[str, Any]:
    """Counts the episodes of a store; reads only the rewards of each file.

    Args:
        path: folder of HDF5 episodes.

    Returns:
        `episodes`, `steps` (decisions), `bytes` on disk, `rows` (least and greatest), `returns` (mean, least and
        greatest), `shapes` (dtype and shape of one row of every array), `damaged` (files that could not be read).

    Raises:
        ValueError: if there is no such folder, or no episode in it.
    """
    store = _open(path)
    spec = store.spec
    joined, earned = SegmentedEpisodes(store.listing), store_returns(store)
    parts = [[earned[name] for name in joined.parts(episode) if name in earned] for episode in range(len(joined))]
    returns = [sum(rewards) for rewards in parts if rewards]
    shapes = {key: f"{dtype} {list(shape)}" for key, (shape, dtype) in spec.observation.items()}
    return {
        "path": str(path),
        "episodes": len(joined),
        "steps": store.num_steps,
        "bytes": store.num_bytes,
        "rows": {"min": int(joined.lengths.min()), "max": int(joined.lengths.max())},
        "returns": {"mean": float(np.mean(returns)), "min": min(returns), "max": max(returns)},
        "shapes": shapes | {"action": f"float32 {[spec.action_size]}"},
        "discrete": spec.discrete,
        "damaged": store.damaged,
    }


def verify_store(path: str | Path) -> tuple[list[str], list[str]]:
    """Checks every file of a store.

    Returns:
        One line for every truncated, foreign or inconsistent file; and the names of unfinished files, which are no
        damage.

    Raises:
        ValueError: if there is no such folder, or no episode in it.
    """
    store = _open(path)
    problems = store.verify()
    if not (len(store) or problems):
        raise ValueError(f"{path} holds no episodes: collect some (wmlightning collect), or correct the path")
    return problems, unfinished_files(store.path)


def _open(path: str | Path) -> EpisodeStore:
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path}: give the folder that holds the episodes' .h5 files")
    return EpisodeStore(str(path))
