"""The words of a command line before they are parsed: files are found by name, gaps filled, slips refused."""

import itertools
import json
from pathlib import Path
from typing import Any

from wmlightning.pipeline.config import find_config, read_config, read_yaml
from wmlightning.recipes import migrate
from wmlightning.stages.checkpoints import read_checkpoint

SEEDS = ("--model.seed", "--model.init_args.seed", "--data.seed", "--data.init_args.seed")
CONFIG = ("-c", "--config")
RUN_FOLDER = "{run}"
"""Stands for the run's folder until that is known."""


def prepare(arguments: list[str]) -> list[str]:
    """The words of a stage's command, or of `build`, as the parser shall read them.

    Raises:
        ValueError: for words that would have no effect.
    """
    for word in arguments:
        if word.lower() in ("--seed_everything=true", "--seed_everything=false"):
            raise ValueError(f"{word} is no seed: give a whole number, such as --seed_everything=0")
    arguments = with_own_config(arguments)
    refuse_options_before_files(arguments)
    return with_logger_folder(with_whole_lists(with_found_configs(arguments)))


def with_own_config(arguments: list[str]) -> list[str]:
    """Adds the config.yaml of the run that a checkpoint lies in, where the words name neither a file nor a stage."""
    named = any(word.partition("=")[0] in (*CONFIG, "--model", "--data") for word in arguments)
    paths = [word.partition("=")[2] for word in arguments if word.startswith("--ckpt_path=")]
    paths += [after for word, after in itertools.pairwise(arguments) if word == "--ckpt_path"]
    if arguments[:1] != ["fit"] or named or not paths:
        return arguments
    config = Path(paths[-1]).parent.parent / "config.yaml"
    return [arguments[0], "-c", str(config), *arguments[1:]] if config.is_file() else arguments


def refuse_options_before_files(arguments: list[str]) -> None:
    """Refuses options that a configuration file after them would replace.

    Raises:
        ValueError: naming the first of them.
    """
    files = [place for place, word in enumerate(arguments) if word.partition("=")[0] in CONFIG]
    if not files:
        return
    early = [word for word in arguments[: files[-1]] if word.startswith("--") and word.partition("=")[0] not in CONFIG]
    early = [word for word in early if not word.startswith("--ckpt_path")]
    if early:
        raise ValueError(
            f"{early[0]} stands before {' '.join(arguments[files[-1] : files[-1] + 2])}, whose values would replace "
            "it: put options after all -c"
        )


def with_found_configs(arguments: list[str]) -> list[str]:
    """Replaces the names after -c and --config by the files they stand for; inline mappings stay.

    A file that an earlier version wrote, such as the config.yaml of a run, becomes a mapping with today's names.
    """
    found = []
    for position, word in enumerate(arguments):
        flag, sign, name = word.partition("=")
        if flag == "--config" and sign and not name.startswith("{"):
            found.append("--config")
            word = _migrated(find_config(name))
        elif position and arguments[position - 1] in CONFIG and not word.startswith("{"):
            word = _migrated(find_config(word))
        found.append(word)
    return found


def with_whole_lists(arguments: list[str]) -> list[str]:
    """Forgets earlier callbacks before every word that names new ones, where the parser would mix the two lists.

    Raises:
        ValueError: for a seed of the model or the data, which would have no effect.
    """
    whole: list[str] = []
    for position, word in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        if before in CONFIG:
            named = read_yaml(word, before) if word.startswith("{") else read_config(word)
            trainer = named.get("trainer") if isinstance(named, dict) else None
            if isinstance(trainer, dict) and "callbacks" in trainer:
                whole[-1:] = ["--trainer.callbacks=null", before]
        elif word.startswith("--trainer.callbacks="):
            whole.append("--trainer.callbacks=null")
        elif word.partition("=")[0] in SEEDS:
            raise ValueError(
                f"{word} would have no effect, for model and data take the run's seed: give --seed_everything"
            )
        whole.append(word)
    return whole


def with_logger_folder(arguments: list[str]) -> list[str]:
    """Gives a logger that is named without a folder the run's; see `RUN_FOLDER`."""
    filled = []
    given = any(
        word.startswith(("--trainer.logger.save_dir", "--trainer.logger.init_args.save_dir")) for word in arguments
    )
    for word in arguments:
        filled.append(word)
        logger = word.partition("=")[2].rpartition(".")[2]
        if word.startswith("--trainer.logger=") and logger in ("CSVLogger", "TensorBoardLogger") and not given:
            filled.append(f"--trainer.logger.save_dir={RUN_FOLDER}")
    return filled


def with_own_environment(arguments: list[str]) -> list[str]:
    """Lays single settings of the environment over those of the agent that is evaluated, where no id is named."""
    single = [word for word in arguments if word.startswith("--environment.")]
    agents = [word.partition("=")[2] for word in arguments if word.startswith("--agent=")]
    named = any(word.startswith(("--environment.id=", "--environment=", "-c", "--config")) for word in arguments)
    if not single or named or not agents:
        return arguments
    own = read_checkpoint(agents[-1])["recipe"]["init_args"].get("environment")
    if own is None:
        return arguments
    others = [word for word in arguments if word not in single]
    return [*others, f"--environment={json.dumps(own['init_args'])}", *single]


def _migrated(path: Path) -> str:
    """The path of a configuration file; its content as JSON where that has names of an earlier version."""
    values: Any = read_yaml(path.read_text(), str(path))
    migrated = migrate(values)
    return str(path) if migrated == values else json.dumps(migrated)
