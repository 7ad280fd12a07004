"""What a pipeline prints at its end: learned beside not learned, and a sweep in the paper's form."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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

    def __post_init__(self) -> None:
        check_places(self.value, self.baseline, *([] if self.margin is None else [self.margin]))
        if self.better not in ("higher", "lower"):
            raise TypeError(f"better is {self.better!r} but is higher or lower")


@dataclass(frozen=True)
class SweepRow:
    """One setting of a sweep; the rest are places in the summary.

    Args:
        name: the setting, such as a temperature.
        dream: mean score in the dream.
        dream_std: its standard deviation over episodes.
        real: mean score in the real environment.
        real_std: its standard deviation over episodes.
    """

    name: str
    dream: str
    dream_std: str
    real: str
    real_std: str


@dataclass(frozen=True)
class Sweep:
    """The table of a sweep: mean +- standard deviation in the dream and in the real environment.

    Args:
        rows: one line each.
        columns: their heads.
        note: a line below, such as what the numbers must not be compared with.

    Source: Ha and Schmidhuber 2018, table 2.
    """

    rows: list[SweepRow]
    columns: Sequence[str] = ("tau", "score in the dream", "score in the real game")
    note: str = ""


def format_table(summary: dict[str, Any], table: list[Comparison]) -> list[str]:
    """The closing table, one line a comparison; what did not beat its baseline stands in red and says so."""
    if not table:
        return []
    wide = max(len(row.what) for row in table)
    lines = [f"{'':{wide}}  {'learned':>10}  {'baseline':>10}"]
    for row in table:
        value, baseline = find(summary, row.value), find(summary, row.baseline)
        if value is None or baseline is None:
            lines.append(red(f"{row.what:{wide}}  {'':10}  {'':10}  {row.against}: NOT MEASURED"))
            continue
        gain = (value - baseline) * (1 if row.better == "higher" else -1)
        verdict = "better" if gain > 0 else "NOT BETTER"
        margin = find(summary, row.margin) if row.margin else None
        if margin is not None:
            verdict += f" (difference {value - baseline:+.4g} +- {margin:.2g})"
            if 0 < gain <= margin:
                verdict = verdict.replace("better", "better, not certain", 1)
        line = f"{row.what:{wide}}  {value:10.4g}  {baseline:10.4g}  {row.against}: {verdict}"
        lines.append(line if gain > 0 else red(line))
    return lines


def format_sweep(summary: dict[str, Any], sweep: Sweep) -> list[str]:
    """The table of a sweep, one line a setting; what was not measured stands in red and says so."""
    cells = [list(sweep.columns)]
    for row in sweep.rows:
        cells.append([row.name])
        for mean, std in ((row.dream, row.dream_std), (row.real, row.real_std)):
            numbers = find(summary, mean), find(summary, std)
            measured = None not in numbers
            cells[-1].append("{:.0f} +- {:.0f}".format(*numbers) if measured else "NOT MEASURED")
    wide = [max(len(line[k]) for line in cells) for k in range(3)]
    lines = [" | ".join(f"{text:>{wide[k]}}" for k, text in enumerate(line)) for line in cells]
    lines = [red(line) if "NOT MEASURED" in line else line for line in lines]
    return [*lines, *([sweep.note] if sweep.note else [])]


def check_places(*places: Any) -> None:
    """Makes sure that each is written as a place in the summary is, `section.name`; raises TypeError if one is not."""
    for place in places:
        if not isinstance(place, str) or not all(place.partition(".")[::2]):
            raise TypeError(f"{place!r} is no place: write section.name, such as controller.mean_return")


def find(summary: dict[str, Any], place: str) -> float | int | None:
    """The number at `section.name`; None where there is none."""
    section, _, name = place.partition(".")
    return summary.get(section, {}).get(name)


def red(text: str) -> str:
    """The text in red where the terminal can show it."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text
