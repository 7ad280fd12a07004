"""How fast the Dreamers learn, a whole gradient step at the papers' sizes, beside sheeprl 0.8.4's on the same shapes.

    python3 -m venv .venv-bench && .venv-bench/bin/pip install -e ".[bench]" -c requirements/ci-constraints.txt
    python tests/benchmarks/bench_dreamer.py [--rows v2-8x16] [--rounds 1 --repetitions 1]

World model, actor and critic: losses, backward, clipping, optimizer. Ours inside a Lightning Trainer, its metrics
included; sheeprl's `train` (see peer_dreamer.py) without metrics. V2 as on Atari: grey images, 18 actions, REINFORCE, a
head for the end, 32 x 32 latents; V1 as on the control suite: 6 numbers an action, back-propagation through dynamics.
In turn, each turn in a process of its own, in float32; ours once more in bf16-mixed where the processor has bf16.
Allocators: `default` is glibc as it comes, which is each side's own, for neither sets anything; `kept` keeps freed
memory, for both sides.

The limits, frames/s: V2 1.3 times sheeprl's, V1 1.4 times, V2 in bf16-mixed 1.6 times its float32; V2's peak memory at
most 1.25 times. `floor` is the share reached of what this machine multiplies matrices with: the multiplications by
hand, each needed one counted once, over the rate of a product of two 2,048 x 2,048 matrices of float32 in a turn of the
same run. `CPU s` is this process' own, which a busy machine blurs less; `others` is how many cores' worth of work went
on beside it at worst. Not a test: nothing here passes or fails.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dreamer_turns
import fresh_turns
import torch
from dreamer_turns import SETTINGS, Setting, Side
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from datamodules.episode import Batch
from wmlightning.distributions.bounded import OneHot, TanhNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import RSSM
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.target import TargetNetwork
from wmlightning.objectives.actor import DynamicsBackprop, Reinforce
from wmlightning.objectives.divergence import BalancedKL, FreeNatsKL
from wmlightning.stages.actor_critic import ActorCritic
from wmlightning.stages.dreamer import Dreamer
from wmlightning.stages.world_model import WorldModel

HERE = Path(__file__).parent
PEER_PYTHON = HERE.parents[1] / ".venv-bench" / "bin" / "python"
ROWS = {"v2-8x16": ("v2", 8, 16), "v2-16x50": ("v2", 16, 50), "v1-50x50": ("v1", 50, 50)}
ALLOCATORS: dict[str, dict[str, str]] = {"default": {}, "kept": fresh_turns.KEPT}


class Alone(Dreamer):
    """A Dreamer that does not ask whether its environment, which it never enters, fits."""

    def setup(self, stage: str) -> None:
        """Asks nothing."""

    def check_data(self, data: Any) -> None:
        """Asks nothing."""


class Tick(Callback):
    """Calls a function after every update."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_batch_end(self, *_: Any) -> None:
        """Calls it."""
        self.function()


# ------------------------------------------------------------------------------------------------------------- one turn


def build(version: str, rows: int, time: int, precision: str) -> Side:
    """Ours."""
    setting = SETTINGS[version]
    agent = Alone(_world_model(version, setting), _actor_critic(version, setting), EnvFactory("never-entered"))
    seen, flags = dreamer_turns.observations(setting, rows, time), torch.zeros(rows, time)
    batch = Batch({"image": seen.image}, seen.action, seen.reward, 1 - flags, flags.bool(), flags.bool())

    def run(steps: int, tick: Callable[[], None]) -> None:
        switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        quiet: dict[str, Any] = dict.fromkeys(switches, False)
        trainer = Trainer(accelerator="cpu", max_steps=steps, callbacks=[Tick(tick)], precision=precision, **quiet)  # type: ignore
        trainer.fit(agent, DataLoader([batch] * steps, batch_size=None))

    return run, sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad)


