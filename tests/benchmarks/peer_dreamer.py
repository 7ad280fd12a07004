"""One side of `bench_dreamer.py`: gradient steps of sheeprl 0.8.4's Dreamers, run by an interpreter that has it.

    python tests/benchmarks/peer_dreamer.py v2 16 50 8

Its own `build_agent`, optimizers and `train`, from its own configuration of Atari (V2) and its defaults (V1), whose one
size that is not the paper's, 400 units before the memory instead of 200, is set to ours. It computes no metrics.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import dreamer_turns
import gymnasium
import hydra
import numpy as np
import sheeprl
import torch
from lightning import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v2.utils import build_optimizer
from sheeprl.utils.utils import dotdict

OVERRIDES = {
    "v1": ["exp=dreamer_v1", "algo.world_model.recurrent_model.dense_units=200"],
    "v2": ["exp=dreamer_v2_ms_pacman"],
}


def build(version: str, rows: int, time: int) -> dreamer_turns.Side:
    """Its agent, and its own function for a step."""
    setting = dreamer_turns.SETTINGS[version]
    sizes = [f"algo.per_rank_batch_size={rows}", f"algo.per_rank_sequence_length={time}"]
    with hydra.initialize_config_dir(str(Path(sheeprl.__file__).parent / "configs"), version_base="1.3"):
        composed = hydra.compose("config", OVERRIDES[version] + sizes)
    # The folders of a run are named by hydra's own launcher, which is not at work here.
    composed.run_name, composed.root_dir = "bench", "bench"
    cfg = dotdict(OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
    # As its command does before anything else.
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    torch.distributions.Distribution.set_default_validate_args(cfg.distribution.validate_args)

    pixels = gymnasium.spaces.Box(0, 255, (setting.channels, 64, 64), np.uint8)
    fabric, name = Fabric(accelerator="cpu", devices=1), f"sheeprl.algos.dreamer_{version}"
    arguments = (setting.actions,), not setting.discrete, cfg, gymnasium.spaces.Dict({"rgb": pixels})
    # Without the player, and in V1 there is no target critic.
    *parts, _ = import_module(f"{name}.agent").build_agent(fabric, *arguments)
    learning = dict(zip(("world_model", "actor", "critic"), parts, strict=False))
    optimizers = [
        fabric.setup_optimizers(build_optimizer(cfg.algo[part].optimizer, module.parameters()))
        for part, module in learning.items()
    ]

    seen = dreamer_turns.observations(setting, rows, time)
    train = import_module(f"{name}.dreamer_{version}").train
    flags = torch.zeros(time, rows, 1)
    stored = {
        "rgb": seen.image.permute(1, 0, 4, 2, 3).contiguous(),
        "actions": seen.action.transpose(0, 1).contiguous(),
        "rewards": seen.reward.T[..., None].contiguous(),
        "terminated": flags,
        "is_first": flags,
    }
    tail = [(setting.actions,)] if version == "v2" else []

    def run(steps: int, tick: Callable[[], None]) -> None:
        for _ in range(steps):
            # As its `sample_batches` hands them over.
            data = {key: value.float() if key == "rgb" else value.clone() for key, value in stored.items()}
            train(fabric, *parts, *optimizers, data, None, cfg, *tail)
            tick()

    return run, sum(p.numel() for module in learning.values() for p in module.parameters() if p.requires_grad)


if __name__ == "__main__":
    dreamer_turns.take_turn(build, *sys.argv[1:])
