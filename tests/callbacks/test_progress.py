"""Progress without a terminal: lines with the update, the speed and what a bar would show."""

import re

from online_support import BATCHES, collector, fit

from wmlightning.callbacks.progress import ProgressLines
from wmlightning.cli.lightning import CommandLine


def test_lines_show_the_update_the_speed_and_what_was_collected(tmp_path, capsys):
    fit(tmp_path, [ProgressLines(0.0)], collector(), max_steps=2 * BATCHES, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("update")]
    assert [int(line.split()[1]) for line in lines] == [*range(1, 9), 8]
    number = r"-?[\d.e+]+"
    played = rf"episodes 5, env_steps 35, return {number}, env_steps/s {number}, updates/s"
    said = rf"update 8 of 8 \({number}/s\): loss {number}, {played}"
    assert re.match(said, lines[-1]), lines[-1]
    assert re.match(rf"update 1 of 8 \({number}/s, \d+ (s|min|h|days) left\)", lines[0]), lines[0]


def test_lines_come_no_more_often_than_asked(tmp_path, capsys):
    fit(tmp_path, [ProgressLines(3600.0)], collector(), max_epochs=2, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("update")]
    assert len(lines) == 1, "only the last"
    assert lines[0].startswith("update 8 (")


def test_a_fit_without_a_terminal_prints_lines_and_one_with_a_terminal_has_its_bar(tmp_path, monkeypatch):
    given = ["fit", "-c", "world_models/vae.yaml", f"--trainer.default_root_dir={tmp_path}"]
    kinds = []
    for there in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda there=there: there)
        kinds.append(type(CommandLine(given, check=True).trainer.progress_bar_callback))
    assert kinds[0] is ProgressLines
    assert kinds[1] is not ProgressLines


def test_progress_can_be_switched_off(tmp_path):
    given = ["fit", "-c", "world_models/vae.yaml", f"--trainer.default_root_dir={tmp_path}"]
    line = CommandLine([*given, "--trainer.enable_progress_bar=false"], check=True)
    assert line.trainer.progress_bar_callback is None
