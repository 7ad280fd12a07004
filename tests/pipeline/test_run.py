"""`run`: stages in order, finished ones skipped, interrupted ones continued, and a table that hides nothing."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time

import pytest
import torch
import yaml
from pipeline_support import Commands, in_child, weights

from wmlightning.__main__ import main
from wmlightning.cli.commands import as_typed
from wmlightning.pipeline.config import read_pipeline, steps_of, table_of
from wmlightning.pipeline.folder import lock_run_folder
from wmlightning.pipeline.run import Step, run_pipeline
from wmlightning.pipeline.tables import Comparison, format_table


def steps(*names):
    return [Step(name, [[name]]) for name in names]


def test_stages_run_in_order_and_their_numbers_reach_the_summary(tmp_path):
    commands = Commands()
    summary = run_pipeline(steps("a", "b"), tmp_path, commands)
    assert commands.run == [["a"], ["b"]]
    assert (summary["a"], summary["b"]) == ({"loss": 1}, {"loss": 2})
    assert set(summary["seconds"]) == {"a", "b"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_summary_has_all_metrics_of_a_stage_under_its_name_without_being_asked(tmp_path):
    metrics = {
        "vae": {"vae/psnr": 20.5, "world_model/loss": 3.0},
        "evaluate": {"mean": 7.0, "baselines.random.mean": 2},
    }
    summary = run_pipeline(
        [Step("vae", [["vae"]]), Step("evaluate", [["evaluate"]])], tmp_path, lambda c: metrics[c[0]]
    )
    assert summary["vae"] == {"psnr": 20.5, "world_model/loss": 3.0}
    assert summary["evaluate"] == metrics["evaluate"]
    assert list(summary) == ["vae", "evaluate", "seconds"]


def test_a_stage_whose_name_begins_with_its_metrics_prefix_has_them_without_it(tmp_path):
    summary = run_pipeline([Step("vae_2", [["fit"]])], tmp_path, lambda command: {"vae/psnr": 20.5})
    assert summary["vae_2"] == {"psnr": 20.5}


def test_the_scores_of_an_evaluation_are_also_in_the_section_of_the_stage_it_evaluates(tmp_path):
    players = {"baselines.random": 2.0, "baselines.zero": 3.0, "dream": 9.0}
    evaluation = {"mean": 7.0, "ci95": 0.5, "std": 1.0, "episodes": 4, "env_steps": 999, "environment.size": 64}
    evaluation |= {f"{player}.mean": value for player, value in players.items()}
    evaluation |= {"baselines.random.difference_ci95": 0.25, "published.dreamer_v1.mean": 5.0}
    metrics = {"fit": {"controller/env_steps": 100}, "evaluate": evaluation}
    stages = [Step("controller", [["fit"]]), Step("evaluate", [["evaluate"]], evaluates="controller")]
    summary = run_pipeline(stages, tmp_path, lambda command: metrics[command[0]])
    assert summary["evaluate"] == evaluation
    assert summary["controller"] == {
        "env_steps": 100,
        **{"mean_return": 7.0, "ci95": 0.5, "std": 1.0, "episodes": 4},
        **{"random_mean_return": 2.0, "zero_mean_return": 3.0, "dream_mean": 9.0, "random_difference_ci95": 0.25},
    }


def test_an_evaluation_knows_the_stage_whose_checkpoint_it_evaluates(tmp_path):
    found = {step.name: step.evaluates for step in steps_of(read_pipeline("world_models/doom_temperatures"), tmp_path)}
    assert found["evaluate"] == "controller"
    assert found["evaluate_0_10"] == "controller_0_10"
    assert {name for name, stage in found.items() if not stage} == {name for name in found if "evaluate" not in name}
    (last,) = [step for step in steps_of(read_pipeline("world_models/iterative"), tmp_path) if step.evaluates][-1:]
    assert (last.name, last.evaluates) == ("iteration_04/evaluate", "controller")


def test_a_report_adds_a_number_under_another_name_and_says_if_there_is_none(tmp_path, capsys):
    report = {"game.score": "loss", "a.loss": "other", "game.rest": "none"}
    metrics = {"loss": 1.0, "other": 2.0}
    summary = run_pipeline([Step("a", [["a"]], report)], tmp_path, lambda command: metrics)
    assert summary["game"] == {"score": 1.0, "rest": None}
    assert summary["a"] == {"loss": 2.0, "other": 2.0}
    assert "loss 1, other 2, no metric 'none'" in capsys.readouterr().out


def test_a_finished_stage_is_skipped_and_says_so(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(steps("a", "b"), tmp_path, Commands(fail="b"))
    commands = Commands()
    run_pipeline(steps("a", "b"), tmp_path, commands)
    assert commands.run == [["b"]]
    assert "a: finished before" in capsys.readouterr().out


def test_an_interrupted_fit_goes_on_from_its_last_checkpoint(tmp_path):
    last = tmp_path / "v" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    commands = Commands()
    run_pipeline([Step("v", [["fit", "--model=VAE"], ["test"]])], tmp_path, commands)
    assert commands.run == [["fit", "--model=VAE", f"--ckpt_path={last}"], ["test"]]


def test_the_seconds_of_an_interrupted_attempt_are_counted(tmp_path):
    def slow(words):
        time.sleep(0.2)
        if not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(steps("a"), tmp_path, slow)
    (tmp_path / "again").touch()
    assert run_pipeline(steps("a"), tmp_path, slow)["seconds"]["a"] >= 0.4


def test_a_stage_made_from_an_earlier_one_that_is_gone_is_not_trusted(tmp_path):
    run_pipeline(steps("a", "b"), tmp_path, Commands())
    (tmp_path / "a" / "result.json").unlink()
    with pytest.raises(ValueError, match="stage b .* is finished but a, which comes before it, is not"):
        run_pipeline(steps("a", "b"), tmp_path, Commands())


@pytest.mark.parametrize(
    ("value", "better", "margin", "words"),
    [
        (2.0, "higher", None, "better"),
        (2.0, "lower", None, "NOT BETTER"),
        (0.5, "higher", None, "NOT BETTER"),
        (1.0, "higher", None, "NOT BETTER"),
        (2.0, "higher", 1.5, "better, not certain"),
        (3.0, "higher", 1.5, "better (difference"),
        (None, "higher", None, "NOT MEASURED"),
        (float("nan"), "lower", None, "NOT BETTER"),
    ],
)
def test_what_does_not_beat_its_baseline_is_called_not_better(value, better, margin, words):
    summary = {"s": {"value": value, "baseline": 1.0, "margin": margin}}
    row = Comparison("what", "s.value", "s.baseline", "copying", better, "s.margin" if margin else None)
    assert words in format_table(summary, [row])[1]


def test_what_is_not_better_is_red_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    worse = format_table({"s": {"a": 0.0, "b": 1.0}}, [Comparison("what", "s.a", "s.b", "copying")])[1]
    assert worse.startswith("\033[31m")


PLACE = {"id": "wmlightning/DummyPixels-v0", "time_limit": 12, "crop": None, "kwargs": None}
ENVIRONMENT = {"class_path": "EnvFactory", "init_args": PLACE}
SMALL_MEMORY = {"class_path": "MDNLSTM", "init_args": {"latent_size": 4, "action_size": 2, "hidden_size": 8}}
QUIET = {"trainer.enable_progress_bar": False, "trainer.limit_test_batches": 1}
DATA = {"data.batch_size": 2, "data.updates_per_epoch": 5, "data.validation_batches": 1}
RANDOM = {"class_path": "HeldActionsPolicy", "init_args": {"action_size": 2}}
EVERY_BATCH = {"class_path": "wmlightning.callbacks.checkpoints.LastCheckpoint", "init_args": {"seconds": 0}}
TINY = {
    "base": "world_models/carracing.yaml",
    "environment": ENVIRONMENT,
    "stages": {
        "collect": {"set": {"policy": RANDOM, "episodes": 12, "num_envs": 2, "num_workers": 0}},
        "vae": {
            "set": {"model.latent_size": 4, "model.depth": 2, "trainer.max_steps": 12, **DATA, **QUIET}
            | {"trainer.callbacks": [EVERY_BATCH]}
        },
        "mdn_rnn": {
            "set": {"model.dynamics": SMALL_MEMORY, "trainer.max_steps": 12, **DATA, **QUIET}
            | {"data.dataset.sampler.length": 10, "trainer.callbacks": [EVERY_BATCH]}
        },
        "controller": {
            "set": {"model.population": 4, "model.episodes": 1, "model.num_envs": 4, "model.num_workers": 0}
            | {"model.evaluate_every": 2, "model.evaluation_episodes": 2, "trainer.max_steps": 4}
            | {"trainer.callbacks": [EVERY_BATCH], "trainer.enable_progress_bar": False}
        },
        "evaluate": {
            "set": {
                "episodes": 4,
                "num_envs": 2,
                "num_workers": 0,
                "baselines": {
                    "random": RANDOM,
                    "zero": {"class_path": "ConstantPolicy", "init_args": {"action": [0, 0]}},
                },
            }
        },
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The whole pipeline on a dummy environment, in a second or two a stage."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["run", tiny, "--out", str(out)]) == 0
    return out


def whole_things(out):
    """Finished episodes, codes and stages: name -> the file's number and time, which a rewrite would change."""
    files = [*out.glob("*/ep-*.h5"), *out.glob("*/result.json")]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_the_summary_has_every_number_that_is_documented(undisturbed):
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert {"psnr", "ssim", "baseline_psnr"} <= set(summary["vae"])
    assert {"nll", "copy_nll", "untrained_nll"} <= set(summary["mdn_rnn"])
    assert {"mean_return", "ci95", "episodes", "random_mean_return"} <= set(summary["controller"])
    assert list(summary["seconds"]) == ["collect", "vae", "encode", "mdn_rnn", "controller", "evaluate"]
    named = [summary["vae"]["psnr"], summary["mdn_rnn"]["nll"], *summary["controller"].values()]
    assert all(isinstance(number, int | float) for number in named)
    assert summary["evaluate"]["baselines.zero.mean"] == summary["controller"]["zero_mean_return"]


