"""Checks of an episode before it is stored, and of the files of a store."""

import os
from typing import Any

import h5py
import numpy as np

from datamodules.episode import Episode, Spec
from datamodules.files import CHUNK, DamagedEpisode, EpisodeName, inspect


def check_episode(episode: Episode, spec: Spec | None) -> None:
    """Checks that an episode is consistent in itself and with the store's other episodes.

    Args:
        episode: the one to be appended.
        spec: that of the store's episodes; None for the first of them.

    Raises:
        ValueError: if it is not, in one line that says what to do.
    """
    columns = {"action": "float32", "reward": "float32", "is_first": "bool", "is_terminal": "bool"}
    for column, dtype in columns.items():
        if getattr(episode, column).dtype.name != dtype:
            raise ValueError(f"{column} has dtype {getattr(episode, column).dtype} but must be {dtype}: convert it")
    if not episode.observation:
        raise ValueError("the episode has no observation: give at least one array, such as image")
    for key, array in episode.observation.items():
        if not key.isidentifier() or array.dtype.kind not in "biuf" or not array.dtype.isnative or 0 in array.shape:
            raise ValueError(
                f"observation[{key!r}] is {array.dtype}{array.shape} but must be a filled array of native numbers "
                "under a plain name: convert or rename it"
            )
    if not np.isfinite(episode.action).all():
        raise ValueError("the episode has an action that is not finite: fix the policy that chose it")
    if wrong := _find_impossible_steps(episode.action, episode.is_terminal[1:]):
        raise ValueError(f"the episode {wrong}: fix the program that recorded it")
    if spec is not None and describe_difference(episode.spec, spec):
        raise ValueError(
            f"{describe_difference(episode.spec, spec)}: give another environment's episodes a folder of their own"
        )


def describe_difference(spec: Spec, store_spec: Spec) -> str:
    """Returns in words how a spec differs from the store's; empty if it does not."""
    if spec.action_size != store_spec.action_size:
        return f"actions have size {spec.action_size} but those of the store have {store_spec.action_size}"
    if spec.observation != store_spec.observation:
        return f"observations are {spec.observation} but those of the store are {store_spec.observation}"
    if spec.discrete != store_spec.discrete:
        kinds = {True: "one-hot choices", False: "numbers in [-1, 1]"}
        return f"actions are {kinds[spec.discrete]} but those of the store are {kinds[store_spec.discrete]}"
    return ""


def _find_impossible_steps(action: np.ndarray, ends: np.ndarray) -> str:
    """Returns in words which steps no episode can have; empty if all are sound.

    Args:
        action: float32 (steps, A), or with the row of the reset.
        ends: bool (steps,), true where the episode is terminal or truncated.
    """
    if np.abs(action).max(initial=0.0) > 1 + 1e-6:
        return f"has actions that reach {np.abs(action).max():.4g} but lie in [-1, 1]"
    if ends[:-1].any():
        return f"ends after {int(ends.argmax()) + 1} of {len(ends)} steps but must end at the last one"
    return ""


def find_contradiction(path: str) -> str:
    """Returns in words what is wrong with the contents of a file that can be opened; empty if all is well.

    Compressed observations are read, because they may be impossible to unpack; raw pixels can have any value.
    """
    file: Any = h5py.File(path, "r", locking=False)
    with file:
        for name, data in file["observations"].items():
            try:
                for first in range(0, len(data) if data.chunks else 0, CHUNK):
                    data[first : first + CHUNK]
            except (OSError, RuntimeError) as error:
                return f"observations/{name} cannot be unpacked ({' '.join(str(error).split())}): record it again"
        ends = file["terminations"][()] | file["truncations"][()]
        wrong = _find_impossible_steps(file["actions"][()], ends)
    return wrong and f"{wrong}: record it again"


def unfinished_files(folder: str) -> list[str]:
    """Returns the names of a store's temporary files, of a writer that was killed or is at work; readers skip them."""
    return sorted(entry for entry in os.listdir(folder) if entry.endswith(".tmp"))


def verify(folder: str) -> list[str]:
    """Reads every file of a store and reports those that are truncated, foreign or inconsistent. Deletes none.

    Returns:
        One line for each problem, beginning with the file's name; empty if all is well.
    """
    problems: list[str] = []
    seen: dict[tuple[int, int, int], str] = {}
    spec: Spec | None = None
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, entry)
        name = EpisodeName.parse(entry)
        if name is None:
            if not (entry.endswith(".tmp") or os.path.isdir(path)):
                problems.append(f"{entry}: is foreign to a store of episodes: move it elsewhere")
            continue
        try:
            found = inspect(path, name.rows).spec
        except DamagedEpisode as error:
            problems.append(str(error))
            continue
        spec = spec or found
        wrong = (describe_difference(found, spec), find_contradiction(path))
        problems += [f"{entry}: {text}" for text in wrong if text]
        other = seen.setdefault(name.place, entry)
        if other != entry:
            which = "index, rank and part" if name.part else "index and rank"
            problems.append(f"{entry}: has the same {which} as {other}: keep one of the two")
    return problems
