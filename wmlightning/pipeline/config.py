"""Reads YAML configurations, merges one over another, and turns a pipeline's file into commands and tables.

A pipeline is one file:

    base: world_models/carracing            optional: start from that pipeline, and state only what differs
    seed: 0                                 any key that is not reserved names a value ...
    environment: {class_path: EnvFactory, init_args: {id: CarRacing-v3}}
    stages:                                 in order; each is a command that could be typed by hand
      collect:
        command: collect
        config: [world_models/collect.yaml]
        set: {path: "{run}/episodes", environment: "{environment}", seed: "{seed}"}     ... that "{name}" stands for
      vae: {command: fit, config: [...], set: {trainer.max_steps: 800}, test: true}
      evaluate: {command: evaluate, set: {agent: "{run}/controller/checkpoints/last.ckpt"}}
    iterations: 5                           optional: the stages of `loop` follow, repeated so many times
    loop:                                   stages like those above, in folders iteration_01/NAME, iteration_02/NAME ...
      mdn_rnn: {command: fit, set: {model.start: "{previous}/mdn_rnn/checkpoints/last.ckpt"}, ...}
    solved: {value: controller.mean_return, at_least: -200}       ends the loop early
    view: {steps: collect.env_steps, charts: {return: {real: controller.mean_return}}}    see `Loop` in tables.py
    table: [{what: ..., value: vae.psnr, baseline: vae.baseline_psnr, against: mean image, better: higher}]
    sweep_table: {rows: [{name: "0.5", evaluation: evaluate_0_50}]}
    wording: {CarRacing-v3: {zero action: half gas}}    what the tables write instead in this environment (by its id)

`{run}` is the run's folder. In a loop `{iteration}` is the number of the iteration, `{current}` its folder and
`{previous}` the folder of the iteration before; for the first iteration that is `{run}`, so it starts from the stages
of the same names before the loop. A stage that is null is left out: an overlay can remove a stage, or fill a gap.

`solved`, `view`, `table` and `sweep_table` name numbers of summary.json as STAGE.METRIC: `summarize` in run.py explains
them. A stage's optional `report: {STAGE.NAME: METRIC}` adds a number under another name.
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
RESERVED = {"base", "stages", "iterations", "loop", "solved", "view", "table", "sweep_table", "wording"}
PLACEHOLDER = re.compile(r"\{([a-z]\w*(?:\.\w+)*)\}")
"""`{name}` or `{name.key.key}`, where a named value is to be put in."""


def find_config(name: str | Path) -> Path:
    """Returns the path of a configuration file, named with or without `.yaml`.

    Searches the path as given, then inside the package (where a wheel puts the configurations), then beside the package
    (in a checkout, where an editable install finds the live files).

    Raises:
        FileNotFoundError: if there is none; the message lists the folders searched.
    """
    # Inside before beside: beside an installed package are the files of other packages.
    folders = [Path(), *(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())]
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    searched = ", ".join(str(folder.absolute()) for folder in folders)
    raise FileNotFoundError(f"there is no configuration {str(name)!r} in {searched}: check the name")


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping and gives class paths of earlier versions their present names.

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
    """Parses a YAML text.

    Raises:
        ValueError: if it is not YAML, in one line that names its source.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def merge(base: Any, over: Any) -> Any:
    """Merges one mapping over another, key by key; any other value replaces the one below."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    merged = copy.deepcopy(base)
    for key, value in over.items():
        merged[key] = merge(merged.get(key), value)
    return merged


def assign(values: dict[str, Any], dotted_name: str, value: Any) -> None:
    """Sets `values["a"]["b"]` for the dotted name `a.b`, creating mappings that are missing."""
    *parents, last = dotted_name.split(".")
    for key in parents:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key} is {values!r}, so there is no {dotted_name}: set {key} itself")
    values[last] = value


def named_values(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that a pipeline names, which `{name}` stands for."""
    return {key: value for key, value in pipeline.items() if key not in RESERVED}


