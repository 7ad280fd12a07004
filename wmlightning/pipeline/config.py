"""YAML: finding files, laying one over another, and what a pipeline's file means.

A pipeline is one file:

    base: world_models/carracing            optional: start from that pipeline, and state only what differs
    seed: 0                                 any key beside the reserved ones names a value ...
    environment: {class_path: EnvFactory, init_args: {id: CarRacing-v3}}
    stages:                                 in order; each is a command that could be typed by hand
      collect:
        command: collect
        config: [world_models/collect.yaml]
        set: {path: "{run}/episodes", environment: "{environment}", seed: "{seed}"}     ... and is put in by "{name}"
      vae: {command: fit, config: [...], set: {trainer.max_steps: 800}, test: true}       its metrics: vae.psnr, ...
    iterations: 5                           optional: the stages of `loop` follow, so many times over
    loop:                                   stages like those above, in folders iteration_01/NAME, iteration_02/NAME ...
      mdn_rnn: {command: fit, set: {model.start: "{previous}/mdn_rnn/checkpoints/last.ckpt"}, ...}
    solved: {value: controller.mean_return, at_least: -200}       ends the loop early
    view: {steps: collect.env_steps, charts: {return: {real: controller.mean_return}}}    see `Loop` in tables.py
    table: [{what: ..., value: vae.psnr, baseline: vae.baseline_psnr, against: mean image, better: higher}]
    sweep_table: {rows: [{name: "0.5", dream: a.dream, dream_std: ..., real: a.real, real_std: ...}]}

`{run}` is the run's folder. In a loop `{iteration}` is the turn's number, `{current}` its folder and `{previous}` that
of the turn before, which for the first is `{run}`: stages before the loop that have the names of stages in it are what
it starts from. A stage that is null is left out: a file laid over the pipeline can so remove one, or fill its place.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml

from wmlightning.pipeline.run import Step
from wmlightning.pipeline.tables import Comparison, Loop, Sweep, SweepRow, check_places
from wmlightning.recipes import migrate

PACKAGE = Path(__file__).parents[1]
COMMANDS = {"collect", "fit", "validate", "test", "predict", "evaluate"}
STAGE_KEYS = {"command", "config", "set", "test", "report", "iteration"}
RESERVED = {"base", "stages", "iterations", "loop", "solved", "view", "table", "sweep_table"}


def find_config(name: str | Path) -> Path:
    """Finds a configuration file, with or without `.yaml`.

    It is looked for as the path given, then inside the package (where a wheel puts the configurations), then beside the
    package (a checkout, where an editable install finds the live files).

    Raises:
        FileNotFoundError: in one line that says where it was looked for.
    """
    # Inside before beside: beside an installed package lies whatever other packages put there.
    folders = [Path(), *(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())]
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    looked = ", ".join(str(folder.absolute()) for folder in folders)
    raise FileNotFoundError(f"there is no configuration {str(name)!r} in {looked}: check the name")


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping; class paths that an earlier version wrote come back with today's names.

    Raises:
        ValueError: if the file is not YAML or not a mapping.
    """
    path = find_config(path)
    values = read_yaml(path.read_text(), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, but a configuration is a mapping of names to values")
    return migrate(values)


def read_yaml(text: str, source: str) -> Any:
    """The value that a text stands for; raises ValueError in one line, naming its source, if it is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def merge(base: Any, over: Any) -> Any:
    """Lays one mapping over another, key by key; anything else replaces what was there."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    merged = copy.deepcopy(base)
    for key, value in over.items():
        merged[key] = merge(merged.get(key), value)
    return merged


def put(values: dict[str, Any], place: str, value: Any) -> None:
    """Sets `values["a"]["b"]` for the place `a.b`, making mappings on the way."""
    *way, last = place.split(".")
    for key in way:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key} is {values!r}, so there is no {place}: set {key} itself")
    values[last] = value


def fill(value: Any, names: dict[str, Any]) -> Any:
    """Replaces `{name}`, or `{name.key.key}`, in every string of a nested value, where there is such a name.

    A string that is nothing else takes the value's own type.
    """
    if isinstance(value, dict):
        return {key: fill(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, names) for item in value]
    if not isinstance(value, str):
        return value

    def meant(found: re.Match[str]) -> Any:
        place: Any = names
        for key in found[1].split("."):
            if not isinstance(place, dict) or key not in place:
                return found[0]
            place = place[key]
        return place

    whole = re.fullmatch(r"\{([\w.]+)\}", value)
    return copy.deepcopy(meant(whole)) if whole else re.sub(r"\{([\w.]+)\}", lambda found: str(meant(found)), value)


