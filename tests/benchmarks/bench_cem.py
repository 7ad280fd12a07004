"""What a decision costs: CEM in a world model of PlaNet's sizes, beside a bare loop of the same arithmetic.

    python tests/benchmarks/bench_cem.py

The bare loop holds the same weights and does the same products and activations on plain tensors: no seeds, no states,
no distributions. `floor` is the time that the products alone would take at this machine's rate for large ones, and
`share` how much of CEM's time that is. The limit is 0.75 s an action on a machine whose floor is 0.49 s: 65%. Turns of
all kinds alternate, so that what the machine does besides falls on all alike. Not a test: nothing here passes or fails.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from wmlightning.cli.allocator import keep_freed_memory
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.rssm import RSSM
from wmlightning.planners import CEM
from wmlightning.stages.world_model import WorldModel

ACTION = 6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8], help="environments planned for at once")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], help="of the products")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    parser.add_argument("--heads", nargs="+", default=["2x200", "3x300"], help="reward heads: the paper's, the code's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the dynamics and the reward head")
    parser.add_argument("--threads", type=int, help="torch's threads; by default torch's own choice")
    parser.add_argument(
        "--allocator", choices=["default", "kept"], default="kept", help="glibc's; commands keep memory"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.allocator == "kept":
        keep_freed_memory()
    turns = f"medians of {options.rounds} turns, seconds a decision"
    print(f"{options.device}, {torch.get_num_threads()} threads, allocator {options.allocator}, {turns}")
    print("".join(f"{title:>12}" for title in ("head", "precision", "envs", "CEM", "an env", "bare", "floor", "share")))
    for head in options.heads:
        layers, units = map(int, head.split("x"))
        dynamics = RSSM(GaussianLatent(30), ACTION)
        model = WorldModel(dynamics, reward_layers=layers, reward_units=units).eval().to(options.device)
        if options.compile:
            model.dynamics.compile()
            model.reward_head.compile()
        for precision in options.precisions:
            kind, planner = getattr(torch, precision), CEM(12, 1000, 100, 10, precision)
            rate = flops(kind, options.device)
            for envs in options.envs:
                start = model.dynamics.initial(envs)
                turns = {
                    "cem": partial(planner.plan, model, start, range(envs)),
                    "bare": partial(bare, model, planner, envs),
                }
                seconds = measure(turns, options.rounds, options.device)
                floor = envs * work(model, planner) / rate
                cells = (head, precision, envs, *(f"{s:.3f}" for s in (seconds["cem"], seconds["cem"] / envs)))
                cells += (f"{seconds['bare']:.3f}", f"{floor:.3f}", f"{floor / seconds['cem']:.0%}")
                print("".join(f"{cell:>12}" for cell in cells), flush=True)


def measure(turns: dict, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each turn, the turns taken alternately after one of each to warm up."""
    seconds = {name: [] for name in turns}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, turn in turns.items():
                wait(device)
                began = time.perf_counter()
                turn()
                wait(device)
                if number:
                    seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def work(model: WorldModel, planner: CEM) -> float:
    """Floating point operations of one environment's decision in matrix products."""
    d: Any = model.dynamics
    used = [d.from_stoch, d.from_action, d.cell, d.prior]
    weights = [p for part in [*used, model.reward_head] for p in part.parameters() if p.ndim == 2]
    return 2.0 * sum(p.numel() for p in weights) * planner.iterations * planner.candidates * planner.horizon


def flops(kind: torch.dtype, device: str, size: int = 1024) -> float:
    """Operations a second in a product of large matrices."""
    matrix, times = torch.randn(size, size, device=device, dtype=kind), []
    for _ in range(4):
        wait(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        wait(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def bare(model: WorldModel, planner: CEM, envs: int) -> torch.Tensor:
    """The same search without anything of ours but the weights."""
    d: Any = model.dynamics
    linear = functional.linear
    layers: Any = [layer for layer in model.reward_head.layers if isinstance(layer, torch.nn.Linear)]
    rows, hidden, device = envs * planner.candidates, d.deter_size, d.cell.bias.device
    mean = torch.zeros(envs, 1, planner.horizon, ACTION, device=device)
    std = torch.ones_like(mean)
    for _ in range(planner.iterations):
        noise = torch.randn(envs, planner.candidates, planner.horizon, ACTION, device=device)
        actions = (mean + std * noise).clamp(-1, 1)
        h, z = torch.zeros(rows, hidden, device=device), torch.zeros(rows, 30, device=device)
        total = torch.zeros(rows, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=planner.precision == "bfloat16"):
            for action in actions.view(rows, planner.horizon, ACTION).unbind(1):
                x = torch.relu(linear(z, d.from_stoch.weight) + d.from_action(action))
                share = linear(x, d.cell.input_weight, d.cell.bias)
                gates = torch.sigmoid(share[:, : 2 * hidden] + linear(h, d.cell.gate_weight))
                reset, update = gates.chunk(2, 1)
                new = torch.tanh(share[:, 2 * hidden :] + linear(reset * h, d.cell.candidate_weight))
                h = new + update * (h - new)
                center, raw = d.prior(h).chunk(2, 1)
                z = center + (functional.softplus(raw) + 0.1) * torch.randn(rows, 30, device=device)
                y = torch.cat([z, h], 1)
                for layer in layers[:-1]:
                    y = torch.relu(layer(y))
                total = total + layers[-1](y)[:, 0]
        chosen = total.view(envs, -1).topk(planner.elites, 1).indices
        elites = actions.gather(1, chosen[:, :, None, None].expand(-1, -1, planner.horizon, ACTION))
        mean = elites.mean(1, keepdim=True)
        std = (elites.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    return mean[:, 0, 0]


if __name__ == "__main__":
    main()
