"""A run's folder belongs to one process, and to the settings that its stages were begun with."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datamodules.files import EpisodeName, check_writable, write_atomically
from wmlightning.pipeline.config import RESERVED, fill, merge, read_config


@contextlib.contextmanager
def claim_folder(out: Path, pipeline: dict[str, Any]) -> Iterator[None]:
    """Holds a run's folder for one process, and writes down in `config.yaml` what is run there.

    That file is itself a pipeline, with every value filled in and every configuration file copied in.

    Raises:
        ValueError: if nothing can be written there, another process works there, or a stage that has begun there had
            other settings.
    """
    names = {key: value for key, value in pipeline.items() if key not in RESERVED}
    # Without the names: they have been filled in, and to set one of them again would change nothing.
    described = {key: value for key, value in fill(pipeline, names).items() if key not in names}
    for stage in described["stages"].values():
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
        for name, stage in described["stages"].items():
            then, now = _what_counts(before.get(name)), _what_counts(stage)
            if then != now and _has_begun(out, name, before.get(name) or stage):
                raise ValueError(
                    f"stage {name} in {out} was begun with other settings ({_difference(then, now)}): "
                    f"use another --out, or delete {out / name} and the stages after it"
                )
        text = yaml.safe_dump(described, sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))
        yield


def _has_begun(out: Path, name: str, stage: dict[str, Any]) -> bool:
    """Whether a stage has left anything that other settings would not have: a checkpoint, an episode or a result."""
    folder = out / name
    if not folder.exists():
        return False
    if (folder / "result.json").exists() or any(folder.glob("checkpoints/*.ckpt")):
        return True
    if stage["command"] not in ("collect", "predict"):
        return False
    settings = stage.get("set") or {}
    iteration = settings.get("iteration", 0) if stage["command"] == "collect" else None
    stores = [value.replace("{run}", str(out)) for value in _written_into(settings)]
    found = [EpisodeName.parse(file.name) for store in stores for file in Path(store).glob("ep-*.h5")]
    return any(episode is not None and iteration in (None, episode.birth) for episode in found)


def _written_into(settings: Any) -> list[str]:
    """The folders that settings name for what a stage writes: every `path` in them; what it reads is `data.path`."""
    if isinstance(settings, list):
        return [path for item in settings for path in _written_into(item)]
    if not isinstance(settings, dict):
        return []
    own = [settings["path"]] if isinstance(settings.get("path"), str) else []
    return own + _written_into(list(settings.values()))


def _what_counts(settings: Any) -> Any:
    """Settings without what no result depends on: numbers of processes, and names in the summary."""
    if isinstance(settings, list):
        return [_what_counts(item) for item in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: _what_counts(value)
        for key, value in settings.items()
        if not key.endswith("num_workers") and key != "report"
    }


def _difference(before: Any, now: Any, place: str = "") -> str:
    """The first place where two nested values differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in [*before, *now] if before.get(key) != now.get(key))
        return _difference(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        number = next(number for number, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return _difference(before[number], now[number], f"{place}[{number}]")
    return f"{place}: {before!r}, now {now!r}"
