"""The commands behind `wmlightning COMMAND`: what is run, what stops it, and errors in one line."""

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
from wmlightning.cli.errors import clean_warnings, last_words
from wmlightning.cli.lightning import PARSER_MODE, TRAINING, CommandLine
from wmlightning.pipeline.config import loop_of, read_pipeline, steps_of, sweep_of, table_of
from wmlightning.pipeline.folder import claim_folder
from wmlightning.pipeline.run import Step, read_result, run_pipeline
from wmlightning.pipeline.tables import red
from wmlightning.runtime import say
from wmlightning.stages.requirements import rehearsal
from wmlightning.tools import data
from wmlightning.tools.compare import verdict

RULE = re.compile(r"action_repeat|time_limit|kwargs\.")
"""What of an environment stands beside a score."""
LAUNCHED = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"}


def call(command: str, args: list[str], check_only: bool = False) -> dict[str, Any]:
    """Runs `collect` or `evaluate`, functions whose arguments are options, from YAML too; or only checks these."""
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
    wanted = inspect.signature(check).parameters
    check(**{name: settings[name] for name in wanted})
    return {}


def check_command(words: list[str]) -> None:
    """Refuses a command line that makes no sense: builds what it asks for, without data, and runs nothing."""
    if words[0] in TRAINING:
        CommandLine(words, check=True)
    else:
        call(words[0], words[1:], check_only=True)


def rehearse(steps: list[Step]) -> None:
    """Checks stages that are to be run one after another: a slip in the last must not cost the hours of the first.

    Raises:
        ValueError: in one line that names the stage.
    """
    with rehearsal():
        for step in steps:
            for words in step.commands:
                try:
                    check_command(words)
                except Exception as error:
                    raise ValueError(f"stage {step.name}: {last_words(error)}") from error


def execute(words: list[str]) -> dict[str, Any]:
    """Runs one command of a stage and returns its metrics.

    Raises:
        KeyboardInterrupt: if it was asked to stop, after it has saved what it could.
    """
    with interruptible(words[0] == "fit"):
        if words[0] not in TRAINING:
            return flat(call(words[0], words[1:]))
        # Lightning starts further ranks by repeating the command line: inside a pipeline it must be the stage's own.
        before, sys.argv = sys.argv, [sys.argv[0], *words]
        given = {name for name in LAUNCHED if name in os.environ}
        try:
            line = CommandLine(words)
        except SystemExit as stop:
            if stop.code == 0:  # after --help
                raise
            # Lightning's ways to end: SIGTERMException between two batches, exit(1) after a KeyboardInterrupt.
            raise KeyboardInterrupt from None
        finally:
            sys.argv = before
            if dist.is_available() and dist.is_initialized():
                # Or the next stage would take this one's ranks for its own.
                dist.destroy_process_group()
                for name in LAUNCHED - given:
                    os.environ.pop(name, None)
        return {key: float(value) for key, value in line.trainer.callback_metrics.items()}


