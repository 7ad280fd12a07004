"""How well an agent does: many episodes, distinct seeds, honest intervals, paired differences."""

import json
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from PIL import Image

import wmlightning.environments.dummy  # noqa: F401  (registers the environments)
from wmlightning.callbacks.evaluate import confidence_half_width, student_quantile
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.dream import DreamRules
from wmlightning.environments.factory import EnvFactory
from wmlightning.policies.exploration import ConstantPolicy, HeldActionsPolicy
from wmlightning.stages.controller import CMAESController
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE
from wmlightning.tools.evaluate import evaluate


class Always:
    """An agent that does one thing."""

    def __init__(self, action):
        self.action = action

    def policy(self, explore):
        return ConstantPolicy(self.action)


@pytest.fixture
def environment():
    return EnvFactory("wmlightning/DummyPixels-v0", size=16, time_limit=10)


def test_the_result_is_that_of_its_returns(environment):
    result = evaluate(Always([1.0, 0.0]), environment, episodes=6, num_envs=4)
    assert result["episodes"] == len(result["returns"]) == 6
    assert result["mean"] == pytest.approx(mean(result["returns"]))
    assert result["std"] == pytest.approx(stdev(result["returns"]))
    assert result["ci95"] == pytest.approx(2.571 * stdev(result["returns"]) / 6**0.5, rel=1e-3)
    assert result["env_steps"] == 60
    assert result["env_steps_per_second"] > 0
    assert {"id": "wmlightning/DummyPixels-v0", "size": 16, "time_limit": 10}.items() <= result["environment"].items()


def test_no_two_episodes_share_a_seed_and_another_seed_gives_others(environment):
    agent = Always([1.0, 0.0])
    first, second = (evaluate(agent, environment, episodes=8, seed=seed) for seed in (0, 1))
    assert len(set(first["seeds"]) | set(second["seeds"])) == 16
    assert len(set(first["returns"])) > 1


def test_returns_do_not_depend_on_how_many_environments_play_at_once(environment):
    agent = Always([1.0, 0.0])
    one, four = (evaluate(agent, environment, episodes=5, num_envs=n)["returns"] for n in (1, 4))
    assert one == four


def test_differences_are_taken_episode_by_episode_on_the_same_seeds(environment):
    still = ConstantPolicy([0.0, 0.0])
    result = evaluate(Always([1.0, 0.0]), environment, episodes=6, baselines={"still": still})
    beside = result["baselines"]["still"]
    gains = np.subtract(result["returns"], beside["returns"])
    assert beside["difference"] == pytest.approx(gains.mean())
    assert beside["difference_ci95"] == pytest.approx(confidence_half_width(gains))
    same = evaluate(Always([0.0, 0.0]), environment, episodes=6, baselines={"still": still})["baselines"]["still"]
    assert (same["difference"], same["difference_ci95"]) == (0.0, 0.0)


def test_the_result_is_written_as_json_and_an_episode_as_a_moving_picture(environment, tmp_path):
    agent, files = Always([1.0, 0.0]), {"json": str(tmp_path / "e.json"), "video": str(tmp_path / "e.gif")}
    result = evaluate(agent, environment, episodes=2, **files)
    assert json.loads((tmp_path / "e.json").read_text()) == result
    assert Image.open(tmp_path / "e.gif").n_frames > 1


@pytest.mark.parametrize(("kind", "name"), [("json", "e.json"), ("video", "e.gif")])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_played(environment, tmp_path, kind, name):
    (tmp_path / "file").touch()
    environment.vector = None
    with pytest.raises(ValueError, match="cannot be written"):
        evaluate(Always([1.0, 0.0]), environment, episodes=2, **{kind: str(tmp_path / "file" / name)})


def test_the_numbers_are_on_disk_before_the_film_is_made(environment, tmp_path, monkeypatch):
    monkeypatch.setattr("wmlightning.tools.evaluate.drive", lambda *_, **__: 1 / 0)
    files = {"json": str(tmp_path / "e.json"), "video": str(tmp_path / "e.gif")}
    with pytest.raises(ZeroDivisionError):
        evaluate(Always([1.0, 0.0]), environment, episodes=2, **files)
    assert json.loads((tmp_path / "e.json").read_text())["episodes"] == 2


def test_an_agent_with_a_dream_is_scored_and_filmed_there_too(environment, tmp_path):
    model = MDNRNN(VAE(4, depth=2), MDNLSTM(4, 2, 8, 2), reward_head=True).eval()
    agent = CMAESController(model, EnvFactory("wmlightning/DummyPixels-v0", time_limit=4), DreamRules(max_steps=3))
    agent.fitness.starts = torch.randn(5, 8)
    files = {"json": str(tmp_path / "e.json"), "video": str(tmp_path / "e.gif")}
    result = evaluate(agent, episodes=4, **files)
    dream = result["dream"]
    assert set(dream) == {"returns", "mean", "std", "ci95", "temperature", "episodes"}
    assert (dream["temperature"], dream["episodes"], len(dream["returns"])) == (1.0, 4, 4)
    assert dream["mean"] == pytest.approx(mean(dream["returns"]))
    assert dream["returns"] == agent.dreamt_returns(result["seeds"]).tolist()
    assert json.loads((tmp_path / "e.json").read_text()) == result
    assert Image.open(tmp_path / "e_dream.gif").n_frames > 1


@pytest.mark.parametrize(
    ("agent", "place", "options", "message"),
    [
        (Always([1.0, 0.0]), None, {}, "no environment to play in"),
        (object(), "here", {}, "does not act"),
        (Always([1.0, 0.0]), "here", {"episodes": 1}, "at least 2"),
        (Always([1.0, 0.0]), "here", {"seed": -1}, "seed is -1"),
        (Always([1.0, 0.0]), "here", {"episodes": 2, "video": "film.mp4"}, "end the name in .gif"),
        ("nowhere.ckpt", "here", {}, "there is no checkpoint at nowhere.ckpt"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_a_cure(agent, place, options, message, environment):
    with pytest.raises(ValueError, match=message):
        evaluate(agent, environment if place else None, **options)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (4, 2.776), (5, 2.571), (9, 2.262), (31, 2.040), (99, 1.984), (1023, 1.962)]
)
def test_students_quantile_is_that_of_the_tables(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062047362), (2, 4.3026527297), (9, 2.2621571628), (99, 1.9842169516)]
)
def test_students_quantile_is_exact(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=1e-9)


def test_students_quantile_falls_to_the_normal_one():
    quantiles = [student_quantile(degrees) for degrees in (1, 2, 3, 5, 10, 100, 10_000, 10**6)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert quantiles[-1] == pytest.approx(1.959964, abs=1e-4)


def test_the_interval_of_random_numbers_holds_their_mean_19_times_in_20():
    draws = np.random.default_rng(0).normal(size=(2000, 8))
    assert np.mean([abs(row.mean()) <= confidence_half_width(row) for row in draws]) == pytest.approx(0.95, abs=0.015)


def test_a_random_policy_can_be_evaluated_like_an_agent(environment):
    agent = Always([0.0, 0.0])
    agent.policy = lambda explore: HeldActionsPolicy(2)
    assert len(evaluate(agent, environment, episodes=3)["returns"]) == 3


def test_another_place_than_the_agent_was_trained_in_is_said(environment):
    agent = Always([1.0, 0.0])
    agent.environment = EnvFactory("wmlightning/DummyPixels-v0", action_repeat=2, size=16)
    with pytest.warns(
        UserWarning, match="trained: environment.action_repeat 2 is now 1, environment.time_limit None is"
    ):
        evaluate(agent, environment, episodes=2)
