"""Charts: what matplotlib is asked for, and that it leaves no trace."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

from wmlightning.pictures import charts
from wmlightning.pictures.charts import Band, band_chart, bar_chart, heat_map, line_chart, scatter_chart, ticks

STEPS = list(range(50))
VALUES = np.random.default_rng(0).normal(size=50).cumsum().tolist()
DRAW = {
    "lines": lambda size: line_chart({"a": (STEPS, VALUES), "b": (STEPS, VALUES[::-1])}, "t", "x", "y", size),
    "bands": lambda size: band_chart(
        {"a": Band(STEPS, VALUES, VALUES, VALUES)}, {"level": 1.0}, (9, 1.0, 0.5), "t", "x", "y", size
    ),
    "scatter": lambda size: scatter_chart({"a": (STEPS, VALUES)}, "t", "x", "y", size),
    "bars": lambda size: bar_chart(VALUES, [str(k) for k in STEPS], "t", "x", "y", size),
    "heat": lambda size: heat_map(np.array([VALUES]), ["row"], "t", "x", size),
}


@pytest.mark.parametrize("size", [(640, 320), (333, 241), (760, 283)])
@pytest.mark.parametrize("kind", DRAW)
def test_a_chart_has_exactly_the_size_asked_for_and_the_same_pixels_each_time(kind, size):
    picture = DRAW[kind](size)
    assert (picture.shape, picture.dtype) == ((size[1], size[0], 3), np.uint8)
    np.testing.assert_array_equal(picture, DRAW[kind](size))


def test_drawing_touches_no_global_state_of_matplotlib():
    code = """
import sys
from wmlightning.pictures import charts
assert "matplotlib" not in sys.modules, "imported with the first chart"
import matplotlib
# A copy: to read `backend` alone would import pyplot.
before = matplotlib.rcParams.copy()
charts.line_chart({"a": ([0, 1], [0.0, 1.0])})
charts.heat_map(charts.np.eye(3))
assert "matplotlib.pyplot" not in sys.modules
assert dict.__eq__(before, matplotlib.rcParams.copy())
"""
    # Without a display, and without the backend that a user may have chosen.
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_figure_is_freed_with_its_chart(monkeypatch):
    drawn = []

    class Watched(charts._Chart):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            drawn.append(weakref.ref(self.figure))

    monkeypatch.setattr(charts, "_Chart", Watched)
    DRAW["lines"]((320, 240))
    gc.collect()
    assert drawn[0]() is None


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 3, True, [0, 1, 2, 3]),
        (0, 2, True, [0, 1, 2]),
        (7, 7, True, [7]),
        (0, 1_000_000, True, None),
        (1, 3, False, None),
    ],
)
def test_an_axis_has_four_ticks_and_whole_ones_where_it_counts(low, high, whole, expected):
    found = ticks(low, high, whole=whole)
    assert found == expected if expected else len(found) >= 4
    assert not whole or all(tick % 1 == 0 for tick in found)


def test_many_steps_are_written_in_thousands_and_millions():
    chart = charts._Chart((640, 320), "", "", "")
    charts._set_ticks(chart.axes.xaxis, (0, 1_500_000), 5)
    chart.picture()
    texts = [label.get_text() for label in chart.axes.get_xticklabels()]
    assert {"0", "500k", "1M", "1.5M"} <= set(texts)


def test_a_curve_with_gaps_shows_a_single_point_as_a_dot():
    y = np.array([1.0, np.nan, 2.0, np.nan, *np.ones(40)])
    assert charts._dotted(y) == [0, 2], "and none on a run of many points"
    assert charts._dotted(np.full(3, np.nan)) == []
