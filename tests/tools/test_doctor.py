"""The doctor names what is here, and what to install for what is not."""

import sys

from wmlightning.tools.doctor import diagnose


def test_every_suite_of_the_extras_renders_here():
    lines = diagnose()
    assert all(good for good, _ in lines), lines
    assert any("CarRacing-v3 renders 64x64" in line for _, line in lines)
    assert any("VizdoomTakeCover-v1 renders 64x64" in line for _, line in lines)


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom.gymnasium_wrapper", None)
    bad = [line for good, line in diagnose() if not good]
    assert bad == ['VizdoomTakeCover-v1 needs a package that is not here: pip install "wmlightning[doom]"']
