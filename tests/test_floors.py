"""Imports run downwards only, no two files share a name by chance, and architecture.md draws the layers as they are."""

import ast
import re
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for package in ("wmlightning", "datamodules") for path in sorted((ROOT / package).rglob("*.py"))]
PICTURE = ROOT / "docs" / "architecture.md"
"""Where the floors are drawn: the test reads them from there, so that the picture cannot differ from the code."""
SAME_NAME = {
    "checkpoints": "what is in one and how a stage comes back from it, when one is saved",
    "collect": "the callback that collects between epochs, the command that collects once",
    "evaluate": "the callback that evaluates between epochs, the command that evaluates once",
    "mdn_rnn": "M's dynamics, the stage that trains M",
    "controller": "C's network, the stage that evolves C",
    "actor": "the loss that teaches the actor, the policy that acts by it",
}
"""Names that two files have because they are two sides of one thing."""
LONG: dict[str, str] = {}
"""Files of over 450 lines, each with its reason."""


def floors() -> dict[str, int]:
    """Package or module -> its layer, read from the drawing: lines of a layer's number and what is in it."""
    drawn = {}
    for number, rooms in re.findall(r"^ ?(\d+)  (\w+(?: \| \w+)*)", PICTURE.read_text(), re.M):
        drawn |= dict.fromkeys(re.findall(r"\w+", rooms), int(number))
    return drawn


FLOORS = floors()


def room_of(module: str) -> str | None:
    """The package or module in the drawing that a module belongs to; None for `wmlightning` itself and foreign ones."""
    first, _, rest = module.partition(".")
    if first == "datamodules":
        return "datamodules"
    return rest.partition(".")[0] or None if first == "wmlightning" else None


def imports(path: Path) -> list[str]:
    """Every module a file imports, also inside functions; `from package import module` counts as the module."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write it out"
            names += [f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
    return names


def module_of(path: Path) -> str:
    """A file's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_arrow_runs_down(path):
    here = room_of(module_of(path))
    for name in imports(path):
        there = room_of(name)
        if there is None or here is None or there == here:
            continue
        assert there in FLOORS, f"{name} is on no floor: draw its room in {PICTURE.name}"
        assert FLOORS[there] < FLOORS[here], f"{path} must not import {name}"


def test_no_two_files_import_each_other():
    modules = {module_of(path): path for path in SOURCES}
    arrows = {}
    for module, path in modules.items():
        named = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        arrows[module] = {name for name in named if name in modules and name != module}
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, f"a circle of imports: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for name in sorted(arrows[module]):
                visit(name, [*way, module])
            done.add(module)

    for module in modules:
        visit(module, [])


def test_datamodules_know_nothing_of_wmlightning():
    for path in SOURCES:
        if "datamodules" in path.relative_to(ROOT).parts[0]:
            assert not [name for name in imports(path) if name.startswith("wmlightning")], path


def test_every_room_is_drawn_once_and_every_drawn_room_is_there():
    rooms = {room_of(module_of(path)) for path in SOURCES} - {None}
    assert rooms == set(FLOORS)


def test_files_of_one_name_are_two_sides_of_one_thing():
    stems = sorted(path.stem for path in SOURCES if path.stem not in ("__init__", "__main__"))
    twice = {stem for stem, same in groupby(stems) if len(list(same)) > 1}
    assert twice == set(SAME_NAME)


def test_a_public_name_means_one_thing():
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("__"):
                homes.setdefault(node.name, []).append(module_of(path))
    # Private helpers of a few lines may share a name; private classes may not. A command's entry is its `main`.
    shared = {n: h for n, h in homes.items() if len(h) > 1 and (not n.startswith("_") or n[1:2].isupper())}
    assert set(shared) <= {"main"}, shared


def test_few_modules_stand_alone_at_the_root():
    alone = {path.stem for path in (ROOT / "wmlightning").glob("*.py")} - {"__init__", "__main__"}
    assert len(alone) <= 5, alone


def test_a_source_file_of_over_450_lines_has_a_reason():
    long = {str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 450}
    assert long == set(LONG)


def test_the_face_of_the_package_imports_nothing_heavy():
    assert not [n for n in imports(ROOT / "wmlightning/__init__.py") if n.partition(".")[0] in ("torch", "lightning")]
