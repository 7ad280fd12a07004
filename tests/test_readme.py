"""What README and the documents say is what runs: their commands, their code, the names they mention, their length."""

import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import datamodules.episode
import wmlightning
from datamodules.store import EpisodeStore
from wmlightning.__main__ import main
from wmlightning.cli.lightning import CommandLine
from wmlightning.pipeline.config import find_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EXTENDING = PAGES[ROOT / "docs" / "extending.md"]
FOREIGN = {"Trainer", "LightningCLI"}
"""Classes that the pages name and other packages define."""


def section(page, title):
    """The text under a heading, up to the next one of the same level."""
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def blocks(text, language):
    """The code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def commands(text):
    """The words of every command in the bash blocks; a backslash at the end of a line joins it with the next."""
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks(text, "bash")]


def explained(page):
    """The metrics that a page names in the first column of its tables; a name without a stage has that before it."""
    names = set()
    for row in re.findall(r"^\| (`.*?) \|", page, re.M):
        stage = ""
        for name in re.findall(r"`([\w/]+)`", row):
            stage = name.rpartition("/")[0] or stage
            names.add(f"{stage}/{name.rpartition('/')[2]}")
    return names


QUICKSTART = blocks(section(README, "Quickstart"), "bash")
INSTALL = r"python3 -m venv \.venv && \.venv/bin/pip install -e \"\.\[(\w+)\]\" -c requirements/ci-constraints\.txt"
FILES = {
    name: code
    for page in (README, EXTENDING)
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.S)
}
OWN = commands(section(README, "Your own")) + commands(EXTENDING)
METRICS = explained(PAGES[ROOT / "docs" / "metrics.md"])
SMALL = {"planet": "planet/debug.yaml", "dreamer_v2": "dreamer_debug.yaml"}
"""The overlay that makes a family's files as small as they can be."""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the files that the pages show, in which one works."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    gym.registry.pop("Dot-v0", None)


def test_the_quickstart_is_two_commands():
    assert len(QUICKSTART) == 2
    assert all("\n" not in block for block in QUICKSTART)
    assert [re.match(INSTALL, block)[1] for block in QUICKSTART] == ["box2d", "dev"]


def test_the_first_command_runs_the_whole_pipeline(tmp_path):
    command = shlex.split(QUICKSTART[0].rpartition(" && ")[2])
    assert command[0] == ".venv/bin/wmlightning"
    short = ["--overlay", "world_models/debug_run", "--out", str(tmp_path / "run")]
    assert main([*command[1:], *short]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"psnr", "ssim", "baseline_psnr"} <= summary["vae"].keys()
    assert {"nll", "copy_nll", "untrained_nll"} <= summary["mdn_rnn"].keys()
    assert {"mean_return", "ci95", "episodes", "random_mean_return"} <= summary["controller"].keys()
    assert all(seconds > 0 for seconds in summary["seconds"].values())
    # The page's lines of Python act with the controller that the command leaves.
    (lines,) = blocks(section(EXTENDING, "Policy, agent"), "python")
    values = {"images": np.zeros((8, 64, 64, 3), np.uint8), "is_first": np.ones(8, bool)}
    exec(lines.replace("RUN", str(tmp_path / "run")), values)
    assert values["action"].shape == (8, 3)


def test_the_second_command_is_what_continuous_integration_runs():
    install, _, tests = QUICKSTART[1].partition(" && ")[2].partition(" && ")
    ci = (ROOT / ".ci" / "run").read_text()
    assert install.partition("pip ")[2] in ci
    assert tests == ".venv/bin/python -m pytest -n auto"
    assert '"$venv/bin/python" -m pytest -n auto' in ci


def test_every_configuration_in_readmes_table_is_there():
    rows = [line.split("|") for line in section(README, "What there is").splitlines() if line.startswith("| ")]
    known = {path.stem for path in (ROOT / "configs").rglob("*.yaml")}
    named = {name for row in rows for name in re.findall(r"`(?:\w+/)?(\w+)`", row[2])}
    assert len(named) >= 10
    assert named <= known


def test_every_picture_that_is_named_is_drawn():
    page = section(PAGES[ROOT / "docs" / "architecture.md"], "What is drawn, and by which callback")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}
    sources = [
        path.read_text() for room in ("pictures", "callbacks") for path in (ROOT / "wmlightning" / room).glob("*.py")
    ]
    drawn = {name for source in sources for name in re.findall(r'"\w+/(\w+)"', source)}
    assert len(named) >= 20
    assert named <= drawn


