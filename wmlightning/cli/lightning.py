"""The stages' command line: LightningCLI with this package's conventions.

YAML names every part by its class alone (`VAE`, `UniformWindows`): all modules of the packages in PART_PACKAGES are
imported first, so a new class in a new file there is found without being registered.
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from gymnasium.error import DependencyNotInstalled
from jsonargparse import ArgumentError, get_loader, set_loader
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from datamodules.datamodule import EpisodeDataModule
from datamodules.files import check_writable, write_atomically
from wmlightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from wmlightning.callbacks.codes import CodeWriter
from wmlightning.callbacks.guards import StopOnNonFinite, WarnOfCollapse
from wmlightning.callbacks.progress import ProgressLines
from wmlightning.callbacks.stopping import StopTogether
from wmlightning.cli.arguments import RUN_FOLDER, prepare
from wmlightning.cli.errors import one_line
from wmlightning.pipeline.config import to_options
from wmlightning.runtime import print_line
from wmlightning.stages.checkpoints import check_resumable, load, logged_until, read_checkpoint
from wmlightning.stages.requirements import check_expected, expect
from wmlightning.stages.stage import Stage

PART_PACKAGES = (
    "distributions",
    "objectives",
    "dynamics",
    "environments",
    "policies",
    "stages",
    "pictures",
    "callbacks",
)
for _package in ("datamodules", *(f"wmlightning.{package}" for package in PART_PACKAGES)):
    for _module in pkgutil.iter_modules(importlib.import_module(_package).__path__, f"{_package}."):
        try:
            importlib.import_module(_module.name)
        except (ModuleNotFoundError, DependencyNotInstalled) as _missing:
            # A suite whose extra is not installed raises when it is used. Modules of this package are never missing.
            if str(getattr(_missing, "name", "")).startswith(("wmlightning", "datamodules")):
                raise

TRAINING = ("fit", "validate", "test", "predict")
STEPS = {"validate": "validation_step", "test": "test_step", "predict": "predict_step"}
LOADERS = {
    "fit": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
TRAINER_DEFAULTS = {
    "devices": 1,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}


def load_yaml(text: str) -> Any:
    """Parses YAML for the parsers of parts; the string None is null too."""
    return _with_nulls(get_loader("yaml")(text))


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return None if value == "None" else value


# jsonargparse 4.53 passes a value to the parser of its part as str(value): `--model.environment.crop=null` arrives
# there as `--crop=None`, which is a string in YAML.
PARSER_MODE = "yaml_with_none"
set_loader(PARSER_MODE, load_yaml, (yaml.YAMLError,))


class SaveConfig(SaveConfigCallback):
    """Writes the settings of a fit to `<default_root_dir>/config.yaml`, which `-c` accepts."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes the settings on the first process, without the checkpoint that a fit was resumed from."""
        if stage == "fit" and trainer.is_global_zero:
            config = self.config.clone()
            config.pop("ckpt_path", None)
            text = self.parser.dump(config, skip_unset=False)
            write_atomically(Path(trainer.default_root_dir) / "config.yaml", lambda file: file.write(text.encode()))


class MeasurementLogger(TensorBoardLogger):
    """Writes a validation or a test on its own to TensorBoard, at the step that the weights were trained to.

    Lightning would log at step 0. When a step is smaller than the last one, TensorBoard assumes a restart, and its page
    drops the training's own points from there on. The epoch, which Lightning adds, is left out.

    Args:
        root: the run's folder.
        step: where the weights stand on the x axis of the run's curves.
    """

    def __init__(self, root: str, step: int) -> None:
        super().__init__(root, "tensorboard", "")
        self.trained_to = step

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs at the step that the weights were trained to."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, self.trained_to)


