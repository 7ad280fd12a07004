"""How the first episodes are acted: in bounds, correlated in time, and the same whatever the company."""

import numpy as np
import pytest
import torch

from wmlightning.environments.rollout import write_rows
from wmlightning.interfaces import Policy
from wmlightning.policies import ConstantPolicy, HeldActionsPolicy, RandomNetworkPolicy, SmoothNoisePolicy
from wmlightning.recipes import build_recipe, recipe_of


def images(n, step=0, size=64):
    return {"image": np.random.default_rng(step).integers(0, 256, (n, size, size, 3), np.uint8)}


def play(policy, seeds, steps, size=64):
    """Actions (steps, n, A) of rows that begin together."""
    carry, actions = policy.initial(len(seeds), seeds), []
    for step in range(steps):
        observation = {"image": np.repeat(images(1, step, size)["image"], len(seeds), 0)}
        action, carry = policy(observation, np.full(len(seeds), step == 0), carry)
        actions.append(action)
    return np.stack(actions)


POLICIES = [
    SmoothNoisePolicy(3, scale=2.0),
    SmoothNoisePolicy(3, discrete=True),
    HeldActionsPolicy(3),
    HeldActionsPolicy(3, discrete=True),
    RandomNetworkPolicy(3, 4, 8, 1.0),
    RandomNetworkPolicy(3, 4, 8, discrete=True),
    ConstantPolicy([0.0, 1.0, -1.0]),
]


def named(policy):
    return f"{type(policy).__name__}-{policy.discrete}"


@pytest.mark.parametrize("policy", POLICIES, ids=named)
def test_actions_are_in_bounds_or_one_hot(policy):
    assert isinstance(policy, Policy)
    actions = play(policy, [1, 2], 12)
    assert actions.dtype == np.float32
    assert actions.shape == (12, 2, 3)
    if policy.discrete:
        assert set(np.unique(actions)) == {0.0, 1.0}
        np.testing.assert_array_equal(actions.sum(-1), 1)
    else:
        assert np.abs(actions).max() <= 1


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy.blind], ids=named)
def test_a_blind_policy_acts_the_same_with_nothing_to_see(policy):
    carry, actions = policy.initial(2, [4, 9]), []
    for step in range(12):
        action, carry = policy({}, np.full(2, step == 0), carry)
        actions.append(action)
    np.testing.assert_array_equal(actions, play(policy, [4, 9], 12))


@pytest.mark.parametrize("policy", POLICIES, ids=named)
def test_a_row_acts_alike_alone_and_in_company(policy):
    company = play(policy, [7, 3, 9], 5)
    for row, seed in enumerate([7, 3, 9]):
        np.testing.assert_array_equal(company[:, row], play(policy, [seed], 5)[:, 0])


@pytest.mark.parametrize("policy", POLICIES[:-1], ids=named)
def test_other_seeds_act_differently(policy):
    actions = play(policy, list(range(8)), 12)
    assert len({actions[:, row].tobytes() for row in range(8)}) > 4


@pytest.mark.parametrize("policy", POLICIES, ids=named)
def test_a_row_that_begins_later_acts_as_if_it_had_begun_first(policy):
    alone = play(policy, [5], 4)[:, 0]
    carry = policy.initial(2, [1, 2])
    for step in range(3):
        _, carry = policy(images(2, step), np.full(2, step == 0), carry)
    carry = write_rows(carry, policy.initial(1, [5]), [1], 2)
    for step in range(4):
        observation = {"image": np.repeat(images(1, step)["image"], 2, 0)}
        action, carry = policy(observation, np.array([False, step == 0]), carry)
        np.testing.assert_array_equal(action[1], alone[step])


@pytest.mark.parametrize("policy", POLICIES, ids=named)
def test_a_policy_is_rebuilt_from_its_recipe(policy):
    np.testing.assert_array_equal(play(policy, [3], 4), play(build_recipe(recipe_of(policy)), [3], 4))


def test_the_smooth_walk_has_the_timescale_scale_and_mean_it_was_given():
    actions = play(SmoothNoisePolicy(2, timescale=5.0, scale=0.1, mean=[0.3, -0.2]), list(range(200)), 60, size=1)
    np.testing.assert_allclose(actions.mean((0, 1)), [0.3, -0.2], atol=0.01)
    centred = actions - np.array([0.3, -0.2], np.float32)
    # Stationary from the first step on.
    np.testing.assert_allclose(centred[0].std(), 0.1, rtol=0.1)
    np.testing.assert_allclose(centred[-1].std(), 0.1, rtol=0.1)
    correlation = (centred[:-5] * centred[5:]).mean() / (centred**2).mean()
    assert correlation == pytest.approx(np.exp(-1), abs=0.05)


def test_a_held_action_is_held_for_one_to_ten_decisions_each_as_often():
    actions = play(HeldActionsPolicy(2, max_hold=10), list(range(40)), 200, size=1)
    holds = []
    for row in range(40):
        changes = np.flatnonzero((np.diff(actions[:, row], axis=0) != 0).any(1)) + 1
        holds += np.diff([0, *changes]).tolist()
    counts = np.bincount(holds, minlength=12)
    assert (counts[0], counts[11]) == (0, 0)
    assert counts[1:11].min() > 0.6 * counts[1:11].mean()
    np.testing.assert_allclose(actions.mean(), 0, atol=0.05)
    np.testing.assert_allclose(actions.var(), 1 / 3, atol=0.03)


def test_the_random_network_looks_at_the_image_and_remembers():
    policy, first = RandomNetworkPolicy(2, 4, 8, 0.003), np.ones(5, bool)
    carry = policy.initial(5, list(range(5)))
    dark, light = ({"image": np.full((5, 64, 64, 3), shade, np.uint8)} for shade in (0, 255))
    (on_dark, after), (on_light, _) = policy(dark, first, carry), policy(light, first, carry)
    assert not np.array_equal(on_dark, on_light)
    assert not torch.equal(after["hidden"], carry["hidden"])


def test_a_random_network_holds_its_course_longer_than_white_noise():
    policy = RandomNetworkPolicy(3, max_stdev=0.01)
    actions = play(policy, list(range(6)), 12).astype(np.float64)
    wobble = np.abs(np.diff(actions, axis=0)).mean()
    spread = np.abs(actions - actions.mean((0, 1))).mean()
    assert wobble < spread, "From one decision to the next it must change less than from one network to another."


def test_the_constant_policy_says_the_same_to_everybody():
    assert play(ConstantPolicy([0.5, -1.0]), [1, 2], 3).tolist() == [[[0.5, -1.0]] * 2] * 3


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SmoothNoisePolicy(0), "action_size is 0"),
        (lambda: SmoothNoisePolicy(2, timescale=0.0), "timescale is 0"),
        (lambda: SmoothNoisePolicy(2, mean=[0.0]), "mean has 1 numbers but action_size is 2"),
        (lambda: HeldActionsPolicy(2, max_hold=0), "max_hold is 0"),
        (lambda: play(RandomNetworkPolicy(2), [0], 1, size=32), "at least 46"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()
