"""Stores recorded episodes in files and reads batches from them. Imports no network and no environment."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.datamodule import EpisodeDataModule
    from datamodules.datasets import EpisodeDataset, FrameDataset, WholeEpisode, WindowDataset
    from datamodules.episode import Batch, Episode, Spec
    from datamodules.files import DamagedEpisode, EpisodeName
    from datamodules.samplers import (
        ChainedWindows,
        ConsecutiveWindows,
        EndWeightedWindows,
        Sampler,
        ShuffledFrames,
        UniformWindows,
    )
    from datamodules.segments import SegmentedEpisodes
    from datamodules.store import EpisodeStore
    from datamodules.writer import BackgroundWriter, EpisodeWriter

ROOMS = {
    "datamodule": ["EpisodeDataModule"],
    "datasets": ["EpisodeDataset", "FrameDataset", "WholeEpisode", "WindowDataset"],
    "episode": ["Batch", "Episode", "Spec"],
    "files": ["DamagedEpisode", "EpisodeName"],
    "segments": ["SegmentedEpisodes"],
    "samplers": [
        "ChainedWindows",
        "ConsecutiveWindows",
        "EndWeightedWindows",
        "Sampler",
        "ShuffledFrames",
        "UniformWindows",
    ],
    "store": ["EpisodeStore"],
    "writer": ["BackgroundWriter", "EpisodeWriter"],
}

__all__ = [
    "BackgroundWriter",
    "Batch",
    "ChainedWindows",
    "ConsecutiveWindows",
    "DamagedEpisode",
    "EndWeightedWindows",
    "Episode",
    "EpisodeDataModule",
    "EpisodeDataset",
    "EpisodeName",
    "EpisodeStore",
    "EpisodeWriter",
    "FrameDataset",
    "Sampler",
    "SegmentedEpisodes",
    "ShuffledFrames",
    "Spec",
    "UniformWindows",
    "WholeEpisode",
    "WindowDataset",
]


def __getattr__(name: str) -> Any:
    # Late: lightning takes seconds to import, and processes that only step an environment do not need it.
    for room, names in ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f"datamodules.{room}"), name)
    raise AttributeError(f"datamodules has no {name}")
