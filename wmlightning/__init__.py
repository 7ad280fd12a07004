"""World Models, PlaNet and Dreamer as PyTorch Lightning modules, on one data format and one training loop.

    wmlightning.VAE, MDNRNN, CMAESController     the stages of World Models; `X.load_from_checkpoint(path)` rebuilds one
    wmlightning.WorldModel, PlaNet               the stages of PlaNet
    wmlightning.ActorCritic, Dreamer             the actor and critic of Dreamer V1 and V2, and the agent
    wmlightning.load(path)                       rebuilds whatever stage a checkpoint holds
    wmlightning.build(config, **overrides)       the command line without running it: model, data and trainer
    wmlightning.evaluate(agent, ...)             mean return over many episodes, with its interval

Names are imported when first used, so that `import wmlightning` and `wmlightning --help` are quick.
"""

import importlib
from typing import Any

_HOMES = {
    "VAE": "wmlightning.stages.vae",
    "MDNRNN": "wmlightning.stages.mdn_rnn",
    "CMAESController": "wmlightning.stages.controller",
    "WorldModel": "wmlightning.stages.world_model",
    "PlaNet": "wmlightning.stages.planet",
    "ActorCritic": "wmlightning.stages.actor_critic",
    "Dreamer": "wmlightning.stages.dreamer",
    "load": "wmlightning.stages.checkpoints",
    "build": "wmlightning.cli.lightning",
    "evaluate": "wmlightning.tools.evaluate",
}

# pyright: reportUnsupportedDunderAll=false
__all__ = [
    *("ActorCritic", "CMAESController", "Dreamer", "MDNRNN", "PlaNet", "VAE", "WorldModel"),
    *("build", "evaluate", "load"),
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wmlightning' has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
