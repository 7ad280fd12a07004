"""The commands behind `wmlightning COMMAND`: running them, stopping them, and errors in one line."""

import argparse
import contextlib
import importlib
import inspect
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from wmlightning.cli.allocator import keep_freed_memory
from wmlightning.cli.arguments import with_found_configs, with_own_environment
from wmlightning.cli.errors import clean_warnings, error_line
from wmlightning.cli.lightning import PARSER_MODE, TRAINING, CommandLine
from wmlightning.pipeline.config import loop_of, read_pipeline, steps_of, sweep_of, table_of
from wmlightning.pipeline.folder import lock_run_folder
from wmlightning.pipeline.run import Step, read_result, run_pipeline
from wmlightning.pipeline.tables import red
from wmlightning.runtime import print_line
from wmlightning.stages.requirements import preflight
from wmlightning.tools import data
from wmlightning.tools.compare import verdict

RULE = re.compile(r"action_repeat|time_limit|kwargs\.")
"""Settings of an environment that are printed beside a score."""
LAUNCHED = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"}
"""Environment variables that Lightning sets when it starts further ranks."""


def call_tool(command: str, args: list[str], check_only: bool = False) -> dict[str, Any]:
    """Calls `collect` or `evaluate`, functions whose arguments are options or YAML; or only checks the arguments."""
    module = importlib.import_module(f"wmlightning.tools.{command}")
    function = getattr(module, command)
    if command == "evaluate" and args and not args[0].startswith("-"):
        args = [f"--agent={args[0]}", *args[1:]]
    parser = ArgumentParser(
        prog=f"wmlightning {command}",
        description=function.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=PARSER_MODE,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML with these options; several compose.")
    parser.add_function_arguments(function, fail_untyped=False)
    settings = dict(parser.instantiate(parser.parse_args(with_own_environment(with_found_configs(args)))))
    settings.pop("config", None)
    if not check_only:
        return function(**settings)
    check = getattr(module, f"check_{command}")
    parameters = inspect.signature(check).parameters
    check(**{name: settings[name] for name in parameters})
    return {}


def check_command(arguments: list[str]) -> None:
    """Checks a command line: builds the objects it names, without data, and runs nothing."""
    if arguments[0] in TRAINING:
        CommandLine(arguments, check=True)
    else:
        call_tool(arguments[0], arguments[1:], check_only=True)


def check_stages(steps: list[Step]) -> None:
    """Checks all stages of a pipeline before the first runs: a mistake in the last costs no hours.

    Raises:
        ValueError: in one line that names the stage.
    """
    with preflight():
        for step in steps:
            for arguments in step.commands:
                try:
                    check_command(arguments)
                except Exception as error:
                    raise ValueError(f"stage {step.name}: {error_line(error)}") from error


def execute(arguments: list[str]) -> dict[str, Any]:
    """Runs one command of a stage and returns its metrics.

    Raises:
        KeyboardInterrupt: if the user or the system stopped it, after it has saved its checkpoint.
    """
    with interruptible(arguments[0] == "fit"):
        if arguments[0] not in TRAINING:
            return flatten(call_tool(arguments[0], arguments[1:]))
        # Lightning starts further ranks by repeating the command line: inside a pipeline it must be the stage's own.
        argv_before = sys.argv
        sys.argv = [sys.argv[0], *arguments]
        set_before = {name for name in LAUNCHED if name in os.environ}
        try:
            command_line = CommandLine(arguments)
        except SystemExit as stop:
            if stop.code == 0:  # after --help
                raise
            # Lightning's ways to end: SIGTERMException between two batches, exit(1) after a KeyboardInterrupt.
            raise KeyboardInterrupt from None
        finally:
            sys.argv = argv_before
            if dist.is_available() and dist.is_initialized():
                # Otherwise the next stage would use the rank settings of this one.
                dist.destroy_process_group()
                for name in LAUNCHED - set_before:
                    os.environ.pop(name, None)
        return {key: float(value) for key, value in command_line.trainer.callback_metrics.items()}


def as_typed(program: str, *arguments: str) -> str:
    """Returns a command line as it can be typed here: with the program's folder where that is not on the PATH."""
    beside = Path(sys.executable).parent / program
    beside = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return shlex.join([program if shutil.which(program) or not beside.exists() else str(beside), *arguments])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the numbers in a nested result, by dotted name."""
    numbers: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            numbers |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = value
    return numbers


@contextlib.contextmanager
def interruptible(fit: bool) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM stop a fit between two batches, with a checkpoint; a second Ctrl-C stops it at once.

    Outside of training both raise KeyboardInterrupt. `StopTogether` stops several processes at the same batch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def training() -> bool:
        # The Trainer installs a handler of its own while it runs.
        return fit and signal.getsignal(signal.SIGTERM) is not terminate

    def terminate(*_: Any) -> None:
        if not training():
            raise KeyboardInterrupt

    def interrupt(*_: Any) -> None:
        nonlocal asked
        if asked or not training():
            raise KeyboardInterrupt
        asked = True
        print_line("\nstopping after this batch; Ctrl-C again to stop at once")
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class OneLineParser(argparse.ArgumentParser):
    """An `argparse` parser that prints its errors as one line, like every other error here."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}: see {self.prog} --help")


