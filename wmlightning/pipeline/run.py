"""Runs the stages of an experiment in order, so that it can be killed at any moment and started again.

A stage is finished when its `result.json` is there; that file is written last, and whole or not at all. An unfinished
stage goes on from its last checkpoint (`fit`) or from the files it has already written (`collect`, `predict`).
"""

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.files import write_atomically
from wmlightning.pipeline.tables import (
    Comparison,
    Loop,
    Sweep,
    find,
    format_iterations,
    format_sweep,
    format_table,
    write_view,
)
from wmlightning.runtime import say


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline.

    Args:
        name: its folder inside the run, and its key under "seconds".
        commands: what to do, one command line after another, each a list of the words after `wmlightning`.
        evaluates: of an evaluation, the name of the stage whose agent it plays; empty otherwise.
        report: further places in summary.json (`section.name`) -> name of one of the stage's metrics.
        iteration: which turn of the loop it belongs to, from 1; 0 outside the loop.
    """

    name: str
    commands: list[list[str]]
    evaluates: str = ""
    report: dict[str, str] = field(default_factory=dict)
    iteration: int = 0

    @property
    def section(self) -> str:
        """The section of summary.json with this stage's metrics: its name, without the folder of an iteration."""
        return self.name.rpartition("/")[2]


def run_pipeline(
    steps: list[Step],
    out: Path,
    execute: Callable[[list[str]], dict[str, Any]],
    table: list[Comparison] | None = None,
    loop: Loop | None = None,
    sweep: Sweep | None = None,
) -> dict[str, Any]:
    """Runs what is not finished yet, writes `summary.json` and prints the tables.

    The view of the iterations is written anew whenever one of them is finished. If the loop says that the task is
    solved, the iterations that are left are not begun.

    Args:
        steps: the stages, in order.
        out: the run's folder.
        execute: runs one command and returns its metrics.
        table: rows to print at the end.
        loop: what to look at in the iterations, if there are any.
        sweep: a table of settings to print at the end.

    Returns:
        The summary: a section of metrics for each stage (of a loop, its last iteration's; see `sections`), "seconds" of
        each stage, and where there is a loop "iterations", a list of their sections.

    Raises:
        ValueError: if a finished stage was made from an earlier version of an unfinished one.
    """
    loop = loop or Loop()
    wanted = {*loop.places, *(place for row in table or [] for place in row.places)}
    results = {step.name: read_result(out / step.name) for step in steps}
    unfinished = next((step.name for step in steps if results[step.name] is None), None)
    for step in reversed(steps):
        if step.name == unfinished:
            break
        if unfinished is not None and results[step.name] is not None:
            raise ValueError(
                f"stage {step.name} in {out} is finished but {unfinished}, which comes before it, is not: delete "
                f"{out / step.name} too, or use another --out"
            )
    done: list[Step] = []
    for number, step in enumerate(steps, 1):
        if done and step.iteration > done[-1].iteration:
            reports = iterations_of(done, results, loop.steps)
            write_view(out, reports, loop)
            if reports and loop.solved(reports[-1]):
                say(f"solved after iteration {done[-1].iteration}: {loop.value} is at least {loop.at_least:g}")
                break
        label = f"[{number}/{len(steps)}] {step.name}"
        result = results[step.name]
        if result is not None:
            say(f"{label}: finished before, {_numbers(step, result, wanted)}")
        else:
            results[step.name] = result = _run(step, out / step.name, execute, label)
            say(f"{label}: finished, {_numbers(step, result, wanted)}")
        done.append(step)
    summary = summarize(done, results)
    summary["seconds"] = {step.name: (results[step.name] or {})["seconds"] for step in done}
    reports = iterations_of(done, results, loop.steps)
    if reports:
        summary["iterations"] = reports
        write_view(out, reports, loop)
    write_json(out / "summary.json", summary)
    parts = [format_iterations(reports, loop), format_table(summary, table or [])]
    parts.append(format_sweep(summary, sweep) if sweep else [])
    for lines in parts:
        say("\n".join(["", *lines]) if lines else "")
    return summary


