"""Writes the files beside it, with the version of commit 2c5b022: `python golden/2c5b022/freeze.py FOLDER`.

    old_stages.json.gz   every kind of stage: recipe, names of its weights, what it said and did
    old_runs.json.gz     what came of the collections and runs below where they were not cut
    store/               collections that were begun, by each of the policies and by an agent with noise, gzip
    online/              a Dreamer's fit that was stopped in the middle of its second epoch
    run/                 a pipeline's run that was stopped in the middle of M;  run_later/: the same, in the middle of C

Weights of stages follow from their names (`old_things.filled`); counters and other whole numbers are kept. To write it
anew would be to forget what that version wrote: a newer version gets a folder of its own.
"""

import gzip
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning
import torch
import yaml
from old_things import acted, digests, episodes_in, filled, machine, said, summed_up, weighed

from wmlightning import MDNRNN, VAE, ActorCritic, CMAESController, Dreamer, PlaNet, WorldModel, load
from wmlightning.__main__ import main
from wmlightning.distributions.bounded import OneHot, TanhNormal, TruncatedNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import MDNLSTM, RNN, RSSM, SSM
from wmlightning.environments.dream import Dream
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.target import TargetNetwork
from wmlightning.objectives.actor import DynamicsBackprop, Mixed, Reinforce
from wmlightning.objectives.contrastive import Contrastive
from wmlightning.objectives.divergence import BalancedKL, FreeNatsKL
from wmlightning.objectives.overshooting import LatentOvershooting, ObservationOvershooting
from wmlightning.planners.cem import CEM
from wmlightning.policies.behaviour import Fading
from wmlightning.recipes import recipe_of
from wmlightning.stages.stage import Stage

DOTS = EnvFactory("wmlightning/DummyPixels-v0", time_limit=12)
CORRIDOR = EnvFactory("wmlightning/DummyCorridor-v0", time_limit=12)
STARTS = 5
"""First frames that a dream may begin at."""

# --------------------------------------------------------------------------------------------------------------- stages


def vaes() -> dict[str, Stage]:
    """V: plain, and with every setting another."""
    return {
        "vae": VAE(4, depth=1),
        "vae, grey": VAE(3, channels=1, depth=2, kl_tolerance=0.0, learning_rate=1e-3, mean_colour=True, seed=3),
    }


def memory(discrete: bool = False, **options: Any) -> MDNRNN:
    """A tiny M."""
    return MDNRNN(VAE(4, depth=1), MDNLSTM(4, 3 if discrete else 2, 8, 2), **options)


def memories() -> dict[str, Stage]:
    """M: plain, with all heads and curiosity, with discrete actions and told where episodes begin."""
    heads = {"reward_head": True, "done_head": True}
    curious = heads | {"action_head": "continuous", "reward_scale": 0.5, "curiosity": 0.3, "stateful": True}
    told = MDNRNN(
        VAE(4, depth=1), MDNLSTM(4, 3, 8, 3, input_is_first=True), learning_rate_decay=0.999, action_head="discrete"
    )
    return {"mdn_rnn": memory(), "mdn_rnn, all heads": memory(**curious), "mdn_rnn, discrete": told}


def controllers() -> dict[str, Stage]:
    """C: in real environments and in dreams, seeing z, zh and zch."""
    heads = {"reward_head": True, "done_head": True}
    small = {"population": 4, "episodes": 2, "evaluation_episodes": 3, "num_workers": 0}
    counted = Dream("codes", temperature=1.15, max_steps=9, reward="head", done=0.4)
    alive = Dream("codes", max_steps=9, reward="alive", done=0.35)
    paid = Dream("codes", max_steps=5, reward=4)
    return {
        "controller, z": CMAESController(memory(), DOTS, features="z", hidden_size=5, **small),
        "controller, zh, discrete": CMAESController(memory(discrete=True), CORRIDOR, seeds="antithetic", **small),
        "controller, dream, zh": CMAESController(memory(**heads), DOTS, counted, features="zh", seed=2, **small),
        "controller, dream, zch": CMAESController(memory(**heads), DOTS, alive, features="zch", bias=False, **small),
        "controller, dream, discrete": CMAESController(
            memory(discrete=True), CORRIDOR, paid, features="zh", seeds="independent", **small
        ),
    }


