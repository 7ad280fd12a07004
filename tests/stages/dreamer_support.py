"""What the tests of the Dreamers share: tiny ones of every kind, and windows to learn from."""

import torch

from datamodules import EpisodeDataModule, UniformWindows, WindowDataset
from datamodules.episode import Batch
from wmlightning.distributions.bounded import OneHot, TanhNormal, TruncatedNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import RSSM, SSM
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.target import TargetNetwork
from wmlightning.objectives.actor import DynamicsBackprop, Mixed, Reinforce
from wmlightning.objectives.divergence import BalancedKL, FreeNatsKL
from wmlightning.stages.actor_critic import ActorCritic
from wmlightning.stages.dreamer import Dreamer
from wmlightning.stages.world_model import WorldModel

DOTS = EnvFactory("wmlightning/DummyPixels-v0", time_limit=12)
CORRIDOR = EnvFactory("wmlightning/DummyCorridor-v0", time_limit=12)


def _v2(actor, objective, **changes):
    target = {"target": TargetNetwork(2, 1.0), "entropy": 1e-3}
    return {"actor": actor, "objective": objective} | target | changes


def kinds():
    """The actor-critic of each kind, by name."""
    return {
        "v1": {"actor": TanhNormal(), "objective": DynamicsBackprop(), "include_start": False},
        "v1 without a value": {"actor": TanhNormal(), "objective": DynamicsBackprop(), "has_critic": False},
        "v1 discrete": {"actor": OneHot(), "objective": DynamicsBackprop(), "include_start": False, "discount": 1.0},
        "v2 atari": _v2(OneHot(), Reinforce(), discount=1.0),
        "v2 atari's code": _v2(OneHot(), Reinforce(), discount=1.0, shifted=True),
        "v2 dmc": _v2(TruncatedNormal(), DynamicsBackprop()),
        "v2 mixed": _v2(TruncatedNormal(), Mixed(0.1)),
    }


KINDS = list(kinds())


def world(kind="v1", action_size=2, dynamics=RSSM, **changes):
    """A tiny world model with the habits of this kind of Dreamer."""
    options = {"depth": 2, "reward_layers": 1, "reward_units": 8, "activation": "elu", "pixels": "centred"}
    if kind.startswith("v1"):
        latent, options["kl"], cell = GaussianLatent(3), FreeNatsKL(0.01, per_element=False), "keras_gru"
    else:
        latent, options["kl"], cell = CategoricalLatent(3, 4), BalancedKL(0.8, 0.01), "layer_norm_gru"
    if "discrete" in kind or "atari" in kind:
        options |= {"cont_layers": 1, "cont_units": 8, "cont_scale": 5.0, "cont_label": 0.99, "reward_squash": "tanh"}
    settings = {"activation": "elu", "hidden_size": 8}
    if dynamics is not SSM:
        settings |= {"deter_size": 8, "cell": cell}
    return WorldModel(dynamics(latent, action_size, 64, **settings), **options | changes)


def actor_critic(kind="v1", **changes):
    """A tiny actor-critic of this kind."""
    sizes = {"actor_layers": 1, "actor_units": 8, "critic_layers": 1, "critic_units": 8, "horizon": 4}
    return ActorCritic(**sizes | kinds()[kind] | changes)


def dreamer(kind="v1", seed=0, **changes):
    """A tiny Dreamer of this kind; what its parts take goes to them."""
    torch.manual_seed(seed)
    behaviour = actor_critic(kind, **changes.pop("behaviour", {}))
    environment = CORRIDOR if behaviour.distribution.discrete else DOTS
    size = 3 if behaviour.distribution.discrete else 2
    model = changes.pop("world_model", None) or world(kind, size, **changes.pop("model", {}))
    return Dreamer(model, behaviour, **{"environment": environment} | changes)


def windows(rows=3, time=4, seed=0, action_size=2, terminal=(), channels=3):
    """A batch of noise; `terminal` lists the (row, t) at which an episode ended by itself."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, time, 64, 64, channels), dtype=torch.uint8, generator=generator)
    action, reward = (torch.randn(rows, time, n, generator=generator).clamp(-1, 1) for n in (action_size, 1))
    first, ended = (torch.zeros(rows, time, dtype=torch.bool) for _ in range(2))
    for place in terminal:
        ended[place] = True
    return Batch({"image": image}, action, reward[..., 0], 1 - ended.float(), first, ended)


def windows_for(agent, **options):
    """Windows with the agent's actions."""
    return windows(action_size=agent.world_model.dynamics.action_size, **options)


def data(path, **changes):
    """A datamodule of short windows."""
    settings = {"batch_size": 3, "updates_per_epoch": 4, "validation_fraction": 0.0} | changes
    return EpisodeDataModule(str(path), WindowDataset(UniformWindows(4)), **settings)


def grads(loss, module):
    """The gradient of a loss to every weight of a module; None where there is none."""
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)


def moved(loss, module):
    """Whether a loss reaches every weight of a module, or none: True or False, None for some."""
    found = [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in grads(loss, module)]
    return True if all(found) else (None if any(found) else False)
