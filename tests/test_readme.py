"""What README says is what runs: its two commands, the names it mentions, its length."""

import json
import re
import shlex
from pathlib import Path

from wmlightning.__main__ import main
from wmlightning.pipeline.config import find_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
QUICKSTART = README.partition("## Quickstart")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```bash\n(.*?)\n```", QUICKSTART, re.DOTALL)
INSTALL = r"python3 -m venv \.venv && \.venv/bin/pip install -e \"\.\[(\w+)\]\" -c requirements/ci-constraints\.txt"


def test_the_quickstart_is_two_commands():
    assert len(BLOCKS) == 2
    assert all("\n" not in block for block in BLOCKS)
    assert [re.match(INSTALL, block)[1] for block in BLOCKS] == ["box2d", "dev"]


def test_the_first_command_runs_the_whole_pipeline(tmp_path):
    command = shlex.split(BLOCKS[0].rpartition(" && ")[2])
    assert command[0] == ".venv/bin/wmlightning"
    short = ["--overlay", "world_models/debug_run", "--out", str(tmp_path / "run")]
    assert main([*command[1:], *short]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"psnr", "ssim", "baseline_psnr"} <= summary["vae"].keys()
    assert {"nll", "copy_nll", "untrained_nll"} <= summary["mdn_rnn"].keys()
    assert {"mean_return", "ci95", "episodes", "random_mean_return"} <= summary["controller"].keys()
    assert all(seconds > 0 for seconds in summary["seconds"].values())


def test_the_second_command_is_what_continuous_integration_runs():
    install, _, tests = BLOCKS[1].partition(" && ")[2].partition(" && ")
    ci = (ROOT / ".ci" / "run").read_text()
    assert install.partition("pip ")[2] in ci
    assert tests == ".venv/bin/python -m pytest -n auto"
    assert '"$venv/bin/python" -m pytest -n auto' in ci


def test_every_file_and_configuration_that_readme_names_is_there():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    rooms = "|".join(folder.name for folder in (ROOT / "configs").iterdir() if folder.is_dir())
    for name in re.findall(rf"`((?:{rooms})/\w+(?:\.yaml)?)`", README + RESULTS):
        assert find_config(name).is_file()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", RESULTS):
        assert (ROOT / "docs" / link).exists(), link


def test_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) < 200
