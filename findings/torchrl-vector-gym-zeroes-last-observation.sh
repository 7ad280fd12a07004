#!/usr/bin/env bash
# Finding: torchrl's vectorized gym environment hands out zeros as the last observation of every episode.
# Package: torchrl 0.14.1 (tensordict 0.14.3, torch 2.13.0) with gymnasium 1.4.0
#
# One would guess: GymEnv(name, num_envs=2) gives the same transitions as two single GymEnv(name).
#
# What happens: the vector form resets by itself, keeps no final observation, and fills ("next", "observation")
# with zeros at every step that ends an episode. Flags and rewards are right, and nothing warns. The single form
# keeps the true observation. Pendulum proves it: it observes a cosine and a sine, which cannot both be 0.
#
# Seen on 2026-12-01 (the observation of the single form varies):
#   GymEnv('Pendulum-v1')
#     next observation at the time limit: [[-0.986, -0.168, -0.364]]
#     truncated: [True]  cos^2 + sin^2: [1.0]
#   GymEnv('Pendulum-v1', num_envs=2)
#     next observation at the time limit: [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
#     truncated: [True, True]  cos^2 + sin^2: [0.0, 0.0]
#
# For a user of world models: a model trained on this data learns that every episode ends in a black or zero
# observation, and a value bootstrapped at a time limit comes from a state that never existed. Wrap a gymnasium
# vector environment built with AutoresetMode.SAME_STEP or DISABLED instead.

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv venv
venv/bin/pip install -qq --no-compile --disable-pip-version-check torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 gymnasium==1.4.0 numpy==2.4.6

cat > check.py <<'PY'
import warnings

warnings.simplefilter("ignore")
from torchrl.envs import GymEnv


def last_observations(env):
    env.set_seed(0)
    data = env.rollout(201, break_when_any_done=False)
    done = data["next", "done"][..., 0]
    return data["next", "observation"][done], data["next", "truncated"][done]


if __name__ == "__main__":
    for title, env in (
        ("GymEnv('Pendulum-v1')", GymEnv("Pendulum-v1")),
        ("GymEnv('Pendulum-v1', num_envs=2)", GymEnv("Pendulum-v1", num_envs=2)),
    ):
        obs, truncated = last_observations(env)
        radius = (obs[:, 0] ** 2 + obs[:, 1] ** 2).sqrt()
        print(title)
        print("  next observation at the time limit:", [[round(v, 3) for v in row] for row in obs.tolist()])
        print("  truncated:", truncated.flatten().tolist(), " cos^2 + sin^2:", radius.tolist())
        assert truncated.all()
        if "num_envs" in title:
            assert len(obs) == 2 and not obs.any(), "the vector environment keeps the last observation now"
        else:
            assert len(obs) == 1 and abs(radius.item() - 1) < 1e-4
        env.close()
PY
HOME="$work" venv/bin/python check.py
