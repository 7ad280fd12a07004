"""One world model under two controllers: the same episodes, and what an action takes."""

import json
import time

import numpy as np
import pytest
import torch

import wmlightning.environments.dummy  # noqa: F401  (registers the environments)
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import RSSM
from wmlightning.environments.factory import EnvFactory
from wmlightning.planners.cem import CEM
from wmlightning.policies.exploration import ConstantPolicy
from wmlightning.stages.planet import PlaNet
from wmlightning.stages.world_model import WorldModel
from wmlightning.tools.evaluate import Stopwatch, evaluate, milliseconds_per_action

PLANNER = {"horizon": 3, "candidates": 16, "elites": 4, "iterations": 2}


@pytest.fixture
def planet():
    torch.manual_seed(0)
    model = WorldModel(RSSM(GaussianLatent(4), 2, 64, deter_size=6, hidden_size=8), depth=2, reward_units=8)
    return PlaNet(model, CEM(**PLANNER), EnvFactory("wmlightning/DummyPixels-v0", time_limit=5)).eval()


class Slow:
    """Takes its time, the first time much of it."""

    def __init__(self):
        self.calls, self.policy = 0, ConstantPolicy([0.0, 0.0])

    def initial(self, n, seeds=None):
        return self.policy.initial(n, seeds)

    def __call__(self, observation, is_first, carry):
        self.calls += 1
        time.sleep(0.3 if self.calls == 1 else 0.005)
        return self.policy(observation, is_first, carry)


def test_the_agent_and_a_planner_in_its_world_model_play_the_same_episodes(planet, tmp_path):
    result = evaluate(planet, episodes=3, planner=CEM(**PLANNER), json=str(tmp_path / "e.json"))
    beside = result["planner"]
    assert beside["returns"] == pytest.approx(result["returns"]), "PlaNet is a planner in its world model"
    assert beside["difference"] == pytest.approx(np.subtract(result["returns"], beside["returns"]).mean())
    assert beside["settings"]["candidates"] == 16
    assert beside["ms_per_action"] > 0
    assert result["ms_per_action"] > 0
    assert json.loads((tmp_path / "e.json").read_text()) == result


def test_the_time_of_an_action_is_a_median_that_the_first_ones_do_not_count_in():
    policy, environment = Slow(), EnvFactory("wmlightning/DummyPixels-v0", size=16, time_limit=4)
    took = milliseconds_per_action(policy, environment, 0, decisions=6)
    assert 5 <= took < 100
    assert policy.calls == 9, "episodes of four decisions follow each other until enough are timed"


def test_a_stopwatch_changes_nothing_of_what_is_done():
    policy = ConstantPolicy([0.5, -0.5])
    watch, observation = Stopwatch(policy), {"image": np.zeros((2, 8, 8, 3), np.uint8)}
    first = np.ones(2, bool)
    assert (watch(observation, first, watch.initial(2))[0] == policy(observation, first, policy.initial(2))[0]).all()
    assert len(watch.seconds) == 1


def test_an_agent_without_a_world_model_has_nothing_to_plan_in():
    class Still:
        def policy(self, explore):
            return ConstantPolicy([0.0, 0.0])

    with pytest.raises(ValueError, match="a Still has no world model to plan in"):
        evaluate(Still(), EnvFactory("wmlightning/DummyPixels-v0", size=16), episodes=2, planner=CEM(**PLANNER))


def test_discrete_actions_are_not_searched_by_cem(planet):
    with pytest.raises(ValueError, match="DummyCorridor-v0 chooses one of 3 actions"):
        evaluate(planet, EnvFactory("wmlightning/DummyCorridor-v0"), episodes=2, planner=CEM(**PLANNER))
