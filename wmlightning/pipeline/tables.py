"""What a pipeline prints at its end: learned beside not learned, and a sweep in the paper's form."""

import io
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.files import write_atomically
from wmlightning.pictures.charts import line_chart


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

    @property
    def places(self) -> list[str]:
        """Every place in the summary that the row reads."""
        return [self.value, self.baseline, *([] if self.margin is None else [self.margin])]

    def __post_init__(self) -> None:
        check_places(*self.places)
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


Place = str | list[str]
"""A place in an iteration's report, or two of them: the first less the second."""


@dataclass(frozen=True)
class Loop:
    """What to look at in a pipeline's iterations, and when they have done enough.

    Args:
        steps: place of the real environment steps that an iteration made; those of the stages before the loop count.
        charts: chart -> curve -> its place, e.g. {"return": {"real": "controller.mean_return"}}. Two places in a list
            stand for the first less the second.
        value: place of the number that says whether the task is solved; None for no such rule.
        at_least: the loop ends after the first iteration in which `value` is no smaller than this.
    """

    steps: str = ""
    charts: dict[str, dict[str, Place]] = field(default_factory=dict)
    value: str | None = None
    at_least: float | int = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.at_least, float | int):
            raise TypeError(f"at_least is {self.at_least!r} but is a number")
        if not isinstance(self.charts, dict) or not all(isinstance(curves, dict) for curves in self.charts.values()):
            raise TypeError(f"charts is {self.charts!r} but names charts, and in each its curves")
        check_places(*self.places)

    @property
    def places(self) -> list[str]:
        """Every place in the summary that the curves and the rule read."""
        drawn = [place for curves in self.charts.values() for place in curves.values()]
        flat = [one for place in drawn for one in (place if isinstance(place, list) else [place])]
        return [*flat, *([self.steps] if self.steps else []), *([self.value] if self.value else [])]

    def solved(self, report: dict[str, Any]) -> bool:
        """Whether an iteration's report says that the task is solved."""
        value = find(report, self.value) if self.value else None
        return value is not None and value >= self.at_least

    def curves(self, reports: list[dict[str, Any]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """chart -> curve -> (real environment steps so far, values), of the iterations that have the value."""
        drawn: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for chart, places in self.charts.items():
            for curve, place in places.items():
                points = [(report["env_steps"], number(report, place)) for report in reports]
                known = [(float(x), y) for x, y in points if y is not None]
                drawn.setdefault(chart, {})[curve] = ([x for x, _ in known], [y for _, y in known])
        return drawn


def number(report: dict[str, Any], place: Place) -> float | None:
    """The number at a place, or the difference of two; None where one is missing."""
    numbers = [find(report, one) for one in ([place] if isinstance(place, str) else place)]
    if None in numbers:
        return None
    return float(numbers[0]) - sum(float(other) for other in numbers[1:])  # type: ignore[arg-type]


def write_view(out: Path, reports: list[dict[str, Any]], loop: Loop) -> None:
    """Writes the curves of all finished iterations, for TensorBoard and as a picture; again and again the same files.

    Args:
        out: the run's folder.
        reports: one an iteration, each with "iteration", "env_steps" (so far) and sections of numbers.
        loop: what to draw.
    """
    if not reports or not loop.charts:
        return
    folder = out / "iterations" / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        target = folder / f"events.out.tfevents.{report['iteration']:010d}.iterations"
        _write_events(target, report, loop)
    pictures = []
    for chart, curves in loop.curves(reports).items():
        title = f"{chart}, iteration by iteration"
        pictures.append(line_chart(curves, title, "real environment steps", "", (760, 300)))
    encoded = io.BytesIO()
    Image.fromarray(np.concatenate(pictures)).save(encoded, "PNG")
    write_atomically(out / "iterations" / "curves.png", lambda file: file.write(encoded.getvalue()))


def _write_events(target: Path, report: dict[str, Any], loop: Loop) -> None:
    from torch.utils.tensorboard import SummaryWriter  # a second of imports

    with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix=".") as folder:
        with SummaryWriter(folder) as writer:
            for chart, places in loop.charts.items():
                for curve, place in places.items():
                    value = number(report, place)
                    if value is not None:
                        tag = f"{chart}/{curve}".replace(" ", "_")
                        writer.add_scalar(tag, value, int(report["env_steps"]))
        # Whole or not at all, and under a name of its own: a killed run writes it again.
        os.replace(next(Path(folder).iterdir()), target)


def format_iterations(reports: list[dict[str, Any]], loop: Loop) -> list[str]:
    """A line an iteration, a column a curve."""
    places = {f"{chart} {curve}": place for chart, curves in loop.charts.items() for curve, place in curves.items()}
    if not reports or not places:
        return []
    cells = [["iteration", "real steps", *places]]
    for report in reports:
        values = [number(report, place) for place in places.values()]
        shown = ["" if value is None else f"{value:.4g}" for value in values]
        cells.append([str(report["iteration"]), str(report["env_steps"]), *shown])
    wide = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    return ["  ".join(f"{text:>{wide[k]}}" for k, text in enumerate(line)) for line in cells]