class CommandLine(LightningCLI):
    """LightningCLI with this package's conventions.

    * The model is any stage; without one, `--ckpt_path FILE` rebuilds the stage from the checkpoint alone.
    * Data may be left out for a stage that has its own.
    * `seed_everything` is also the seed of model and data.
    * A run writes below `trainer.default_root_dir`: checkpoints/last.ckpt, tensorboard/, config.yaml.
    * A fit does not overwrite the checkpoints of another one.
    * Without a terminal, a fit prints lines instead of a progress bar.
    * Every fit has `StopOnNonFinite`, `WarnOfCollapse` and `StopTogether`; one named among the callbacks replaces the
      default.

    Args:
        args: the arguments after `wmlightning`, or after the command where `run` is false.
        run: whether to run the command, or only to build `model`, `datamodule` and `trainer`.
        check: build the objects and run nothing. Inside a `preflight` the untrained stage of a fit then stands in for
            the checkpoint that the fit will write.
    """

    def __init__(self, args: list[str], run: bool = True, check: bool = False) -> None:
        self.check, self.command = check, args[0] if run else None
        # An abbreviated option is more often a typo.
        quiet: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "parser_mode": PARSER_MODE}
        super().__init__(
            Stage,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={**quiet, "prog": "wmlightning", **({args[0]: dict(quiet)} if run else {})},
            subclass_mode_model=True,
            args=args,
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns only the command that runs: the parser of each takes a tenth of a second to build."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == self.command}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds trainer, model and data; the last two are optional."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(Stage, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            # A callback writes the predictions; kept in memory they would be a whole data set.
            parser.set_defaults({"return_predictions": False})
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments after `prepare`, and fills in what depends on the run's folder."""
        self.config = parser.parse_args(prepare(args))
        config = self.config[self.command] if self.command else self.config
        folder = self._folder(config)
        if config.get("ckpt_path") in ("last", "best"):
            config["ckpt_path"] = f"{folder}/checkpoints/{config['ckpt_path']}.ckpt"
        logger = config["trainer"].get("logger")
        if hasattr(logger, "get") and (logger.get("init_args") or {}).get("save_dir") == RUN_FOLDER:
            logger["init_args"]["save_dir"] = folder
        seed = config.get("seed_everything")
        if not isinstance(seed, bool) and isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ValueError(
                f"seed_everything is {seed} but must be a whole number from 0 to {2**32 - 1}: give another"
            )

    @staticmethod
    def _folder(config: Any) -> str:
        """Returns the run's folder: `trainer.default_root_dir`, or runs/<stage>."""
        stage = (config.get("model") or {}).get("class_path", "run").rpartition(".")[2]
        return config["trainer"].get("default_root_dir") or f"runs/{stage.lower()}"

    def _parse_ckpt_path(self) -> None:
        """Does nothing: checkpoints hold a recipe, not Lightning's hyperparameters; see `instantiate_classes`."""

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer."""
        checkpoint = self._get(self.config, "ckpt_path") if self.subcommand else None
        if checkpoint and not self.check and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"there is no checkpoint at {checkpoint}: correct --ckpt_path, or leave it out")
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        if self.model is not None and checkpoint and not self.check:
            check_resumable(self.model, checkpoint)
        if self.model is None and checkpoint:
            self.model = load(checkpoint)
        if self.model is None:
            raise ValueError("no model is named: add -c world_models/vae.yaml, or --model VAE, or --ckpt_path FILE")
        step = STEPS.get(self.subcommand or "")
        if step and getattr(type(self.model), step) is getattr(LightningModule, step):
            name = type(self.model).__name__
            raise ValueError(f"a {name} has no {step}, so `{self.subcommand}` can do nothing: give it another stage")
        loader = LOADERS.get(self.subcommand or "")
        if self.datamodule is None and loader and getattr(type(self.model), loader) is getattr(LightningModule, loader):
            raise ValueError(
                f"no data are named and a {type(self.model).__name__} brings none: add the -c of its fit, such as "
                "-c world_models/vae.yaml, or --data EpisodeDataModule"
            )
        self.trainer = self.instantiate_trainer()
        if self.check:
            self._preflight()

    def _preflight(self) -> None:
        """Checks everything that needs no data, and registers the files that the command will write."""
        if self.subcommand == "fit":
            self.model.configure_optimizers()
            self.model.check_parts()
            if isinstance(self.datamodule, EpisodeDataModule) and not hasattr(self.model, "environment"):
                check_expected(self.datamodule.path)
            self.model.check_data(self.datamodule)
            expect(LastCheckpoint.path(self.trainer), self.model)
        elif self.subcommand == "test" and getattr(self.datamodule, "validation_fraction", None) == 0:
            raise ValueError("a test is made on what is held out but data.validation_fraction is 0: hold some out")
        for writer in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(writer, CodeWriter) and isinstance(self.datamodule, EpisodeDataModule):
                writer.preflight(self.model, self.datamodule.path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer: logger and last checkpoint under `default_root_dir` (`runs/<stage>`), and the guards."""
        options = self._get(self.config_init, "trainer")
        if str(options.precision).endswith("-true") and options.precision != "32-true":
            raise ValueError(f"precision is {options.precision} but weights are float32: give 32-true or bf16-mixed")
        root = options.default_root_dir or f"runs/{type(self.model).__name__.lower()}"
        callbacks = _as_list(options.callbacks)
        if options.enable_checkpointing is not False and not _has(callbacks, LastCheckpoint):
            callbacks.append(LastCheckpoint())
        default_bar = options.enable_progress_bar is not False and not _has(callbacks, ProgressBar)
        if self.subcommand == "fit" and default_bar and not sys.stderr.isatty():
            callbacks.append(ProgressLines())
        callbacks += [guard() for guard in (StopOnNonFinite, WarnOfCollapse) if not _has(callbacks, guard)]
        if not _has(callbacks, StopTogether):
            callbacks.insert(0, StopTogether())
        logger = options.logger
        if logger in (None, True):
            logger = self._logger(root)
        plugins = _as_list(options.plugins)
        if not _has(plugins, CheckpointIO):
            plugins.append(AtomicCheckpointIO())
        return super().instantiate_trainer(default_root_dir=root, callbacks=callbacks, logger=logger, plugins=plugins)

    def _logger(self, root: str) -> Any:
        """Builds TensorBoard's logger in the run's folder; False where nothing is logged, or at no known step."""
        # Its thread opens the file by path at every flush, wherever the process works by then.
        root = str(Path(root).absolute())
        checkpoint = self._get(self.config, "ckpt_path") if self.subcommand else None
        if checkpoint is None or self.check:
            return False if self.subcommand in STEPS else TensorBoardLogger(root, "tensorboard", "")
        step = logged_until(read_checkpoint(checkpoint))
        if self.subcommand == "fit":
            # Points after the checkpoint are logged again: TensorBoard drops those of the earlier run.
            return TensorBoardLogger(root, "tensorboard", "", purge_step=step + 1)
        return False if self.subcommand == "predict" else MeasurementLogger(root, step)

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.check:
            super()._run_subcommand(subcommand)

    def _limits(self) -> str:
        options = self._get(self.config, "trainer")
        limits = {name: options.get(name) for name in ("max_steps", "max_epochs", "max_time")}
        given = ", ".join(f"{name} {value}" for name, value in limits.items() if value not in (None, -1))
        return f"{given} (which includes the time before the checkpoint)" if limits["max_time"] else given

    def before_fit(self) -> None:
        """Refuses to overwrite the checkpoint of another fit."""
        last = LastCheckpoint.path(self.trainer)
        if self._get(self.config, "ckpt_path") is None and last.exists():
            raise ValueError(
                f"{last} is there already: continue it with --ckpt_path={last}, or train into another "
                "--trainer.default_root_dir, with a --data.path of its own if it collects"
            )
        check_writable(last)
        checkpoint = self._get(self.config, "ckpt_path")
        self._updates_before = -1 if checkpoint is None else int(read_checkpoint(checkpoint)["global_step"])
        if self.trainer.is_global_zero:
            print_line(f"writes to {self.trainer.default_root_dir}: checkpoints, pictures, tensorboard, config.yaml")

    def after_fit(self) -> None:
        """Reports a fit that had nothing left to train; saves the model of a fit of 0 steps, which no hook saves."""
        if self.trainer.global_step == self._updates_before and self.trainer.is_global_zero:
            print_line(
                f"nothing was trained: the checkpoint has {self.trainer.global_step} updates already, and the limits "
                f"are {self._limits()}: raise them to train on"
            )
        if self.trainer.max_steps == 0 and self.trainer.checkpoint_callbacks:
            self.trainer.save_checkpoint(LastCheckpoint.path(self.trainer))


def _has(callbacks: list[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _as_list(value: Any) -> list[Any]:
    """Reads a flag as Lightning does: none, one, or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def build(config: str | Path | list[str | Path], **overrides: Any) -> CommandLine:
    """Builds model, data and trainer as the command line does, without running anything.

    Args:
        config: one or several configuration files, found as the command line finds them; later ones win.
        overrides: settings that win over the files, by dotted name, `build(f, **{"data.path": "episodes"})`, or as
            mappings shaped like the files, `build(f, model={"init_args": {"latent_size": 8}})`.

    Returns:
        An object with `model`, `datamodule` (None if the files name none) and `trainer`.

    Raises:
        ValueError: for a wrong file or setting, in one line.
    """
    files = config if isinstance(config, list) else [config]
    nested = {key: value for key, value in overrides.items() if isinstance(value, dict) and "." not in key}
    arguments = [argument for file in files for argument in ("-c", str(file))]
    arguments += ["-c", json.dumps(nested)] if nested else []
    arguments += to_options({key: value for key, value in overrides.items() if key not in nested})
    try:
        return CommandLine(arguments, run=False)
    except ArgumentError as error:
        raise ValueError(one_line(error)) from error