def test_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
class TestOfEveryPage:
    """What holds of README and of each document."""

    def test_no_cell_of_a_table_is_longer_than_a_line(self, page):
        rows = [line for line in PAGES[page].splitlines() if line.startswith("|")]
        assert not [cell for row in rows for cell in row.strip("|").split("|") if len(cell.strip()) > 120]

    def test_every_link_leads_somewhere(self, page):
        for link in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
            target, _, anchor = link.partition("#")
            file = page.parent / target if target else page
            assert file.exists(), link
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if anchor else []
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]

    def test_every_configuration_that_is_named_is_there(self, page):
        rooms = "|".join(folder.name for folder in (ROOT / "configs").iterdir() if folder.is_dir())
        named = set(re.findall(rf"`((?:{rooms})/\w+(?:\.yaml)?)`", PAGES[page])) - METRICS
        # What stands in capitals is to be filled in.
        named |= set(re.findall(r"-c ([a-z0-9_/]+\.yaml)|wmlightning run ([a-z0-9_/]+)\b", PAGES[page]))
        for name in named:
            assert find_config(name if isinstance(name, str) else "".join(name)).is_file()

    def test_every_file_that_is_named_is_there(self, page):
        for name in re.findall(r"(?<![\w/.])((?:wmlightning|datamodules|tests|configs)/[\w/.*]*\w)", PAGES[page]):
            assert list(ROOT.glob(name)), name
        for name in re.findall(r"\bbench_\w+\.py", PAGES[page]):
            assert (ROOT / "tests" / "benchmarks" / name).is_file(), name
        for name in re.findall(r"`(\w+\.py)`", PAGES[page]):
            assert name in FILES or list(ROOT.rglob(name)), name

    def test_every_dotted_name_can_be_imported(self, page):
        for name in re.findall(r"(?<![\w/.])((?:wmlightning|datamodules)(?:\.[A-Za-z_]\w*)+)", PAGES[page]):
            place, _, last = name.rpartition(".")
            assert hasattr(importlib.import_module(place), last) or importlib.import_module(name)

    def test_every_class_that_is_named_is_ours(self, page):
        sources = [path.read_text() for room in ("wmlightning", "datamodules") for path in (ROOT / room).rglob("*.py")]
        classes = {name for source in sources for name in re.findall(r"^class (\w+)", source, re.M)}
        named = set(re.findall(r"`([A-Z]\w*[a-z]\w*)`", PAGES[page]))
        assert named <= classes | FOREIGN


def test_the_picture_of_time_is_that_of_the_code():
    page = PAGES[ROOT / "docs" / "architecture.md"]
    rows = r"^ *(index|image|action|reward|is_first|is_terminal)((?: +\w+){4})\b"
    pictures = [re.findall(rows, text, re.M) for text in (datamodules.episode.__doc__, section(page, "Time"))]
    assert len(pictures[0]) == 6
    drawn = [[(name, numbers.split()) for name, numbers in picture] for picture in pictures]
    assert drawn[0] == drawn[1]


def test_the_data_of_ones_own_are_whole(own, capsys):
    runpy.run_path("my_data.py")
    assert main(["data", "verify", "my_episodes"]) == 0
    assert "every episode is whole" in capsys.readouterr().out
    assert EpisodeStore("my_episodes").num_steps == 100


@pytest.mark.parametrize("words", OWN, ids=lambda words: re.search(r"my_\w+|latent", " ".join(words))[0])
def test_a_command_with_a_part_of_ones_own_trains(words, own):
    """Its whole online loop as small as it can be; then its checkpoint loads, and what it logged is explained."""
    assert words[:3] == ["wmlightning", "fit", "-c"]
    small = ["-c", SMALL[words[3].partition("/")[0]]]
    out = next((word for word in words if "default_root_dir" in word), "=runs/" + words[3].removesuffix(".yaml"))
    assert main([*words[1:4], *small, *words[4:]]) == 0
    run = own / out.partition("=")[2]
    wmlightning.load(run / "checkpoints" / "last.ckpt")
    config = (run / "config.yaml").read_text()
    for name in re.findall(r"my_\w+[.:][\w-]+", " ".join(words)):
        assert name in config
    logged = EventAccumulator(str(run / "tensorboard")).Reload().Tags()["scalars"]
    assert not set(logged) - {"epoch", "step"} - METRICS


def test_the_environment_of_ones_own_fits_the_file_at_full_size(own):
    (words,) = (words for words in OWN if "my_task" in " ".join(words))
    built = CommandLine(words[2:], run=False)
    assert built.model.environment.longest == 51
    assert built.model.environment.longest >= built.datamodule.dataset.sampler.length
    built.model.check_parts()
