"""Charts as uint8 pictures, drawn by matplotlib: lines, bands, bars, clouds of points and heat maps.

Matplotlib is used through its objects alone: a `Figure` on an Agg canvas, never `pyplot` and never a global setting. So
nothing needs a display, a figure is freed with its last reference, the same numbers give the same pixels, and whatever
else draws in the process is left alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from wmlightning.pictures.images import ACCENT, FAINT, INK, Picture, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: distinguishable with every kind of colour vision, and in grey.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
GRID = (228, 228, 228)
# A power of two, so that width / DPI * DPI is exactly the width again.
DPI = 128
DOTS_BELOW = 30
"""Curves of fewer points show a dot at each of them."""
FEWEST_TICKS = 4
THOUSANDS_FROM = 10_000
"""Axes that reach this far are written in thousands and millions: 250k, 1.5M."""
Number = float | int
Curve = tuple[Sequence[Number], Sequence[Number]]


def _colour(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _palette(number: int) -> tuple[float, float, float]:
    return _colour(COLOURS[number % len(COLOURS)])


def _points(pixels: Number) -> float:
    """Pixels in matplotlib's unit of sizes, 1/72 inch."""
    return pixels * 72 / DPI


def ticks(low: Number, high: Number, wanted: int = 5, whole: bool = False) -> list[float]:
    """Returns round numbers from low to high: about `wanted` of them, and at least four where that is possible.

    Args:
        low: lower end of the axis.
        high: upper end of the axis.
        wanted: most intervals between them.
        whole: leaves out what is not a whole number, for an axis that counts; then there may be fewer than four.
    """
    from matplotlib.ticker import MaxNLocator

    fewest = min(FEWEST_TICKS, wanted)
    if whole:
        fewest = max(1, min(fewest, int(np.floor(high) - np.ceil(low)) + 1))
    locator = MaxNLocator(wanted, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=fewest)
    # The locator goes one step beyond the ends. Adding zero turns -0.0 into 0.0.
    room = 1e-9 * (high - low)
    return [float(v) + 0.0 for v in locator.tick_values(low, high) if low - room <= v <= high + room]


def _set_ticks(axis: Any, limits: tuple[Number, Number], wanted: int, whole: bool = False) -> None:
    """Puts round ticks on an axis; large numbers are written in thousands and millions."""
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    low, high = sorted(limits)
    axis.set_ticks(ticks(low, high, wanted, whole))
    if max(abs(low), abs(high)) >= THOUSANDS_FROM:
        axis.set_major_formatter(EngFormatter(sep=""))
        return
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-4, 5))
    axis.set_major_formatter(formatter)
    axis.get_offset_text().set_fontsize(_points(11))