def read_pipeline(
    config: str | Path, overlays: tuple[str, ...] | list[str] = (), changes: tuple[str, ...] | list[str] = ()
) -> dict[str, Any]:
    """Reads a pipeline, its bases, the overlays and the single changes, checks its form and unrolls its loop.

    Args:
        config: name or path of the pipeline's file.
        overlays: names or paths of files to lay over it, from left to right.
        changes: `stage.key=value`, `loop.stage.key=value`, `iterations=value` or `name=value` words.

    Raises:
        ValueError: for a file that is no pipeline, or a change that names nothing in it.
    """
    pipeline, chain = read_config(config), [find_config(config)]
    while "base" in pipeline:
        chain.append(find_config(str(pipeline.pop("base"))))
        if chain[-1].resolve() in [path.resolve() for path in chain[:-1]]:
            raise ValueError(
                f"the bases of {config} go round in a circle, {' -> '.join(map(str, chain))}: leave one out"
            )
        pipeline = merge(read_config(chain[-1]), pipeline)
    for overlay in overlays:
        pipeline = merge(pipeline, read_config(overlay))
    stages = pipeline.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ValueError(
            f"{config} has no stages, so it is not a pipeline: use `wmlightning fit -c {config}` for a stage's "
            "configuration, or name a pipeline such as world_models/quickstart"
        )
    for key in ("stages", "loop"):
        if key in pipeline:
            if not isinstance(pipeline[key] or {}, dict):
                raise ValueError(f"{key} of {config} is {pipeline[key]!r}: write a mapping of names to stages")
            pipeline[key] = {name: stage for name, stage in (pipeline[key] or {}).items() if stage is not None}
    loop = pipeline.get("loop", {})
    for name, stage in [*pipeline["stages"].items(), *loop.items()]:
        if name in loop and isinstance(stage, dict) and "command" not in stage:
            raise ValueError(f"stage {name} of {config} is in its loop: write what changes it under loop, not stages")
        _check_stage(f"stage {name} of {config}", stage)
        config_files = stage.get("config") or []
        stage["config"] = [config_files] if isinstance(config_files, str) else list(config_files)
    for change in changes:
        _change(pipeline, change)
    return unrolled(pipeline)


def _check_stage(which: str, stage: Any) -> None:
    if not isinstance(stage, dict):
        raise ValueError(f"{which} is {stage!r} but is a mapping: write {{command: fit, config: [FILE], set: {{...}}}}")
    unknown = set(stage) - STAGE_KEYS
    if unknown or "command" not in stage:
        wrong = f"does not know {_any(sorted(map(str, unknown)))}" if unknown else "needs a command"
        raise ValueError(f"{which} {wrong}: a stage has {_any(sorted(STAGE_KEYS))}")
    if stage["command"] not in COMMANDS:
        raise ValueError(f"{which} has the command {stage['command']!r}: write {_any(sorted(COMMANDS))}")
    for key in ("set", "report"):
        given = stage.get(key) or {}
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"{which} has {key}: {stage[key]!r}, but that is a mapping of names to values: mend it")
    report = stage.get("report") or {}
    try:
        check_places(*report)
        if not all(isinstance(metric, str) for metric in report.values()):
            raise TypeError(f"{list(report.values())} are not all names of metrics")
    except TypeError as error:
        raise ValueError(f"{which} has a report that is wrong: {error}") from None
    files = stage.get("config") or []
    if not isinstance(files, str | list) or not all(isinstance(file, str | dict) for file in files):
        raise ValueError(f"{which} has config: {files!r}, but that is a file, or a list of files: mend it")


def _change(pipeline: dict[str, Any], change: str) -> None:
    """Makes one change of the form `stage.key=value`, `loop.stage.key=value`, `iterations=value` or `name=value`."""
    place, sign, text = change.partition("=")
    value, (first, _, rest) = read_yaml(text, f"--set {change}"), place.partition(".")
    stages, loop = pipeline["stages"], pipeline.get("loop", {})
    in_loop = first == "loop" and rest.partition(".")[0] in loop
    if in_loop:
        stages, (first, _, rest) = loop, rest.partition(".")
    if sign and first in stages and rest:
        stages[first]["set"] = (stages[first].get("set") or {}) | {rest: value}
    elif sign and not in_loop and first in pipeline and (first not in RESERVED or place == "iterations"):
        put(pipeline, place, value)
    else:
        names = [*pipeline["stages"], *(f"loop.{name}" for name in loop), *(["iterations"] if loop else [])]
        names += [key for key in pipeline if key not in RESERVED]
        raise ValueError(f"--set {change} changes nothing: write KEY=VALUE, with KEY beginning with {_any(names)}")


