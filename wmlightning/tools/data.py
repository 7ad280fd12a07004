"""What a folder of episodes holds, and which of its files are damaged."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.store import EpisodeStore
from wmlightning.tools.collect import store_returns


def info(path: str | Path) -> dict[str, Any]:
    """Counts a store; of each file only the rewards are read.

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
    returns = list(store_returns(store).values())
    shapes = {key: f"{dtype} {list(shape)}" for key, (shape, dtype) in spec.observation.items()}
    return {
        "path": str(path),
        "episodes": len(store),
        "steps": store.num_steps,
        "bytes": store.num_bytes,
        "rows": {"min": int(store.lengths.min()), "max": int(store.lengths.max())},
        "returns": {"mean": float(np.mean(returns)), "min": min(returns), "max": max(returns)},
        "shapes": shapes | {"action": f"float32 {[spec.action_size]}"},
        "discrete": spec.discrete,
        "damaged": store.damaged,
    }


def verify(path: str | Path) -> list[str]:
    """Names every truncated, foreign or inconsistent file of a store, one line each; empty if all is well.

    Raises:
        ValueError: if there is no such folder.
    """
    return _open(path).verify()


def _open(path: str | Path) -> EpisodeStore:
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path}: give the folder that holds the episodes' .h5 files")
    return EpisodeStore(str(path))