def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(tiny, undisturbed, tmp_path):
    out, chance = tmp_path / "run", random.Random(0)
    for _ in range(4):
        before = whole_things(out)
        process = in_child(["run", tiny, "--out", str(out)])
        time.sleep(chance.uniform(0.5, 3.0))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert before.items() <= whole_things(out).items(), "a finished episode or stage was lost or made again"
    assert main(["run", tiny, "--out", str(out)]) == 0
    for stage in ("vae", "mdn_rnn", "controller"):
        one, other = (weights(folder / stage / "checkpoints" / "last.ckpt") for folder in (out, undisturbed))
        assert all(torch.equal(one[key], other[key]) for key in one), stage


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_says_how_to_go_on_and_does_not_exit_with_0(number, tiny, tmp_path, capfd):
    out = tmp_path / "run"
    changes = ["--set", "vae.trainer.max_steps=100000"]
    process = in_child(["run", tiny, "--out", str(out), *changes])
    while not (out / "vae" / "checkpoints" / "last.ckpt").exists():
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    assert f"wmlightning run {tiny} --out {out} {' '.join(changes)}" in capfd.readouterr().out
    assert torch.load(out / "vae" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 0


def test_a_finished_run_started_again_does_nothing(tiny, undisturbed, capsys):
    before = whole_things(undisturbed)
    assert main(["run", tiny, "--out", str(undisturbed)]) == 0
    assert whole_things(undisturbed) == before
    out = capsys.readouterr().out
    assert out.count("finished before") == 6
    assert out.count("NOT MEASURED") == 1, "No episode is long enough for the error 20 decisions ahead."
    assert "zero action" in out


def test_a_table_says_of_an_environment_only_what_is_true_of_it(tiny):
    """CarRacing's lap and its gas stand in carracing.yaml; a pipeline that starts from it plays something else here."""
    for row in table_of(read_pipeline(tiny)):
        assert not any(word in row.what + row.against for word in ("lap", "tiles", "gas", "{"))
    texts = [(row.what, row.against) for row in table_of(read_pipeline("world_models/quickstart"))]
    assert texts[-2:] == [
        ("C  mean return (a lap is 0.95 of the tiles)", "random policy"),
        ("C  mean return (a lap is 0.95 of the tiles)", "half gas straight on"),
    ]


ROW = {"what": "return at {speed}", "value": "a.b", "baseline": "a.c", "against": "nothing"}
UNFILLED = [
    {"table": [ROW]},
    {"sweep_table": {"rows": [{"name": "1", "evaluation": "evaluate"}], "note": "at {speed}"}},
    {"view": {"charts": {"at {speed}": {"real": "controller.mean_return"}}}},
    {"table": [ROW | {"what": "a score"}], "wording": {PLACE["id"]: {"a score": "at {speed}"}}},
]


@pytest.mark.parametrize("changes", UNFILLED)
def test_a_template_that_stays_unfilled_in_a_table_stops_a_pipeline_before_its_first_stage(changes, tmp_path, capsys):
    path = tmp_path / "pipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    out = tmp_path / "run"
    assert main(["run", str(path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"the pipeline's \w+ has \{speed\}, but the pipeline gives that no value", line)
    assert not out.exists()
    path.write_text(yaml.safe_dump({**TINY, **changes, "speed": 30}))
    # Names of charts are keys, into which no values are put.
    assert main(["run", str(path), "--out", str(out), "--dry-run"]) == (2 if "view" in changes else 0)


def test_wording_that_is_no_mapping_is_one_line(tmp_path):
    (tmp_path / "pipe.yaml").write_text(yaml.safe_dump({**TINY, "wording": {PLACE["id"]: "fast"}}))
    with pytest.raises(ValueError, match="wording is .* write {ID OF AN ENVIRONMENT"):
        read_pipeline(tmp_path / "pipe.yaml")


def test_what_is_reported_is_no_setting_of_a_stage(tiny, undisturbed):
    """So a run that a version with longer reports has begun goes on."""
    pipeline = read_pipeline(tiny)
    for stage in pipeline["stages"].values():
        stage["report"] = {"vae.psnr": "vae/psnr"}
    with lock_run_folder(undisturbed, pipeline):
        pass
    with lock_run_folder(undisturbed, read_pipeline(tiny)):
        pass


def test_a_folder_made_with_other_settings_is_refused_in_one_line(tiny, undisturbed, capsys):
    assert main(["run", tiny, "--out", str(undisturbed), "--set", "vae.trainer.max_steps=11"]) == 2
    error = capsys.readouterr().err.strip()
    assert "stage vae" in error
    assert "12, now 11" in error
    assert len(error.splitlines()) == 1


def test_a_limit_may_be_raised_and_what_was_made_from_the_stage_is_made_again(tiny, undisturbed, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    before = json.loads((out / "summary.json").read_text())
    capsys.readouterr()
    assert main(["run", tiny, "--out", str(out), "--set", "controller.trainer.max_steps=7"]) == 0
    said = capsys.readouterr().out
    assert "stage controller is trained further than when it finished" in said
    assert said.count("finished before") == 4
    summary = json.loads((out / "summary.json").read_text())
    assert summary["controller"]["generation"] > before["controller"]["generation"]
    (aside,) = out.glob("superseded-*")
    assert {path.name for path in aside.iterdir()} == {"controller", "evaluate"}
    assert (aside / "evaluate" / "result.json").exists()


def test_a_stage_that_was_trained_further_by_hand_is_measured_again(tiny, undisturbed, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    last = out / "controller" / "checkpoints" / "last.ckpt"
    more = [f"--ckpt_path={last}", "--trainer.max_steps=7", f"--trainer.default_root_dir={out / 'controller'}"]
    assert main(["fit", "-c", str(out / "controller" / "config.yaml"), *more]) == 0
    capsys.readouterr()
    assert main(["run", tiny, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "stage controller is trained further" in said
    assert said.count("finished before") == 4
    assert main(["run", tiny, "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("finished before") == 6


def test_a_kill_between_the_last_checkpoint_and_the_results_loses_no_number(tiny, undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    before = json.loads((out / "summary.json").read_text())
    for stage in ("controller", "evaluate"):
        (out / stage / "result.json").unlink()
    assert main(["run", tiny, "--out", str(out)]) == 0
    after = json.loads((out / "summary.json").read_text())
    assert after["controller"] == pytest.approx(before["controller"])


def test_the_settings_in_the_folder_are_a_pipeline_too(undisturbed, capsys):
    assert main(["run", str(undisturbed / "config.yaml"), "--out", str(undisturbed)]) == 0
    assert capsys.readouterr().out.count("finished before") == 6


def test_a_name_that_has_been_filled_in_can_no_longer_be_set(undisturbed, tmp_path, capsys):
    words = ["run", str(undisturbed / "config.yaml"), "--out", str(tmp_path / "run"), "--set", "seed=7"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "seed" in line
    assert not (tmp_path / "run").exists()


def test_a_command_is_printed_as_it_can_be_typed(tmp_path, monkeypatch):
    for name in ("python", "tensorboard"):
        (tmp_path / "venv/bin" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "venv/bin" / name).touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "venv/bin/python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert as_typed("tensorboard", "--logdir", "a b") == f"{tmp_path}/venv/bin/tensorboard --logdir 'a b'"
    monkeypatch.chdir(tmp_path)
    assert as_typed("tensorboard") == "venv/bin/tensorboard"
    monkeypatch.setenv("PATH", str(tmp_path / "venv/bin"))
    assert as_typed("tensorboard") == "tensorboard"
    assert as_typed("elsewhere") == "elsewhere"


def test_settings_of_a_stage_that_has_not_begun_may_still_change(tiny, tmp_path):
    out = tmp_path / "run"
    with lock_run_folder(out, read_pipeline(tiny, changes=["seed=2"])):
        (out / "collect").mkdir()
    with lock_run_folder(out, read_pipeline(tiny)):
        (out / "episodes").mkdir()
        (out / "episodes" / "ep-00000000-0-0-13.h5").touch()
    with lock_run_folder(out, read_pipeline(tiny, changes=["vae.trainer.max_steps=13"])):
        pass
    with (
        pytest.raises(ValueError, match="stage collect"),
        lock_run_folder(out, read_pipeline(tiny, changes=["seed=1"])),
    ):
        pass


def test_a_stage_that_failed_before_it_left_anything_takes_new_settings(tiny, tmp_path):
    """The second turn of a loop shares its folder of episodes with the first."""
    stage = {"command": "collect", "config": [{}], "set": {"path": "{run}/episodes", "iteration": 2, "episodes": 0}}
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "ep-00000000-0-1-13.h5").touch()
    for episodes in (0, 3):
        stage = stage | {"set": stage["set"] | {"episodes": episodes}}
        with lock_run_folder(tmp_path, {"stages": {"again": stage}}):
            (tmp_path / "again").mkdir(exist_ok=True)
    (tmp_path / "episodes" / "ep-00000001-0-2-13.h5").touch()
    with pytest.raises(ValueError, match="3, now 4"):
        with lock_run_folder(tmp_path, {"stages": {"again": stage | {"set": stage["set"] | {"episodes": 4}}}}):
            pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("evaluate.episodes=1", "stage evaluate: episodes is 1"),
        ("collect.episodes=0", "stage collect: episodes is 0"),
        ("controller.model.sigma=0", "stage controller: sigma is 0"),
        ("controller.model.population=2", "stage controller: population is 2"),
        ("controller.model.generations_per_epoch=0", "stage controller: generations_per_epoch is 0"),
        ("controller.model.evaluate_every=-1", "stage controller: evaluate_every is -1"),
        ("vae.model.latent_size=8", "stage mdn_rnn: V's codes have 8 numbers but those of dynamics 4"),
        ("mdn_rnn.model.vae=nowhere.ckpt", "stage mdn_rnn: there is no checkpoint at nowhere.ckpt"),
        ("controller.model.model='{run}/vae/checkpoints/last.ckpt'", "stage controller: .* holds a VAE"),
    ],
)
def test_a_slip_in_a_late_stage_is_found_before_the_first_runs(tiny, tmp_path, change, says, capsys):
    out = tmp_path / "run"
    assert main(["run", tiny, "--out", str(out), "--set", change]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(says, line)
    assert not out.exists()


def test_a_damaged_result_is_one_line_that_says_what_to_do(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").touch()
    with pytest.raises(ValueError, match=r"result.json is damaged .*: delete it"):
        run_pipeline(steps("a"), tmp_path, Commands())


def test_a_folder_that_is_not_a_runs_is_refused(tiny, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "file").touch()
    for out, says in ((tmp_path, "has no stages"), (tmp_path / "file", "cannot be written")):
        with pytest.raises(ValueError, match=says), lock_run_folder(out, read_pipeline(tiny)):
            pass


def test_the_number_of_processes_may_change_at_any_time(tiny, undisturbed):
    with lock_run_folder(undisturbed, read_pipeline(tiny, changes=["collect.num_workers=3"])):
        pass


def test_two_runs_do_not_work_in_one_folder(tiny, tmp_path):
    def other():
        with lock_run_folder(tmp_path, read_pipeline(tiny)):
            os._exit(0)

    with lock_run_folder(tmp_path, read_pipeline(tiny)):
        process = multiprocessing.get_context("fork").Process(target=other)
        process.start()
        process.join()
    assert process.exitcode == 1
