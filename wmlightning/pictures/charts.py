"""Small charts drawn with Pillow: lines, bars and a heat map, so that pictures need no plotting library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from wmlightning.pictures.images import FAINT, INK, PAD, Picture, font, text_width

# Okabe and Ito's colours: told apart by every kind of eye, and in grey.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
GRID = (228, 228, 228)
SMOOTH = 3
Number = float | int
Curve = tuple[Sequence[Number], Sequence[Number]]


def ticks(low: Number, high: Number, wanted: int = 5) -> list[float]:
    """Round numbers between low and high, about `wanted` of them."""
    span = (high - low) or 1.0
    step = 10.0 ** np.floor(np.log10(span / wanted))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= wanted + 0.5)
    first = np.ceil(low / step - 1e-9)
    # Adding zero turns -0.0 into 0.0.
    return [float(step * k) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]


class _Axes:
    """A white canvas with a frame, ticks and a title, which maps data to pixels."""

    def __init__(
        self,
        x: tuple[Number, Number],
        y: tuple[Number, Number],
        size: tuple[int, int],
        labels: tuple[str, str, str],
        x_ticks: Sequence[tuple[Number, str]] | None = None,
    ) -> None:
        title, x_label, y_label = labels
        y_ticks = [(v, f"{v:.6g}") for v in ticks(*y)]
        self.x, self.y, self.size = x, y, size
        self.left = PAD + max([text_width(text, 11) for _, text in y_ticks], default=0) + 6
        self.right, self.top, self.bottom = size[0] - 2 * PAD, 44, size[1] - 40
        self.canvas = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), "white")
        self.pen = ImageDraw.Draw(self.canvas)
        self.texts: list[tuple[Number, Number, str, tuple[int, int, int], int, str]] = [
            (PAD, 4, title, INK, 14, "la"),
            (PAD, 25, y_label, FAINT, 12, "la"),
            (self.right, size[1] - 19, x_label, FAINT, 12, "ra"),
        ]
        for value, text in y_ticks:
            self.line([(x[0], value), (x[1], value)], GRID, 1)
            self.texts.append((self.left - 5, self.at(0, value)[1] / SMOOTH, text, FAINT, 11, "rm"))
        for value, text in x_ticks if x_ticks is not None else [(v, f"{v:.6g}") for v in ticks(*x, wanted=8)]:
            self.texts.append((self.at(value, 0)[0] / SMOOTH, self.bottom + 4, text, FAINT, 11, "ma"))

    def at(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Data to pixels of the large canvas."""
        across = self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)
        up = self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)
        return across * SMOOTH, up * SMOOTH

    def line(self, points: Sequence[tuple[Number, Number]], colour: tuple[int, int, int], width: Number) -> None:
        """A line through data points."""
        self.pen.line([self.at(*point) for point in points], colour, round(width * SMOOTH), joint="curve")

    def dot(self, point: tuple[Number, Number], colour: tuple[int, int, int], radius: Number) -> None:
        """A filled circle at a data point."""
        centre = self.at(*point)
        self.pen.ellipse([v + sign * radius * SMOOTH for sign in (-1, 1) for v in centre], colour)

    def shade(self, edge: Sequence[tuple[Number, Number]], colour: tuple[int, int, int]) -> None:
        """Fills what a closed line of data points goes around, so that what lies below shows through."""
        mask = Image.new("L", self.canvas.size)
        ImageDraw.Draw(mask).polygon([self.at(*point) for point in edge], 50)
        self.canvas.paste(Image.new("RGB", self.canvas.size, colour), mask=mask)

    def legend(self, names: Sequence[str]) -> None:
        """Names in their colours, at the upper right."""
        x = self.right
        for number, name in reversed(list(enumerate(names))):
            self.texts.append((x, 25, name, COLOURS[number % len(COLOURS)], 12, "ra"))
            x -= text_width(name, 12) + 2 * PAD

    def picture(self) -> Picture:
        """The finished chart: drawn large, made smaller for smooth lines, and only then written on."""
        frame = (self.left, self.top, self.right, self.bottom)
        self.pen.line([(frame[0] * SMOOTH, frame[1] * SMOOTH), (frame[0] * SMOOTH, frame[3] * SMOOTH)], FAINT, SMOOTH)
        self.pen.line([(frame[0] * SMOOTH, frame[3] * SMOOTH), (frame[2] * SMOOTH, frame[3] * SMOOTH)], FAINT, SMOOTH)
        canvas = self.canvas.resize(self.size, Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(canvas)
        for x, y, text, colour, size, anchor in self.texts:
            draw.text((x, y), text, colour, font(size), anchor=anchor)
        return np.asarray(canvas)


def _range(values: Sequence[Number], zero: bool = False) -> tuple[Number, Number]:
    finite = [v for v in values if np.isfinite(v)] + ([0.0] if zero else []) or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return (0.0 if zero and low >= 0 else low - room), high + room


def line_chart(
    curves: Mapping[str, Curve],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (640, 320),
) -> Picture:
    """Curves in one frame, named in their colours.

    Args:
        curves: name -> (x, y) of equal lengths; values that are not finite leave a gap. A single point is a dot.
        title: one line above; x_label and y_label name the axes.
        y_label: see title.
        x_label: see title.
        size: (width, height) in pixels.
    """
    across = _range([v for x, _ in curves.values() for v in x])
    xs = [v for x, _ in curves.values() for v in x]
    if len(set(xs)) > 1:
        across = (min(xs), max(xs))
    # Steps are counted: no tick stands between two of them.
    whole = None if any(v % 1 for v in xs) else [(v, f"{v:.6g}") for v in ticks(*across, wanted=8) if not v % 1]
    axes = _Axes(across, _range([v for _, y in curves.values() for v in y]), size, (title, x_label, y_label), whole)
    for number, (x, y) in enumerate(curves.values()):
        colour, run = COLOURS[number % len(COLOURS)], []
        for point in [*zip(x, y, strict=True), (0.0, np.nan)]:
            if np.isfinite(point[1]):
                run.append(point)
                continue
            if len(run) > 1:
                axes.line(run, colour, 2)
            for centre in (axes.at(*point) for point in run if len(run) < 30):
                radius = 3 * SMOOTH
                axes.pen.ellipse([(v - radius) for v in centre] + [(v + radius) for v in centre], colour)
            run = []
    axes.legend(list(curves))
    return axes.picture()


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
    """Curves with shaded bands around them, named in their colours, from x = 0 on; later ones lie over earlier ones.

    Args:
        bands: name -> band.
        levels: name -> height of a broken line across the whole width.
        point: (x, y, half-width) of one dot with an upright bar, as of a mean with its interval.
        title: one line above; x_label and y_label name the axes.
        x_label: see title.
        y_label: see title.
        size: (width, height) in pixels.
    """
    levels = levels or {}
    xs = [v for band in bands.values() for v in band.x] + ([point[0]] if point else [])
    ys = [v for band in bands.values() for v in (*band.low, *band.high)] + list(levels.values())
    ys += [point[1] - point[2], point[1] + point[2]] if point else []
    top = max(xs, default=1) or 1
    across = [(v, _short(v)) for v in ticks(0, top, wanted=8)]
    axes = _Axes((0, top), _range(ys), size, (title, x_label, y_label), across)
    for number, band in enumerate(bands.values()):
        edge = [*zip(band.x, band.high, strict=True), *reversed([*zip(band.x, band.low, strict=True)])]
        if len(band.x) > 1:
            axes.shade(edge, COLOURS[number % len(COLOURS)])
    for number, level in enumerate(levels.values(), len(bands)):
        for dash in range(0, 60, 2):
            axes.line([(top * dash / 60, level), (top * (dash + 1) / 60, level)], COLOURS[number % len(COLOURS)], 1.5)
    for number, band in enumerate(bands.values()):
        colour, points = COLOURS[number % len(COLOURS)], [*zip(band.x, band.mean, strict=True)]
        if len(points) > 1:
            axes.line(points, colour, 2)
        if band.bold or len(points) == 1:
            for one in points:
                axes.dot(one, colour, 2.5)
    if point is not None:
        x, y, half = point
        axes.line([(x, y - half), (x, y + half)], INK, 2)
        axes.dot((x, y), INK, 4)
    axes.legend([*bands, *levels])
    return axes.picture()


def _short(value: Number) -> str:
    """A tick of many steps: 250k, 1.5M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.6g}{letter}"
    return f"{value:.6g}"


def scatter_chart(
    points: Mapping[str, Curve],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (360, 320),
) -> Picture:
    """Clouds of points in one frame, with the line on which x = y; points that are not finite are left out.

    Args:
        points: name -> (x, y) of equal lengths.
        title: one line above; x_label and y_label name the axes.
        y_label: see title.
        x_label: see title.
        size: (width, height) in pixels.
    """
    limits = _range([v for x, y in points.values() for v in (*x, *y)])
    axes = _Axes(limits, limits, size, (title, x_label, y_label))
    axes.line([(limits[0], limits[0]), (limits[1], limits[1])], FAINT, 1)
    for number, (x, y) in enumerate(points.values()):
        for point in zip(x, y, strict=True):
            if np.isfinite(point).all():
                centre, radius = axes.at(*point), 1.5 * SMOOTH
                box = [v - radius for v in centre] + [v + radius for v in centre]
                axes.pen.ellipse(box, COLOURS[number % len(COLOURS)])
    axes.legend(list(points))
    return axes.picture()


def bar_chart(
    values: Sequence[Number],
    names: Sequence[str],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (800, 280),
) -> Picture:
    """One bar a value, its name below it; values that are not finite are left out."""
    shown = [(k, text) for k, text in enumerate(names)]
    room = (size[0] - 60) / max(len(names), 1)
    every = int(np.ceil(max([text_width(text, 11) + 4 for text in names], default=1) / room))
    axes = _Axes((-0.6, len(values) - 0.4), _range(values, zero=True), size, (title, x_label, y_label), shown[::every])
    for k, value in enumerate(values):
        if np.isfinite(value):
            (x0, y0), (x1, y1) = axes.at(k - 0.4, max(value, 0.0)), axes.at(k + 0.4, min(value, 0.0))
            axes.pen.rectangle((x0, y0, x1, y1), COLOURS[0])
    return axes.picture()


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    names: Sequence[str] = (),
    title: str = "",
    x_label: str = "",
    size: tuple[int, int] = (800, 280),
) -> UInt8[np.ndarray, "height width 3"]:
    """Numbers as colours: blue below zero, white at zero, orange above, full colour at the largest magnitude.

    Args:
        values: one row of cells a row; columns run to the right (time, as a rule).
        names: a name for each row, written as room allows; empty for none.
        title: one line above; the largest magnitude is added to it.
        x_label: what runs to the right.
        size: (width, height) in pixels.
    """
    rows, columns = values.shape
    finite = np.nan_to_num(values)
    top = float(np.abs(finite).max()) or 1.0
    share = (finite / top)[..., None]
    low, high = np.array([0, 90, 160]), np.array([205, 85, 0])
    coloured = 255 + share.clip(0, 1) * (high - 255) + (-share).clip(0, 1) * (low - 255)
    left = PAD + max([text_width(name, 11) for name in names], default=0) + 6
    canvas = Image.new("RGB", size, "white")
    area = (size[0] - left - 2 * PAD, size[1] - 28 - 40)
    cells = Image.fromarray(coloured.round().astype(np.uint8)).resize(area, Image.Resampling.NEAREST)
    canvas.paste(cells, (left, 28))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - 1, 27, left + area[0], 28 + area[1]), outline=FAINT)
    draw.text((PAD, 4), f"{title}   (full colour at {top:.3g})".strip(), INK, font(14))
    draw.text((left + area[0], size[1] - 19), x_label, FAINT, font(12), anchor="ra")
    every = max(1, int(np.ceil(13 * rows / area[1])))
    for row, name in list(enumerate(names))[::every]:
        draw.text((left - 5, 28 + (row + 0.5) * area[1] / rows), name, FAINT, font(11), anchor="rm")
    for value in ticks(0, columns - 1, wanted=8):
        draw.text(
            (left + (value + 0.5) * area[0] / columns, 32 + area[1]), f"{value:.6g}", FAINT, font(11), anchor="ma"
        )
    return np.asarray(canvas)
