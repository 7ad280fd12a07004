#!/usr/bin/env bash
# Finding: one point logged at an earlier step wipes a whole curve off the TensorBoard page, and only there.
# Package: tensorboard 2.21.0 with tensorboard-data-server 0.7.2
#
# One would guess: the page shows what EventAccumulator reads, and a late point at step 0 adds a point.
#
# What happens: the page's default loader takes a step back for a restart and drops every point of that tag at or
# after the new step. The Python reader and the page with --load_fast=false keep all points of the same file.
#
# Seen on 2026-12-01:
#   written                               101 points
#   EventAccumulator                      101 points
#   tensorboard --load_fast=false         101 points
#   tensorboard (as started by default)     1 points
#
# For a user of world models: a final test that logs under a training tag at step 0, or a logger that mixes
# environment steps and gradient steps, empties the page while the file is whole. Give each x axis its own tag.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check tensorboard==2.21.0 tensorboard-data-server==0.7.2 numpy==2.4.6

cat > check.py <<'PY'
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

logdir = tempfile.mkdtemp()
writer = EventFileWriter(logdir)
steps = [*range(0, 1000, 10), 0]  # a curve of 100 points, then one point at step 0
for clock, step in enumerate(steps):
    value = Summary.Value(tag="loss", simple_value=float(step))
    writer.add_event(Event(wall_time=1.0e9 + clock, step=step, summary=Summary(value=[value])))
writer.close()


def shown(extra):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command + extra, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(80):
            time.sleep(0.5)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=.&tag=loss"
                with urllib.request.urlopen(url, timeout=5) as page:
                    points = json.load(page)
            except OSError:
                continue
            if any(point[0] >= 1.0e9 + len(steps) - 1 for point in points):  # the newest point has arrived
                return points
        raise SystemExit("TensorBoard did not answer")
    finally:
        server.terminate()
        server.wait()


accumulator = EventAccumulator(logdir)
accumulator.Reload()
counts = {
    "written": len(steps),
    "EventAccumulator": len(accumulator.Scalars("loss")),
    "tensorboard --load_fast=false": len(shown(["--load_fast=false"])),
    "tensorboard (as started by default)": len(shown([])),
}
for name, count in counts.items():
    print(f"{name:36s} {count:4d} points")
assert list(counts.values()) == [101, 101, 101, 1], "the loaders agree now"
PY
HOME="$work" venv/bin/python check.py