def run(args: list[str]) -> int:
    """`wmlightning run`: a pipeline of stages, see `wmlightning.pipeline.config` for the form of its file."""
    parser = OneLineParser(
        "wmlightning run", description="Runs every stage of a pipeline that is not finished yet.", allow_abbrev=False
    )
    parser.add_argument("config", help="the pipeline, such as world_models/quickstart")
    parser.add_argument("--out", help="the run's folder; a fresh one under runs/ by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="seed=1, vae.trainer.max_steps=9"
    )
    parser.add_argument("--overlay", action="append", default=[], metavar="FILE", help="YAML laid over the pipeline")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the stages and do nothing")
    options = parser.parse_args(args)
    pipeline = read_pipeline(options.config, options.overlay, options.set)
    out = Path(options.out or f"runs/{Path(options.config).stem}-{datetime.now():%Y%m%d-%H%M%S}")
    steps = steps_of(pipeline, out)
    table = table_of(pipeline)
    loop = loop_of(pipeline)
    sweep = sweep_of(pipeline)
    if options.dry_run:
        for step in steps:
            for command in step.commands:
                print(f"wmlightning {shlex.join(command)}")
        return 0
    check_stages([step for step in steps if read_result(out / step.name) is None])
    again = as_typed("wmlightning", "run", *args, *([] if options.out else ["--out", str(out)]))
    with lock_run_folder(out, pipeline):
        print_line(f"{out}: after a stop go on with: {again}")
        try:
            run_pipeline(steps, out, execute, table, loop, sweep)
        except BaseException:
            print_line(f"stopped; go on with: {again}")
            raise
    print_line(f"\nThe numbers above are in {out}/summary.json.")
    print_line(f"Curves and pictures:  {as_typed('tensorboard', '--logdir', str(out))}")
    if loop.charts:
        board = as_typed("tensorboard", "--logdir", f"{out}/iterations")
        print_line(f"Over the iterations:  {board}  and  {out}/iterations/curves.png")
    # After a loop that ended early the last stages have not been run.
    steps = [step for step in steps if read_result(out / step.name) is not None]
    evaluations = [step.commands[0] for step in steps if step.commands[0][0] == "evaluate"]
    agents = [argument for argument in (evaluations or [[]])[-1] if argument.startswith("--agent=")]
    if agents:
        command = [
            "evaluate",
            agents[0].partition("=")[2],
            "--episodes",
            "100",
            "--seed",
            "1",
            "--video",
            "driving.gif",
        ]
        print_line(f"Evaluate again:       {as_typed('wmlightning', *command)}")
    fits = [out / step.name for step in steps if step.commands[0][0] == "fit"]
    if fits:
        last = fits[-1]
        command = ["fit", "-c", f"{last}/config.yaml", f"--ckpt_path={last}/checkpoints/last.ckpt"]
        print_line(f"Train {last.name} for longer:  {as_typed('wmlightning', *command, '--trainer.max_steps=MORE')}")
    return 0