def world(dynamics: Any = None, v2: bool = False, action_size: int = 2, **options: Any) -> WorldModel:
    """A tiny world model with the habits of PlaNet or Dreamer V1, or of V2."""
    if dynamics is None:
        latent = CategoricalLatent(3, 4) if v2 else GaussianLatent(3)
        dynamics = RSSM(latent, action_size, 32, 8, 8, "layer_norm_gru" if v2 else "gru", "elu" if v2 else "relu")
    options = {"reward_layers": 1, "reward_units": 8, "kl": BalancedKL(0.8, 0.01) if v2 else None} | options
    return WorldModel(dynamics, depth=1, **options)


def world_models() -> dict[str, Stage]:
    """PlaNet's designs and objectives, and what Dreamers' world models have beyond."""
    centred: dict[str, Any] = {"pixels": "centred", "conv_activation": "elu", "activation": "elu"}
    ends: dict[str, Any] = {"cont_layers": 1, "cont_units": 8, "cont_scale": 5.0, "cont_label": 0.99}
    contrast = Contrastive(layers=1, units=8)
    keras = RSSM(GaussianLatent(3, min_std=0.01), 2, 32, 8, 8, "keras_gru", "elu")
    return {
        "world_model, rssm": world(kl=FreeNatsKL(0.5)),
        "world_model, rnn": world(RNN(GaussianLatent(3), 2, 32, 8, 8, prior_error=0.7)),
        "world_model, ssm": world(SSM(GaussianLatent(3), 2, 32, 8)),
        "world_model, keras, free nats of the whole": world(keras, kl=FreeNatsKL(0.1, per_element=False), **centred),
        "world_model, categorical": world(v2=True, reward_squash="tanh", **centred, **ends),
        "world_model, categorical, grey": world(v2=True, channels=1, stop_reward_gradients=True, **centred),
        "world_model, contrastive": world(stop_image_gradients=True, contrastive=contrast, contrastive_scale=2.0),
        "world_model, reward only": world(stop_image_gradients=True, reward_scale=100.0),
        "world_model, latent overshooting": world(overshooting=LatentOvershooting(2, 0.5, 3.0), global_prior=0.1),
        "world_model, observation overshooting": world(overshooting=ObservationOvershooting(3, 0.5), kl_scale=0.3),
        "world_model, discrete, warmed up": world(action_size=3, warmup=10, decay=1e-6),
    }


def planets() -> dict[str, Stage]:
    """PlaNet, planning in two designs."""
    small = CEM(horizon=3, candidates=20, elites=5, iterations=2)
    return {
        "planet": PlaNet(world(), small, DOTS),
        "planet, ssm": PlaNet(world(SSM(GaussianLatent(3), 2, 32, 8)), small, DOTS, exploration=0.1, seed=4),
    }


SIZES: dict[str, Any] = {"actor_layers": 1, "actor_units": 8, "critic_layers": 1, "critic_units": 8, "horizon": 4}
SLOW: dict[str, Any] = {"target": TargetNetwork(2, 1.0), "entropy": 1e-2}


def actor_critics() -> dict[str, Stage]:
    """Actor and critic outside of an agent."""
    known = SIZES | {"action_size": 2, "feature_size": 6}
    slow = known | {"target": TargetNetwork(3, 0.5)}
    return {
        "actor_critic": ActorCritic(TanhNormal(), DynamicsBackprop(), **known),
        "actor_critic, discrete": ActorCritic(OneHot(), Reinforce(), **slow),
        "actor_critic, no critic": ActorCritic(TruncatedNormal(), DynamicsBackprop(), has_critic=False, **known),
    }


