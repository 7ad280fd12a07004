"""Our returns beside published ones: the right task, at equal environment steps, in one picture."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

import wmlightning.environments.dummy  # noqa: F401  (registers the environments)
from wmlightning.cli.commands import print_result
from wmlightning.environments.factory import EnvFactory
from wmlightning.policies.exploration import ConstantPolicy
from wmlightning.tools.compare import (
    Published,
    compare_chart,
    compare_with,
    read_curves,
    run_curve,
    same_task,
    several_seeds,
    steps_trained,
    task_name,
    verdict,
)
from wmlightning.tools.evaluate import evaluate

HEAD = "method,task,env_steps,mean,min,max,seeds\n"
ROWS = "dreamer,dummy_pixels,3000,30,20,50,5\ndreamer,dummy_pixels,1000,10,0,20,5\nother,cup_catch,5,1,1,1,3\n"


@pytest.fixture
def curves(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(HEAD + ROWS)
    return str(path)


def logged_run(folder, points, name="evaluate/return"):
    """A run's folder with a curve in its TensorBoard file."""
    logger = TensorBoardLogger(folder, name="tensorboard", version="")
    for step, value in points:
        logger.log_metrics({name: value}, step)
    logger.finalize("success")
    return folder


def test_a_file_of_curves_is_read_in_the_order_of_steps(curves):
    dreamer, other = read_curves(curves)
    assert dreamer == Published("dreamer", "dummy_pixels", [1000, 3000], [10, 30], [0, 20], [20, 50], 5)
    assert other.seeds == 3


def test_the_published_band_at_equal_steps_is_read_between_its_points_and_never_beyond_them(curves):
    dreamer = read_curves(curves)[0]
    assert dreamer.at(2000) == {"mean": 20.0, "min": 10.0, "max": 35.0, "seeds": 5}
    assert dreamer.at(999) is None
    assert dreamer.at(3001) is None


@pytest.mark.parametrize(("returned", "where"), [(9.9, "below"), (10.0, "inside"), (35.0, "inside"), (36.0, "above")])
def test_a_return_lies_below_inside_or_above_a_band(curves, returned, where):
    assert verdict(returned, read_curves(curves)[0].at(2000)) == where


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("dm_control/walker-walk-v0", "walker_walk"),
        ("dm_control/cartpole-swingup_sparse-v0", "cartpole_swingup_sparse"),
        ("dm_control/ball_in_cup-catch-v0", "cup_catch"),
        ("ball_in_cup_catch", "cup_catch"),
        ("dmc_walker_walk", "walker_walk"),
        ("ALE/VideoPinball-v5", "atari_video_pinball"),
        ("wmlightning/DummyPixels-v0", "dummy_pixels"),
    ],
)
def test_a_task_is_known_by_all_of_its_names(ours, theirs):
    assert task_name(ours) == task_name(theirs)


def test_a_task_that_nobody_published_is_refused_and_the_nearest_are_named(curves):
    with pytest.raises(ValueError, match=r"no curve of dummy_counter .*, but of dummy_pixels"):
        same_task(read_curves(curves), "wmlightning/DummyCounter-v0", curves)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column method, task"),
        ("method,task,env_steps,mean\na,b,1,2\n", "has no column min, max, seeds"),
        (HEAD + "a,b,1,2,1,3,5\na,b,many,2,1,3,5\n", "line 3"),
        (HEAD + "a,b,1,nan,1,3,5\n", "line 2"),
        (HEAD + "a,b,1\n", "line 2"),
    ],
)
def test_what_is_no_file_of_curves_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_curves(path)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match="there is no file of curves at"):
        read_curves(tmp_path / "none.csv")


def test_a_runs_curve_is_its_evaluations_where_it_has_any(tmp_path):
    run = logged_run(tmp_path / "run", [(100, 1.0), (200, 2.0)])
    logged_run(run, [(50, 9.0)], "collect/return")
    assert run_curve(run) == ("evaluate/return", ([100.0, 200.0], [1.0, 2.0]))
    assert run_curve(run / "checkpoints" / "last.ckpt")[1] == run_curve(run)[1]
    assert run_curve(logged_run(tmp_path / "other", [(50, 9.0)], "collect/return"))[0] == "collect/return"


def test_a_point_that_a_resumed_run_logged_twice_counts_once(tmp_path):
    run = logged_run(tmp_path / "run", [(100, 1.0), (200, 2.0), (200, 3.0), (300, 4.0)])
    assert run_curve(run)[1] == ([100.0, 200.0, 300.0], [1.0, 3.0, 4.0])


def test_a_folder_without_returns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no evaluate/return or collect/return"):
        run_curve(tmp_path)


def test_runs_of_several_seeds_are_one_curve_with_a_band_where_all_have_been():
    together = several_seeds([([0.0, 100.0, 200.0], [0.0, 10.0, 20.0]), ([50.0, 150.0], [20.0, 20.0])])
    assert together.steps == [50.0, 100.0, 150.0]
    assert together.mean == [12.5, 15.0, 17.5]
    assert together.low == [5.0, 10.0, 15.0]
    assert together.high == [20.0, 20.0, 20.0]
    assert together.seeds == 2
    with pytest.raises(ValueError, match="no environment steps in common"):
        several_seeds([([0.0, 10.0], [0.0, 0.0]), ([20.0], [1.0])])


def test_a_published_curve_far_longer_than_ours_is_cut_off_between_its_points(curves):
    cut = read_curves(curves)[0].until(2000)
    assert (cut.steps, cut.mean, cut.low, cut.high) == ([1000, 2000], [10, 20], [0, 10], [20, 35])
    assert read_curves(curves)[0].until(10).steps == [1000]
    assert read_curves(curves)[0].until(9000).steps == [1000, 3000]


