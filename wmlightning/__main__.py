"""The entry point: answers `--help` at once, and imports torch and lightning only for a command that needs them."""

import os
import sys

USAGE = """\
usage: wmlightning COMMAND [options]

World Models, PlaNet and Dreamer as PyTorch Lightning modules.

a whole experiment
  run CONFIG [--out DIR]            every stage of a pipeline in order, e.g. `run world_models/quickstart`;
                                    started again on the same DIR it goes on where it stopped

one stage of it
  collect -c FILE                   episodes of a policy in an environment, into a folder of HDF5 files
  fit -c FILE [--ckpt_path FILE]    trains one stage; several -c compose from left to right
  validate | test -c FILE           measures one stage on held-out episodes
  predict -c FILE --ckpt_path FILE  writes a trained stage's predictions for every episode, e.g. V's codes

afterwards
  evaluate CHECKPOINT               mean return over many episodes, with its interval, and a video
  data info|verify PATH             what a folder of episodes holds; which of its files are damaged
  doctor                            what this machine has, and what to install for what it lacks

`wmlightning COMMAND --help` lists a command's options. Errors are one line; `--debug` (or WMLIGHTNING_DEBUG=1)
shows the traceback as well, and where a warning came from.
"""

COMMANDS = ("run", "collect", "fit", "validate", "test", "predict", "evaluate", "data", "doctor")


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `wmlightning`; None takes them from the command line.

    Returns:
        The exit status: 0, 1 for a failed command, 2 for an invalid command line or configuration, 130 for
        an interrupted one.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in argv:
        argv.remove("--debug")
        os.environ["WMLIGHTNING_DEBUG"] = "1"
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if argv[0] == "--version":
        from wmlightning import __version__

        print(f"wmlightning {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"wmlightning: there is no command {argv[0]!r}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if argv[0] == "doctor":
        # Imported alone, so that it can name what is missing where nothing else can be imported.
        from wmlightning.tools.doctor import main as doctor

        return doctor(argv[1:])
    # Five seconds of torch and lightning, paid here and not for --help.
    try:
        from wmlightning.cli.commands import main as run_command
    except ModuleNotFoundError as error:
        print(f"wmlightning: {error}: `wmlightning doctor` says what to install", file=sys.stderr)
        return 1

    return run_command(argv[0], argv[1:])


if __name__ == "__main__":
    sys.exit(main())
