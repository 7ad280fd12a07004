"""What is asked of things that an older version wrote: by `freeze.py`, with that version, and ever after by the tests.

Weights are not kept: they follow from the names that they had, see `filled`. Only the first part knows how a stage is
put together; where that changes, it is what must follow.
"""

import contextlib
import hashlib
import json
import math
import platform
import zlib
from pathlib import Path

import numpy as np
import torch

from datamodules import Batch, EpisodeStore

SEEDS = [11, 12, 13]
"""Of the three rows that act."""
ROWS, TIME = 3, 4
"""Of a batch that is learned from."""
AHEAD = 3
"""Steps of a dream."""


# ----------------------------------------------------------------- the only lines that know how a stage is put together


def of_vae(stage, batch):
    torch.manual_seed(1)
    parts = stage.learn(batch)
    code = stage.encode(batch.observation["image"])
    drawn = stage.decode(code[..., : stage.latent_size])
    return parts | {"code": sums(code), "drawn": pictures(drawn), "gradient": gradient(parts["loss"], stage)}


def of_mdn_rnn(stage, batch):
    torch.manual_seed(1)
    parts = stage.learn(batch)
    found = parts | {"gradient": gradient(parts["loss"], stage)}
    images = {f"{name} of images": part for name, part in stage.learn(with_images(batch)).items()}
    seen, _ = stage.dynamics.observe(stage.embeds(batch), batch.action, batch.is_first)
    return found | images | dreamt(stage, seen, batch)


def of_world_model(stage, batch):
    torch.manual_seed(1)
    learned = stage.learn(batch)
    found = {"gradient": gradient(learned.loss, stage), "features": sums(learned.posterior.features)}
    return learned.metrics | found | dreamt(stage, stage.observe(batch).posterior, batch)


def of_planet(stage, batch):
    return of_world_model(stage.world_model, batch)


def of_actor_critic(stage, batch):
    features = batch.observation["mean"]
    found = {"actor": stage.actor(features)}
    if stage.critic is not None:
        found |= {"critic": stage.critic(features), "target": stage.target.of(stage.critic)(features)}
    return found


def of_dreamer(stage, batch):
    torch.manual_seed(1)
    learned, model, behaviour = stage.learn_dynamics(batch), stage.world_model, stage.actor_critic
    start = learned.posterior.flatten().detach()
    cont = model.cont_head.target(batch.cont).flatten()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    behaved = behaviour.learn(model, behaviour.imagine(model, start, cont))
    found = {"behaviour gradient": gradient(behaved.actor_loss + behaved.critic_loss, behaviour)}
    for weight in learning:
        weight.requires_grad_(True)
    if learning:
        found["gradient"] = gradient(learned.loss, model)
    return learned.metrics | behaved.metrics | found | dreamt(model, model.observe(batch).posterior, batch)


def of_controller(stage, batch):
    found = {"generation": stage.generation_seeds(2), "evaluation": stage.evaluation_seeds()}
    if stage.dream is not None:
        found |= {f"dreamt, {explore}": stage.dreamt_returns([5, 6, 7, 8, 9], explore) for explore in (False, True)}
    return found


def dreamt(model, seen, batch):
    """What a world model draws and promises when it goes on from the last row of a window with the first actions."""
    with torch.no_grad():
        features = model.dynamics.imagine(seen.detach()[:, -1], batch.action[:, :AHEAD]).features
        found = {"dreamt features": sums(features), "dreamt pictures": pictures(model.decode(features))}
        found["dreamt cont"] = model.cont(features).mean
        with contextlib.suppress(ValueError):  # of an M without that head
            found["dreamt reward"] = model.reward(features).mean
    return found


SAID = {
    "VAE": of_vae,
    "MDNRNN": of_mdn_rnn,
    "CMAESController": of_controller,
    "WorldModel": of_world_model,
    "PlaNet": of_planet,
    "ActorCritic": of_actor_critic,
    "Dreamer": of_dreamer,
}
"""What a stage says of a batch, by the name of its class."""


# ------------------------------------------------------------------------------------ what is shown, and how it is told


def pictures(images):
    """The sum of every picture, (..., H, W, C) to (...)."""
    return images.detach().double().sum((-3, -2, -1))


def sums(features):
    """One number for every vector, (..., F) to (...), to which each of its numbers counts differently."""
    return (features.detach().double() * torch.arange(1, features.shape[-1] + 1)).sum(-1)