def inspect_data(args: list[str]) -> int:
    """`wmlightning data info|verify PATH`."""
    parser = OneLineParser("wmlightning data", description="What a folder of episodes holds.", allow_abbrev=False)
    parser.add_argument("what", choices=("info", "verify"), help="count it, or name every damaged file")
    parser.add_argument("path", help="the folder of HDF5 episodes")
    options = parser.parse_args(args)
    if options.what == "info":
        print(json.dumps(data.info(options.path), indent=2))
        return 0
    problems, unfinished = data.verify_store(options.path)
    print("\n".join(problems) if problems else f"{options.path}: every episode is whole")
    for name in unfinished:
        print(f"{name}: unfinished, of a writer that was killed or is at work: no damage, delete it once none is")
    return 1 if problems else 0


def main(command: str, args: list[str]) -> int:
    """Runs one command; prints an error as one line and returns an exit status."""
    keep_freed_memory()
    # YAML may also name modules of the working directory, as with `python -m`.
    sys.path.append(os.getcwd())
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
    # No episode held out is a choice: validation_fraction 0.
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*", FutureWarning)
    try:
        with clean_warnings():
            if command in ("run", "data"):
                return (run if command == "run" else inspect_data)(args)
            numbers = execute([command, *args])
            if command not in TRAINING:
                print_result(numbers)
            return 0
    except KeyboardInterrupt:
        print("wmlightning: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("WMLIGHTNING_DEBUG"):
            traceback.print_exc()
        print(red(f"wmlightning: {error_line(error)}"), file=sys.stderr)
        return 2 if isinstance(error, ArgumentError | ValueError) else 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def print_result(numbers: dict[str, Any]) -> None:
    """Prints the result of `collect` or `evaluate`."""
    if "mean" not in numbers:
        print_line(", ".join(f"{name} {value:.6g}" for name, value in numbers.items()))
        return
    environment = {key.removeprefix("environment."): value for key, value in numbers.items() if "environment." in key}
    rules = [f"{key.removeprefix('kwargs.')} {value:g}" for key, value in environment.items() if RULE.match(key)]
    score = f"mean return {numbers['mean']:.1f} +- {numbers['ci95']:.1f} (95%) over {numbers['episodes']} episodes"
    print_line(f"{score}, rules: {', '.join(rules)}" if rules else score)
    if "dream.mean" in numbers:
        mean, ci95, temperature = (numbers[f"dream.{key}"] for key in ("mean", "ci95", "temperature"))
        print_line(f"in its dream: {mean:.1f} +- {ci95:.1f} at temperature {temperature:g}")
    compared = [key.removesuffix(".difference") for key in numbers if key.endswith(".difference")]
    for player in compared:
        mean, difference, ci95 = (numbers[f"{player}.{key}"] for key in ("mean", "difference", "difference_ci95"))
        name = player.split(".")[-1]
        print_line(f"{name}: {mean:.1f} on the same episodes, difference {difference:+.1f} +- {ci95:.1f}")
    if "ms_per_action" in numbers:
        milliseconds = (numbers["ms_per_action"], numbers["planner.ms_per_action"])
        print_line("milliseconds per action: {:.1f} for the agent, {:.1f} for the planner".format(*milliseconds))
    steps = numbers.get("published.env_steps")
    for name in (key.split(".")[1] for key in numbers if key.startswith("published.") and key.endswith(".mean")):
        band = {key: numbers[f"published.{name}.{key}"] for key in ("mean", "min", "max", "seeds")}
        published = "{mean:.1f}, from {min:.1f} to {max:.1f} over {seeds:.0f} seeds".format(**band)
        print_line(f"{name} at {steps:,} environment steps: {published}; ours is {verdict(numbers['mean'], band)}")
