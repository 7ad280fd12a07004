"""Our returns over published ones: a picture, and whether we are inside their band at equal environment steps.

A file of curves has one line a point, of one task and one method, over several training seeds:

    method,task,env_steps,mean,min,max,seeds
    dreamer_v1,walker_walk,105000,137.1,96.0,179.3,5
"""

import csv
import difflib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.files import write_atomically
from wmlightning.pictures.charts import Band, Curve, Number, band_chart
from wmlightning.pictures.images import Picture, encode_png
from wmlightning.runtime import print_line
from wmlightning.stages.checkpoints import environment_steps, read_checkpoint

COLUMNS = ("method", "task", "env_steps", "mean", "min", "max", "seeds")
SAME = {"ball_in_cup": "cup"}
"""Names that differ between papers."""
RETURNS = ("evaluate/return", "collect/return")
"""Where a run's returns are, the better one first: the second is that of episodes played to explore."""


@dataclass(frozen=True)
class Published:
    """One method on one task, by environment steps.

    Args:
        method: its name.
        task: the task's, as the file has it.
        steps: environment steps, ascending.
        mean: return, a mean over training seeds.
        low: of the worst seed.
        high: of the best seed.
        seeds: how many.
    """

    method: str
    task: str
    steps: Sequence[Number]
    mean: Sequence[Number]
    low: Sequence[Number]
    high: Sequence[Number]
    seeds: int

    def at(self, steps: Number) -> dict[str, float] | None:
        """Mean and band at so many environment steps, in between by straight lines; None beyond the curve's ends."""
        if not self.steps[0] <= steps <= self.steps[-1]:
            return None
        lines = {"mean": self.mean, "min": self.low, "max": self.high}
        return {name: float(np.interp(steps, self.steps, line)) for name, line in lines.items()} | {"seeds": self.seeds}

    def until(self, steps: Number) -> "Published":
        """Its beginning, up to so many environment steps; at least its first point."""
        last, before = self.at(steps), sum(step < steps for step in self.steps)
        lines = [line[: max(1, before)] for line in (self.steps, self.mean, self.low, self.high)]
        if last is not None and before:
            ends = (steps, last["mean"], last["min"], last["max"])
            lines = [[*line, end] for line, end in zip(lines, ends, strict=True)]
        return Published(self.method, self.task, lines[0], lines[1], lines[2], lines[3], self.seeds)


def read_curves(path: str | Path) -> list[Published]:
    """Reads a file of published curves, in the form at the top of this module.

    Raises:
        ValueError: if it is not such a file, naming the line, in one line that says what to do.
    """
    try:
        with open(path, newline="") as file:
            table = csv.DictReader(file)
            rows, names = list(table), table.fieldnames or []
    except FileNotFoundError:
        raise ValueError(f"there is no file of curves at {path}: correct --compare") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a file of curves ({error}): give a CSV") from None
    lacking = [name for name in COLUMNS if name not in names]
    if lacking:
        raise ValueError(f"{path} has no column {', '.join(lacking)}: curves are lines of {','.join(COLUMNS)}")
    points: dict[tuple[str, str], list[list[float]]] = {}
    for number, row in enumerate(rows, 2):
        try:
            numbers = [float(row[name]) for name in COLUMNS[2:]]
        except (TypeError, ValueError):
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"line {number} of {path} has something else than a number after its task: correct it")
        points.setdefault((row["method"], row["task"]), []).append(numbers)
    curves = []
    for (method, task), values in points.items():
        steps, mean, low, high, seeds = (list(column) for column in zip(*sorted(values), strict=True))
        curves.append(Published(method, task, steps, mean, low, high, int(max(seeds))))
    return curves


def task_name(name: str) -> str:
    """A task by the one name it has here: dm_control/ball_in_cup-catch-v0 and cup_catch are both cup_catch."""
    words = re.sub(r"-v\d+$", "", name.rsplit("/", 1)[-1])
    # Pong and VideoPinball, but not DMC: a capital after a small letter begins a word.
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words)
    words = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    for prefix in ("dmc_", "atari_"):
        words = words.removeprefix(prefix)
    for name, other in SAME.items():
        words = re.sub(rf"^{name}(?=_|$)", other, words)
    return words


def same_task(curves: list[Published], environment: str, path: str | Path) -> list[Published]:
    """The curves of an environment's task.

    Args:
        curves: of all tasks.
        environment: id of the environment.
        path: names the file in the error.

    Raises:
        ValueError: if there is none, naming the tasks that are most like it.
    """
    wanted = task_name(environment)
    found = [curve for curve in curves if task_name(curve.task) == wanted]
    if not found:
        known = sorted({task_name(curve.task) for curve in curves})
        near = difflib.get_close_matches(wanted, known, 3, 0.3) or known[:3]
        raise ValueError(f"{path} has no curve of {wanted} ({environment}), but of {', '.join(near)} and others")
    return found


