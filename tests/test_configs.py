"""Every YAML that ships builds, prints its help and takes one step; what it trains loads and acts."""

import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import wmlightning
from datamodules.store import EpisodeStore
from wmlightning.__main__ import main
from wmlightning.callbacks.schedule import CollectionProgress
from wmlightning.cli.commands import check_command
from wmlightning.cli.lightning import CommandLine
from wmlightning.pipeline.config import loop_of, read_config, read_pipeline, steps_of, sweep_of, table_of
from wmlightning.pipeline.run import summarize
from wmlightning.pipeline.tables import find
from wmlightning.recipes import recipe_of
from wmlightning.stages.requirements import preflight

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
PIPELINES = [name for name in NAMES if {"stages", "base"} & set(read_config(name)) and "debug" not in name]
DESIGNS = ["rnn", "ssm", "latent_overshooting", "observation_overshooting"]
OVERLAYS = ["debug.yaml", "world_models/debug_run.yaml", "planet/debug.yaml", "planet/random_collection.yaml"]
OVERLAYS += [f"planet/{name}.yaml" for name in DESIGNS]
AGENTS = ["planet/arxiv_v3.yaml", "planet/dmc.yaml", "planet/quick.yaml"]
V1 = ["contrastive", "no_value", "reward_only", "rnn", "ssm"]
V2 = ["dynamics_only", "gaussian_latents", "mixed", "no_image_gradients", "no_kl_balancing", "no_layer_norm"]
V2 += ["no_reward_gradients", "reinforce_only"]
OVERLAYS += [
    "dreamer_debug.yaml",
    *(f"dreamer_v1/{name}.yaml" for name in V1),
    *(f"dreamer_v2/{name}.yaml" for name in V2),
]
DREAMERS = [f"dreamer_v1/{name}.yaml" for name in ("discrete", "dmc", "quick")]
DREAMERS += [f"dreamer_v2/{name}.yaml" for name in ("atari", "dmc", "quick", "quick_discrete")]
AGENTS += DREAMERS
STAGES = [name for name in NAMES if "model" in read_config(name) and name not in [*OVERLAYS, *AGENTS]]
FUNCTIONS = {"world_models/collect.yaml": "collect", "world_models/evaluate.yaml": "evaluate"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quickstart, every stage as small as it can be, on the real CarRacing."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    words = ["run", "world_models/quickstart", "--overlay", "world_models/debug_run", "--out", str(out)]
    assert main([*words, "--set", "collect.num_workers=0", "--set", "controller.model.num_workers=0"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    rows = table_of(read_pipeline("world_models/quickstart"))
    assert all(find(summary, place) is not None for row in rows for place in (row.value, row.baseline))
    return out


def test_every_file_is_of_a_kind_that_is_tested_here():
    known = [*PIPELINES, *STAGES, *AGENTS, *OVERLAYS, *FUNCTIONS, "world_models/codes.yaml"]
    assert sorted(known) == NAMES


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_commands_that_could_be_typed(name, capsys):
    steps = steps_of(read_pipeline(name), Path("somewhere"))
    names = [step.name for step in steps]
    assert names[:5] == ["collect", "vae", "encode", "mdn_rnn", "controller"]
    assert names[-1].rpartition("/")[2].startswith("evaluate")
    assert main(["run", name, "--out", "somewhere", "--dry-run"]) == 0
    typed = [line.removeprefix("wmlightning ") for line in capsys.readouterr().out.splitlines()]
    assert [shlex.split(line) for line in typed] == [words for step in steps for words in step.commands]
    with preflight():
        for line in typed:
            assert "{" + "run}" not in line
            check_command(shlex.split(line))


HELD = json.dumps({"class_path": "HeldActionsPolicy", "init_args": {"action_size": 2}})
SLIPS = {
    "evaluate.episodez=3": "episodez",
    "mdn_rnn.model.dynamics.init_args.action_size=2": "stage mdn_rnn: .*/codes: actions have 3 .*action_size=3",
    "vae.model.init_args.channels=1": r"stage vae: .*/episodes have uint8 images of \(64, 64, 3\) .*set channels to 3",
    "environment.init_args.size=96": "stage vae: .*record images of 64x64",
    "vae.data.init_args.validation_fraction=0": "stage vae: a test .*validation_fraction is 0",
    "encode.data.path=elsewhere": "stage encode: there is nothing in elsewhere and no stage before",
    "mdn_rnn.data.path=elsewhere": "stage mdn_rnn: there is nothing in elsewhere",
    "collect.episodes=1": "stage vae: the number of episodes in .* is 1 but a validation holds some of them out",
    "collect.compression=zip": "stage collect: compression",
    'vae.data.path="{rum}/episodes"': "stage vae .*nothing is named {rum}: write .*run",
    "mdn_rnn.data.dataset.sampler.length=400": "stage mdn_rnn: windows need 400 rows but .* have 151 at most",
    "mdn_rnn.data.dataset.sampler.length=1": "stage mdn_rnn: the sampler.s length is 1 but M predicts .* to 2 or more",
    "mdn_rnn.data.num_workers=-1": "num_workers is -1",
    "mdn_rnn.model.init_args.done_weight=-1": "done_weight is -1",
    f"collect.policy={HELD}": "stage collect: policy acts with 2 numbers but CarRacing-v3 takes 3",
    f"evaluate.baselines.random={HELD}": "stage evaluate: baseline random acts with 2 numbers",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_any_stage_stops_a_pipeline_before_its_first(slip, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", "world_models/quickstart", "--out", str(out), "--set", slip]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(SLIPS[slip], line)
    assert not out.exists()


@pytest.mark.parametrize("name", PIPELINES)
def test_every_number_in_a_pipelines_tables_is_measured_by_a_stage(name, tmp_path):
    pipeline = read_pipeline(name)
    steps = steps_of(pipeline, tmp_path)
    results = {}
    with preflight():
        for step in steps:
            command = step.commands[0]
            metrics = {"collected_env_steps"} if command[0] == "collect" else set()
            if command[0] == "fit":
                metrics = {
                    f"{step.section}/{key}" for key in getattr(CommandLine(command, check=True).model, "metrics", ())
                }
                metrics |= {"controller/dream_return"} if step.section == "controller" else set()
            else:
                check_command(command)
            if command[0] == "evaluate":
                scores = {"mean", "std", "ci95"}
                beside = {
                    key
                    for key in ("random", "zero", "stay")
                    if key in str(command) + str(read_config("world_models/evaluate"))
                }
                compared = {f"baselines.{key}.{score}" for key in beside for score in (*scores, "difference_ci95")}
                metrics = scores | compared | {f"dream.{score}" for score in scores}
            results[step.name] = {"metrics": dict.fromkeys(metrics, 1.0), "seconds": 0.0}
    summary = summarize(steps, results)
    sweep = sweep_of(pipeline)
    loop = loop_of(pipeline)
    places = [place for row in table_of(pipeline) for place in (row.value, row.baseline, row.margin or row.value)]
    places += [
        place for row in (sweep.rows if sweep else ()) for place in (row.dream, row.dream_std, row.real, row.real_std)
    ]
    places += [loop.steps] if loop.steps else []
    places += [loop.value] if loop.value else []
    for place in (place for curves in loop.charts.values() for place in curves.values()):
        places += [place] if isinstance(place, str) else place
    assert [place for place in places if find(summary, place) is None] == []


@pytest.mark.parametrize("name", ["doom", pytest.param("doom_temperatures", marks=pytest.mark.slow)])
def test_doom_goes_from_nothing_through_its_dream_into_the_game(name, tmp_path, capsys):
    """Every stage as small as it can be; C meets the game in the evaluation only."""
    words = ["run", f"world_models/{name}", "--overlay", "world_models/debug_run", "--out", str(tmp_path / "run")]
    changes = [
        "collect.min_decisions=0",
        "collect.num_workers=0",
        "evaluate.num_workers=0",
        "dream_steps=10",
        "mdn_rnn.data.batch_size=2",
    ]
    changes += ["generations=2", "population=4", "episodes=2", "evaluate_every=1", "evaluation_episodes=4", "trials=2"]
    assert main([*words, *(word for change in changes for word in ("--set", change))]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"mean_return", "random_mean_return", "stay_mean_return", "dream_mean"} <= set(summary["controller"])
    assert (tmp_path / "run" / "evaluate" / "game_dream.gif").exists()
    assert ("steps survived in the dream" in capsys.readouterr().out) == (name == "doom_temperatures")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iterative", "iterative_one_pass", "iterative_v"])
def test_the_pendulum_swings_through_two_iterations(name, tmp_path):
    """Every stage as small as it can be, on the real pendulum."""
    changes = ["environment.init_args.time_limit=60", "collect.episodes=3", "vae.trainer.max_steps=2"]
    for stage in ("loop.mdn_rnn", "loop.controller", *(["loop.vae"] if name == "iterative_v" else [])):
        changes.append(f"{stage}.trainer.max_steps=2")
    changes += [f"{stage}.data.dataset.sampler.length=25" for stage in ("mdn_rnn", "loop.mdn_rnn")]
    changes += ["loop.collect.episodes=2", "loop.evaluate.episodes=2"]
    changes += ["loop.mdn_rnn.trainer.callbacks=[]", "loop.controller.model.evaluate_every=1"]
    changes += [] if name == "iterative_one_pass" else ["iterations=2"]
    words = [word for change in changes for word in ("--set", change)]
    assert main(["run", f"world_models/{name}", "--out", str(tmp_path / "run"), *words]) == 0
    reports = json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"]
    assert len(reports) == (1 if name == "iterative_one_pass" else 2)
    assert {"mean_return", "dream_return", "random_mean_return"} <= set(reports[-1]["controller"])
    assert (tmp_path / "run" / "iterations" / "curves.png").exists()


@pytest.mark.parametrize("name", [*STAGES, *AGENTS, *FUNCTIONS])
def test_a_stages_file_prints_its_help(name, capsys):
    assert main([FUNCTIONS.get(name, "fit"), "-c", name, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


CLASSES = {"vae": "VAE", "mdn_rnn": "MDNRNN", "controller": "CMAESController", "world_model_offline": "WorldModel"}
PLACES = {
    "vae": {"data.path": "episodes", "data.batch_size": 4},
    "mdn_rnn": {
        "data.path": "codes",
        "data.batch_size": 4,
        "data.dataset.sampler.length": 25,
        "model.vae": "vae/checkpoints/last.ckpt",
    },
    "controller": {
        "model.model": "mdn_rnn/checkpoints/last.ckpt",
        "model.population": 4,
        "model.episodes": 1,
        "model.evaluate_every": 0,
        "model.num_envs": 4,
        "model.num_workers": 0,
        "model.environment.time_limit": 8,
        "trainer.max_steps": 1,
    },
    "world_model_offline": {"data.path": "episodes", "data.batch_size": 4, "data.dataset.sampler.length": 25},
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_file_takes_a_step_with_debug_on_top_and_its_checkpoint_loads(name, run, tmp_path):
    stage = Path(name).stem
    words = ["fit", "-c", name, "-c", "debug.yaml", f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks=[]"]
    for place, value in PLACES[stage].items():
        words.append(f"--{place}={run / value if isinstance(value, str) else value}")
    assert main(words) == 0
    assert type(wmlightning.load(tmp_path / "checkpoints" / "last.ckpt")).__name__ == CLASSES[stage]


@pytest.mark.parametrize(
    "names",
    [
        "quick ssm observation_overshooting",
        "arxiv_v3 rnn",
        *(pytest.param(f"dmc {name}".strip(), marks=pytest.mark.slow) for name in ["", *DESIGNS]),
    ],
)
def test_an_agents_file_collects_learns_and_evaluates_with_debug_on_top(names, tmp_path):
    """Its whole online loop on a dummy; then its checkpoint alone acts, and `evaluate` finds the return it logged."""
    words = ["fit", *(word for name in [*names.split(), "debug"] for word in ("-c", f"planet/{name}.yaml"))]
    words += [f"--trainer.default_root_dir={tmp_path}", f"--data.path={tmp_path}/episodes"]
    assert main(words) == 0
    assert len(list((tmp_path / "episodes").glob("*.h5"))) == 3, "one before the first update, one after each epoch"
    agent, last = wmlightning.load(tmp_path / "checkpoints" / "last.ckpt"), tmp_path / "e.json"
    kinds = {name: type(agent.world_model.dynamics).__name__.lower() for name in ("rnn", "ssm")}
    assert all(kinds[name] == name for name in kinds if name in names.split())
    assert main(["evaluate", str(tmp_path / "checkpoints" / "last.ckpt"), "--episodes=2", f"--json={last}"]) == 0
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = curves.Scalars("evaluate/return")[-1].value
    assert json.loads(last.read_text())["mean"] == pytest.approx(logged, rel=1e-4)


# The control suite needs a renderer, which not every machine has: a dummy with as many actions stands in for it.
DUMMY = ["--model.environment.init_args.id=wmlightning/DummyPixels-v0", "--model.environment.init_args.action_repeat=1"]
DUMMY += ["--model.world_model.init_args.dynamics.init_args.action_size=2"]
ALONE = ("discrete.yaml", "dmc.yaml", "quick.yaml")


@pytest.mark.parametrize(
    "names",
    [
        "dreamer_v1/discrete rnn",
        "dreamer_v1/dmc contrastive no_value",
        "dreamer_v1/quick reward_only ssm",
        "dreamer_v2/atari",
        "dreamer_v2/quick_discrete",
        "dreamer_v2/atari no_layer_norm dynamics_only no_image_gradients",
        "dreamer_v2/dmc no_kl_balancing reinforce_only",
        "dreamer_v2/quick gaussian_latents mixed no_reward_gradients",
        *(pytest.param(name, marks=pytest.mark.slow) for name in DREAMERS if name.split("/")[1] in ALONE),
        *(pytest.param(f"dreamer_v1/dmc {name}", marks=pytest.mark.slow) for name in V1),
        *(
            pytest.param(f"dreamer_v2/{base} {name}", marks=pytest.mark.slow)
            for base in ("atari", "dmc")
            for name in V2
        ),
    ],
)
def test_a_dreamers_file_collects_learns_and_evaluates_with_debug_on_top(names, tmp_path):
    """Its whole online loop, on its own task; then its checkpoint alone acts, and finds the return it logged."""
    base, *overlays = names.removesuffix(".yaml").split()
    files = [base, *(f"{base.split('/')[0]}/{name}" for name in overlays), "dreamer_debug"]
    words = ["fit", *(word for name in files for word in ("-c", f"{name}.yaml"))]
    words += DUMMY if base.endswith("dmc") else []
    words += [f"--trainer.default_root_dir={tmp_path}", f"--data.path={tmp_path}/episodes"]
    assert main(words) == 0
    store = EpisodeStore(tmp_path / "episodes")
    assert store.num_steps >= 30, "10 decisions before the first update and 5 for each"
    assert {name.birth for name in store.listing} == {0, 2, 4}
    last = tmp_path / "e.json"
    assert main(["evaluate", str(tmp_path / "checkpoints" / "last.ckpt"), "--episodes=2", f"--json={last}"]) == 0
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert json.loads(last.read_text())["mean"] == pytest.approx(curves.Scalars("evaluate/return")[-1].value, rel=1e-4)


def test_behaviour_is_learnt_alone_on_the_world_model_of_a_checkpoint(tmp_path):
    words = ["fit", "-c", "dreamer_v1/quick.yaml", "-c", "dreamer_debug.yaml"]
    for name in ("first", "second"):
        words += [f"--trainer.default_root_dir={tmp_path}/{name}", f"--data.path={tmp_path}/{name}/episodes"]
        assert main(words) == 0
        words += ["--model.learn_model=false", f"--model.world_model={tmp_path}/first/checkpoints/last.ckpt"]
    first, second = (wmlightning.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("first", "second"))
    assert_same_weights(first.world_model, second.world_model)
    with pytest.raises(AssertionError):
        assert_same_weights(first.actor_critic, second.actor_critic)


def assert_same_weights(one, other):
    for (name, weight), (_, twin) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(weight, twin), name


@cache
def built_once(name):
    return wmlightning.build(name)


WORLD, BEHAVIOUR = "world_model.", "actor_critic."
SAYS = {
    "planet/quick.yaml planet/rnn.yaml": {WORLD + "dynamics": "RNN"},
    "planet/quick.yaml planet/ssm.yaml": {WORLD + "dynamics": "SSM", WORLD + "dynamics.latent": "GaussianLatent"},
    "planet/quick.yaml planet/latent_overshooting.yaml": {
        WORLD + "overshooting": "LatentOvershooting",
        WORLD + "overshooting.distance": 20,
        WORLD + "reward_scale": 0.1,
    },
    "planet/quick.yaml planet/observation_overshooting.yaml": {WORLD + "overshooting": "ObservationOvershooting"},
    "dreamer_v1/dmc.yaml dreamer_v1/reward_only.yaml": {
        WORLD + "stop_image_gradients": True,
        WORLD + "stop_reward_gradients": False,
        WORLD + "contrastive": None,
    },
    "dreamer_v1/dmc.yaml dreamer_v1/contrastive.yaml": {
        WORLD + "stop_image_gradients": True,
        WORLD + "contrastive": "Contrastive",
    },
    "dreamer_v1/dmc.yaml dreamer_v1/no_value.yaml": {BEHAVIOUR + "has_critic": False},
    "dreamer_v1/discrete.yaml dreamer_v1/no_value.yaml": {BEHAVIOUR + "has_critic": False, WORLD + "cont_label": 1.0},
    "dreamer_v1/dmc.yaml dreamer_v1/rnn.yaml": {WORLD + "dynamics": "RNN"},
    "dreamer_v1/dmc.yaml dreamer_v1/ssm.yaml": {WORLD + "dynamics": "SSM"},
    "dreamer_v2/atari.yaml dreamer_v2/dynamics_only.yaml": {BEHAVIOUR + "objective": "DynamicsBackprop"},
    "dreamer_v2/dmc.yaml dreamer_v2/reinforce_only.yaml": {BEHAVIOUR + "objective": "Reinforce"},
    "dreamer_v2/atari.yaml dreamer_v2/mixed.yaml": {
        BEHAVIOUR + "objective": "Mixed",
        BEHAVIOUR + "objective.reinforce": 0.9,
    },
    "dreamer_v2/atari.yaml dreamer_v2/gaussian_latents.yaml": {
        WORLD + "dynamics.latent": "GaussianLatent",
        WORLD + "dynamics.latent.squash": "sigmoid",
        WORLD + "kl": "BalancedKL",
    },
    "dreamer_v2/atari.yaml dreamer_v2/no_image_gradients.yaml": {
        WORLD + "stop_image_gradients": True,
        WORLD + "stop_reward_gradients": False,
    },
    "dreamer_v2/atari.yaml dreamer_v2/no_reward_gradients.yaml": {
        WORLD + "stop_image_gradients": False,
        WORLD + "stop_reward_gradients": True,
    },
    # The free nats are those of the file below: 1 on the control suite, none on Atari.
    "dreamer_v2/dmc.yaml dreamer_v2/no_kl_balancing.yaml": {
        WORLD + "kl": "FreeNatsKL",
        WORLD + "kl.free_nats": 1.0,
        WORLD + "kl.per_element": False,
    },
    "dreamer_v2/atari.yaml dreamer_v2/no_kl_balancing.yaml": {WORLD + "kl": "FreeNatsKL", WORLD + "kl.free_nats": 0.0},
    "dreamer_v2/atari.yaml dreamer_v2/no_layer_norm.yaml": {WORLD + "dynamics.cell": "keras_gru"},
    # What the papers' tables say, by name.
    "dreamer_v1/dmc.yaml": {
        WORLD + "kl.free_nats": 3.0,
        WORLD + "learning_rate": 6e-4,
        BEHAVIOUR + "actor_learning_rate": 8e-5,
        BEHAVIOUR + "critic_learning_rate": 8e-5,
        BEHAVIOUR + "horizon": 15,
        BEHAVIOUR + "discount": 0.99,
        BEHAVIOUR + "lambda_": 0.95,
        BEHAVIOUR + "entropy": 0.0,
    },
    "dreamer_v2/atari.yaml": {
        WORLD + "kl_scale": 0.1,
        WORLD + "kl.balance": 0.8,
        WORLD + "learning_rate": 2e-4,
        WORLD + "decay": 1e-6,
        WORLD + "cont_scale": 5.0,
        WORLD + "cont_label": 0.999,
        BEHAVIOUR + "actor_learning_rate": 4e-5,
        BEHAVIOUR + "critic_learning_rate": 1e-4,
        BEHAVIOUR + "entropy": 1e-3,
        BEHAVIOUR + "horizon": 15,
        BEHAVIOUR + "target.every": 100,
    },
    "dreamer_v2/dmc.yaml": {
        WORLD + "kl_scale": 1.0,
        WORLD + "kl.free_nats": 1.0,
        WORLD + "learning_rate": 3e-4,
        BEHAVIOUR + "actor_learning_rate": 8e-5,
        BEHAVIOUR + "critic_learning_rate": 8e-5,
        BEHAVIOUR + "entropy": 1e-4,
        BEHAVIOUR + "discount": 0.99,
    },
}


@pytest.mark.parametrize("names", SAYS)
def test_a_file_says_of_an_agent_what_its_name_and_the_papers_say(names):
    words = [word for name in names.split() for word in ("-c", name)]
    recipe = recipe_of(CommandLine(["fit", *words], check=True).model)
    for place, wanted in SAYS[names].items():
        found = recipe
        for name in place.split("."):
            found = found["init_args"][name]
        found = found["class_path"].rpartition(".")[2] if isinstance(found, dict) else found
        assert found == wanted, place


@pytest.mark.parametrize("name", DREAMERS)
def test_a_dreamers_parts_fit_its_environment(name):
    built = built_once(name)
    environment, model = built.model.environment, built.model.world_model
    collect = next(callback for callback in built.trainer.callbacks if hasattr(callback, "progress"))
    if not environment.id.startswith("dm_control"):
        assert environment.spec.action_size == model.dynamics.action_size
        assert environment.spec.discrete == built.model.actor_critic.distribution.discrete
        assert collect.environment is None or collect.environment.spec == environment.spec
    assert environment.channels == model.channels
    discounts = model.cont_head.label if model.cont_head.mlp is not None else 1.0, built.model.actor_critic.discount
    assert min(discounts) < 1 == max(discounts), "The discount is in one place."
    updates, data = built.trainer.max_steps, built.datamodule
    assert updates % data.updates_per_epoch == 0


def test_a_change_of_a_pipeline_to_null_reaches_the_part_it_names(tmp_path):
    change = "controller.model.environment.init_args.time_limit=null"
    with preflight():
        for step in steps_of(read_pipeline("world_models/quickstart", [], [change]), tmp_path):
            built = [CommandLine(words, check=True) for words in step.commands if words[0] == "fit"]
            if step.name == "controller":
                assert recipe_of(built[0].model)["init_args"]["environment"]["init_args"]["time_limit"] is None
            elif not built:
                check_command(step.commands[0])


def test_the_lap_rule_that_is_played_stands_beside_the_score():
    for changes, rule in ([], "0.95"), (["environment.init_args.kwargs.lap_complete_percent=1.0"], "1.0"):
        rows = [row.what for row in table_of(read_pipeline("world_models/quickstart", [], changes))]
        assert f"C  mean return (a lap is {rule} of the tiles)" in rows


PAPER = {
    # Sections 1.2 to 1.6 of the 2018 paper and its code: parameters of V, M and C, and what the runs are made of.
    "world_models/carracing": ((4_348_547, 422_368, 867), {"population": 64, "episodes": 16}),
    "world_models/doom": ((4_446_915, None, 1_088), {"population": 64, "episodes": 16}),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_world_models_have_its_sizes(name, tmp_path):
    sizes, search = PAPER[name]
    stages = []
    with preflight():
        for words in (words for step in steps_of(read_pipeline(name), tmp_path) for words in step.commands):
            if words[0] == "fit":
                stages.append(CommandLine(words, check=True).model)
            else:
                check_command(words)
    *learners, controller = stages
    counts = [sum(p.numel() for n, p in stage.named_parameters() if not n.startswith("vae.")) for stage in learners]
    counts.append(controller.controller.size)
    for found, wanted in zip(counts, sizes, strict=True):
        assert wanted in (None, found)
    given = recipe_of(controller)["init_args"]
    assert {key: given[key] for key in search} == search


def test_the_papers_runs_are_as_long_as_their_files_say():
    """Environment steps that are due in all, the prefill included where it counts."""
    for name, repeat, steps in (("dreamer_v1/dmc", 2, 5e6), ("dreamer_v2/dmc", 2, 2e6), ("dreamer_v2/atari", 4, 2e8)):
        built = built_once(f"{name}.yaml")
        schedule = next(callback for callback in built.trainer.callbacks if hasattr(callback, "progress")).schedule
        unit, due = schedule.due(CollectionProgress(prefilled=[0, 0, 0]), built.trainer.max_steps, 100)
        decisions = due * (500 if unit == "episodes" else 1)
        assert decisions * repeat == pytest.approx(steps, rel=2e-3)


@pytest.mark.parametrize("name", ["dmc", "quick"])
def test_random_collection_draws_every_action_anew_and_evaluates_by_planning(name):
    built = wmlightning.build([f"planet/{name}.yaml", "planet/random_collection.yaml"])
    policy = next(callback.policy for callback in built.trainer.callbacks if hasattr(callback, "policy"))
    assert type(policy).__name__ == "HeldActionsPolicy"
    assert (policy.max_hold, policy.action_size) == (1, built.model.world_model.dynamics.action_size)
    assert any(type(callback).__name__ == "Evaluate" for callback in built.trainer.callbacks)


def test_the_first_releases_loss_is_twice_that_of_its_file():
    """(x - mean)^2 is twice a unit Gaussian's: what is not a likelihood is halved, and so are epsilon and max_norm."""
    model = wmlightning.build("planet/arxiv_v3.yaml").model.world_model
    assert (2 * model.kl_scale, 2 * model.global_prior, 2 * model.overshooting.scale) == (1.0, 0.1, 1.0)
    assert (model.reward_scale, model.overshooting.reward_scale) == (10.0, 100.0)
    assert (2 * model.epsilon, 2 * model.max_norm, model.warmup) == (1e-4, 1000.0, 200)
    assert (model.kl.free_nats, model.overshooting.distance) == (2.0, 50)


def test_codes_are_written_by_a_v_that_comes_from_its_checkpoint_alone(run, tmp_path):
    callback = {"class_path": "CodeWriter", "init_args": {"path": str(tmp_path / "codes")}}
    words = ["predict", "-c", "world_models/codes.yaml", f"--data.path={run}/episodes"]
    words += [f"--trainer.callbacks=[{json.dumps(callback)}]", f"--trainer.default_root_dir={tmp_path}"]
    assert main([*words, f"--ckpt_path={run}/vae/checkpoints/last.ckpt"]) == 0
    assert [file.name for file in sorted((tmp_path / "codes").iterdir())] == [
        file.name for file in sorted((run / "episodes").iterdir())
    ]


def test_the_controller_of_the_run_acts_and_is_evaluated_from_its_file_alone(run, tmp_path):
    shutil.copy(run / "controller" / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    policy = wmlightning.load(tmp_path / "alone.ckpt").policy(explore=False)
    image = np.zeros((2, 64, 64, 3), np.uint8)
    action, _ = policy({"image": image}, np.ones(2, bool), policy.initial(2, [0, 1]))
    assert action.shape == (2, 3)
    words = [str(tmp_path / "alone.ckpt"), "--episodes", "2", "--seed", "5", "--environment.id=CarRacing-v3"]
    assert main(["evaluate", *words, "--environment.time_limit=8", "--json", str(tmp_path / "e.json")]) == 0
    result = json.loads((tmp_path / "e.json").read_text())
    assert {"returns", "mean", "std", "ci95", "episodes", "env_steps_per_second"} <= set(result)


def test_the_run_leaves_what_the_readme_says(run):
    assert {"config.yaml", "summary.json", "episodes", "codes"} <= {path.name for path in run.iterdir()}
    for stage in ("vae", "mdn_rnn", "controller"):
        assert (run / stage / "checkpoints" / "last.ckpt").exists()
        assert (run / stage / "config.yaml").exists()
        assert (run / stage / "result.json").exists()
        assert list((run / stage / "tensorboard").glob("events*"))
    assert (run / "evaluate" / "driving.gif").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["stages"]["collect"]["set"]["seed"] == 0
    assert main(["data", "verify", str(run / "episodes")]) == 0
    assert main(["data", "verify", str(run / "codes")]) == 0
