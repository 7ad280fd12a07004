#!/usr/bin/env bash
# Finding: SummaryWriter.add_video writes nothing with moviepy 2, and raises nothing.
# Package: torch 2.13.0 with moviepy 2.2.1 and tensorboard 2.21.0
#
# One would guess: with moviepy installed, add_video writes the clip, or fails.
#
# What happens: torch imports moviepy.editor, which moviepy 2 no longer has. It prints that a package could be
# missing and returns. The image logged beside the video is in the file, the video is not.
#
# Seen on 2026-12-01:
#   moviepy is installed, but can't import moviepy.editor. Some packages could be missing [imageio, requests]
#   asked for image 'frame' and video 'dream'; in the event file: ['frame']
#
# For a user of world models: the dreams of a long run, its main picture of progress, are missing at the end. Encode
# a GIF into an image summary yourself.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check torch==2.13.0 tensorboard==2.21.0 moviepy==2.2.1 numpy==2.4.6

cat > check.py <<'PY'
import tempfile

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

folder = tempfile.mkdtemp()
clip = torch.randint(0, 255, (1, 8, 3, 32, 32), dtype=torch.uint8)
with SummaryWriter(folder) as writer:
    writer.add_image("frame", clip[0, 0], 0)
    writer.add_video("dream", clip, 0)
events = EventAccumulator(folder)
events.Reload()
print("asked for image 'frame' and video 'dream'; in the event file:", events.Tags()["images"])
assert events.Tags()["images"] == ["frame"], "the video is written now"
PY
HOME="$work" venv/bin/python check.py
