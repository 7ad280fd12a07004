"""A pipeline with a loop: unrolled, ended when solved, reported turn by turn, and never the worse for a kill."""

import json
import os
import random
import signal
import time

import pytest
import torch
import yaml
from PIL import Image
from pipeline_support import Commands, in_child, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.store import EpisodeStore
from wmlightning.__main__ import main
from wmlightning.cli import commands
from wmlightning.cli.commands import execute
from wmlightning.pipeline.config import loop_of, read_pipeline, steps_of
from wmlightning.pipeline.run import Step, run_pipeline
from wmlightning.pipeline.tables import Loop, format_iterations, number

SMALL = {
    "seed": 3,
    "stages": {"collect": {"command": "collect", "set": {"path": "{run}/episodes"}}},
    "iterations": 2,
    "loop": {
        "collect": {"command": "collect", "set": {"agent": "{previous}/c.ckpt", "iteration": "{iteration}"}},
        "rest": None,
        "fit": {
            "command": "fit",
            "config": "world_models/vae",
            "set": {"model.start": "{current}/m", "seed": "{seed}"},
        },
    },
}


@pytest.fixture
def pipeline(tmp_path):
    def write(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------ what is run


def test_a_loop_becomes_stages_in_a_row_that_know_their_neighbours(pipeline, tmp_path):
    steps = steps_of(read_pipeline(pipeline()), tmp_path)
    assert [step.name for step in steps] == [
        *("collect", "iteration_01/collect", "iteration_01/fit", "iteration_02/collect", "iteration_02/fit")
    ]
    assert [step.iteration for step in steps] == [0, 1, 1, 2, 2]
    assert steps[1].commands == [["collect", f"--agent={tmp_path}/c.ckpt", "--iteration=1"]]
    assert steps[3].commands == [["collect", f"--agent={tmp_path}/iteration_01/c.ckpt", "--iteration=2"]]
    assert f"--model.start={tmp_path}/iteration_02/m" in steps[4].commands[0]
    assert f"--trainer.default_root_dir={tmp_path}/iteration_02/fit" in steps[4].commands[0]


def test_a_file_laid_over_puts_a_stage_where_there_was_none_and_removes_another(pipeline, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"loop": {"rest": {"command": "evaluate"}, "fit": None}}))
    names = list(read_pipeline(pipeline(iterations=1), [str(over)])["stages"])
    assert names == ["collect", "iteration_01/collect", "iteration_01/rest"]


def test_a_change_may_name_a_stage_of_the_loop_and_the_number_of_iterations(pipeline, tmp_path):
    steps = steps_of(read_pipeline(pipeline(), changes=["loop.collect.episodes=7", "iterations=3"]), tmp_path)
    assert len(steps) == 7
    assert "--episodes=7" not in steps[0].commands[0]
    assert all("--episodes=7" in step.commands[0] for step in steps[1::2])


@pytest.mark.parametrize("change", ["loop.rest.x=1", "loop.x=1", "rest.x=1", "loop=1", "solved.at_least=3"])
def test_a_change_of_what_is_not_there_is_refused(pipeline, change):
    with pytest.raises(ValueError, match="changes nothing"):
        read_pipeline(pipeline(), changes=[change])


def test_a_file_laid_over_that_takes_a_stage_of_the_loop_for_another_is_told_so(pipeline, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"stages": {"fit": {"set": {"x": 1}}}}))
    with pytest.raises(ValueError, match="stage fit of .* is in its loop"):
        read_pipeline(pipeline(), [str(over)])


@pytest.mark.parametrize("changes", [{"iterations": 0}, {"iterations": None}, {"iterations": True}, {"loop": {}}])
def test_a_loop_wants_stages_and_a_number(pipeline, changes):
    with pytest.raises(ValueError, match="a loop wants both"):
        read_pipeline(pipeline(**changes))


WRONG = [
    {"view": {"step": "a.b"}},
    {"view": {"charts": [1, 2]}},
    {"view": {"charts": {"x": "c.n"}}},
    {"view": {"charts": {"x": {"y": 5}}}},
    {"view": {"steps": "steps"}},
    {"solved": {"at_last": 3}},
    {"solved": {"value": "c.n", "at_least": "abc"}},
]


@pytest.mark.parametrize("changes", WRONG)
def test_a_slip_in_what_to_look_at_is_refused_in_one_line(pipeline, changes):
    with pytest.raises(ValueError, match="view or solved is wrong"):
        loop_of(read_pipeline(pipeline(**changes)))


# ----------------------------------------------------------------------------------------------- what is said of it

LOOP = Loop(
    "play.steps",
    {
        "return": {"real": "learn.real", "dream": "learn.dream"},
        "gap": {"dream less real": ["learn.dream", "learn.real"]},
    },
    "learn.real",
    at_least=3,
)


def turns(count):
    """A collection before the loop, and turns of playing and learning."""
    steps = [Step("play", [["play"]])]
    for k in range(1, count + 1):
        steps.append(Step(f"iteration_{k:02d}/play", [["play"]], iteration=k))
        steps.append(Step(f"iteration_{k:02d}/learn", [["learn"]], iteration=k))
    return steps