def test_environment_steps_are_those_of_the_collector_or_of_the_agent_itself():
    collected = {"callbacks": {"Collect": {"progress": {"env_steps": 700}}, "Evaluate": {"last": {}}}}
    assert steps_trained(object(), collected) == 700
    assert steps_trained(SimpleNamespace(env_steps=torch.tensor(9)), {"callbacks": {}}) == 9
    assert steps_trained(object(), None) is None


def test_a_drawing_shows_bands_a_point_with_its_interval_and_levels(curves):
    published = read_curves(curves)[:1]
    ours = Published("ours", "", [1000, 2000], [12, 25], [11, 20], [13, 30], 2)
    plain = compare_chart(published, ours)
    full = compare_chart(published, ours, (2000, {"mean": 22.0, "ci95": 2.0, "baselines": {"random": {"mean": 1.0}}}))
    assert plain.shape == full.shape == (380, 760, 3)
    assert (plain != full).any()
    shade, ink = np.array([0, 114, 178]) * 50 / 255 + 205, np.array([30, 30, 30])
    assert (np.abs(plain - shade).max(-1) < 3).sum() > 1000, "the published band is shaded"
    dark = [(np.abs(picture.astype(int) - ink).max(-1) < 3).sum() for picture in (plain, full)]
    assert dark[1] > dark[0] + 30, "the evaluation is a dark point"


def test_an_evaluation_is_drawn_over_the_curves_of_its_task_and_told_in_numbers(tmp_path, curves, monkeypatch):
    run = logged_run(tmp_path / "run", [(1000, 5.0), (2000, 15.0)])
    kept = {"callbacks": {"Collect": {"progress": {"env_steps": 2000}}}}
    monkeypatch.setattr("wmlightning.tools.compare.read_checkpoint", lambda path: kept)
    result = {"mean": 21.0, "ci95": 3.0}
    told = compare_with(
        curves, object(), run / "checkpoints/last.ckpt", "wmlightning/DummyPixels-v0", result, [str(run)], None
    )
    assert told == {
        "task": "dummy_pixels",
        "env_steps": 2000,
        "picture": str(run / "pictures" / "compare.png"),
        "dreamer": {"mean": 20.0, "min": 10.0, "max": 35.0, "seeds": 5, "ours": "inside"},
    }
    assert Image.open(told["picture"]).size == (760, 380)


def test_a_run_that_is_named_twice_counts_as_one_seed(tmp_path, curves, monkeypatch):
    run, other = (logged_run(tmp_path / name, [(1000, 5.0), (2000, 15.0)]) for name in ("run", "other"))
    monkeypatch.setattr("wmlightning.tools.compare.read_checkpoint", lambda path: {})
    seen = []
    monkeypatch.setattr("wmlightning.tools.compare.several_seeds", lambda runs: seen.append(len(runs)))
    also = [str(run), str(other), f"{other}/checkpoints/last.ckpt"]
    result = {"mean": 21.0, "ci95": 3.0}
    compare_with(curves, object(), run / "checkpoints/last.ckpt", "wmlightning/DummyPixels-v0", result, also, None)
    assert seen == [2]


class Right:
    """An agent that always drives to the right."""

    environment = EnvFactory("wmlightning/DummyPixels-v0", size=16, time_limit=4)

    def policy(self, explore):
        return ConstantPolicy([1.0, 0.0])


def test_an_agent_that_came_from_no_file_is_compared_too(tmp_path, curves):
    files = {"picture": str(tmp_path / "c.png"), "json": str(tmp_path / "e.json")}
    with pytest.warns(UserWarning, match="episodes end after 4 steps here: published returns compare only if"):
        result = evaluate(Right(), episodes=2, compare=curves, **files)
    assert result["published"] == {"task": "dummy_pixels", "env_steps": None, "picture": files["picture"]}
    assert json.loads((tmp_path / "e.json").read_text()) == result
    assert (tmp_path / "c.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": "nowhere.csv"}, "no file of curves at nowhere.csv"),
        ({"picture": "c.png"}, "name a file of curves"),
        ({"compare": "curves", "picture": "c.gif"}, "end the name in .png"),
        ({"compare": "curves", "also": ["nowhere"]}, "nowhere/tensorboard has no evaluate/return"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_anything_is_played(curves, options, message):
    options = {name: curves if value == "curves" else value for name, value in options.items()}
    agent = Right()
    agent.policy = None
    with pytest.raises(ValueError, match=message):
        evaluate(agent, episodes=2, **options)


def test_the_published_curves_must_be_of_the_agents_task(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(HEAD + "a,walker_walk,1,2,1,3,5\n")
    agent = Right()
    agent.policy = None
    with pytest.raises(ValueError, match="no curve of dummy_pixels"):
        evaluate(agent, episodes=2, compare=str(path))


def test_the_command_tells_in_words_where_we_lie(capsys):
    numbers = {"mean": 21.0, "ci95": 3.0, "episodes": 10, "published.env_steps": 2000}
    band = {"mean": 20.0, "min": 10.0, "max": 35.0, "seeds": 5.0}
    numbers |= {f"published.dreamer.{key}": value for key, value in band.items()}
    numbers |= {f"planner.{key}": 1.0 for key in ("mean", "difference", "difference_ci95", "ms_per_action")}
    print_result(numbers | {"ms_per_action": 0.5})
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "mean return 21.0 +- 3.0 (95%) over 10 episodes",
        "planner: 1.0 on the same episodes, difference +1.0 +- 1.0",
        "milliseconds per action: 0.5 for the agent, 1.0 for the planner",
        "dreamer at 2,000 environment steps: 20.0, from 10.0 to 35.0 over 5 seeds; ours is inside",
    ]
