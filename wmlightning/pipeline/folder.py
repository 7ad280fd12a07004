"""Locks a run's folder for one process, and records the settings that its stages were begun with."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datamodules.files import EpisodeName, check_writable, write_atomically
from wmlightning.pipeline.config import merge, named_values, read_config, substitute


@contextlib.contextmanager
def lock_run_folder(out: Path, pipeline: dict[str, Any]) -> Iterator[None]:
    """Locks a run's folder for one process, and writes the pipeline to `config.yaml` in it.

    That file is itself a pipeline, with every value filled in and every configuration file copied in. A `config.yaml`
    that an earlier version wrote is compared under the present names of its classes.

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
            if then != now and _has_begun(out, name, before.get(name) or stage):
                raise ValueError(
                    f"stage {name} in {out} was begun with other settings ({_difference(then, now)}): "
                    f"use another --out, or delete {out / name} and the stages after it"
                )
        text = yaml.safe_dump(written, sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))
        yield


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