def dreamers() -> dict[str, Stage]:
    """V1 and V2, for numbers and for choices."""
    v1: dict[str, Any] = SIZES | {"actor": TanhNormal(), "objective": DynamicsBackprop(), "include_start": False}
    heads: dict[str, Any] = {"cont_layers": 1, "cont_units": 8, "cont_scale": 5.0, "reward_squash": "tanh"}
    centred: dict[str, Any] = {"pixels": "centred", "activation": "elu"}

    def v1_world(action_size: int = 2, **options: Any) -> WorldModel:
        return world(RSSM(GaussianLatent(3), action_size, 32, 8, 8, "keras_gru", "elu"), **centred, **options)

    def v2_world(action_size: int = 2, **options: Any) -> WorldModel:
        return world(v2=True, action_size=action_size, **centred, **options)

    choices = SIZES | {"actor": OneHot(), "objective": Reinforce(), "discount": 1.0}
    mixed = SIZES | {"actor": TruncatedNormal(), "objective": Mixed(0.1)}
    fading = Fading(0.4, 0.1, 20)
    return {
        "dreamer, v1": Dreamer(v1_world(), ActorCritic(**v1), DOTS, exploration=0.3),
        "dreamer, v1, no critic": Dreamer(v1_world(), ActorCritic(**v1, has_critic=False), DOTS),
        "dreamer, v1, discrete": Dreamer(
            v1_world(3, **heads, cont_label=0.99),
            ActorCritic(**v1 | {"actor": OneHot(), "discount": 1.0}),
            CORRIDOR,
            epsilon=fading,
        ),
        "dreamer, v1, resting world": Dreamer(v1_world(), ActorCritic(**v1), DOTS, learn_model=False),
        "dreamer, v2, discrete": Dreamer(
            v2_world(3, **heads, cont_label=0.99), ActorCritic(**choices, **SLOW), CORRIDOR, epsilon=fading
        ),
        "dreamer, v2, discrete, shifted": Dreamer(
            v2_world(3, **heads), ActorCritic(**choices, **SLOW, shifted=True), CORRIDOR, seed=6
        ),
        "dreamer, v2, mixed": Dreamer(v2_world(), ActorCritic(**mixed, **SLOW), DOTS, exploration=0.1),
    }


def frozen(stage: Any, folder: Path) -> dict[str, Any]:
    """What is kept of a stage, asked of it after it was written as a checkpoint and read again."""
    kind = type(stage).__name__
    if getattr(stage, "dream", None) is not None:
        stage.games.starts = torch.zeros(STARTS, 8)
    for name in ("return_best", "dream_return"):  # counters, of which some begin at infinity
        if hasattr(stage, name):
            getattr(stage, name).fill_(2.5)
    for name in ("env_steps", "dream_steps", "updates"):
        if hasattr(stage, name):
            getattr(stage, name).fill_(7)
    weights, tensors = {}, {}
    for name, tensor in stage.state_dict().items():
        follows = tensor.dtype == torch.float32
        weights[name] = filled(name, list(tensor.shape)) if follows else tensor
        dtype = str(tensor.dtype).removeprefix("torch.")
        tensors[name] = [list(tensor.shape), dtype, None if follows else tensor.tolist()]
    path = folder / "stage.ckpt"
    torch.save({"recipe": recipe_of(stage), "state_dict": weights}, path)
    again = load(path)
    assert digests(again.state_dict().values()) == digests(weights.values())
    given = given_to(again)
    return {
        "kind": kind,
        "recipe": recipe_of(stage),
        "tensors": tensors,
        "given": given,
        "fingerprint": again.fingerprint() if kind == "VAE" else None,
        "actions": acted(again, given.get("channels", 3)) if hasattr(again, "policy") else None,
        "said": said(again, kind, given),
    }


def given_to(stage: Any) -> dict[str, Any]:
    """Which batch a stage is shown: see `old_things.batch_for`."""
    if isinstance(stage, VAE):
        return {"action_size": 2, "channels": stage.channels}
    if isinstance(stage, ActorCritic):
        return {"action_size": 2, "codes": 6}
    model = stage.model if isinstance(stage, CMAESController) else getattr(stage, "world_model", stage)
    size = model.dynamics.action_size
    given = {"action_size": size, "discrete": size == 3}
    if isinstance(model, MDNRNN):
        return given | {"codes": 4}
    return given | {"channels": model.channels}