def summarize(steps: list[Step], results: dict[str, Any]) -> dict[str, Any]:
    """The metrics of finished stages by section; those of a later stage replace those of an earlier one."""
    summary: dict[str, Any] = {}
    for step in steps:
        for section, metrics in sections(step, results[step.name]["metrics"]).items():
            summary[section] = summary.get(section, {}) | metrics
    return summary


def sections(step: Step, metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Where a stage's metrics stand in summary.json.

        vae/psnr, vae/test_psnr     vae.psnr             in the section of the stage, without its name; a test's wins
        collected_env_steps         collect.env_steps    a collection's own, not those of the last call alone
        mean, dream.std             controller.mean_return, controller.dream_std        an evaluation's stand in its
        baselines.random.mean       controller.random_mean_return                       agent's section too

    Args:
        step: the stage.
        metrics: what its commands returned.
    """
    own: dict[str, Any] = {}
    for tested in (False, True):
        for name, value in metrics.items():
            short = name.removeprefix(f"{step.section}/")
            if short.startswith("test_") == tested:
                own[short.removeprefix("test_")] = value
    for name, collected in (("env_steps", "collected_env_steps"), ("mean_return", "collected_return")):
        if collected in own:
            own[name] = own[collected]
    found = {step.section: own}
    if step.evaluates:
        found[step.evaluates] = {_of_an_agent(name): value for name, value in own.items()}
    for place, metric in step.report.items():
        section, _, name = place.partition(".")
        found.setdefault(section, {})[name] = own.get(metric.removeprefix(f"{step.section}/"))
    return found


def _of_an_agent(metric: str) -> str:
    """An evaluation's metric by its name in the section of the agent: `baselines.random.std` is random_std there."""
    name = "_".join(metric.removeprefix("baselines.").split("."))
    return f"{name}_return" if name == "mean" or (metric.startswith("baselines.") and name.endswith("_mean")) else name


def iterations_of(steps: list[Step], results: dict[str, Any], env_steps: str = "") -> list[dict[str, Any]]:
    """One report an iteration: its number, its sections, its seconds, and the real environment steps until its end.

    Args:
        steps: finished stages.
        results: theirs, by name.
        env_steps: place of the steps that a stage made; they are added up from the first stage on.
    """
    reports, total = [], 0
    for iteration in range(max((step.iteration for step in steps), default=0) + 1):
        own = [step for step in steps if step.iteration == iteration]
        sections = summarize(own, results)
        total += find(sections, env_steps) or 0
        seconds = round(sum(results[step.name]["seconds"] for step in own), 1)
        reports.append({"iteration": iteration, "env_steps": total, "seconds": seconds} | sections)
    return reports[1:]


def _run(step: Step, folder: Path, execute: Callable[[list[str]], dict[str, Any]], label: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    spent_file = folder / "spent.json"
    spent = read_json(spent_file, "seconds")["seconds"] if spent_file.exists() else 0.0
    started = time.monotonic()
    metrics: dict[str, Any] = {}
    try:
        for command in step.commands:
            last = folder / "checkpoints" / "last.ckpt"
            if command[0] == "fit" and last.exists():
                command = [*command, f"--ckpt_path={last}"]
            say(f"{label}: wmlightning {shlex.join(command)}")
            metrics |= execute(command)
        result = {"seconds": round(spent + time.monotonic() - started, 1), "metrics": metrics}
        write_json(folder / "result.json", result)
    except BaseException:
        write_json(spent_file, {"seconds": spent + time.monotonic() - started})
        raise
    spent_file.unlink(missing_ok=True)
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished stage came to, {"seconds": s, "metrics": {name: number}}; None if it is not finished."""
    path = folder / "result.json"
    return read_json(path, "seconds", "metrics") if path.exists() else None


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON file that holds these keys.

    Raises:
        ValueError: if it does not.
    """
    try:
        values = json.loads(path.read_text())
        return {key: values[key] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and what it was to tell is done again") from error


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _numbers(step: Step, result: dict[str, Any], wanted: set[str]) -> str:
    """A finished stage in words: its seconds, and those of its metrics that the pipeline's tables or curves show."""
    words = [f"{result['seconds']:.0f} s"]
    for section, metrics in sections(step, result["metrics"]).items():
        for name, value in metrics.items():
            if f"{section}.{name}" in wanted and value is not None:
                words.append(f"{name} {value:.4g}")
    return ", ".join(words)
