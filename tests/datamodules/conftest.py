"""Tiny episodes whose rows hold the numbers of their episode and row."""

from collections.abc import Callable

import numpy as np
import pytest

from datamodules.episode import Episode
from datamodules.store import EpisodeStore


def numbered_episode(index: int, rows: int, terminal: bool = False, **metadata: bool | int | float | str) -> Episode:
    """An episode with `where` = (index, row) as observation, and rewards, actions that follow from them."""
    row = np.arange(rows)
    where = np.stack([np.full(rows, index), row], 1).astype(np.float32)
    action = np.stack([row, row + index], 1).astype(np.float32) / 1000
    action[0] = 0
    reward = (row * (index + 1)).astype(np.float32)
    is_terminal = (row == rows - 1) & terminal
    return Episode({"where": where}, action, reward, row == 0, is_terminal, metadata)


@pytest.fixture(scope="session")
def episode() -> Callable[..., Episode]:
    return numbered_episode


@pytest.fixture(scope="session")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EpisodeStore]:
    """Makes a store of numbered episodes with the given numbers of rows."""

    def make(lengths: list[int], **options: object) -> EpisodeStore:
        store = EpisodeStore(tmp_path_factory.mktemp("store"), **options)  # type: ignore[arg-type]
        for index, rows in enumerate(lengths):
            store.append(numbered_episode(index, rows, terminal=index % 2 == 0), index)
        return store

    return make
