"""Prepares a command line for the parser: finds files by name, fills in what is missing, refuses mistakes."""

import itertools
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from wmlightning.pipeline.config import find_config, read_config, read_yaml
from wmlightning.recipes import migrate
from wmlightning.stages.checkpoints import read_checkpoint

SEEDS = ("--model.seed", "--model.init_args.seed", "--data.seed", "--data.init_args.seed")
CONFIG = ("-c", "--config")
OF_ONE_TASK = ("crop", "kwargs", "time_limit", "pixels")
"""Settings of an environment that another one does not share."""
RUN_FOLDER = "{run}"
"""Stands for the run's folder until that is known."""


def prepare(arguments: list[str]) -> list[str]:
    """Returns the arguments of a stage's command, or of `build`, as the parser shall read them.

    Raises:
        ValueError: for words that would have no effect.
    """
    for word in arguments:
        if word.lower() in ("--seed_everything=true", "--seed_everything=false"):
            raise ValueError(f"{word} is no seed: give a whole number, such as --seed_everything=0")
    arguments = with_own_config(arguments)
    refuse_options_before_files(arguments)
    warn_of_another_environments_settings(arguments)
    return with_logger_folder(with_replaced_callbacks(with_found_configs(arguments)))


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


def with_replaced_callbacks(args: list[str]) -> list[str]:
    """Clears earlier callbacks before every argument that sets them, where the parser would merge the two lists.

    Raises:
        ValueError: for a seed of the model or the data, which would have no effect.
    """
    replaced: list[str] = []
    for position, argument in enumerate(args):
        before = args[position - 1] if position else ""
        if before in ("-c", "--config"):
            values = read_yaml(argument, before) if argument.startswith("{") else read_config(argument)
            trainer = values.get("trainer") if isinstance(values, dict) else None
            if isinstance(trainer, dict) and "callbacks" in trainer:
                replaced[-1:] = ["--trainer.callbacks=null", before]
        elif argument.startswith("--trainer.callbacks="):
            replaced.append("--trainer.callbacks=null")
        elif argument.partition("=")[0] in SEEDS:
            raise ValueError(
                f"{argument} would do nothing, for model and data take the run's seed: give --seed_everything"
            )
        replaced.append(argument)
    return replaced


def warn_of_another_environments_settings(arguments: list[str]) -> None:
    """Warns where only the id of an environment is changed, and a file's settings for another one stay."""
    prefix = "--model.environment."
    own: dict[str, str] = {}
    for word in arguments:
        if word.startswith(prefix):
            name, _, value = word.removeprefix(prefix).partition("=")
            own[name] = value
    if "id" not in own:
        return
    settings: dict[str, Any] = {}
    for flag, file in itertools.pairwise(arguments):
        if flag in CONFIG and not file.startswith("{"):
            model = (read_config(file).get("model") or {}).get("init_args") or {}
            settings |= (model.get("environment") or {}).get("init_args") or {}
    kept = [f"{name} {settings[name]}" for name in OF_ONE_TASK if settings.get(name) is not None and name not in own]
    if kept and settings.get("id") != own["id"]:
        rank_zero_warn(
            f"the environment is {own['id']}, but {', '.join(kept)} was set for {settings.get('id')} and stays: set it "
            f"too, such as {prefix}{kept[0].partition(' ')[0]}=null"
        )


def with_found_configs(args: list[str]) -> list[str]:
    """Replaces the names after -c and --config by the paths of their files; inline mappings stay.

    A file with names of an earlier version, such as the config.yaml of a run, becomes a mapping with present names.
    """
    found = []
    for position, argument in enumerate(args):
        flag, equals, name = argument.partition("=")
        if flag == "--config" and equals and not name.startswith("{"):
            found.append("--config")
            argument = _migrated_config(find_config(name))
        elif position and args[position - 1] in ("-c", "--config") and not argument.startswith("{"):
            argument = _migrated_config(find_config(argument))
        found.append(argument)
    return found


def with_logger_folder(arguments: list[str]) -> list[str]:
    """Gives the run's folder to a logger that is named without one; see `RUN_FOLDER`."""
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
    """Merges single environment settings over those of the evaluated agent, where no id is named."""
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


def _migrated_config(path: Path) -> str:
    """Returns a configuration file's path, or its migrated content as JSON if it has names of an earlier version."""
    values = read_yaml(path.read_text(), str(path))
    migrated = migrate(values)
    return str(path) if migrated == values else json.dumps(migrated)
