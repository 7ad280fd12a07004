"""The doctor names what is here, and what to install for what is not."""

import importlib.util
import sys

import pytest
import torch

from wmlightning.environments import dm_control
from wmlightning.tools import doctor
from wmlightning.tools.doctor import diagnose


@pytest.fixture
def only(monkeypatch):
    """Leaves out the other checks, which cost seconds."""

    def keep(*names):
        checks = (
            "_python",
            "_packages",
            "_device",
            "_classic",
            "_box2d",
            "_doom",
            "_dm_control",
            "_atari",
            "_minigrid",
        )
        for name in checks:
            if name not in names:
                monkeypatch.setattr(doctor, name, lambda: "left out")

    return keep


@pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None or dm_control.choose_backend() is None,
    reason=f"dm_control cannot draw here: {dm_control.EXTRA}; {dm_control.DEBIAN}",
)
def test_every_suite_of_the_extras_renders_here():
    lines = diagnose()
    assert all(good for good, _ in lines), lines
    suites = ("Pendulum-v1", "CarRacing-v3", "VizdoomTakeCover-v1", "dm_control/cartpole-swingup-v0")
    for id in (*suites, "ALE/Pong-v5", "MiniGrid-Empty-Random-5x5-v0"):
        assert any(f"{id} renders 64x64" in line for _, line in lines)


@pytest.mark.parametrize(
    ("check", "module", "id", "extra"),
    [
        ("_doom", "vizdoom.gymnasium_wrapper", "VizdoomTakeCover-v1", "doom"),
        ("_dm_control", "dm_control", "dm_control/cartpole-swingup-v0", "dmc"),
        ("_atari", "ale_py", "ALE/Pong-v5", "atari"),
        ("_minigrid", "minigrid", "MiniGrid-Empty-Random-5x5-v0", "minigrid"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(monkeypatch, only, check, module, id, extra):
    only(check)
    monkeypatch.setitem(sys.modules, module, None)
    says = f'{id} needs a package that is not here: pip install "wmlightning[{extra}]"'
    assert [line for good, line in diagnose() if not good] == [says]


def test_a_missing_pygame_is_one_line_with_the_command(monkeypatch, only):
    only("_classic")
    monkeypatch.setitem(sys.modules, "pygame", None)
    says = 'Pendulum-v1 needs pygame to be drawn: pip install "wmlightning[box2d]"'
    assert [line for good, line in diagnose() if not good] == [says]


def test_a_device_that_does_not_compute_is_named(monkeypatch, only):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    only("_device")
    monkeypatch.setattr(torch, "ones", broken)
    [line] = [line for good, line in diagnose() if not good]
    assert "does not compute (no kernel image is available): install the torch that fits" in line


def test_the_exit_status_tells_whether_all_is_here(monkeypatch, only, capsys):
    only()
    assert doctor.main([]) == 0
    monkeypatch.setattr(doctor, "_python", lambda: 1 / 0)
    assert doctor.main([]) == 1
    assert "missing  division by zero" in capsys.readouterr().out