def typed(program: str, *words: str) -> str:
    """A command line as it can be typed here: with the program's folder where that is not on the PATH."""
    beside = Path(sys.executable).parent / program
    beside = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return shlex.join([program if shutil.which(program) or not beside.exists() else str(beside), *words])


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers in a nested result, by dotted name."""
    numbers: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = value
    return numbers


@contextlib.contextmanager
def interruptible(fit: bool) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM stop a fit between two batches, with a checkpoint; a second Ctrl-C stops it at once.

    Where there is nothing to save both raise KeyboardInterrupt. How several processes end together: `StopTogether`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def training() -> bool:
        # The Trainer puts its own handler in front of ours while it runs.
        return fit and signal.getsignal(signal.SIGTERM) is not terminate

    def terminate(*_: Any) -> None:
        if not training():
            raise KeyboardInterrupt

    def interrupt(*_: Any) -> None:
        nonlocal asked
        if asked or not training():
            raise KeyboardInterrupt
        asked = True
        say("\nstopping after this batch; Ctrl-C again to stop at once")
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
    """argparse whose errors are one line, like all the others."""

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
    given = parser.parse_args(args)
    pipeline = read_pipeline(given.config, given.overlay, given.set)
    out = Path(given.out or f"runs/{Path(given.config).stem}-{datetime.now():%Y%m%d-%H%M%S}")
    steps, table, loop, sweep = steps_of(pipeline, out), table_of(pipeline), loop_of(pipeline), sweep_of(pipeline)
    if given.dry_run:
        for step in steps:
            for words in step.commands:
                print(f"wmlightning {shlex.join(words)}")
        return 0
    rehearse([step for step in steps if read_result(out / step.name) is None])
    again = typed("wmlightning", "run", *args, *([] if given.out else ["--out", str(out)]))
    with claim_folder(out, pipeline):
        say(f"{out}: after a stop go on with: {again}")
        try:
            run_pipeline(steps, out, execute, table, loop, sweep)
        except BaseException:
            say(f"stopped; go on with: {again}")
            raise
    say(f"\nThe numbers above are in {out}/summary.json.")
    say(f"Curves and pictures:  {typed('tensorboard', '--logdir', str(out))}")
    if loop.charts:
        board = typed("tensorboard", "--logdir", f"{out}/iterations")
        say(f"Over the iterations:  {board}  and  {out}/iterations/curves.png")
    # After a loop that ended early the last stages have not been run.
    steps = [step for step in steps if read_result(out / step.name) is not None]
    evaluations = [step.commands[0] for step in steps if step.commands[0][0] == "evaluate"]
    agents = [word for word in (evaluations or [[]])[-1] if word.startswith("--agent=")]
    if agents:
        words = ["evaluate", agents[0].partition("=")[2], "--episodes", "100", "--seed", "1", "--video", "driving.gif"]
        say(f"Evaluate again:       {typed('wmlightning', *words)}")
    fits = [out / step.name for step in steps if step.commands[0][0] == "fit"]
    if fits:
        last = fits[-1]
        words = ["fit", "-c", f"{last}/config.yaml", f"--ckpt_path={last}/checkpoints/last.ckpt"]
        say(f"Train {last.name} for longer:  {typed('wmlightning', *words, '--trainer.max_steps=MORE')}")
    return 0


def look_at_data(args: list[str]) -> int:
    """`wmlightning data info|verify PATH`."""
    parser = OneLineParser("wmlightning data", description="What a folder of episodes holds.", allow_abbrev=False)
    parser.add_argument("what", choices=("info", "verify"), help="count it, or name every damaged file")
    parser.add_argument("path", help="the folder of HDF5 episodes")
    given = parser.parse_args(args)
    if given.what == "info":
        print(json.dumps(data.info(given.path), indent=2))
        return 0
    problems, unfinished = data.verify_store(given.path)
    print("\n".join(problems) if problems else f"{given.path}: every episode is whole")
    for name in unfinished:
        print(f"{name}: unfinished, of a writer that was killed or is at work: no damage, delete it once none is")
    return 1 if problems else 0


def main(command: str, args: list[str]) -> int:
    """Runs one command and turns what goes wrong into one line and an exit status."""
    keep_freed_memory()
    # Local modules may be named in YAML too, as with `python -m`.
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
                return (run if command == "run" else look_at_data)(args)
            numbers = execute([command, *args])
            if command not in TRAINING:
                report(numbers)
            return 0
    except KeyboardInterrupt:
        print("wmlightning: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("WMLIGHTNING_DEBUG"):
            traceback.print_exc()
        print(red(f"wmlightning: {last_words(error)}"), file=sys.stderr)
        return 2 if isinstance(error, ArgumentError | ValueError) else 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def report(numbers: dict[str, Any]) -> None:
    """Prints what `collect` or `evaluate` came to."""
    if "mean" not in numbers:
        say(", ".join(f"{name} {value:.6g}" for name, value in numbers.items()))
        return
    place = {key.removeprefix("environment."): value for key, value in numbers.items() if "environment." in key}
    rules = [f"{key.removeprefix('kwargs.')} {value:g}" for key, value in place.items() if RULE.match(key)]
    said = f"mean return {numbers['mean']:.1f} +- {numbers['ci95']:.1f} (95%) over {numbers['episodes']} episodes"
    say(f"{said}, rules: {', '.join(rules)}" if rules else said)
    if "dream.mean" in numbers:
        mean, wide, tau = (numbers[f"dream.{key}"] for key in ("mean", "ci95", "temperature"))
        say(f"in its dream: {mean:.1f} +- {wide:.1f} at temperature {tau:g}")
    beside = [key.removesuffix(".difference") for key in numbers if key.endswith(".difference")]
    for place in beside:
        value, gain, wide = (numbers[f"{place}.{key}"] for key in ("mean", "difference", "difference_ci95"))
        say(f"{place.split('.')[-1]}: {value:.1f} on the same episodes, difference {gain:+.1f} +- {wide:.1f}")
    if "ms_per_action" in numbers:
        took = (numbers["ms_per_action"], numbers["planner.ms_per_action"])
        say("milliseconds per action: {:.1f} for the agent, {:.1f} for the planner".format(*took))
    steps = numbers.get("published.env_steps")
    for name in (key.split(".")[1] for key in numbers if key.startswith("published.") and key.endswith(".mean")):
        band = {key: numbers[f"published.{name}.{key}"] for key in ("mean", "min", "max", "seeds")}
        told = "{mean:.1f}, from {min:.1f} to {max:.1f} over {seeds:.0f} seeds".format(**band)
        say(f"{name} at {steps:,} environment steps: {told}; ours is {verdict(numbers['mean'], band)}")