def _world_model(version: str, setting: Setting) -> WorldModel:
    sizes = {"embed_size": 32 * setting.depth, "deter_size": setting.deter, "hidden_size": setting.hidden}
    options: dict[str, Any] = {"depth": setting.depth, "channels": setting.channels, "activation": "elu"}
    options |= {"pixels": "centred", "reward_scale": 1.0, "max_norm": 100.0}
    options |= {"reward_layers": setting.reward_layers, "reward_units": setting.units}
    if version == "v1":
        dynamics = RSSM(GaussianLatent(30), setting.actions, cell="keras_gru", activation="elu", **sizes)
        return WorldModel(dynamics, FreeNatsKL(3.0, per_element=False), **options)
    dynamics = RSSM(CategoricalLatent(32, 32), setting.actions, cell="layer_norm_gru", activation="elu", **sizes)
    options |= {"conv_activation": "elu", "reward_squash": "tanh", "kl_scale": 0.1, "decay": 1e-6}
    options |= {"cont_layers": setting.cont_layers, "cont_units": setting.units, "cont_scale": 5.0, "cont_label": 0.999}
    return WorldModel(dynamics, BalancedKL(0.8), **options)


def _actor_critic(version: str, setting: Setting) -> ActorCritic:
    layers = {"actor_layers": setting.actor_layers, "critic_layers": setting.critic_layers, "horizon": setting.horizon}
    if version == "v1":
        return ActorCritic(TanhNormal(), DynamicsBackprop(), include_start=False, **layers)
    others = {"target": TargetNetwork(100, 1.0), "discount": 1.0, "entropy": 1e-3, "decay": 1e-6}
    return ActorCritic(OneHot(), Reinforce(), **others, **layers)


