"""Runs the stages of an experiment in order, so that it can be killed at any moment and started again.

A stage is finished when its `result.json` is there; that file is written last, and whole or not at all. An unfinished
stage goes on from its last checkpoint (`fit`) or from the files it has already written (`collect`, `predict`).
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.files import write_atomically


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline.

    Args:
        name: its folder inside the run, and its key under "seconds".
        commands: what to do, one command line after another, each a list of the words after `wmlightning`.
        report: place in summary.json (`section.name`) -> name of one of the stage's metrics.
    """

    name: str
    commands: list[list[str]]
    report: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A row of the closing table: something learned beside something that was not.

    Args:
        what: the quantity, with its unit.
        value: its place in the summary, `section.name`.
        baseline: place of the number it must beat.
        against: what the baseline is, in words.
        better: "higher" or "lower".
        margin: place of the half-width of the 95% interval of the difference, where it is known; a difference inside
            it is reported as better but not certain.
    """

    what: str
    value: str
    baseline: str
    against: str
    better: str = "higher"
    margin: str | None = None


def run_pipeline(
    steps: list[Step],
    out: Path,
    execute: Callable[[list[str]], dict[str, Any]],
    table: list[Comparison] | None = None,
) -> dict[str, Any]:
    """Runs what is not finished yet, writes `summary.json` and prints the table.

    Args:
        steps: the stages, in order.
        out: the run's folder.
        execute: runs one command and returns its metrics.
        table: rows to print at the end.

    Returns:
        The summary: a section for every first word in the steps' reports, and "seconds" for each stage.

    Raises:
        ValueError: if a finished stage was made from an earlier version of an unfinished one.
    """
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
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}] {step.name}"
        result = results[step.name]
        if result is not None:
            say(f"{label}: finished before, {_numbers(step, result)}")
            continue
        results[step.name] = result = _run(step, out / step.name, execute, label)
        say(f"{label}: finished, {_numbers(step, result)}")
    summary: dict[str, Any] = {}
    for step in steps:
        for place, metric in step.report.items():
            section, _, name = place.partition(".")
            summary.setdefault(section, {})[name] = (results[step.name] or {})["metrics"].get(metric)
    summary["seconds"] = {step.name: (results[step.name] or {})["seconds"] for step in steps}
    write_json(out / "summary.json", summary)
    say("\n" + "\n".join(format_table(summary, table or [])))
    return summary


def _run(step: Step, folder: Path, execute: Callable[[list[str]], dict[str, Any]], label: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    spent_file = folder / "spent.json"
    spent = json.loads(spent_file.read_text())["seconds"] if spent_file.exists() else 0.0
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
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def format_table(summary: dict[str, Any], table: list[Comparison]) -> list[str]:
    """The closing table, one line a comparison; what did not beat its baseline stands in red and says so."""
    if not table:
        return []
    wide = max(len(row.what) for row in table)
    lines = [f"{'':{wide}}  {'learned':>10}  {'baseline':>10}"]
    for row in table:
        value, baseline = _find(summary, row.value), _find(summary, row.baseline)
        if value is None or baseline is None:
            lines.append(red(f"{row.what:{wide}}  {'':10}  {'':10}  {row.against}: NOT MEASURED"))
            continue
        gain = (value - baseline) * (1 if row.better == "higher" else -1)
        verdict = "better" if gain > 0 else "NOT BETTER"
        margin = _find(summary, row.margin) if row.margin else None
        if margin is not None:
            verdict += f" (difference {value - baseline:+.4g} +- {margin:.2g})"
            if 0 < gain <= margin:
                verdict = verdict.replace("better", "better, not certain", 1)
        line = f"{row.what:{wide}}  {value:10.4g}  {baseline:10.4g}  {row.against}: {verdict}"
        lines.append(line if gain > 0 else red(line))
    return lines


def red(text: str) -> str:
    """The text in red where the terminal can show it."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def say(line: str) -> None:
    """Prints a line at once, so that a log shows it while the stage runs."""
    print(line, flush=True)


def _find(summary: dict[str, Any], place: str) -> float | None:
    section, _, name = place.partition(".")
    return summary.get(section, {}).get(name)


def _numbers(step: Step, result: dict[str, Any]) -> str:
    words = [f"{result['seconds']:.0f} s"]
    for place, metric in step.report.items():
        value = result["metrics"].get(metric)
        words.append(f"{place.partition('.')[2]} {value:.4g}" if value is not None else f"no metric {metric!r}")
    return ", ".join(words)