def run_curve(folder: str | Path) -> tuple[str, Curve]:
    """Returns of a run by environment steps, from its TensorBoard file.

    Args:
        folder: the run's, as in `trainer.default_root_dir`, or one of its checkpoints.

    Returns:
        What the returns are of (one of `RETURNS`), and (environment steps, returns).

    Raises:
        ValueError: if the run has logged none.
    """
    board = run_folder(folder) / "tensorboard"
    events = EventAccumulator(str(board), {"scalars": 0, "images": 1, "tensors": 1, "histograms": 1})
    if board.is_dir():
        events.Reload()
        for name in RETURNS:
            if name in events.Tags()["scalars"]:
                # A resumed run may have logged a point twice; the later one counts.
                points = {point.step: point.value for point in events.Scalars(name)}
                steps = sorted(points)
                return name, ([float(step) for step in steps], [points[step] for step in steps])
    raise ValueError(f"{board} has no {' or '.join(RETURNS)}: give the folder of a run with Evaluate or Collect")


def run_folder(path: str | Path) -> Path:
    """The folder of a run: the path itself, or, of a checkpoint, that which its folder `checkpoints` lies in."""
    path = Path(path)
    return path.parent.parent if path.suffix == ".ckpt" else path


def several_seeds(runs: list[Curve]) -> Published:
    """Runs that differ in their seed as one curve with a band, where all have been; in between by straight lines.

    Raises:
        ValueError: if there is no number of environment steps that all have reached.
    """
    first, last = max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    grid = sorted({step for steps, _ in runs for step in steps if first <= step <= last})
    if not grid:
        raise ValueError("the runs have no environment steps in common: give runs that went on for as long")
    returns = np.stack([np.interp(grid, *run) for run in runs])
    mean, low, high = (function(0).tolist() for function in (returns.mean, returns.min, returns.max))
    return Published("ours", "", grid, mean, low, high, len(runs))


def compare_chart(
    published: list[Published],
    ours: Published | None,
    now: tuple[Number | None, dict[str, Any]] | None = None,
    size: tuple[int, int] = (760, 380),
) -> Picture:
    """Published bands (best and worst seed) and means, and ours in the same form over them.

    Args:
        published: of one task.
        ours: None where nothing was logged.
        now: environment steps (None where they are not known) and result of an evaluation: its mean with its 95%
            interval is a point with a bar, or a level with it, and its baselines are levels.
        size: (width, height) in pixels.
    """
    bands, levels, point = {}, {}, None
    reached = max([ours.steps[-1] if ours else 0, (now and now[0]) or 0])
    # A run much shorter than the published ones should not be squeezed into a corner.
    published = [curve.until(2 * reached) for curve in published] if reached else published
    for curve in [*published, *([ours] if ours else [])]:
        name = f"{curve.method} ({curve.seeds} seed{'s' * (curve.seeds > 1)})"
        bands[name] = Band(curve.steps, curve.mean, curve.low, curve.high, bold=curve is ours)
    if now is not None:
        steps, result = now
        levels = {name: beside["mean"] for name, beside in result.get("baselines", {}).items()}
        if steps is None:
            levels |= {"evaluated": result["mean"]}
        else:
            point = (steps, result["mean"], result["ci95"])
    task = task_name(published[0].task)
    title = f"{task}: bands from the worst to the best seed"
    if point is not None:
        title += "; the point: mean and 95% interval over episodes"
    return band_chart(bands, levels, point, title, "environment steps", "return of an episode", size)


def verdict(mean: float, band: dict[str, float]) -> str:
    """Where a return lies: inside, above or below a band."""
    if mean > band["max"]:
        return "above"
    return "below" if mean < band["min"] else "inside"


def steps_trained(agent: Any, checkpoint: dict[str, Any] | None) -> int | None:
    """Environment steps behind a checkpoint, where it says so."""
    if checkpoint is not None and (steps := environment_steps(checkpoint)) is not None:
        return steps
    counted = getattr(agent, "env_steps", None)
    return None if counted is None else int(counted)


def compare_with(
    path: str,
    agent: Any,
    checkpoint: str | Path | None,
    environment: str,
    result: dict[str, Any],
    also: list[str],
    picture: str | None,
) -> dict[str, Any]:
    """Draws an evaluation, and the run behind it, over the published curves of its task.

    Args:
        path: the file of curves.
        agent: what was evaluated.
        checkpoint: where it came from, if from a file.
        environment: id of the environment.
        result: of the evaluation.
        also: folders of further runs.
        picture: where to; None for pictures/compare.png of the run, or of the present folder without one.

    Returns:
        As `evaluate` describes, under `published`.
    """
    published = same_task(read_curves(path), environment, path)
    own = None if checkpoint is None else run_folder(checkpoint).resolve()
    # A run that is named twice is one seed all the same.
    others = dict.fromkeys(folder for run in also if (folder := run_folder(run).resolve()) != own)
    runs, steps, folder = [run_curve(other)[1] for other in others], None, Path()
    if checkpoint is not None:
        folder, steps = run_folder(checkpoint), steps_trained(agent, read_checkpoint(checkpoint))
        # A checkpoint that was carried elsewhere has no run around it: then the point stands alone.
        with suppress(ValueError):
            runs.insert(0, run_curve(folder)[1])
    drawn = Path(picture) if picture else folder / "pictures" / "compare.png"
    drawing = compare_chart(published, several_seeds(runs) if runs else None, (steps, result))
    drawn.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(drawn, lambda file: file.write(encode_png(drawing)))
    print_line(f"drawn over the published curves of {task_name(environment)} in {drawn}")
    methods = {}
    for curve in published:
        band = None if steps is None else curve.at(steps)
        if band is not None:
            methods[curve.method] = band | {"ours": verdict(result["mean"], band)}
    return {"task": task_name(environment), "env_steps": steps, "picture": str(drawn), **methods}
