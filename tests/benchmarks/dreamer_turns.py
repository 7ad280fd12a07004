"""What both sides of `bench_dreamer.py` share: the sizes, what is seen, and how a turn is measured and told."""

import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

Side = tuple[Callable[[int, Callable[[], None]], None], int]
"""A function that makes so many gradient steps and calls another after each, and how many weights learn."""

UNTIMED = 2
"""Steps before those that are timed: the first makes the optimizer's memory."""


@dataclass
class Setting:
    """The sizes of one Dreamer."""

    depth: int
    channels: int
    actions: int
    discrete: bool
    stoch: int
    params: int
    deter: int
    hidden: int
    reward_layers: int
    cont_layers: int
    critic_layers: int
    through_dynamics: bool
    actor_layers: int = 4
    units: int = 400
    horizon: int = 15


SETTINGS = {
    "v1": Setting(32, 3, 6, False, 30, 60, 200, 200, 2, 0, 3, True),
    "v2": Setting(48, 1, 18, True, 1024, 1024, 600, 600, 4, 4, 4, False),
}


@dataclass
class Observations:
    """Random windows (B, T)."""

    image: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor


def observations(setting: Setting, rows: int, time: int) -> Observations:
    """The same for both sides."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (rows, time, 64, 64, setting.channels), dtype=torch.uint8)
    action = torch.rand(rows, time, setting.actions) * 2 - 1
    if setting.discrete:
        action = torch.nn.functional.one_hot(action.argmax(-1), setting.actions).float()
    return Observations(image, action, torch.randn(rows, time))


def take_turn(build: Callable[..., Side], version: str, rows: str, time: str, repetitions: str, *more: str) -> None:
    """Makes some untimed steps and some timed ones, and prints one line about them."""
    run, weights = build(version, int(rows), int(time), *more)
    resting, clocks = _gigabytes("VmRSS"), []
    run(UNTIMED + int(repetitions), lambda: clocks.append(_clocks()))
    spent = [[after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(clocks[UNTIMED - 1 :])]
    wall, own, busy = zip(*spent, strict=True)
    peak = _gigabytes("VmHWM")
    told = {"seconds": wall, "own": own, "busy": busy, "weights": weights, "peak": peak, "added": peak - resting}
    print("\n" + json.dumps(told))


def _clocks() -> tuple[float, float, float]:
    """Seconds: on the wall, of this process on all cores, and of everybody."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    everybody = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), used.ru_utime + used.ru_stime, everybody


def _gigabytes(name: str) -> float:
    """A line of this process' status, in 10^9 bytes. (getrusage's peak is no smaller than that of who started it.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e9
