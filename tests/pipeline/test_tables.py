"""A sweep is printed in the paper's form, and what was not measured says so."""

import pytest
import yaml

from wmlightning.pipeline.config import read_pipeline, sweep_of
from wmlightning.pipeline.run import Step, run_pipeline
from wmlightning.pipeline.tables import Sweep, SweepRow, format_sweep

ROWS = [
    {"name": "0.5", "dream": "cool.dream", "dream_std": "cool.dream_std", "real": "cool.real", "real_std": "cool.std"},
    {"name": "1.15", "dream": "warm.dream", "dream_std": "warm.dream_std", "real": "warm.real", "real_std": "warm.std"},
]
SUMMARY = {
    "cool": {"dream": 2060.4, "dream_std": 277.2, "real": 196.0, "std": 50.0},
    "warm": {"dream": 918.0, "dream_std": 546.0, "real": 1092.0, "std": None},
}


def test_a_sweep_is_a_line_a_setting_with_mean_and_deviation():
    sweep = Sweep([SweepRow(**row) for row in ROWS], note="published: 1092")
    assert format_sweep(SUMMARY, sweep) == [
        " tau | score in the dream | score in the real game",
        " 0.5 |        2060 +- 277 |              196 +- 50",
        "1.15 |         918 +- 546 |           NOT MEASURED",
        "published: 1092",
    ]


def pipeline(path, **changes):
    sweep = {"columns": ["sigma", "dreamt", "real"], "rows": ROWS} | changes
    path.write_text(yaml.safe_dump({"stages": {"a": {"command": "evaluate"}}, "sweep_table": sweep}))
    return read_pipeline(path)


def test_a_pipeline_prints_its_sweep_at_the_end(tmp_path, capsys):
    sweep = sweep_of(pipeline(tmp_path / "sweep.yaml"))
    steps = [Step(name, [[name]]) for name in SUMMARY]
    run_pipeline(steps, tmp_path, lambda command: SUMMARY[command[0]], sweep=sweep)
    assert "sigma |      dreamt |         real\n  0.5 | 2060 +- 277 |    196 +- 50" in capsys.readouterr().out


def test_a_row_of_a_sweep_may_name_an_evaluation_instead_of_its_four_numbers(tmp_path):
    (row,) = sweep_of(pipeline(tmp_path / "sweep.yaml", rows=[{"name": "0.5", "evaluation": "cool"}])).rows
    assert row == SweepRow("0.5", "cool.dream.mean", "cool.dream.std", "cool.mean", "cool.std")


@pytest.mark.parametrize("changes", [{"rows": [{"name": "0.5"}]}, {"row": []}, {"rows": [ROWS[0] | {"reel": "a.b"}]}])
def test_a_slip_in_a_sweep_is_named(tmp_path, changes):
    with pytest.raises(ValueError, match="sweep_table is wrong"):
        sweep_of(pipeline(tmp_path / "sweep.yaml", **changes))
