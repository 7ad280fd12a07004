"""PlanningPolicy: states filtered with executed actions, noise as a function of (seed, step), independent rows."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from toy_worlds import PointWorld, assert_filters_with_the_executed_action, assert_is_a_policy, frames

from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.rssm import RSSM
from wmlightning.planners import CEM
from wmlightning.policies.exploration import SmoothNoisePolicy
from wmlightning.policies.noisy import NoisyPolicy
from wmlightning.policies.planning import PlanningPolicy
from wmlightning.stages.world_model import WorldModel

PLANNER = CEM(horizon=3, candidates=40, elites=4, iterations=2)
FIRST, LATER = np.ones(1, bool), np.zeros(1, bool)


@pytest.fixture
def model():
    return WorldModel(RSSM(GaussianLatent(4), 2, 64, 8, 8), depth=2, reward_layers=1, reward_units=8).eval()


def play(policy, carry, rows, steps=3, resets=(), size=8):
    """Actions (steps, rows) on pictures that are the row's and the step's, and the last carry."""
    actions = []
    for step in range(steps):
        rngs = [np.random.default_rng(100 * row + step) for row in rows]
        image = np.stack([rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for rng in rngs])
        is_first = np.array([step == 0 or (row, step) in resets for row in rows])
        action, carry = policy({"image": image}, is_first, carry)
        actions.append(action)
    return np.stack(actions), carry


def test_it_is_a_policy(model):
    assert_is_a_policy(PlanningPolicy(model, PLANNER, 0.3))


@pytest.mark.parametrize("exploration", [0.0, 5.0])
def test_the_state_is_filtered_with_the_action_that_was_executed(exploration):
    assert_filters_with_the_executed_action(PlanningPolicy(PointWorld(), PLANNER, exploration))


def test_the_plan_starts_at_the_state_filtered_from_this_image():
    """With the new position equal to the action, the best first action is the goal: here what `deter` says."""
    world = PointWorld(carry_on=0.0)
    policy = PlanningPolicy(world, CEM(1, 300, 30, 6))
    carry = policy.initial(2)
    carry["deter"] = torch.tensor([[0.4, -0.2], [-0.6, 0.5]])
    action, _ = policy(frames(2), np.ones(2, bool), carry)
    assert_close(torch.from_numpy(action), carry["deter"], atol=0.05, rtol=0)


def test_exploring_is_the_same_plan_with_normal_noise_clipped():
    world = PointWorld(carry_on=0.0, score=lambda x, goal: -(x - 0.5).square().sum(-1))
    quiet, loud = (PlanningPolicy(world, PLANNER, scale) for scale in (0.0, 0.3))
    seeds = list(range(400))
    plan, _ = quiet(frames(400), np.ones(400, bool), quiet.initial(400, seeds))
    done, _ = loud(frames(400), np.ones(400, bool), loud.initial(400, seeds))
    noise, inside = done - plan, np.abs(done) < 1
    assert np.array_equal(plan, quiet(frames(400), np.ones(400, bool), quiet.initial(400, seeds))[0])
    assert np.mean(~inside) == pytest.approx(0.05, abs=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.04)
    assert noise.std() == pytest.approx(0.29, abs=0.03)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.15


def test_a_first_image_makes_a_row_forget_state_and_action(model):
    policy = PlanningPolicy(model, PLANNER, 0.3)
    plain, _ = play(policy, policy.initial(2), [0, 1], size=64)
    reset, _ = play(policy, policy.initial(2), [0, 1], resets=[(1, 2)], size=64)
    assert_close(plain[:, 0], reset[:, 0])
    assert not np.allclose(plain[2, 1], reset[2, 1])
    fresh = policy.initial(1, [1])
    fresh["step"] += 2  # the stream of noise goes on
    image = np.random.default_rng(102).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert_close(policy({"image": image}, FIRST, fresh)[0][0], reset[2, 1])


@pytest.mark.parametrize("rows", [[0], [3, 1], [7, 6, 5, 4, 3, 2, 1, 0], list(range(11))])
def test_a_row_acts_alike_alone_and_in_company(model, rows):
    """Candidates, dreams, dequantisation and exploration of eight environments do not mix."""
    policy = PlanningPolicy(model, PLANNER, 0.3)
    many, last = play(policy, policy.initial(8), list(range(8)), size=64)
    some, carry = play(policy, policy.initial(len(rows), rows), rows, size=64)
    for place, row in enumerate(rows):
        if row < 8:
            assert_close(some[:, place], many[:, row], rtol=1e-4, atol=1e-4)
            assert_close(carry["stoch"][place], last["stoch"][row], rtol=1e-4, atol=1e-4)


def test_pixels_are_dequantised_while_acting_and_anew_at_every_step():
    world = PointWorld()
    policy = PlanningPolicy(world, PLANNER)
    carry = policy.initial(2, [5, 6])
    for step in range(2):
        _, carry = policy(frames(2), np.array([step == 0] * 2), carry)
    first, second = (noise[:2] for noise in world.embeds)
    assert first.shape == (2, 8, 8, 3)
    assert 0 <= first.min() < first.max() < 1
    assert first.mean() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_the_state_is_filtered_with_noise_that_another_policy_added():
    """`NoisyPolicy` writes the executed action into the carry that the next state is filtered from."""
    policy = NoisyPolicy(PlanningPolicy(PointWorld(), PLANNER), SmoothNoisePolicy(2, scale=3.0))
    carry = policy.initial(1, [3])
    action, carry = policy(frames(1, value=[0]), FIRST, carry)
    before = carry["stoch"]
    _, carry = policy(frames(1, value=[0]), LATER, carry)
    assert_close(carry["stoch"], before + torch.from_numpy(action))


def test_the_decoder_rests(model, monkeypatch):
    monkeypatch.setattr(model.decoder, "maps", None)
    monkeypatch.setattr(model.decoder, "draw", None)
    policy = PlanningPolicy(model, PLANNER)
    policy(frames(2, 64), np.ones(2, bool), policy.initial(2))


def test_negative_noise_is_refused(model):
    with pytest.raises(ValueError, match="standard deviation"):
        PlanningPolicy(model, PLANNER, -0.1)