def substitute(value: Any, names: dict[str, Any]) -> Any:
    """Replaces `{name}` and `{name.key.key}` in every string of a nested value; unknown names stay as they are.

    A string that consists of one placeholder becomes the named value itself, of its own type.
    """
    if isinstance(value, dict):
        return {key: substitute(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, names) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(found: re.Match[str]) -> Any:
        item: Any = names
        for key in found[1].split("."):
            if not isinstance(item, dict) or key not in item:
                return found[0]
            item = item[key]
        return item

    whole = re.fullmatch(r"\{([\w.]+)\}", value)
    if whole:
        return copy.deepcopy(look_up(whole))
    return re.sub(r"\{([\w.]+)\}", lambda found: str(look_up(found)), value)


def read_pipeline(
    config: str | Path, overlays: tuple[str, ...] | list[str] = (), changes: tuple[str, ...] | list[str] = ()
) -> dict[str, Any]:
    """Reads a pipeline with its bases, overlays and single changes; checks its form and unrolls its loop.

    Args:
        config: name or path of the pipeline's file.
        overlays: names or paths of files to merge over it, from left to right.
        changes: strings `stage.key=value`, `loop.stage.key=value`, `iterations=value` or `name=value`.

    Raises:
        ValueError: for a file that is no pipeline, or a change that names nothing in it.
    """
    pipeline = _with_neutral_texts(read_config(config))
    chain = [find_config(config)]
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
    return unroll_loop(_reword(pipeline))


_OLD_TEXTS = {
    "C  mean return (a lap is {environment.init_args.kwargs.lap_complete_percent} of the tiles)": "C  mean return",
    "half gas straight on": "zero action",
}
"""Text that format 1 (see `recipes.FORMAT`) wrote for every environment -> a text that is true of each of them."""


def _with_neutral_texts(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Returns the pipeline of a run of format 1 with a table that fits every environment."""
    table = pipeline.get("table")
    if not isinstance(table, list):
        return pipeline
    rows = [{k: _OLD_TEXTS.get(v, v) for k, v in row.items()} if isinstance(row, dict) else row for row in table]
    return pipeline | {"table": rows}


def _check_stage(which: str, stage: Any) -> None:
    if not isinstance(stage, dict):
        raise ValueError(f"{which} is {stage!r} but is a mapping: write {{command: fit, config: [FILE], set: {{...}}}}")
    unknown = set(stage) - STAGE_KEYS
    if unknown or "command" not in stage:
        wrong = f"does not know {one_of(sorted(map(str, unknown)))}" if unknown else "needs a command"
        raise ValueError(f"{which} {wrong}: a stage has {one_of(sorted(STAGE_KEYS))}")
    if stage["command"] not in COMMANDS:
        raise ValueError(f"{which} has the command {stage['command']!r}: write {one_of(sorted(COMMANDS))}")
    for key in ("set", "report"):
        mapping = stage.get(key) or {}
        if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
            raise ValueError(f"{which} has {key}: {stage[key]!r}, but that is a mapping of names to values: fix it")
    report = stage.get("report") or {}
    try:
        check_places(*report)
        if not all(isinstance(metric, str) for metric in report.values()):
            raise TypeError(f"{list(report.values())} are not all names of metrics")
    except TypeError as error:
        raise ValueError(f"{which} has a report that is wrong: {error}") from None
    files = stage.get("config") or []
    if not isinstance(files, str | list) or not all(isinstance(file, str | dict) for file in files):
        raise ValueError(f"{which} has config: {files!r}, but that is a file, or a list of files: fix it")


def _change(pipeline: dict[str, Any], change: str) -> None:
    """Applies one change of the form `stage.key=value`, `loop.stage.key=value`, `iterations=value` or `name=value`."""
    name, equals, text = change.partition("=")
    value = read_yaml(text, f"--set {change}")
    first, _, rest = name.partition(".")
    stages = pipeline["stages"]
    loop = pipeline.get("loop", {})
    in_loop = first == "loop" and rest.partition(".")[0] in loop
    if in_loop:
        stages = loop
        first, _, rest = rest.partition(".")
    if equals and first in stages and rest:
        stages[first]["set"] = (stages[first].get("set") or {}) | {rest: value}
    elif equals and not in_loop and first in pipeline and (first not in RESERVED or name == "iterations"):
        assign(pipeline, name, value)
    else:
        names = [*pipeline["stages"], *(f"loop.{name}" for name in loop), *(["iterations"] if loop else [])]
        names += [key for key in pipeline if key not in RESERVED]
        raise ValueError(f"--set {change} changes nothing: write KEY=VALUE, with KEY beginning with {one_of(names)}")


def _reword(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Applies `wording` to the tables: what they write about this environment only, instead of a neutral text."""
    pipeline = dict(pipeline)
    wording = pipeline.pop("wording", None) or {}
    if not isinstance(wording, dict) or not all(isinstance(texts, dict) for texts in wording.values()):
        raise ValueError(f"wording is {wording!r}: write {{ID OF AN ENVIRONMENT: {{text: what to write instead}}}}")
    texts = wording.get(substitute("{environment.init_args.id}", named_values(pipeline)), {})

    def reword(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reword(item) for key, item in value.items()}
        if isinstance(value, list):
            return [reword(item) for item in value]
        for text, instead in texts.items():
            value = value.replace(text, instead) if isinstance(value, str) else value
        return value

    return pipeline | {key: reword(pipeline[key]) for key in ("table", "sweep_table") if key in pipeline}


def unroll_loop(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Returns the pipeline with its loop's stages in a row after the others, `iteration_01/NAME` and so on.

    Raises:
        ValueError: if only one of `loop` and `iterations` is there, or `iterations` is not a whole number above 0.
    """
    pipeline = dict(pipeline)
    loop = pipeline.pop("loop", None)
    iterations = pipeline.pop("iterations", None)
    if loop is None and iterations is None:
        return pipeline
    if not loop or type(iterations) is not int or iterations < 1:
        raise ValueError(
            f"iterations is {iterations} and loop has the stages {list(loop or {})}: a loop needs both, stages and how "
            "often they are run, at least once"
        )
    pipeline["stages"] = dict(pipeline["stages"])
    folders = ["{run}", *(f"{{run}}/iteration_{iteration:02d}" for iteration in range(1, iterations + 1))]
    for iteration in range(1, iterations + 1):
        names = {"iteration": iteration, "current": folders[iteration], "previous": folders[iteration - 1]}
        for name, stage in loop.items():
            full_name = f"{folders[iteration].removeprefix('{run}/')}/{name}"
            pipeline["stages"][full_name] = substitute(stage, names) | {"iteration": iteration}
    return pipeline


def to_options(settings: dict[str, Any]) -> list[str]:
    """Writes settings by dotted name as `--name=value`; shorter names first, so that longer ones refine them."""
    ordered = sorted(settings.items(), key=lambda item: item[0].count("."))
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in ordered]


def steps_of(pipeline: dict[str, Any], out: Path) -> list[Step]:
    """Returns the commands of a pipeline's stages, each of which could be typed by hand."""
    names = named_values(pipeline) | {"run": str(out)}
    steps: list[Step] = []
    for name, stage in pipeline["stages"].items():
        settings = substitute(stage.get("set") or {}, names)
        command = [stage["command"]]
        for config in stage["config"]:
            command += ["-c", config if isinstance(config, str) else json.dumps(substitute(config, names))]
        if stage["command"] == "fit":
            settings.setdefault("trainer.default_root_dir", str(out / name))
        command += to_options(settings)
        for argument in command:
            if unknown := PLACEHOLDER.search(argument):
                raise ValueError(
                    f"stage {name} has {argument}, but nothing is named {unknown[0]}: write {one_of(sorted(names))}"
                )
        commands = [command]
        if stage.get("test"):
            checkpoint = f"--ckpt_path={out / name}/checkpoints/last.ckpt"
            commands.append(["test", *command[1:], checkpoint, "--verbose=false"])
        evaluates = ""
        if stage["command"] == "evaluate":
            agent = Path(str(settings.get("agent", "")))
            sections = [step.section for step in steps if out / step.name / "checkpoints" / "last.ckpt" == agent]
            evaluates = sections[0] if sections else ""
        steps.append(Step(name, commands, stage.get("report") or {}, stage.get("iteration", 0), evaluates))
    return steps


def _with_values(pipeline: dict[str, Any], key: str, default: Any) -> Any:
    """Returns what a pipeline has at `key`, with its named values put in.

    Raises:
        ValueError: if a placeholder names a value that the pipeline does not have.
    """
    filled = substitute(pipeline.get(key, default), named_values(pipeline))
    if unknown := PLACEHOLDER.search(str(filled)):
        raise ValueError(
            f"the pipeline's {key} has {unknown[0]}, but the pipeline gives that no value: give it one, or word "
            f"the {key} without it"
        )
    return filled


def table_of(pipeline: dict[str, Any]) -> list[Comparison]:
    """Returns the rows of the closing table, with the pipeline's values put in."""
    try:
        return [Comparison(**row) for row in _with_values(pipeline, "table", [])]
    except TypeError as error:
        raise ValueError(
            f"a row of the pipeline's table is wrong ({error}): see wmlightning/pipeline/tables.py"
        ) from None


def sweep_of(pipeline: dict[str, Any]) -> Sweep | None:
    """Returns the table of a sweep, or None if the pipeline has none."""
    if "sweep_table" not in pipeline:
        return None
    try:
        sweep = dict(_with_values(pipeline, "sweep_table", {}))
        return Sweep([_sweep_row(**row) for row in sweep.pop("rows")], **sweep)
    except (TypeError, KeyError) as error:
        raise ValueError(f"the pipeline's sweep_table is wrong ({error}): see wmlightning/pipeline/tables.py") from None


def _sweep_row(name: str, evaluation: str | None = None, **places: str) -> SweepRow:
    """Builds a row from an evaluation of an agent with a dream, or from the four places themselves."""
    if evaluation is not None:
        dream = {"dream": f"{evaluation}.dream.mean", "dream_std": f"{evaluation}.dream.std"}
        places = {**dream, "real": f"{evaluation}.mean", "real_std": f"{evaluation}.std", **places}
    return SweepRow(name, **places)


def loop_of(pipeline: dict[str, Any]) -> Loop:
    """Returns what is drawn of the pipeline's iterations, and when the task is solved."""
    try:
        return Loop(**_with_values(pipeline, "view", {}), **pipeline.get("solved", {}))
    except TypeError as error:
        raise ValueError(
            f"the pipeline's view or solved is wrong ({error}): see wmlightning/pipeline/tables.py"
        ) from None


def one_of(names: list[str]) -> str:
    """Lists names for an error message: `a, b or c`."""
    return ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]
