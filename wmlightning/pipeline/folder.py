"""Locks a run's folder for one process, and records the settings that its stages were begun with."""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datamodules.files import EpisodeName, check_writable, write_atomically
from wmlightning.pipeline.config import merge, named_values, read_config, substitute
from wmlightning.pipeline.run import updates_of
from wmlightning.runtime import print_line

LIMITS = ("trainer.max_steps", "trainer.max_epochs")
"""Settings of a fit that may be raised after it has begun."""


@contextlib.contextmanager
def lock_run_folder(out: Path, pipeline: dict[str, Any]) -> Iterator[None]:
    """Locks a run's folder for one process, and writes the pipeline to `config.yaml` in it.

    That file is itself a pipeline, with every value filled in and every configuration file copied in. A `config.yaml`
    that an earlier version wrote is compared under the present names of its classes.

    Where a finished stage has a higher limit than it was begun with, or was trained further by hand, what was made from
    it is out of date: its result and all later stages are moved to `superseded-<time>/` in the run's folder, and the
    run makes them anew.

    Raises:
        ValueError: if nothing can be written there, another process works there, or a stage that has begun there had
            other settings.
    """
    names = named_values(pipeline)
    # Without the names: they have been filled in, and to set one of them again would change nothing.
    written = {key: value for key, value in substitute(pipeline, names).items() if key not in names}
    for stage in written["stages"].values():
        files: dict[str, Any] = {}
        for config in stage["config"]:
            files = merge(files, read_config(config) if isinstance(config, str) else config)
        stage["config"] = [files]
    check_writable(out / ".lock")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            # Not flock: worker processes would inherit that one and hold it after a kill.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process works in {out}: wait for it, or use another --out") from None
        path = out / "config.yaml"
        before = read_config(path).get("stages") if path.exists() else {}
        if not isinstance(before, dict):
            raise ValueError(f"{path} has no stages, so no run wrote it: use another --out, or delete {path}")
        for name, stage in written["stages"].items():
            then = _result_settings(before.get(name))
            now = _result_settings(stage)
            if then != now and _has_begun(out, name, before.get(name) or stage) and not _only_raised(then, now):
                raise ValueError(
                    f"stage {name} in {out} was begun with other settings ({_difference(then, now)}): "
                    f"use another --out, or delete {out / name} and the stages after it"
                )
        _set_aside_outdated(out, written["stages"], before)
        text = yaml.safe_dump(written, sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))
        yield


def _only_raised(then: Any, now: Any) -> bool:
    """Returns whether settings of a fit differ in nothing but a limit that is higher now."""
    if not (isinstance(then, dict) and isinstance(now, dict) and then.get("command") == now.get("command") == "fit"):
        return False
    limits = [(_limit(then, name), _limit(now, name)) for name in LIMITS]
    changed = [(old, new) for old, new in limits if old != new]
    higher = all(isinstance(old, int) and isinstance(new, int) and 0 <= old < new for old, new in changed)
    rest = [
        stage | {"set": {key: value for key, value in (stage.get("set") or {}).items() if key not in LIMITS}}
        for stage in (then, now)
    ]
    return higher and rest[0] == rest[1]


def _limit(stage: dict[str, Any], name: str) -> Any:
    """Returns a limit of a stage: what it sets, or what its configuration files say."""
    settings = stage.get("set") or {}
    return settings.get(name, (stage["config"][0].get("trainer") or {}).get(name.partition(".")[2]))


def _set_aside_outdated(out: Path, stages: dict[str, Any], before: dict[str, Any]) -> None:
    """Moves aside what was made from a stage that is, or shall be, trained further than when it finished."""
    names = list(stages)
    first = next((name for name in names if _is_outdated(out / name, stages[name], before.get(name))), None)
    if first is None:
        return
    later = names[names.index(first) + 1 :]
    written = {name: {path.replace("{run}", str(out)) for path in _output_folders(stages[name])} for name in names}
    kept = {path for name in names if name not in later for path in written[name]}
    outputs = {path for name in later for path in written[name] if Path(path).is_relative_to(out)}
    if outputs & kept:
        raise ValueError(
            f"stage {first} in {out} is trained further than when it finished, and later stages add to "
            f"{sorted(outputs & kept)[0]}, which earlier ones fill: use another --out"
        )
    target = out / f"superseded-{time.strftime('%Y%m%d-%H%M%S')}"
    target.mkdir()
    moved = [out / first / "result.json", *(out / name for name in later), *(Path(path) for path in sorted(outputs))]
    for path in moved:
        if path.exists():
            (target / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
            path.rename(target / path.relative_to(out))
    print_line(
        f"stage {first} is trained further than when it finished: what was made from it is now in {target}, and is "
        "made again"
    )


def _is_outdated(folder: Path, stage: dict[str, Any], before: Any) -> bool:
    if stage["command"] != "fit" or not (folder / "result.json").exists():
        return False
    finished = json.loads((folder / "result.json").read_text()).get("updates")
    if finished is not None and (updates_of(folder) or 0) > finished:
        return True
    then, now = _result_settings(before), _result_settings(stage)
    return then != now and _only_raised(then, now)


def _has_begun(out: Path, name: str, stage: dict[str, Any]) -> bool:
    """Returns whether a stage has left a checkpoint, an episode or a result, which depend on its settings."""
    folder = out / name
    if not folder.exists():
        return False
    if (folder / "result.json").exists() or any(folder.glob("checkpoints/*.ckpt")):
        return True
    if stage["command"] not in ("collect", "predict"):
        return False
    settings = stage.get("set") or {}
    iteration = settings.get("iteration", 0) if stage["command"] == "collect" else None
    stores = [value.replace("{run}", str(out)) for value in _output_folders(settings)]
    found = [EpisodeName.parse(file.name) for store in stores for file in Path(store).glob("ep-*.h5")]
    return any(episode is not None and iteration in (None, episode.birth) for episode in found)


def _output_folders(settings: Any) -> list[str]:
    """Returns the folders a stage writes into: every `path` in its settings; it reads from `data.path`."""
    if isinstance(settings, list):
        return [path for item in settings for path in _output_folders(item)]
    if not isinstance(settings, dict):
        return []
    own = [settings["path"]] if isinstance(settings.get("path"), str) else []
    return own + _output_folders(list(settings.values()))


def _result_settings(stage: Any) -> Any:
    """Returns the settings of a stage that its result depends on: neither `report` nor numbers of processes."""
    if isinstance(stage, dict):
        stage = {key: value for key, value in stage.items() if key != "report"}
    return _without_workers(stage)


def _without_workers(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_without_workers(item) for item in settings]
    if not isinstance(settings, dict):
        return settings
    return {key: _without_workers(value) for key, value in settings.items() if not key.endswith("num_workers")}


def _difference(before: Any, now: Any, place: str = "") -> str:
    """Names the first place where two nested values differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in [*before, *now] if before.get(key) != now.get(key))
        return _difference(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        index = next(index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
        return _difference(before[index], now[index], f"{place}[{index}]")
    return f"{place}: {before!r}, now {now!r}"