def multiply(size: int = 2048, times: int = 15) -> float:
    """GFLOP/s of a product of two matrices, the median."""
    one, two, out, seconds = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size), []
    for _ in range(times):
        start = time.perf_counter()
        torch.mm(one, two, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / 1e9 / statistics.median(seconds[3:])


# ------------------------------------------------------------------------------------------------------- work, by hand


def work_of_a_frame(setting: Setting) -> float:
    """GFLOP of one frame: two for each multiplication that no way of writing the step down can leave out.

    Passes over a layer: forward 1, gradient of its input 1, gradient of its weights 1. Nobody wants that of pixels, of
    rewards and values by REINFORCE, or of what actor and critic read; the actor's forward pass in the dream is the one
    that it learns from.
    """
    d, c, f = setting.depth, setting.channels, setting.stoch + setting.deter
    pixels = 31 * 31 * 16 * c * d
    encoder = pixels + sum(o * o * 16 * i * j for o, i, j in ((14, d, 2 * d), (6, 2 * d, 4 * d), (2, 4 * d, 8 * d)))
    shapes = ((1, 5, 32 * d, 4 * d), (5, 5, 4 * d, 2 * d), (13, 6, 2 * d, d), (30, 6, d, c))
    decoder = f * 32 * d + sum(i * i * k * k * a * b for i, k, a, b in shapes)

    hidden, deter, units = setting.hidden, setting.deter, setting.units
    prior = deter * hidden + hidden * setting.params
    step = (setting.stoch + setting.actions) * hidden + (hidden + deter) * 3 * deter + prior
    posterior = (deter + 32 * d) * hidden + hidden * setting.params

    def dense(layers: int, outputs: int = 1) -> int:
        return f * units + (layers - 1) * units**2 + units * outputs if layers else 0

    reward, cont, critic = (dense(n) for n in (setting.reward_layers, setting.cont_layers, setting.critic_layers))
    actor = dense(setting.actor_layers, setting.actions if setting.discrete else 2 * setting.actions)
    world_model = 3 * (encoder + decoder + step + posterior + reward + cont) - pixels
    steps = setting.horizon
    behaviour = steps * (3 * actor - f * units)
    if setting.through_dynamics:
        # Terms from the first dreamt state on; the critic's own values, with their gradient, are what returns end in.
        behaviour += 2 * steps * step + 2 * (steps - 1) * (reward + cont) + 2 * steps * critic
        behaviour += (steps - 1) * (2 * critic - f * units)
    else:
        behaviour += steps * (step + reward + cont) + (steps + 1) * critic + steps * (3 * critic - f * units)
    return 2 * (world_model + behaviour) / 1e9


# -------------------------------------------------------------------------------------------------------------- a table


def main() -> None:
    """Takes the turns and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=PEER_PYTHON, help="interpreter that has sheeprl")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="what to compare")
    parser.add_argument("--allocators", nargs="+", default=list(ALLOCATORS), choices=list(ALLOCATORS), help="glibc's")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contender takes")
    parser.add_argument("--repetitions", type=int, default=3, help="timed steps in a turn, after two untimed ones")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    options = parser.parse_args()

    precisions = ["32-true"]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        precisions.append("bf16-mixed")
    else:
        print("bf16-mixed is left out: this processor has no instructions for it, which makes it several times slower")
    contenders = {f"ours, {name}": [sys.executable, __file__, "--turn"] for name in precisions}
    if is_there(options.peer_python):
        contenders["sheeprl"] = [str(options.peer_python), "-W", "ignore", str(HERE / "peer_dreamer.py")]
    else:
        print("sheeprl is left out: install the extra [bench] as said at the top of this file, or give --peer-python")
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds in turn, fresh processes")
    for row in options.rows:
        for allocator in options.allocators:
            environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)} | ALLOCATORS[allocator]
            print(f"\n{row}, allocator {allocator}, load {os.getloadavg()[0]:.1f}")
            compare(row, contenders, options, environment)


def compare(row: str, contenders: dict[str, list[str]], options: argparse.Namespace, environment: dict) -> None:
    """Lets everybody take turns at one size, and prints what they took."""
    version, rows, time = ROWS[row]
    sizes = [version, str(rows), str(time), str(options.repetitions)]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    rates = []
    for _ in range(options.rounds):
        rates.append(float(ask([sys.executable, __file__, "--multiply"], environment)))
        for name, command in contenders.items():
            precision = [name.removeprefix("ours, ")] if name != "sheeprl" else []
            turns[name].append(json.loads(ask([*command, *sizes, *precision], environment)))
    rate, work = statistics.median(rates), work_of_a_frame(SETTINGS[version])
    print(f"{work:.3f} GFLOP a frame; matrices at {rate:.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f})")
    columns = f"{'s/step':>8}{'frames/s':>10}{'floor':>7}{'CPU s':>8}{'peak GB':>9}{'of step':>9}{'others':>8}"
    print(f"{'':18}{'weights':>11}{columns}")
    for name, found in turns.items():
        seconds, own, busy = ([value for turn in found for value in turn[key]] for key in ("seconds", "own", "busy"))
        others = max((all_ - ours) / wall for wall, ours, all_ in zip(seconds, own, busy, strict=True))
        median = statistics.median(seconds)
        peak, added = (statistics.median(turn[key] for turn in found) for key in ("peak", "added"))
        print(
            f"{name:18}{found[0]['weights']:>11,}{median:>8.2f}{rows * time / median:>10,.0f}"
            f"{rows * time * work / rate / median:>7.0%}{statistics.median(own):>8.2f}{peak:>9.2f}{added:>9.2f}"
            f"{others:>8.1f}"
        )
    if "sheeprl" in turns:
        for name in turns:
            if name != "sheeprl":
                tell(name, turns[name], turns["sheeprl"])


def tell(name: str, ours: list[dict[str, Any]], peers: list[dict[str, Any]]) -> None:
    """How many times faster than the peer, and the range of the rounds; its memory too."""
    line = f"{name} over sheeprl:"
    for what, key in (("frames/s", "seconds"), ("frames per CPU s", "own")):
        one, other = ([statistics.median(turn[key]) for turn in found] for found in (ours, peers))
        ratios = [there / here for here, there in zip(one, other, strict=True)]
        whole = statistics.median(other) / statistics.median(one)
        line += f" {what} {whole:.2f} ({min(ratios):.2f} to {max(ratios):.2f}),"
    memory = [statistics.median(turn["peak"] for turn in found) for found in (ours, peers)]
    print(f"{line} peak memory {memory[0] / memory[1]:.2f}", flush=True)


def is_there(python: Path | str) -> bool:
    """Whether there is an interpreter with sheeprl in it."""
    found = Path(python).exists()
    return found and subprocess.run([python, "-c", "import sheeprl"], capture_output=True).returncode == 0


def ask(command: list[str], environment: dict[str, str]) -> str:
    """The last line that a process says."""
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {answer.returncode}:\n{answer.stderr[-2000:]}")
    return answer.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    if sys.argv[1:] == ["--multiply"]:
        print(multiply())
    elif sys.argv[1:2] == ["--turn"]:
        dreamer_turns.take_turn(build, *sys.argv[2:])
    else:
        main()