def gradient(loss, module):
    """The norm of a loss's gradient to all weights that learn, whatever their names and their order."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return math.sqrt(math.fsum(float(one.double().square().sum()) for one in found if one is not None))


def filled(name, shape):
    """The weights of a name: float32, a function of the name in the OLD version's `state_dict` and of nothing else."""
    numbers = np.random.default_rng([zlib.crc32(name.encode()), 0]).standard_normal(shape) * 0.3
    return torch.from_numpy(np.asarray(numbers, np.float32))


def batch_for(action_size, discrete=False, channels=3, codes=None, seed=0):
    """A batch of noise with an end, and a beginning in the middle; `codes`: of so many numbers, beside the images."""
    rng = np.random.default_rng(seed)
    observation = {"image": torch.from_numpy(rng.integers(0, 256, (ROWS, TIME, 64, 64, channels), np.uint8))}
    action = rng.uniform(-1, 1, (ROWS, TIME, action_size)).astype(np.float32)
    if discrete:
        action = np.eye(action_size, dtype=np.float32)[action.argmax(-1)]
    reward = rng.standard_normal((ROWS, TIME)).astype(np.float32)
    if codes:
        for name in ("mean", "logvar"):
            observation[name] = torch.from_numpy(rng.standard_normal((ROWS, TIME, codes)).astype(np.float32))
    first, ended = torch.zeros(ROWS, TIME, dtype=torch.bool), torch.zeros(ROWS, TIME, dtype=torch.bool)
    first[0, 0] = first[1, 2] = ended[1, 1] = ended[2, 3] = True
    action, reward = torch.from_numpy(action), torch.from_numpy(reward)
    return Batch(observation, action, reward, 1 - ended.float(), first, ended)


def with_images(batch):
    """The same batch without its codes."""
    image = {"image": batch.observation["image"]}
    return Batch(image, batch.action, batch.reward, batch.cont, batch.is_first, batch.is_terminal)


def said(stage, kind, given):
    """All numbers that a stage says of its batch, as lists."""
    found = SAID[kind](stage, batch_for(**given))
    return {name: numbers(value) for name, value in found.items()}


def acted(stage, channels=3, seed=5):
    """Three steps of a policy in three rows, one of which begins anew at the third, as lists."""
    rng, actions = np.random.default_rng(seed), {}
    images = rng.integers(0, 256, (3, 3, 64, 64, channels), np.uint8)
    is_first = np.array([[True, True, True], [False, False, False], [False, True, False]])
    for explore in (False, True):
        policy = stage.policy(explore=explore)
        carry, made = policy.initial(3, SEEDS), []
        for image, first in zip(images, is_first, strict=True):
            action, carry = policy({"image": image}, first, carry)
            made.append(action)
        actions["exploring" if explore else "calm"] = numbers(np.stack(made))
    return actions


def numbers(value):
    """Numbers as nested lists that JSON gives back exactly."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    return np.asarray(value, np.float64).tolist()


def digests(tensors):
    """A digest of every tensor, sorted: names and their order play no part."""
    found = []
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous().numpy()
        found.append(hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).hexdigest()[:16])
    return sorted(found)


def weighed(path):
    """The weights in a checkpoint: digests, and what of them survives rounding."""
    weights = torch.load(path, weights_only=True)["state_dict"].values()
    norms = sorted(float(weight.double().norm()) for weight in weights if weight.numel())
    return {"digests": digests(weights), "norms": norms}


def summed_up(run):
    """The numbers in a run's summary.json, but for those that tell the time."""
    sections = json.loads(Path(run, "summary.json").read_text())
    sections.pop("seconds")
    return {
        name: {key: value for key, value in section.items() if value is not None} for name, section in sections.items()
    }


def episodes_in(folder):
    """The episodes of a store by file name: a digest of the pictures, and all other numbers."""
    store, found = EpisodeStore(folder), {}
    for place, name in enumerate(store.names):
        episode = store.read(place)
        arrays = [torch.from_numpy(episode.observation[key]) for key in sorted(episode.observation)]
        found[name] = {
            "observation": digests(arrays),
            "action": numbers(episode.action),
            "reward": numbers(episode.reward),
            "is_terminal": numbers(episode.is_terminal),
        }
    return found


def machine():
    """On what numbers depend to the last bit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = dict(tuple(part.strip() for part in line.partition(":")[::2]) for line in lines if ":" in line)
    kinds = [named.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": capability, "processor": " ".join(kinds).strip() or platform.processor()}
