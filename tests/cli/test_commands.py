"""The command line: what it accepts, what it refuses before anything is trained, and what it leaves behind."""

import json
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import wmlightning
from datamodules.episode import Episode
from datamodules.store import EpisodeStore
from wmlightning.__main__ import COMMANDS, main
from wmlightning.cli.arguments import prepare
from wmlightning.cli.errors import clean_warnings, error_line
from wmlightning.pictures.reconstructions import LogReconstructions
from wmlightning.pipeline import config as settings
from wmlightning.pipeline.config import find_config, merge, read_pipeline
from wmlightning.recipes import recipe_of

ENVIRONMENT = {"class_path": "EnvFactory", "init_args": {"id": "wmlightning/DummyPixels-v0", "time_limit": 6}}
POLICY = {"class_path": "HeldActionsPolicy", "init_args": {"action_size": 2}}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Four episodes of six steps, collected by the command."""
    path = tmp_path_factory.mktemp("collected") / "episodes"
    words = [f"--path={path}", f"--environment={json.dumps(ENVIRONMENT)}", f"--policy={json.dumps(POLICY)}"]
    assert main(["collect", *words, "--episodes=4", "--num_envs=2"]) == 0
    return path


@pytest.fixture
def config(tmp_path, episodes):
    """A configuration that trains a tiny V for two steps."""
    values = {
        "model": {"class_path": "VAE", "init_args": {"latent_size": 4, "depth": 2}},
        "data": {
            "class_path": "EpisodeDataModule",
            "init_args": {
                "path": str(episodes),
                "dataset": {"class_path": "FrameDataset"},
                "batch_size": 2,
                "updates_per_epoch": 2,
                "validation_fraction": 0.34,
            },
        },
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "enable_progress_bar": False,
            "limit_val_batches": 1,
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def checkpoint(config, tmp_path):
    assert main(["fit", "-c", str(config)]) == 0
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_help_names_every_command_without_importing_torch():
    heavy = "{'torch', 'lightning', 'numpy', 'gymnasium', 'jsonargparse'} & set(sys.modules)"
    done = python(f"import sys; from wmlightning.__main__ import main; main(['--help']); assert not {heavy}, {heavy}")
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


def test_the_package_itself_imports_nothing_heavy_but_offers_its_stages():
    done = python("import sys, wmlightning; assert 'torch' not in sys.modules; print(wmlightning.VAE.__module__)")
    assert done.stdout.strip() == "wmlightning.stages.vae", done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(command, capsys):
    assert main([command, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "there is no command 'train'"),
        (["fit", "-c", "nowhere.yaml"], "there is no configuration 'nowhere.yaml'"),
        (["run", "nowhere"], "there is no configuration 'nowhere'"),
        (["run"], "required: config"),
        (["run", "world_models/vae"], "is not a pipeline"),
        (["run", "world_models/quickstart", "--dry-run", "--set", "vea.x=1"], "changes nothing"),
        (["data", "count", "x"], "invalid choice"),
        (["fit"], "no model is named"),
        (["fit", "--model=VAEE"], "there is no class VAEE"),
        (["fit", "--model=VAE", "--model.latent_sise=3"], "'latent_sise' is not accepted"),
        (["fit", "--model=VAE", "--model.latent_size=many"], "Got value: many"),
        (["fit", "--model=VAE", "--trainer.max_stepz=3"], "trainer.max_stepz"),
        (["fit", "--model=VAE", "--ckpt_path=nowhere.ckpt"], "there is no checkpoint at nowhere.ckpt"),
        (["evaluate", "nowhere.ckpt"], "there is no checkpoint at nowhere.ckpt"),
        (["collect", "--path=x"], "environment"),
        (["collect", "--environment.id=Pendulum-v1", "--episodes=0"], "episodes is 0"),
        (["fit", "--model=VAE", "--model.learning_rate=-1"], "learning_rate is -1"),
        (["fit", "--model=VAE", "--model.latent_size=0"], "latent_size is 0"),
        (["fit", "--model=VAE", "--seed_everything=-1"], "seed_everything is -1"),
        (["fit", "--model=VAE", "--model.seed=3"], "--model.seed=3 would do nothing"),
        (["fit", "-c", "world_models/vae", "--trainer.precision=64-true"], "precision is 64-true"),
        (["fit", "--model=VAE"], "no data are named and a VAE brings none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_fails_in_one_line_that_names_it(words, message, capsys):
    assert main(words) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: {here}/pipe.yaml", "go round in a circle"),
        ("stages: {a: fit}", "'fit' but is a mapping"),
        ("stages: {a: {command: fti}}", "has the command 'fti'"),
        ("{stages: {a: {command: fit}}, loop: [a]}", "write a mapping"),
        ("stages: {a: [}", "is not YAML"),
        ("stages: {a: {command: fit, config: 5}}", "config: 5, but that is a file"),
        ("stages: {a: {command: fit, set: {5: 3}}}", "has set: {5: 3}"),
        ("stages: {a: {command: fit, report: {psnr: vae/psnr}}}", "'psnr' is no place: write section.name"),
        ("stages: {a: {command: fit, report: {a.psnr: [1]}}}", "not all names of metrics"),
    ],
)
def test_a_file_that_is_no_pipeline_is_one_line(text, says, tmp_path, capsys):
    (tmp_path / "pipe.yaml").write_text(text.replace("{here}", str(tmp_path)))
    assert main(["run", str(tmp_path / "pipe.yaml"), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("change", "says"), [("vae.trainer.max_steps=[", "is not YAML"), ("seed.x=1", "there is no seed.x")]
)
def test_a_change_that_makes_no_sense_is_one_line(change, says):
    with pytest.raises(ValueError, match=says) as error:
        read_pipeline("world_models/quickstart", changes=[change])
    assert "\n" not in str(error.value)


def test_debug_shows_the_traceback_too(capsys, monkeypatch):
    monkeypatch.setenv("WMLIGHTNING_DEBUG", "")
    assert main(["--debug", "fit", "-c", "nowhere.yaml"]) != 0
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_key_in_a_file_fails_before_training(config, tmp_path, capsys):
    values = yaml.safe_load(config.read_text())
    values["data"]["init_args"]["bach_size"] = 3
    config.write_text(yaml.safe_dump(values))
    assert main(["fit", "-c", str(config)]) == 2
    assert "bach_size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fit_leaves_checkpoint_curves_and_settings_in_its_folder(checkpoint, tmp_path):
    assert checkpoint.exists()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]["latent_size"] == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_checkpoint_holds_only_what_weights_only_loads(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    assert type(wmlightning.load(checkpoint)).__name__ == "VAE"


def test_the_settings_a_fit_leaves_can_be_fitted_again(checkpoint, tmp_path):
    again = tmp_path / "again"
    assert main(["fit", "-c", str(tmp_path / "run" / "config.yaml"), f"--trainer.default_root_dir={again}"]) == 0
    first, second = (
        torch.load(path, weights_only=True)["state_dict"] for path in (checkpoint, again / "checkpoints" / "last.ckpt")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_fit_does_not_write_over_another_one(checkpoint, config, capsys):
    before = checkpoint.read_bytes()
    assert main(["fit", "-c", str(config)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


def test_one_callback_and_one_plugin_need_no_list(checkpoint, config):
    single = ["--trainer.callbacks=LogReconstructions", "--trainer.plugins=AtomicCheckpointIO"]
    assert main(["fit", "-c", str(config), "--trainer.max_steps=3", f"--ckpt_path={checkpoint}", *single]) == 0


def test_a_fit_goes_on_from_its_checkpoint(checkpoint, config):
    assert main(["fit", "-c", str(config), "--trainer.max_steps=3", f"--ckpt_path={checkpoint}"]) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3


def test_going_on_with_another_learning_rate_is_warned_of(checkpoint, config):
    words = [
        "fit",
        "-c",
        str(config),
        "--trainer.max_steps=3",
        f"--ckpt_path={checkpoint}",
        "--model.learning_rate=0.5",
    ]
    with pytest.warns(UserWarning, match="learning_rate is 0.5 but the checkpoint"):
        assert main(words) == 0


@pytest.mark.parametrize(
    "words", [["fit", "-c", "world_models/vae.yaml", "--trainer.max_step=1"], ["evaluate", "x.ckpt", "--episode=3"]]
)
def test_the_beginning_of_an_option_is_no_option(words, capsys):
    assert main(words) == 2
    assert words[-1] in capsys.readouterr().err


def test_a_collection_into_a_place_that_cannot_be_written_is_refused_before_it_plays(tmp_path, capsys):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "episodes"
    assert main(["collect", "-c", "world_models/collect.yaml", "--path", str(place), "--episodes", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be written" in line


def test_a_fit_into_a_place_that_cannot_be_written_is_refused_before_it_learns(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["fit", "-c", str(config), f"--trainer.default_root_dir={tmp_path}/file/run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be written" in line


def test_a_checkpoint_that_a_fit_cannot_go_on_from_is_one_line(checkpoint, config, tmp_path, capsys):
    saved = torch.load(checkpoint, weights_only=True)
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save(saved | {"recipe": {"class_path": "wmlightning.MDNRNN", "init_args": {}}}, tmp_path / "other.ckpt")
    weights = {name: weight for name, weight in saved["state_dict"].items() if name != "code.weight"}
    torch.save(saved | {"state_dict": weights}, tmp_path / "less.ckpt")
    for name, option, says in (
        ("cut.ckpt", "--model.depth=2", "delete it"),
        ("other.ckpt", "--model.depth=2", "holds a MDNRNN but the model here is a VAE"),
        ("less.ckpt", "--model.depth=2", "code.weight is absent"),
        (checkpoint, "--model.latent_size=6", r"code.bias is [8]"),
    ):
        assert main(["fit", "-c", str(config), option, f"--ckpt_path={tmp_path / name}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert says in line
    with pytest.raises(ValueError, match="code.weight is absent in it"):
        wmlightning.load(tmp_path / "less.ckpt")


def test_a_stage_that_cannot_do_what_is_asked_says_so(checkpoint, monkeypatch, capsys):
    monkeypatch.delattr("wmlightning.stages.vae.VAE.predict_step")
    assert main(["predict", f"--ckpt_path={checkpoint}"]) == 2
    assert "has no predict_step" in capsys.readouterr().err


def test_a_damaged_file_held_out_is_warned_of_in_a_clean_line_and_training_goes_on(config, episodes, tmp_path):
    shutil.copytree(episodes, tmp_path / "hurt")
    held_out = next((tmp_path / "hurt").glob("ep-00000001-*"))
    held_out.write_bytes(held_out.read_bytes()[:700])
    code = f"import sys; from wmlightning.__main__ import main; sys.exit(main(['fit', '-c', {str(config)!r}, "
    done = python(code + f"'--data.path={tmp_path}/hurt', '--data.validation_fraction=0.1']))")
    assert done.returncode == 0, done.stderr
    assert "wmlightning: warning: the held-out episodes are not measured: 1 of 1 episodes" in done.stderr
    assert all(line.startswith("wmlightning: warning: ") for line in done.stderr.strip().splitlines())


def test_codes_given_to_v_are_one_line(config, tmp_path, capsys):
    words = [f"--data.path={tmp_path}/codes", "--trainer.callbacks=[]"]
    rows = np.arange(4)
    code = {name: np.zeros((4, 4), np.float16) for name in ("mean", "logvar")}
    zeros = np.zeros(4, np.float32)
    for _ in range(2):
        episode = Episode(code, np.zeros((4, 2), np.float32), zeros, rows == 0, rows == 9)
        EpisodeStore(tmp_path / "codes").append(episode)
    assert main(["fit", "-c", str(config), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "not of codes" in line


def test_an_error_that_nobody_foresaw_is_one_line_with_its_type(monkeypatch, capsys):
    monkeypatch.setattr("wmlightning.tools.data.info", lambda path: {}["image"])
    assert main(["data", "info", "somewhere"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "KeyError in commands.py" in line
    assert "WMLIGHTNING_DEBUG=1" in line


def test_a_finished_fit_started_again_changes_nothing(checkpoint, config):
    before = torch.load(checkpoint, weights_only=True)
    assert main(["fit", "-c", str(config), f"--ckpt_path={checkpoint}"]) == 0
    after = torch.load(checkpoint, weights_only=True)
    assert after["global_step"] == before["global_step"]
    assert all(torch.equal(after["state_dict"][key], value) for key, value in before["state_dict"].items())


def test_a_fit_of_no_steps_saves_the_untrained_stage(config, tmp_path):
    assert main(["fit", "-c", str(config), "--trainer.max_steps=0"]) == 0
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 0


def test_test_rebuilds_the_stage_from_the_checkpoint_alone(checkpoint, config, tmp_path):
    values = yaml.safe_load(config.read_text())
    del values["model"]
    config.write_text(yaml.safe_dump(values))
    assert main(["test", "-c", str(config), f"--ckpt_path={checkpoint}"]) == 0


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_brings_no_data(command, checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (checkpoint.parents[1] / "config.yaml").unlink()
    assert main([command, f"--ckpt_path={checkpoint}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no data are named and a VAE brings none" in line
    assert "-c world_models/vae.yaml, or --data EpisodeDataModule" in line
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_alone_goes_on_by_the_configuration_of_its_run(checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = torch.load(checkpoint, weights_only=True)["global_step"]
    assert main(["fit", f"--ckpt_path={checkpoint}", f"--trainer.max_steps={before + 1}"]) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == before + 1


def test_options_before_a_file_are_refused_because_the_file_would_replace_them(capsys):
    assert main(["fit", "--trainer.max_steps=5", "-c", "world_models/vae.yaml"]) == 2
    assert "--trainer.max_steps=5 stands before -c world_models/vae.yaml" in capsys.readouterr().err


def test_a_crop_of_another_task_is_warned_of_where_only_the_id_is_changed():
    changed = ["fit", "-c", "planet/quick.yaml", "--model.environment.id=wmlightning/DummyPixels-v0"]
    with pytest.warns(UserWarning, match=r"crop \[115, 385, 115, 385\] was set for Pendulum-v1 and stays"):
        prepare(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare([*changed, "--model.environment.crop=null"])
        prepare(["fit", "-c", "planet/quick.yaml"])


def test_null_is_null_however_deep_it_stands():
    before = {"crop": [0, 84], "pixels": "render", "time_limit": 9, "kwargs": {"g": 9.0}}
    nulls = {f"model.environment.{name}": None for name in ("crop", "pixels", "kwargs")}
    nulls |= {"model.init_args.environment.init_args.time_limit": None}
    nulls |= {"model.world_model.kl": None, "model.world_model.overshooting": None}
    files = ["planet/quick.yaml", "planet/observation_overshooting.yaml"]
    line = wmlightning.build(files, model={"init_args": {"environment": {"init_args": before}}}, **nulls)
    parts = recipe_of(line.model)["init_args"]
    environment, world_model = (parts[name]["init_args"] for name in ("environment", "world_model"))
    assert {name: environment[name] for name in before} == dict.fromkeys(before)
    assert world_model["kl"] is None
    assert world_model["overshooting"] is None


def test_null_inside_a_mapping_is_null_however_deep_it_stands():
    given = {"g": None, "render_mode": [None]}
    line = wmlightning.build("planet/quick.yaml", **{"model.environment.kwargs": given})
    assert recipe_of(line.model)["init_args"]["environment"]["init_args"]["kwargs"] == given


def test_files_compose_from_left_to_right_and_options_win(config, tmp_path):
    (tmp_path / "over.yaml").write_text("model: {init_args: {latent_size: 6, kl_tolerance: 0.25}}\n")
    line = wmlightning.build([config, tmp_path / "over.yaml"], **{"model.kl_tolerance": 0.125})
    assert (line.model.latent_size, line.model.kl_tolerance) == (6, 0.125)


def test_callbacks_laid_over_others_replace_them_whole(config, tmp_path):
    for name, given in (("one", {"every": 3, "frames": 5}), ("two", {"every": 4})):
        laid = [{"class_path": "LogReconstructions", "init_args": given}]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": laid}}))
    callbacks = wmlightning.build([config, tmp_path / "one.yaml", tmp_path / "two.yaml"]).trainer.callbacks
    (drawing,) = [callback for callback in callbacks if isinstance(callback, LogReconstructions)]
    assert (drawing.every, drawing.frames) == (4, 10)


def test_the_seed_of_everything_is_the_seed_of_model_and_data(config):
    line = wmlightning.build(config, seed_everything=7)
    assert (line.model.seed, line.datamodule.seed) == (7, 7)


def test_build_takes_overrides_shaped_like_the_file(config):
    line = wmlightning.build(config, model={"init_args": {"latent_size": 5}}, trainer={"max_steps": 9})
    assert (line.model.latent_size, line.trainer.max_steps) == (5, 9)


def test_build_refuses_nonsense_in_one_line(config):
    with pytest.raises(ValueError, match="latent_sise") as error:
        wmlightning.build(config, **{"model.latent_sise": 5})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "a.ckpt", "--environment.id=Pendulum-v1", "--environment.action_repeat=0"], "action_repeat is 0"),
        (["collect", "--environment.id=Pendulum-v1"], "either a policy or an agent"),
        (["fit", "-c", "world_models/mdn_rnn", "--model.vae=nowhere.ckpt"], "there is no checkpoint at nowhere.ckpt"),
    ],
)
def test_what_a_part_refuses_is_one_line(words, says, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


def test_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("world_models/quickstart").is_file()
    (tmp_path / "world_models").mkdir()
    (tmp_path / "world_models" / "quickstart.yaml").write_text("mine: 1\n")
    assert find_config("world_models/quickstart").read_text() == "mine: 1\n", "a path that exists comes first"


def test_an_installed_package_finds_the_configurations_inside_it(tmp_path, monkeypatch):
    inside, beside = tmp_path / "site" / "wmlightning" / "configs", tmp_path / "site" / "configs"
    for folder in (inside, beside):
        folder.mkdir(parents=True)
        (folder / "a.yaml").write_text(f"{folder.parent.name}: 1\n")
    monkeypatch.setattr(settings, "PACKAGE", inside.parent)
    monkeypatch.chdir(tmp_path)
    assert find_config("a") == inside / "a.yaml"
    shutil.rmtree(inside)
    assert find_config("a") == beside / "a.yaml"


@pytest.mark.slow
def test_a_wheel_holds_both_packages_and_the_configurations(tmp_path):
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, root], check=True)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", next(tmp_path.glob("*.whl")), tmp_path / "site"], check=True)
    code = "from wmlightning.pipeline.config import find_config; import datamodules; print(find_config('{}'))"
    code = code.format("world_models/quickstart")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.strip().startswith(str(tmp_path / "site")), found.stderr


def test_laying_one_mapping_over_another_goes_key_by_key():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [9]}, "e": 4}) == {"a": {"b": 1, "c": [9]}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_a_change_reaches_a_stage_or_a_named_value():
    pipeline = read_pipeline("world_models/quickstart", changes=["seed=3", "vae.trainer.max_steps=5"])
    assert pipeline["seed"] == 3
    assert pipeline["stages"]["vae"]["set"]["trainer.max_steps"] == 5


def test_without_any_extra_the_command_line_works_and_a_suite_says_what_to_install():
    code = """
