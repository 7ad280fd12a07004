"""The house stands: every import arrow runs down, and no source file holds more than one idea."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "__main__": 8,
    **dict.fromkeys(("claim", "cli", "commands", "errors", "settings"), 7),
    **dict.fromkeys(("stages", "callbacks", "tools", "checkpoints"), 6),
    **dict.fromkeys(("environments", "policies"), 5),
    **dict.fromkeys(("interfaces", "objectives", "planners"), 4),
    "dynamics": 3,
    "networks": 2,
    **dict.fromkeys(("distributions", "optimizers", "datamodules", "ranges", "recipes", "rehearsal", "seeds"), 1),
    **dict.fromkeys(("allocator", "bars", "threads"), 0),
}
# Rooms of one floor that may know a neighbour, and which.
NEIGHBOURS = {
    ("tools", "stages"),
    ("tools", "callbacks"),
    ("callbacks", "stages"),
    ("environments", "policies"),
    ("commands", "claim"),
    ("commands", "cli"),
    ("commands", "errors"),
    ("commands", "settings"),
    ("claim", "settings"),
    ("cli", "errors"),
    ("cli", "settings"),
    ("distributions", "recipes"),
}
SOURCES = [path for package in ("wmlightning", "datamodules") for path in sorted((ROOT / package).rglob("*.py"))]


def room_of(module: str) -> str | None:
    """The room of a dotted module name of ours; None for the face of the package and for foreign modules."""
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_arrow_runs_down(path):
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for name in imports(path):
        there = room_of(name)
        if there is None or here is None or there == here:
            continue
        assert there in FLOORS, f"{name} is on no floor: give its room one in {Path(__file__).name}"
        assert FLOORS[there] < FLOORS[here] or (here, there) in NEIGHBOURS, f"{path} must not import {name}"


def test_datamodules_know_nothing_of_wmlightning():
    for path in SOURCES:
        if "datamodules" in path.relative_to(ROOT).parts[0]:
            assert not [name for name in imports(path) if name.startswith("wmlightning")], path


def test_no_source_file_is_longer_than_350_lines():
    long = {str(path): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 350}
    assert not long, f"more than one idea each? {long}"


def test_the_face_of_the_package_imports_nothing_heavy():
    assert not [n for n in imports(ROOT / "wmlightning/__init__.py") if n.partition(".")[0] in ("torch", "lightning")]
