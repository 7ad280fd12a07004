"""What may enter a store, and what is wrong with the files of one."""

import os
from typing import Any

import h5py
import numpy as np

from datamodules.episode import Episode, Spec
from datamodules.files import CHUNK, DamagedEpisode, EpisodeName, inspect


def check_episode(episode: Episode, spec: Spec | None) -> None:
    """Refuses an episode that a store could not hold beside the others.

    Args:
        episode: what is to be appended.
        spec: what the store's episodes look like; None for the first of them.

    Raises:
        ValueError: in one line: what was got, what was wanted, what to do.
    """
    columns = {"action": "float32", "reward": "float32", "is_first": "bool", "is_terminal": "bool"}
    for column, dtype in columns.items():
        if getattr(episode, column).dtype.name != dtype:
            raise ValueError(f"{column} has dtype {getattr(episode, column).dtype} but {dtype} is wanted: convert it")
    if not episode.observation:
        raise ValueError("the episode has no observation: give at least one array, such as image")
    for key, array in episode.observation.items():
        if not key.isidentifier() or array.dtype.kind not in "biuf" or not array.dtype.isnative or 0 in array.shape:
            raise ValueError(
                f"observation[{key!r}] is {array.dtype}{array.shape}: a plain name and a filled array of native "
                "numbers are wanted"
            )
    if not np.isfinite(episode.action).all():
        raise ValueError("the episode has an action that is not finite: mend the policy that chose it")
    if wrong := _impossible(episode.action, episode.is_terminal[1:]):
        raise ValueError(f"the episode {wrong}: mend what recorded it")
    if spec is not None and difference(episode.spec, spec):
        raise ValueError(f"{difference(episode.spec, spec)}: give another environment's episodes a folder of their own")


def difference(spec: Spec, wanted: Spec) -> str:
    """How one spec's arrays differ from another's, in words; empty if they do not."""
    if spec.action_size != wanted.action_size:
        return f"actions have size {spec.action_size} but those of the store have {wanted.action_size}"
    if spec.observation != wanted.observation:
        return f"observations are {spec.observation} but those of the store are {wanted.observation}"
    if spec.discrete != wanted.discrete:
        kinds = {True: "one-hot choices", False: "numbers in [-1, 1]"}
        return f"actions are {kinds[spec.discrete]} but those of the store are {kinds[wanted.discrete]}"
    return ""


def _impossible(action: np.ndarray, ends: np.ndarray) -> str:
    """What no episode can hold, in words; empty if there is nothing. `ends`: terminal, or cut short, at each step."""
    if np.abs(action).max(initial=0.0) > 1 + 1e-6:
        return f"has actions that reach {np.abs(action).max():.4g} but lie in [-1, 1]"
    if ends[:-1].any():
        return f"ends after {int(ends.argmax()) + 1} of {len(ends)} steps and yet goes on"
    return ""


def contradiction(path: str) -> str:
    """What in a sound file no episode can hold, in words; empty if there is nothing.

    Of the observations those are read that are packed, for they may not unpack; raw bytes say nothing of themselves.
    """
    file: Any = h5py.File(path, "r", locking=False)
    with file:
        for name, data in file["observations"].items():
            try:
                for at in range(0, len(data) if data.chunks else 0, CHUNK):
                    data[at : at + CHUNK]
            except (OSError, RuntimeError) as error:
                return f"observations/{name} cannot be unpacked ({' '.join(str(error).split())}): record it again"
        ends = file["terminations"][()] | file["truncations"][()]
        wrong = _impossible(file["actions"][()], ends)
    return wrong and f"{wrong}: record it again"


def leftovers(folder: str) -> list[str]:
    """Names of unfinished files in a store, of a writer that was killed or is at work. No reader looks at them."""
    return sorted(entry for entry in os.listdir(folder) if entry.endswith(".tmp"))


def verify(folder: str) -> list[str]:
    """Looks into every file of a store and names those that are truncated, foreign or inconsistent. Deletes nothing.

    Returns:
        One line a problem, beginning with the file's name; empty if all is well.
    """
    problems: list[str] = []
    taken: dict[tuple[int, int, int], str] = {}
    wanted: Spec | None = None
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
        wanted = wanted or found
        problems += [f"{entry}: {wrong}" for wrong in (difference(found, wanted), contradiction(path)) if wrong]
        other = taken.setdefault(name.place, entry)
        if other != entry:
            which = "index, rank and part" if name.part else "index and rank"
            problems.append(f"{entry}: has the same {which} as {other}: keep one of the two")
    return problems