class Learns(Commands):
    """Plays 10 steps a time; iteration k comes to a return of k, and dreams of 2 k."""

    def __call__(self, words):
        super().__call__(words)
        turn = sum(run == ["learn"] for run in self.run)
        return {"steps": 10.0} if words == ["play"] else {"real": turn, "dream": 2 * turn}


def test_every_iteration_is_reported_and_the_last_one_is_the_summary(tmp_path):
    summary = run_pipeline(turns(2), tmp_path, Learns(), loop=LOOP)
    assert summary["learn"] == {"real": 2, "dream": 4}
    one, two = summary["iterations"]
    assert (one["iteration"], one["env_steps"], one["learn"]) == (1, 20, {"real": 1, "dream": 2})
    assert (two["iteration"], two["env_steps"], two["learn"]) == (2, 30, {"real": 2, "dream": 4})
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_loop_ends_when_the_task_is_solved_and_stays_so(tmp_path, capsys):
    for turn in range(2):
        commands = Learns()
        summary = run_pipeline(turns(5), tmp_path, commands, loop=LOOP)
        assert len(summary["iterations"]) == 3
        assert len(commands.run) == (7 if turn == 0 else 0)
        assert "solved after iteration 3: learn.real is at least 3" in capsys.readouterr().out


def test_a_finished_loop_goes_on_when_more_iterations_are_asked_for(tmp_path):
    run_pipeline(turns(1), tmp_path, Learns(), loop=LOOP)
    commands = Learns()
    assert len(run_pipeline(turns(2), tmp_path, commands, loop=LOOP)["iterations"]) == 2
    assert commands.run == [["play"], ["learn"]]


def test_the_curves_have_real_steps_on_their_axis_and_are_one_view_of_all_iterations(tmp_path):
    run_pipeline(turns(2), tmp_path, Learns(), loop=LOOP)
    events = EventAccumulator(str(tmp_path / "iterations" / "tensorboard")).Reload()
    for tag, values in {"return/real": [1, 2], "return/dream": [2, 4], "gap/dream_less_real": [1, 2]}.items():
        assert [(point.step, point.value) for point in events.Scalars(tag)] == list(zip([20, 30], values, strict=True))
    picture = Image.open(tmp_path / "iterations" / "curves.png")
    assert picture.height == 2 * 300, "One chart for returns, one for the gap."


def test_the_view_is_there_after_the_first_iteration_already(tmp_path):
    class StopsInTheSecond(Learns):
        def __call__(self, words):
            if len(self.run) == 3:
                raise KeyboardInterrupt
            return super().__call__(words)

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(turns(2), tmp_path, StopsInTheSecond(), loop=LOOP)
    assert len(list((tmp_path / "iterations" / "tensorboard").iterdir())) == 1


def test_the_table_has_a_line_an_iteration_and_leaves_out_what_was_not_measured():
    report = {"iteration": 1, "env_steps": 20, "learn": {"real": 1.5, "dream": None}}
    head, line = format_iterations([report], LOOP)
    assert head.split() == [
        "iteration",
        "real",
        "steps",
        "return",
        "real",
        "return",
        "dream",
        "gap",
        "dream",
        "less",
        "real",
    ]
    assert line.split() == ["1", "20", "1.5"]
    assert number(report, ["learn.real", "learn.real"]) == 0


# ------------------------------------------------------------------------------------------- the real thing, killed

PLACE = {"id": "wmlightning/DummyPixels-v0", "time_limit": 8, "crop": None, "kwargs": None}
DATA = {"data.batch_size": 2, "data.updates_per_epoch": 4, "data.validation_batches": 0, "trainer.max_steps": 4}
OFTEN = [{"class_path": "wmlightning.callbacks.checkpoints.LastCheckpoint", "init_args": {"seconds": 0}}]
FIT = {"trainer.enable_progress_bar": False, "trainer.callbacks": OFTEN, "seed_everything": 0}
MEMORY = {"class_path": "MDNLSTM", "init_args": {"latent_size": 4, "action_size": 2, "hidden_size": 8}}
NOISE = {"class_path": "SmoothNoisePolicy", "init_args": {"action_size": 2}}
DREAM = {"class_path": "Dream", "init_args": {"starts": "{run}/codes", "max_steps": 8}}
COLLECT = {"path": "{run}/episodes", "environment": "{environment}", "episodes": 3, "num_envs": 2, "seed": 0}