import sys
for name in ("vizdoom", "Box2D", "pygame", "ale_py", "minigrid", "stable_baselines3"):
    sys.modules[name] = None
from wmlightning.__main__ import main
sys.exit(main(["collect", "--environment.id", sys.argv[1], "--policy", "ConstantPolicy", "--policy.action", "[0.0]"]))
"""
    for id, extra in (("CarRacing-v3", "box2d"), ("VizdoomTakeCover-v1", "doom")):
        words = [sys.executable, "-c", code, id]
        answer = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert f'pip install "wmlightning[{extra}]"' in answer.stderr, answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1


def test_what_a_thread_could_not_write_is_one_line(capsys):
    def stopped():
        raise OSError(28, "No space left on device")

    with clean_warnings():
        thread = threading.Thread(target=stopped)
        thread.start()
        thread.join()
    assert capsys.readouterr().err == "wmlightning: warning: [Errno 28] No space left on device\n"
    assert error_line(OSError(28, "No space left on device")).endswith(
        "free some space and go on; what was finished is whole"
    )


def test_a_path_that_is_no_checkpoint_is_not_told_to_be_deleted(episodes, capsys):
    for path, cure in ((episodes, "correct the path"), (next(episodes.glob("*.h5")), "correct the path")):
        assert main(["evaluate", str(path), "--episodes=2"]) == 2
        assert capsys.readouterr().err.rstrip().endswith(cure)
