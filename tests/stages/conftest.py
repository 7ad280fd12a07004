"""Tiny stores of episodes and of codes; and lets tests import `stage_support`."""

import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.store import EpisodeStore

sys.path.insert(0, str(Path(__file__).parent))

from stage_support import episode


@pytest.fixture
def episodes(tmp_path):
    """A store of six short episodes of images: squares of random colours on random ground."""
    store, rng = EpisodeStore(tmp_path / "episodes"), np.random.default_rng(0)
    for number, steps in enumerate((7, 5, 9, 6, 8, 5)):
        image = np.repeat(np.repeat(rng.integers(0, 256, (steps + 1, 4, 4, 3), np.uint8), 16, 1), 16, 2)
        store.append(episode(steps, {"image": image}, number))
    return store


@pytest.fixture
def codes(tmp_path):
    """A store of eight episodes of codes of three numbers, in float16."""
    store, rng = EpisodeStore(tmp_path / "codes"), np.random.default_rng(0)
    for number, steps in enumerate((11, 7, 9, 14, 8, 10, 12, 7)):
        observation = {name: rng.normal(size=(steps + 1, 3)).astype(np.float16) for name in ("mean", "logvar")}
        store.append(episode(steps, observation, number))
    return store
