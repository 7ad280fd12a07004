#!/usr/bin/env bash
# Finding: jsonargparse passes null to a class inside a class as the word 'None'.
# Package: jsonargparse 4.53.0
#
# One would guess: --agent.replay.path=null sets an Optional[str] to None, as --agent.weights=null does.
#
# What happens: one level down it does. For a class nested in a class the parameter becomes the string 'None', with
# no error; an Optional[int] in the same place is refused. A config object sets both to None.
#
# Seen on 2026-12-01:
#   --agent.weights=null                     -> weights None
#   --agent.replay.path=null                 -> path    'None'
#   --agent.replay.init_args={'path': null}  -> path    'None'
#   the same two as null in a config object  -> path    None  limit None
#   --agent.replay.limit=null                -> refused True
#
# For a user of world models: LightningCLI parses with it, so a run that switches off a data path, a checkpoint or
# a logger folder of a nested part from the command line gets a folder named 'None' instead. Use a config file.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check "jsonargparse[signatures]==4.53.0"

cat > check.py <<'PY'
from typing import Optional

from jsonargparse import ArgumentParser


class Replay:
    def __init__(self, path: Optional[str] = "data", limit: Optional[int] = 100):
        self.path, self.limit = path, limit


class Agent:
    def __init__(self, replay: Replay = None, weights: Optional[str] = "best.pt"):
        self.replay, self.weights = replay, weights


parser = ArgumentParser(exit_on_error=False)
parser.add_subclass_arguments(Agent, "agent")
base = ["--agent=__main__.Agent", "--agent.replay=__main__.Replay"]


def read(*extra):
    init = parser.parse_args([*base, *extra]).agent.init_args
    return init.weights, init.replay.init_args.path


outer = read("--agent.weights=null")
inner = read("--agent.replay.path=null")
whole = read('--agent.replay.init_args={"path": null}')
print("--agent.weights=null                     -> weights", repr(outer[0]))
print("--agent.replay.path=null                 -> path   ", repr(inner[1]))
print("--agent.replay.init_args={'path': null}  -> path   ", repr(whole[1]))
replay = {"class_path": "__main__.Replay", "init_args": {"path": None, "limit": None}}
config = {"agent": {"class_path": "__main__.Agent", "init_args": {"replay": replay}}}
filed = parser.parse_object(config).agent.init_args.replay.init_args
print("the same two as null in a config object  -> path   ", repr(filed.path), " limit", repr(filed.limit))
try:
    read("--agent.replay.limit=null")
    refused = False
except Exception as error:
    refused = "Does not validate" in str(error)
print("--agent.replay.limit=null                -> refused", refused)
assert filed.path is None and filed.limit is None
assert outer[0] is None and inner[1] == "None" and refused, "null reaches the nested class now"
PY
HOME="$work" venv/bin/python check.py
