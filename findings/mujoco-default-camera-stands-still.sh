#!/usr/bin/env bash
# Finding: gymnasium's MuJoCo robots leave the default picture, and the first render decides what every later one shows.
# Package: gymnasium 1.4.0 (mujoco 3.17.0; it needs EGL, or MUJOCO_GL=osmesa with OSMesa)
#
# One would guess: the default camera follows the robot, as the "track" camera in its model does and gymnasium 1.3.0 does.
#
# What happens: the default camera stands where the first render() put it. Once the robot has run on, all frames are
# the same picture of an empty floor. And one and the same state gives two pictures, by whether the first render
# came there or at the start.
#
# Seen on 2026-12-01 (64x64 pixels; places along the track):
#   HalfCheetah-v5: pixels that differ, place 0 and 20: 191, place 20 and 40: 0
#   Ant-v5: pixels that differ, place 0 and 20: 591, place 20 and 40: 0
#   Hopper-v5: pixels that differ, place 0 and 20: 175, place 20 and 40: 0
#   Walker2d-v5: pixels that differ, place 0 and 20: 98, place 20 and 40: 0
#   HalfCheetah-v5 at place 20, first render there or at place 0: 170 of 4096 pixels differ
#
# For a user of world models: the better the agent runs, the sooner its pixels carry nothing, and the worse the
# model and the policy become. Pass camera_name="track".

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1 MUJOCO_GL="${MUJOCO_GL:-egl}"
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check "gymnasium[mujoco]==1.4.0" mujoco==3.17.0 imageio==2.38.1 numpy==2.4.6

cat > check.py <<'PY'
import warnings

warnings.simplefilter("ignore")
import gymnasium as gym
import numpy as np


def frames(robot, places, **camera):
    """Frames of the robot put at each of these places along the track, one environment."""
    env = gym.make(robot, render_mode="rgb_array", width=64, height=64, **camera)
    env.reset(seed=0)
    sim = env.unwrapped
    pose, speed = sim.data.qpos.copy(), sim.data.qvel.copy()
    pictures = []
    for x in places:
        moved = pose.copy()
        moved[0] = x
        sim.set_state(moved, speed)
        pictures.append(env.render().astype(int))
    env.close()
    return pictures


def differing(a, b):
    return int((np.abs(a - b).max(axis=-1) > 8).sum())


for robot in ("HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5"):
    at0, at20, at40 = frames(robot, (0, 20, 40))
    print(f"{robot}: pixels that differ, place 0 and 20: {differing(at0, at20)}, place 20 and 40: {differing(at20, at40)}")
    assert differing(at0, at20) > 50 and differing(at20, at40) == 0, "the default camera follows now"
late = frames("HalfCheetah-v5", (20,))[0]
early = frames("HalfCheetah-v5", (0, 20))[1]
print("HalfCheetah-v5 at place 20, first render there or at place 0:", differing(late, early), "of 4096 pixels differ")
assert differing(late, early) > 50
PY
HOME="$work" venv/bin/python check.py