class _Chart:
    """A figure of exactly `size` pixels with one pair of axes: title above, names and units on the axes."""

    def __init__(self, size: tuple[int, int], title: str, x_label: str, y_label: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.size = size
        self.figure = Figure((size[0] / DPI, size[1] / DPI), DPI, layout="constrained", facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_subplot()
        if title:
            left = 8 / size[0]
            self.figure.suptitle(title, x=left, ha="left", fontsize=_points(14), color=_colour(INK), wrap=True)
        label = {"fontsize": _points(12), "color": _colour(INK)}
        self.axes.set_xlabel(x_label, **label)
        self.axes.set_ylabel(y_label, **label)
        self.axes.tick_params(labelsize=_points(11), labelcolor=_colour(INK), color=_colour(FAINT), width=0.6, length=2)
        self.axes.spines[["top", "right"]].set_visible(False)
        for spine in self.axes.spines.values():
            spine.set_color(_colour(FAINT))
            spine.set_linewidth(0.6)
        self.axes.grid(True, "major", "y", color=_colour(GRID), linewidth=0.6)
        self.axes.set_axisbelow(True)

    def legend(self, names: Sequence[str]) -> None:
        """Names what is drawn, above the axes, in as many columns as there is room for."""
        named = [name for name in names if name]
        if not named:
            return
        column = max(text_width(name, 12) for name in named) + 48
        self.axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=max(1, min(len(named), (self.size[0] - 60) // column)),
            fontsize=_points(12),
            frameon=False,
            borderaxespad=0.1,
            handlelength=1.4,
            columnspacing=1.4,
            handletextpad=0.5,
        )

    def picture(self) -> Picture:
        """Returns the finished chart."""
        self.canvas.draw()
        return np.array(self.canvas.buffer_rgba())[..., :3].copy()


def _limits(values: Sequence[Number], zero: bool = False) -> tuple[float, float]:
    """Returns ends of an axis with a little room on both sides of what is finite; `zero` is one of the values."""
    finite = [float(v) for v in values if np.isfinite(v)] + ([0.0] if zero else []) or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return (0.0 if zero and low >= 0 else low - room), (0.0 if zero and high <= 0 < -low else high + room)


def _finite(values: Sequence[Number]) -> np.ndarray:
    """Values as an array with a gap (NaN) for each that is not finite."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _dotted(y: np.ndarray) -> list[int]:
    """Indices of points that get a dot: those of runs between gaps that are short, so that a single one is seen."""
    known = np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(int)))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [int(k) for first, last in runs if last - first < DOTS_BELOW for k in range(first, last)]


def line_chart(
    curves: Mapping[str, Curve],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (640, 320),
) -> Picture:
    """Draws curves in one frame, each with its name in the legend.

    Args:
        curves: name -> (x, y) of equal lengths; values that are not finite leave a gap. A single point is a dot. An
            empty name has no place in the legend.
        title: above the frame.
        x_label: what runs to the right, with its unit.
        y_label: what is drawn, with its unit.
        size: (width, height) in pixels.
    """
    chart = _Chart(size, title, x_label, y_label)
    xs = [v for x, _ in curves.values() for v in x]
    across = (min(xs), max(xs)) if len(set(xs)) > 1 else _limits(xs)
    up = _limits([v for _, y in curves.values() for v in y])
    for number, (name, (x, y)) in enumerate(curves.items()):
        values = _finite(y)
        dots = _dotted(values)
        chart.axes.plot(
            _finite(x),
            values,
            color=_palette(number),
            linewidth=1.2,
            marker="o" if dots else "",
            markersize=3,
            markevery=dots,
            label=name or "_nolegend_",
            clip_on=False,
        )
    chart.axes.set_xlim(*across)
    chart.axes.set_ylim(*up)
    _set_ticks(chart.axes.xaxis, across, _ticks_across(size), whole=not any(v % 1 for v in xs))
    _set_ticks(chart.axes.yaxis, up, _ticks_up(size))
    chart.legend(list(curves))
    return chart.picture()


def _ticks_across(size: tuple[int, int]) -> int:
    return int(np.clip(size[0] // 80, FEWEST_TICKS, 8))


def _ticks_up(size: tuple[int, int]) -> int:
    return int(np.clip(size[1] // 50, FEWEST_TICKS, 8))


@dataclass(frozen=True)
class Band:
    """A curve between a lower and an upper one, as of several seeds; equal lengths.

    Args:
        x: ascending.
        mean: the curve.
        low: the lower edge.
        high: the upper edge.
        bold: drawn with a dot at every point, for what is shown over the rest.
    """

    x: Sequence[Number]
    mean: Sequence[Number]
    low: Sequence[Number]
    high: Sequence[Number]
    bold: bool = False


def band_chart(
    bands: Mapping[str, Band],
    levels: Mapping[str, Number] | None = None,
    point: tuple[Number, Number, Number] | None = None,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (760, 380),
) -> Picture:
    """Draws curves with shaded bands around them, from x = 0 on; later ones lie over earlier ones.

    Args:
        bands: name -> band.
        levels: name -> height of a broken line across the whole width.
        point: (x, y, half-width) of one dot with an upright bar, as of a mean with its interval.
        title: above the frame.
        x_label: what runs to the right, with its unit.
        y_label: what is drawn, with its unit.
        size: (width, height) in pixels.
    """
    chart, levels = _Chart(size, title, x_label, y_label), levels or {}
    xs = [v for band in bands.values() for v in band.x] + ([point[0]] if point else [])
    ys = [v for band in bands.values() for v in (*band.low, *band.high)] + list(levels.values())
    ys += [point[1] - point[2], point[1] + point[2]] if point else []
    across, up = (0, max(xs, default=1) or 1), _limits(ys)
    for number, band in enumerate(bands.values()):
        chart.axes.fill_between(
            _finite(band.x), _finite(band.low), _finite(band.high), color=_palette(number), alpha=0.2, linewidth=0
        )
    for number, (name, band) in enumerate(bands.items()):
        dots = "o" if band.bold or len(band.x) == 1 else ""
        chart.axes.plot(
            _finite(band.x),
            _finite(band.mean),
            color=_palette(number),
            linewidth=1.2,
            marker=dots,
            markersize=2.5,
            label=name,
            clip_on=False,
        )
    for number, (name, level) in enumerate(levels.items(), len(bands)):
        chart.axes.axhline(level, color=_palette(number), linewidth=1.0, linestyle="--", label=name)
    if point is not None:
        x, y, half = point
        ink = _colour(INK)
        chart.axes.errorbar([x], [y], [half], fmt="o", color=ink, markersize=4, elinewidth=1.2, zorder=5, clip_on=False)
    chart.axes.set_xlim(*across)
    chart.axes.set_ylim(*up)
    _set_ticks(chart.axes.xaxis, across, _ticks_across(size), whole=not any(v % 1 for v in xs))
    _set_ticks(chart.axes.yaxis, up, _ticks_up(size))
    chart.legend([*bands, *levels])
    return chart.picture()


def scatter_chart(
    points: Mapping[str, Curve],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (360, 320),
) -> Picture:
    """Draws clouds of points on equal axes, with the line on which x = y; points that are not finite are left out.

    Args:
        points: name -> (x, y) of equal lengths.
        title: above the frame.
        x_label: what runs to the right, with its unit.
        y_label: what runs up, in the same unit.
        size: (width, height) in pixels.
    """
    chart = _Chart(size, title, x_label, y_label)
    limits = _limits([v for x, y in points.values() for v in (*x, *y)])
    for number, (name, (x, y)) in enumerate(points.items()):
        chart.axes.plot(
            _finite(x),
            _finite(y),
            color=_palette(number),
            linestyle="",
            marker="o",
            markersize=_points(3),
            markeredgewidth=0,
            label=name or "_nolegend_",
        )
    chart.axes.plot(limits, limits, color=_colour(FAINT), linewidth=0.7, linestyle="--", label="equal")
    chart.axes.set_xlim(*limits)
    chart.axes.set_ylim(*limits)
    count = min(_ticks_across(size), _ticks_up(size))
    _set_ticks(chart.axes.xaxis, limits, count)
    _set_ticks(chart.axes.yaxis, limits, count)
    chart.legend([*points, "equal"])
    return chart.picture()


def bar_chart(
    values: Sequence[Number],
    names: Sequence[str],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (800, 280),
) -> Picture:
    """Draws one bar for each value, its name below it; values that are not finite are left out.

    Args:
        values: heights, from zero.
        names: one for each; as many are written as there is room for.
        title: above the frame.
        x_label: what the names are of.
        y_label: what the heights are, with its unit.
        size: (width, height) in pixels.
    """
    chart = _Chart(size, title, x_label, y_label)
    room = (size[0] - 60) / max(len(names), 1)
    widest = max([text_width(text, 11) + 6 for text in names], default=1)
    every = max(1, int(np.ceil(widest / room)))
    up = _limits(values, zero=True)
    chart.axes.bar(range(len(values)), _finite(values), 0.8, color=_palette(0))
    if up[0] < 0:
        chart.axes.axhline(0, color=_colour(FAINT), linewidth=0.6)
    chart.axes.set_xlim(-0.6, max(len(values), 1) - 0.4)
    chart.axes.set_ylim(*up)
    chart.axes.set_xticks(range(0, len(names), every), names[::every])
    _set_ticks(chart.axes.yaxis, up, _ticks_up(size))
    return chart.picture()


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    names: Sequence[str] = (),
    title: str = "",
    x_label: str = "",
    size: tuple[int, int] = (800, 280),
    y_label: str = "",
    value_label: str = "",
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws numbers as colours: blue below zero, white at zero, orange above; the bar at the right says how much.

    Args:
        values: one row of cells a row; columns run to the right (time, as a rule). What is not finite is grey.
        names: a name for each row, written as room allows; empty for none.
        title: above the frame.
        x_label: what runs to the right, with its unit.
        size: (width, height) in pixels.
        y_label: what the rows are.
        value_label: what the colours are, with its unit.
    """
    from matplotlib.colors import LinearSegmentedColormap

    chart = _Chart(size, title, x_label, y_label)
    rows, columns = values.shape
    shown = np.ma.masked_invalid(np.asarray(values, np.float64))
    top = float(np.ma.max(np.ma.abs(shown))) if shown.count() else 0.0
    top = top or 1.0
    stops = [_colour(stop) for stop in (COLOURS[0], (255, 255, 255), ACCENT)]
    colours = LinearSegmentedColormap.from_list("blue-white-orange", stops).with_extremes(bad=_colour((190, 190, 190)))
    image = chart.axes.imshow(shown, colours, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    chart.axes.grid(False)
    chart.axes.set_xticks(ticks(0, columns - 1, _ticks_across(size), whole=True) if columns > 1 else [0])
    every = max(1, int(np.ceil(14 * rows / max(size[1] - 80, 1))))
    chart.axes.set_yticks(range(0, len(names), every), names[::every])
    low = -top if shown.count() and shown.min() < 0 else 0.0
    bar = chart.figure.colorbar(image, ax=chart.axes, pad=0.01, aspect=15)
    bar.ax.set_ylim(low, top)
    bar.ax.tick_params(labelsize=_points(11), length=2, width=0.6, color=_colour(FAINT))
    _set_ticks(bar.ax.yaxis, (low, top), FEWEST_TICKS)
    bar.set_label(value_label, fontsize=_points(12))
    bar.outline.set_linewidth(0.6)  # type: ignore[operator]
    return chart.picture()