def stages(here, vae, before, updates, generations):
    """The stages of a turn, or with 0 updates and generations what the first turn starts from."""
    memory = {"model.vae": vae, "model.dynamics": MEMORY, "model.reward_head": True, "data.path": "{run}/codes"}
    memory |= {"data.dataset.sampler.length": 6} | DATA | FIT | {"trainer.max_steps": updates}
    control = {"model.model": f"{here}/mdn_rnn/checkpoints/last.ckpt", "model.environment": "{environment}"}
    control |= {"model.dream": DREAM, "model.population": 4, "model.episodes": 2, "model.evaluate_every": 1}
    control |= {"model.evaluation_episodes": 2, "trainer.max_steps": generations} | FIT
    if before:
        memory["model.start"] = f"{before}/mdn_rnn/checkpoints/last.ckpt"
        control["model.start"] = f"{before}/controller/checkpoints/last.ckpt"
    encode = {"ckpt_path": vae, "data.path": "{run}/episodes", "trainer.enable_progress_bar": False}
    writer = {"class_path": "CodeWriter", "init_args": {"path": "{run}/codes", "stale": "replace"}}
    encode |= {"trainer.default_root_dir": f"{here}/encode", "trainer.callbacks": [writer]}
    return {
        "encode": {"command": "predict", "config": "world_models/codes", "set": encode},
        "mdn_rnn": {"command": "fit", "config": "world_models/mdn_rnn", "set": memory},
        "controller": {"command": "fit", "config": "world_models/controller", "set": control},
    }


def retraining(vae, start=None):
    """V's stage; in the loop it goes on from the V before, so that all codes become stale."""
    settings = {"model.latent_size": 4, "model.depth": 2, "data.path": "{run}/episodes"} | DATA | FIT
    return {"command": "fit", "config": "world_models/vae", "set": settings | ({"model.start": start} if start else {})}


AGENT = {"agent": "{previous}/controller/checkpoints/last.ckpt", "noise": NOISE, "iteration": "{iteration}"}
REAL = {
    "environment": {"class_path": "EnvFactory", "init_args": PLACE},
    "stages": {
        "collect": {"command": "collect", "set": COLLECT | {"policy": NOISE}, "report": {"collect.steps": "env_steps"}},
        "vae": retraining("{run}"),
        **stages("{run}", "{run}/vae/checkpoints/last.ckpt", None, 0, 0),
    },
    "iterations": 2,
    "loop": {
        "collect": {"command": "collect", "set": COLLECT | AGENT, "report": {"collect.steps": "collected_env_steps"}},
        "vae": retraining("{current}", "{previous}/vae/checkpoints/last.ckpt"),
        **stages("{current}", "{current}/vae/checkpoints/last.ckpt", "{previous}", 4, 2),
    },
    "view": {"steps": "collect.steps", "charts": {"return": {"dream": "controller.dream_return"}}},
}
REAL["loop"]["controller"]["report"] = {"controller.dream_return": "controller/dream_return"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two turns of a loop in which V, M and C learn, and an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("loop")
    path = folder / "real.yaml"
    path.write_text(yaml.safe_dump(REAL, sort_keys=False))
    assert main(["run", str(path), "--out", str(folder / "run")]) == 0
    return str(path), folder / "run"


def test_data_accumulates_and_all_codes_are_the_last_vs(real):
    _, run = real
    episodes, codes = EpisodeStore(run / "episodes"), EpisodeStore(run / "codes")
    assert [name.birth for name in episodes.listing] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert codes.names == episodes.names
    assert len({codes.read(place).metadata["vae"] for place in range(9)}) == 1
    reports = json.loads((run / "summary.json").read_text())["iterations"]
    assert [report["env_steps"] for report in reports] == [48, 72]
    assert all(report["controller"]["dream_return"] is not None for report in reports)


def whole_things(out):
    """Finished episodes and stages: name -> the file's number and time, which a rewrite would change."""
    files = [*out.glob("episodes/ep-*.h5"), *out.rglob("result.json")]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_a_run_stopped_between_a_new_v_and_its_codes_goes_on(real, tmp_path, monkeypatch):
    path, undisturbed = real
    out = tmp_path / "run"

    def until_then(words):
        if f"--trainer.default_root_dir={out}/iteration_01/encode" in words:
            raise KeyboardInterrupt
        return execute(words)

    with monkeypatch.context() as patched:
        patched.setattr(commands, "execute", until_then)
        assert main(["run", path, "--out", str(out)]) == 130
    assert main(["run", path, "--out", str(out)]) == 0
    assert EpisodeStore(out / "codes").names == EpisodeStore(undisturbed / "codes").names


@pytest.mark.parametrize(("seed", "kills"), [(0, 2), pytest.param(1, 6, marks=pytest.mark.slow)])
def test_an_iterative_run_killed_at_random_moments_ends_as_if_undisturbed(real, tmp_path, seed, kills):
    path, undisturbed = real
    out, chance = tmp_path / "run", random.Random(seed)
    for _ in range(kills):
        before = whole_things(out)
        process = in_child(["run", path, "--out", str(out)])
        time.sleep(chance.uniform(0.5, 3.0))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert before.items() <= whole_things(out).items(), (
            "a finished episode, stage or iteration was lost or made again"
        )
    assert main(["run", path, "--out", str(out)]) == 0
    for stage in ("vae", "mdn_rnn", "controller"):
        place = f"iteration_02/{stage}/checkpoints/last.ckpt"
        one, other = weights(out / place), weights(undisturbed / place)
        assert all(torch.equal(one[key], other[key]) for key in one if one[key].isfinite().all()), stage
    assert EpisodeStore(out / "episodes").names == EpisodeStore(undisturbed / "episodes").names