def freeze_stages(out: Path, scratch: Path) -> None:
    """Writes old_stages.json.gz."""
    kinds = (vaes, memories, controllers, world_models, planets, actor_critics, dreamers)
    stages = {name: frozen(stage, scratch) for kind in kinds for name, stage in kind().items()}
    write(out / "old_stages.json.gz", {"machine": machine(), "lightning": lightning.__version__, "stages": stages})


# ----------------------------------------------------------------------------------------------------------------- runs

PIXELS = {"class_path": "EnvFactory", "init_args": {"id": "wmlightning/DummyPixels-v0", "time_limit": 6, "crop": None}}
NOISE = {"class_path": "SmoothNoisePolicy", "init_args": {"action_size": 2, "timescale": 3.0, "scale": 0.25}}
COLLECTION = {"environment": PIXELS, "episodes": 3, "seed": 3, "num_envs": 2, "compression": "gzip"}
CHOICES = {"class_path": "EnvFactory", "init_args": {"id": "wmlightning/DummyCorridor-v0", "time_limit": 5, "size": 8}}
HELD = {"class_path": "HeldActionsPolicy", "init_args": {"action_size": 3, "max_hold": 3, "discrete": True}}
NETWORK = {"class_path": "RandomNetworkPolicy", "init_args": {"action_size": 2, "latent_size": 4, "hidden_size": 8}}
CONSTANT = {"class_path": "ConstantPolicy", "init_args": {"action": [0.3, -0.25]}}
COLLECTIONS = {
    "noise": COLLECTION | {"path": "noise", "policy": NOISE},
    "held": COLLECTION | {"path": "held", "policy": HELD, "environment": CHOICES},
    "network": COLLECTION | {"path": "network", "policy": NETWORK},
    "constant": COLLECTION | {"path": "constant", "policy": CONSTANT},
    "agent": COLLECTION | {"path": "agent", "agent": "agent.ckpt", "noise": NOISE},
}
EVERY_BATCH = {"class_path": "LastCheckpoint", "init_args": {"seconds": 0}}
SMALL_TRAINER = {"accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False}

ONLINE_CUT, ONLINE_END = 6, 10
"""Updates after which the online run is stopped, and those of the whole run; an epoch has four."""
FIT: dict[str, Any] = {
    "seed_everything": 5,
    "model": {
        "class_path": "Dreamer",
        "init_args": {
            "environment": {"class_path": "EnvFactory", "init_args": PIXELS["init_args"] | {"action_repeat": 2}},
            "exploration": 0.3,
            "world_model": {
                "class_path": "WorldModel",
                "init_args": {
                    "dynamics": {
                        "class_path": "RSSM",
                        "init_args": {
                            "latent": {"class_path": "GaussianLatent", "init_args": {"size": 3}},
                            "action_size": 2,
                            "embed_size": 32,
                            "deter_size": 8,
                            "hidden_size": 8,
                            "cell": "keras_gru",
                            "activation": "elu",
                        },
                    },
                    "kl": {"class_path": "FreeNatsKL", "init_args": {"free_nats": 0.1, "per_element": False}},
                    "depth": 1,
                    "pixels": "centred",
                    "reward_layers": 1,
                    "reward_units": 8,
                    "cont_layers": 1,
                    "cont_units": 8,
                    "warmup": 3,
                },
            },
            "actor_critic": {
                "class_path": "ActorCritic",
                "init_args": SIZES
                | {
                    "actor": {"class_path": "TanhNormal"},
                    "objective": {"class_path": "DynamicsBackprop"},
                    "target": {"class_path": "TargetNetwork", "init_args": {"every": 3, "share": 0.5}},
                    "include_start": False,
                    "actor_learning_rate": 1e-3,
                    "critic_learning_rate": 1e-3,
                },
            },
        },
    },
    "data": {
        "class_path": "EpisodeDataModule",
        "init_args": {
            "path": "run/episodes",
            "dataset": {
                "class_path": "WindowDataset",
                "init_args": {"sampler": {"class_path": "UniformWindows", "init_args": {"length": 3}}},
            },
            "batch_size": 2,
            "updates_per_epoch": 4,
            "validation_fraction": 0.0,
            "compression": "gzip",
        },
    },
    "trainer": SMALL_TRAINER
    | {
        "default_root_dir": "run",
        "max_steps": ONLINE_END,
        "callbacks": [
            {
                "class_path": "Collect",
                "init_args": {"prefill_episodes": 2, "prefill_policy": NOISE, "episodes_per_epoch": 1, "num_envs": 2},
            },
            {"class_path": "Evaluate", "init_args": {"every_epochs": 1, "episodes": 2, "num_envs": 2, "video": False}},
            EVERY_BATCH,
        ],
    },
}

QUIET = {f"trainer.{key}": value for key, value in SMALL_TRAINER.items()} | {"trainer.callbacks": [EVERY_BATCH]}
TESTED = QUIET | {"trainer.limit_test_batches": 1}
DATA = {"data.batch_size": 2, "data.updates_per_epoch": 4, "data.validation_batches": 1}
V_END, M_CUT, M_END, C_CUT, C_END = 0, 5, 10, 3, 5
"""Updates of the pipeline's stages, and those at which they are stopped. V learns nothing: its file is smaller so."""
LONGER = {"vae": 5, "mdn_rnn": 14}
"""Updates up to which finished stages are trained on."""
PIPELINE: dict[str, Any] = {
    "base": "world_models/carracing.yaml",
    "environment": {"class_path": "EnvFactory", "init_args": PIXELS["init_args"] | {"time_limit": 8, "kwargs": None}},
    "stages": {
        "collect": {
            "set": {"policy": NOISE, "episodes": 4, "num_envs": 2, "num_workers": 0, "compression": "gzip"},
        },
        "vae": {"set": {"model.latent_size": 4, "model.depth": 1, "trainer.max_steps": V_END} | DATA | TESTED},
        "mdn_rnn": {
            "set": {
                "model.dynamics": {
                    "class_path": "MDNLSTM",
                    "init_args": {"latent_size": 4, "action_size": 2, "hidden_size": 8, "mixtures": 2},
                },
                "model.reward_head": True,
                "model.done_head": True,
                "model.learning_rate_decay": 0.9,
                "model.stateful": True,
                "data.dataset.sampler": {"class_path": "ConsecutiveWindows", "init_args": {"length": 4}},
                "trainer.max_steps": M_END,
            }
            | DATA
            | TESTED
        },
        "controller": {
            "set": {
                "model.dream": {"class_path": "Dream", "init_args": {"starts": "{run}/codes", "max_steps": 6}},
                "model.population": 4,
                "model.episodes": 2,
                "model.evaluate_every": 2,
                "model.evaluation_episodes": 2,
                "model.num_envs": 2,
                "model.num_workers": 0,
                "trainer.max_steps": C_END,
            }
            | QUIET
        },
        "evaluate": {
            "set": {
                "episodes": 2,
                "num_envs": 2,
                "num_workers": 0,
                "video": None,
                "baselines": {
                    "random": NOISE,
                    "zero": {"class_path": "ConstantPolicy", "init_args": {"action": [0, 0]}},
                },
            },
        },
    },
}


@contextmanager
def stopped_after(kind: type[Stage], batches: int) -> Iterator[None]:
    """Asks this process to stop (SIGTERM) when a stage has learned from so many batches."""
    learn, done = kind.training_step, 0

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal done
        loss, done = learn(self, batch, batch_idx), done + 1
        if done == batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    kind.training_step = training_step
    try:
        yield
    finally:
        kind.training_step = learn


def do(*words: str, stops: bool = False) -> None:
    """Runs a command of `wmlightning`, which must end well, or be stopped."""
    status = main(list(words))
    assert status == (130 if stops else 0), (words, status)


def freeze_store(out: Path, scratch: Path) -> dict[str, Any]:
    """Writes store/; gives the episodes of the whole collections."""
    out.mkdir()
    stage = CMAESController(MDNRNN(VAE(2, depth=1), MDNLSTM(2, 2, 4, 1)), DOTS, features="z", num_workers=0)
    weights = {name: filled(name, list(tensor.shape)) for name, tensor in stage.named_parameters()}
    for name in weights:  # which acting never runs
        if ".decoder." in name:
            weights[name] = torch.zeros_like(weights[name])
    torch.save({"recipe": recipe_of(stage), "state_dict": stage.state_dict() | weights}, out / "agent.ckpt")
    whole = {}
    with chdir(out):
        for who, settings in COLLECTIONS.items():
            Path(f"{who}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
            do("collect", "-c", f"{who}.yaml", "--path", str(scratch / who))
            do("collect", "-c", f"{who}.yaml", "--episodes=1")
            whole[who] = episodes_in(scratch / who)
    return whole


def freeze_online(out: Path, scratch: Path) -> dict[str, Any]:
    """Writes online/; gives what the whole run came to, and what the agent did where it was cut."""
    last = "run/checkpoints/last.ckpt"
    for folder in (out, scratch):
        folder.mkdir()
        (folder / "fit.yaml").write_text(yaml.safe_dump(FIT, sort_keys=False))
    with chdir(scratch):
        do("fit", "-c", "fit.yaml")
        whole = {"cut": ONLINE_CUT, "weights": weighed(last), "episodes": episodes_in("run/episodes")}
    with chdir(out):
        with stopped_after(Dreamer, ONLINE_CUT):
            do("fit", "-c", "fit.yaml", stops=True)
        whole["actions"] = acted(load(last))
    return whole


def freeze_run(out: Path, later: Path, scratch: Path) -> dict[str, Any]:
    """Writes run/ and run_later/; gives what the whole run came to."""
    words, stages = ["run", "tiny.yaml", "--out", "run"], ("vae", "mdn_rnn", "controller")
    for folder in (out, scratch):
        folder.mkdir()
        (folder / "tiny.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
    with chdir(scratch):
        do(*words)
        whole: dict[str, Any] = {"weights": {stage: weighed(f"run/{stage}/checkpoints/last.ckpt") for stage in stages}}
        whole |= {"summary": summed_up("run"), "longer": {}}
        for stage, updates in LONGER.items():
            last = f"run/{stage}/checkpoints/last.ckpt"
            do("fit", "-c", f"run/{stage}/config.yaml", f"--ckpt_path={last}", f"--trainer.max_steps={updates}")
            whole["longer"][stage] = {"updates": updates, "weights": weighed(last)}
    with chdir(out), stopped_after(MDNRNN, M_CUT):
        do(*words, stops=True)
    shutil.copytree(out, later)
    with chdir(later), stopped_after(CMAESController, C_CUT):
        do(*words, stops=True)
    for path in [path for path in later.rglob("*") if path.is_file()]:
        same = out / path.relative_to(later)
        if same.exists() and same.read_bytes() == path.read_bytes():
            path.unlink()
    return whole


# ---------------------------------------------------------------------------------------------------------------- files


def write(path: Path, value: Any) -> None:
    """Writes packed JSON, the same bytes for the same value."""
    path.write_bytes(gzip.compress(json.dumps(value).encode(), mtime=0))


def tidy(folder: Path) -> None:
    """Leaves out what nothing goes on from, and packs checkpoints and episodes."""
    for path in sorted(folder.rglob("*"), reverse=True):
        unneeded = {"tensorboard", "pictures"} & set(path.relative_to(folder).parts)
        if path.is_file() and (unneeded or path.name in (".lock", "spent.json")):
            path.unlink()
        elif path.suffix in (".ckpt", ".h5"):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def freeze(out: Path) -> None:
    """Writes everything into a folder, where nothing of it may be yet."""
    torch.set_num_threads(1)
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    freeze_stages(out, scratch)
    runs = {
        "store": freeze_store(out / "store", scratch),
        "online": freeze_online(out / "online", scratch / "online"),
        "run": freeze_run(out / "run", out / "run_later", scratch / "run"),
    }
    write(out / "old_runs.json.gz", runs)
    shutil.rmtree(scratch)
    for name in ("store", "online", "run", "run_later"):
        tidy(out / name)


if __name__ == "__main__":
    freeze(Path(sys.argv[1]).absolute())