def unrolled(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The pipeline with its loop's stages in a row after the others, `iteration_01/NAME` and so on.

    Raises:
        ValueError: if only one of `loop` and `iterations` is there, or `iterations` is not a whole number above 0.
    """
    pipeline = dict(pipeline)
    loop, iterations = pipeline.pop("loop", None), pipeline.pop("iterations", None)
    if loop is None and iterations is None:
        return pipeline
    if not loop or type(iterations) is not int or iterations < 1:
        raise ValueError(
            f"iterations is {iterations} and loop has the stages {list(loop or {})}: a loop wants both, stages and how "
            "often they are run, at least once"
        )
    pipeline["stages"] = dict(pipeline["stages"])
    folders = ["{run}", *(f"{{run}}/iteration_{iteration:02d}" for iteration in range(1, iterations + 1))]
    for iteration in range(1, iterations + 1):
        names = {"iteration": iteration, "current": folders[iteration], "previous": folders[iteration - 1]}
        for name, stage in loop.items():
            full_name = f"{folders[iteration].removeprefix('{run}/')}/{name}"
            pipeline["stages"][full_name] = fill(stage, names) | {"iteration": iteration}
    return pipeline


def options(settings: dict[str, Any]) -> list[str]:
    """Settings by dotted name as words of a command line; shorter names first, so that longer ones refine them."""
    words = []
    for place, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        words.append(f"--{place}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def steps_of(pipeline: dict[str, Any], out: Path) -> list[Step]:
    """The commands behind a pipeline's stages, each of which could be typed by hand."""
    names = {key: value for key, value in pipeline.items() if key not in RESERVED} | {"run": str(out)}
    steps = []
    for name, stage in pipeline["stages"].items():
        settings = fill(stage.get("set") or {}, names)
        words = [stage["command"]]
        for config in stage["config"]:
            words += ["-c", config if isinstance(config, str) else json.dumps(fill(config, names))]
        if stage["command"] == "fit":
            settings.setdefault("trainer.default_root_dir", str(out / name))
        words += options(settings)
        for word in words:
            if unknown := re.search(r"\{[a-z]\w*(\.\w+)*\}", word):
                raise ValueError(
                    f"stage {name} has {word}, but nothing is named {unknown[0]}: write {_any(sorted(names))}"
                )
        commands = [words]
        if stage.get("test"):
            last = f"--ckpt_path={out / name}/checkpoints/last.ckpt"
            commands.append(["test", *words[1:], last, "--verbose=false"])
        steps.append(
            Step(
                name,
                commands,
                _evaluated(settings, pipeline, out),
                stage.get("report") or {},
                stage.get("iteration", 0),
            )
        )
    return steps


def _evaluated(settings: dict[str, Any], pipeline: dict[str, Any], out: Path) -> str:
    """The section of the stage whose checkpoint an evaluation plays; empty where there is none."""
    agent = Path(str(settings.get("agent", "")))
    stages = {out / name: name for name in pipeline["stages"]}
    return stages.get(agent.parent.parent, "").rpartition("/")[2]


def table_of(pipeline: dict[str, Any]) -> list[Comparison]:
    """The rows of the closing table, with the pipeline's values put in.

    Raises:
        ValueError: for a row that is wrong, or names a value that the pipeline lacks.
    """
    names = {key: value for key, value in pipeline.items() if key not in RESERVED}
    for row in pipeline.get("table", []):
        if isinstance(row, dict) and (unknown := re.search(r"\{[a-z]\w*(\.\w+)*\}", str(fill(row, names)))):
            raise ValueError(
                f"a row of the pipeline's table has {unknown[0]}, but nothing is named so: write {_any(sorted(names))}"
            )
    try:
        return [Comparison(**fill(row, names)) for row in pipeline.get("table", [])]
    except TypeError as error:
        raise ValueError(
            f"a row of the pipeline's table is wrong ({error}): see wmlightning/pipeline/tables.py"
        ) from None


def sweep_of(pipeline: dict[str, Any]) -> Sweep | None:
    """The table of settings, if the pipeline has one."""
    if "sweep_table" not in pipeline:
        return None
    try:
        given = dict(pipeline["sweep_table"])
        return Sweep([SweepRow(**row) for row in given.pop("rows")], **given)
    except (TypeError, KeyError) as error:
        raise ValueError(f"the pipeline's sweep_table is wrong ({error}): see wmlightning/pipeline/tables.py") from None


def loop_of(pipeline: dict[str, Any]) -> Loop:
    """What to look at in the pipeline's iterations, and when they have done enough."""
    try:
        return Loop(**pipeline.get("view", {}), **pipeline.get("solved", {}))
    except TypeError as error:
        raise ValueError(
            f"the pipeline's view or solved is wrong ({error}): see wmlightning/pipeline/tables.py"
        ) from None


def _any(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]
