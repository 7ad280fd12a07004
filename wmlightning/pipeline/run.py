"""Runs the stages of an experiment in order; a run can be killed at any moment and started again.

A stage is finished when its `result.json` exists; that file is written last, atomically. An unfinished stage resumes
from its last checkpoint (`fit`) or from the files it has already written (`collect`, `predict`).
"""

import contextlib
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
from wmlightning.runtime import print_line
from wmlightning.stages.checkpoints import read_checkpoint

SCORES = ("mean", "std", "ci95", "episodes", "difference", "difference_ci95")
"""Metrics of an evaluation that are also listed with the stage it evaluates."""


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline.

    Args:
        name: its folder inside the run, and its key under "seconds".
        commands: command lines to run in order, each a list of the arguments after `wmlightning`.
        report: further numbers for summary.json, `section.name` -> name of one of the stage's metrics.
        iteration: the iteration of the loop it belongs to, from 1; 0 outside the loop.
        evaluates: section of the stage whose checkpoint this one evaluates; "" if it evaluates none.
    """

    name: str
    commands: list[list[str]]
    report: dict[str, str] = field(default_factory=dict)
    iteration: int = 0
    evaluates: str = ""

    @property
    def section(self) -> str:
        """The stage's key in summary.json: its name without the folder of its iteration."""
        return self.name.rpartition("/")[2]


def run_pipeline(
    steps: list[Step],
    out: Path,
    execute: Callable[[list[str]], dict[str, Any]],
    table: list[Comparison] | None = None,
    loop: Loop | None = None,
    sweep: Sweep | None = None,
) -> dict[str, Any]:
    """Runs the stages that are not finished, writes `summary.json` and prints the tables.

    Rewrites the curves of the iterations after each of them. Once the task is solved, the remaining iterations are
    skipped.

    Args:
        steps: the stages, in order.
        out: the run's folder.
        execute: runs one command and returns its metrics.
        table: rows to print at the end.
        loop: what to draw of the iterations, if there are any, and when the task is solved.
        sweep: a table of settings to print at the end.

    Returns:
        The summary: what `summarize` returns, "seconds" of each stage, and of a loop "iterations", a list of reports.

    Raises:
        ValueError: if a finished stage was made from an earlier version of an unfinished one.
    """
    loop = loop or Loop()
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
                print_line(f"solved after iteration {done[-1].iteration}: {loop.value} is at least {loop.at_least:g}")
                break
        label = f"[{number}/{len(steps)}] {step.name}"
        result = results[step.name]
        if result is not None:
            print_line(f"{label}: finished before, {_format_metrics(step, result)}")
        else:
            results[step.name] = result = _run(step, out / step.name, execute, label)
            print_line(f"{label}: finished, {_format_metrics(step, result)}")
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
        print_line("\n".join(["", *lines]) if lines else "")
    return summary


def summarize(steps: list[Step], results: dict[str, Any]) -> dict[str, Any]:
    """Collects the metrics of finished stages by section, {"vae": {"psnr": 21.3}}; a later stage wins over an earlier.

    * A stage's section is its name. Of `vae/psnr` in a stage called `vae`, or `vae_2`, the name is `psnr`.
    * Nested results of `collect` and `evaluate` have dotted names: `evaluate` -> `baselines.random.mean`.
    * The scores of an evaluation are also in the section of the stage it evaluates: see `scores_of`.
    * A stage's `report` adds further names.
    """
    summary: dict[str, Any] = {}
    for step in steps:
        metrics = results[step.name]["metrics"]
        own = _without_prefix(metrics, step.section)
        summary.setdefault(step.section, {}).update(own)
        if step.evaluates:
            summary.setdefault(step.evaluates, {}).update(scores_of(metrics))
        for place, metric in step.report.items():
            section, _, name = place.partition(".")
            summary.setdefault(section, {})[name] = own.get(metric.rpartition("/")[2], metrics.get(metric))
    return summary


def _without_prefix(metrics: dict[str, Any], section: str) -> dict[str, Any]:
    """Returns the metrics with `vae/psnr` and `vae/test_psnr` renamed to `psnr` if the section begins with `vae`.

    Where a stage has both, the test's counts.
    """
    short = {}
    for tested in (False, True):
        for name, value in metrics.items():
            prefix, slash, rest = name.partition("/")
            own = rest if slash and section.startswith(prefix) else name
            if own.startswith("test_") == tested:
                short[own.removeprefix("test_")] = value
    return short


def scores_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores of an evaluation under the names they have in the evaluated stage's section.

    mean -> mean_return     baselines.random.mean -> random_mean_return     dream.mean -> dream_mean
    ci95 -> ci95            baselines.random.difference_ci95 -> random_difference_ci95

    """
    scores = {}
    for name, value in metrics.items():
        player, _, quantity = name.removeprefix("baselines.").rpartition(".")
        if quantity in SCORES and "." not in player:
            if quantity == "mean" and player != "dream":
                quantity = "mean_return"
            scores[f"{player}_{quantity}" if player else quantity] = value
    return scores


def iterations_of(steps: list[Step], results: dict[str, Any], env_steps: str = "") -> list[dict[str, Any]]:
    """Returns a report of each iteration: its number, sections, seconds, and the real environment steps until its end.

    Args:
        steps: finished stages.
        results: their results, by name.
        env_steps: place of the steps that an iteration made; they are summed from the first stage on.
    """
    reports = []
    total = 0
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
            print_line(f"{label}: wmlightning {shlex.join(command)}")
            metrics |= execute(command)
        result = {"seconds": round(spent + time.monotonic() - started, 1), "metrics": metrics}
        trained = updates_of(folder)
        write_json(folder / "result.json", result if trained is None else result | {"updates": trained})
    except BaseException:
        write_json(spent_file, {"seconds": spent + time.monotonic() - started})
        raise
    spent_file.unlink(missing_ok=True)
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """Returns a finished stage's {"seconds": s, "metrics": {name: number}}; None if it is not finished."""
    path = folder / "result.json"
    return read_json(path, "seconds", "metrics") if path.exists() else None


def updates_of(folder: Path) -> int | None:
    """Returns the updates in a stage's last checkpoint; None without a checkpoint that can be read."""
    with contextlib.suppress(ValueError):
        return int(read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"])
    return None


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads these keys of a JSON file.

    Raises:
        ValueError: if the file is not JSON or lacks one of them.
    """
    try:
        values = json.loads(path.read_text())
        return {key: values[key] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the stage is run again") from error


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _format_metrics(step: Step, result: dict[str, Any]) -> str:
    """Writes a stage's seconds and its metrics in one line; the nested ones only in summary.json."""
    metrics = _without_prefix(result["metrics"], step.section)
    shown = {name: value for name, value in metrics.items() if "." not in name and name != "seconds"}
    parts = [f"{result['seconds']:.0f} s"]
    parts += [f"{name} {value:.4g}" for name, value in shown.items() if value is not None]
    parts += [f"no metric {metric!r}" for metric in step.report.values() if metric.rpartition("/")[2] not in metrics]
    return ", ".join(parts)
