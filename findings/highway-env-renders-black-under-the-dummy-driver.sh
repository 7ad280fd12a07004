#!/usr/bin/env bash
# Finding: highway-env draws black pictures under SDL_VIDEODRIVER=dummy, as rendered frames and as observations.
# Package: highway-env 1.12.1 (with gymnasium 1.4.0 and pygame-ce)
#
# One would guess: the dummy driver, the usual way to run pygame without a display, changes no pixel.
#
# What happens: under "dummy" render() and the grayscale image observation are all 0. Under "offscreen" both are
# drawn. CarRacing, on the same pygame, draws under either. No message is given.
#
# Seen on 2026-12-01:
#   SDL_VIDEODRIVER=dummy     brightest pixel: render 0 gray-observation 0 CarRacing 228
#   SDL_VIDEODRIVER=offscreen brightest pixel: render 255 gray-observation 254 CarRacing 228
#
# For a user of world models: a server that sets "dummy" for its other environments collects black frames, which a
# decoder fits perfectly. Set "offscreen", and check that a first frame has more than one value.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check highway-env==1.12.1 "gymnasium[box2d]==1.4.0" numpy==2.4.6

cat > check.py <<'PY'
import os
import subprocess
import sys
import warnings

if len(sys.argv) == 1:
    lines = {}
    for driver in ("dummy", "offscreen"):
        run = subprocess.run(
            [sys.executable, __file__, "child"],
            env={**os.environ, "SDL_VIDEODRIVER": driver, "PYGAME_HIDE_SUPPORT_PROMPT": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        lines[driver] = run.stdout.strip().splitlines()[-1]
        print(f"SDL_VIDEODRIVER={driver:9s} brightest pixel:", lines[driver])
    render, gray, car = (int(v) for v in lines["dummy"].split()[1::2])
    assert render == gray == 0 and car > 200, "the dummy driver draws now"
    assert all(int(v) > 200 for v in lines["offscreen"].split()[1::2])
    raise SystemExit

warnings.simplefilter("ignore")
import gymnasium as gym
import highway_env  # noqa: F401

env = gym.make("highway-v0", render_mode="rgb_array")
env.reset(seed=0)
picture = env.render()
gray = {
    "type": "GrayscaleObservation",
    "observation_shape": (128, 64),
    "stack_size": 4,
    "weights": [0.2989, 0.5870, 0.1140],
    "scaling": 1.75,
}
env = gym.make("highway-v0", render_mode="rgb_array", config={"observation": gray})
env.reset(seed=0)
for _ in range(4):
    obs, *_ = env.step(1)
car = gym.make("CarRacing-v3")
print("render", picture.max(), "gray-observation", obs.max(), "CarRacing", car.reset(seed=0)[0].max())
PY
HOME="$work" venv/bin/python check.py
