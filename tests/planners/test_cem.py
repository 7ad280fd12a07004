"""CEM: what an iteration is, on paper; that it finds what is best; and that environments do not mix."""

import pytest
import torch
from torch.testing import assert_close
from toy_worlds import PointWorld

from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.dynamics.rssm import RSSM
from wmlightning.planners import CEM
from wmlightning.recipes import build_recipe, recipe_of
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE
from wmlightning.stages.world_model import WorldModel

LUCKY = CEM(horizon=3, candidates=1, elites=1, iterations=1)
"""One candidate, which is then the plan: its return can be worked out by hand."""
GOALS = torch.tensor(
    [[-0.6, 0.6], [0.0, 0.0], [0.5, -0.3], [0.7, 0.7], [-0.2, 0.1], [0.3, -0.6], [0.6, 0.2], [-0.5, -0.5]]
)


def test_the_whole_search_finds_the_optimum_of_a_quadratic():
    """10 iterations of 1000 / 100 come within 0.05 at every step, for 8 different goals at once."""
    world = PointWorld(carry_on=0.0)
    search = CEM().search(world, world.at(torch.zeros(8, 2), GOALS), range(8))
    assert_close(search.mean, GOALS[:, None].expand(8, 12, 2), atol=0.05, rtol=0)
    assert search.std.max() < 0.1
    assert_close(CEM().plan(world, world.at(torch.zeros(8, 2), GOALS), range(8)), search.mean[:, 0])


def test_a_goal_two_steps_away_is_walked_to_and_kept():
    world = PointWorld(step=0.25)
    search = CEM(horizon=6).search(world, world.at([[0.0, 0.0]], [[0.5, -0.5]]), [3])
    path = (0.25 * search.mean).cumsum(1)
    assert_close(path[0, 2:], torch.tensor([0.5, -0.5]).expand(4, 2), atol=0.06, rtol=0)
    assert (search.mean[0, 0] * torch.tensor([1.0, -1.0]) > 0.8).all()


def test_a_return_counts_every_state_arrived_at_and_not_the_present_one():
    """reward = position, from 100: 3 * 100 + a + (a + b) + (a + b + c); were state to stand still, 300 + a + b + c."""
    world = PointWorld(lambda x, goal: x.sum(-1), size=1)
    search = LUCKY.search(world, world.at([[100.0]]), [5])
    a, b, c = search.mean[0, :, 0].tolist()
    assert search.predicted.item() == pytest.approx(300 + 3 * a + 2 * b + c, rel=1e-6)


def test_what_comes_after_the_end_does_not_count():
    """cont is 1/2 at every state: 1 + 1/2 + 1/4 for a reward of 1; the first arrival counts in full."""
    world = PointWorld(lambda x, goal: torch.ones(len(x)), cont=lambda x: torch.full((len(x),), 0.5))
    assert LUCKY.search(world, world.at(torch.zeros(2, 2)), [1, 2]).predicted.tolist() == [1.75, 1.75]


def test_an_iteration_on_paper():
    """Elites by return; their mean, their population std; the next candidates drawn around those and clipped."""
    world = PointWorld(size=1)
    search = CEM(horizon=2, candidates=7, elites=3, iterations=2).search(world, world.at([[0.0]], [[0.4]]), [11])
    first, second = (torch.stack(world.seen[k : k + 2], 1)[..., 0] for k in (0, 2))
    for actions, returns in ((first, search.returns[0, 0]), (second, search.returns[0, 1])):
        assert actions.abs().max() <= 1
        scores = -(actions.cumsum(1) - 0.4).square().sum(1)
        assert_close(scores.sort(descending=True).values[:3], returns)
        elites = actions[scores.argsort(descending=True)[:3]]
        mean, std = elites.mean(0), ((elites - elites.mean(0)).square().sum(0) / 3 + 1e-6).sqrt()
    assert_close(search.mean[0, :, 0], mean)
    assert_close(search.std[0, :, 0], std)
    again = CEM(horizon=2, candidates=7, elites=3, iterations=1).search(world, world.at([[0.0]], [[0.4]]), [11])
    inside = second.abs() < 1
    drawn = (second - again.mean[..., 0]) / again.std[..., 0]
    assert 0.3 < drawn[inside].std() < 2, "the second candidates are drawn with the std of the first elites"


def test_first_candidates_are_standard_normal_and_clipped():
    world = PointWorld(size=1)
    CEM(horizon=1, candidates=20000, elites=1, iterations=1).search(world, world.at([[0.0]]), [0])
    clipped = (world.seen[0].abs() == 1).float().mean()
    assert clipped == pytest.approx(0.3173, abs=0.015)
    inside = world.seen[0][world.seen[0].abs() < 1]
    assert inside.std() == pytest.approx(0.540, abs=0.015)


def test_elites_get_better_from_one_iteration_to_the_next():
    world = PointWorld()
    elites = CEM(horizon=4, candidates=200, elites=20).search(world, world.at(torch.zeros(8, 2), GOALS), range(8))
    assert (elites.returns.mean((0, 2)).diff() > 0).all()
    assert (elites.returns.diff(dim=2) <= 0).all(), "best first"


@pytest.mark.parametrize("rows", [[0], [5], [7, 2, 0], [6, 5, 4, 3, 2, 1, 0, 7]])
def test_a_plan_does_not_depend_on_who_is_planned_for_beside_it(rows):
    world, planner = PointWorld(wind=0.3), CEM(4, 60, 6, 3)
    together = planner.search(world, world.at(torch.zeros(8, 2), GOALS), torch.arange(8))
    some = planner.search(world, world.at(torch.zeros(len(rows), 2), GOALS[rows]), rows)
    assert torch.equal(some.mean, together.mean[rows])
    assert torch.equal(some.returns, together.returns[rows])


def test_the_noise_is_the_seeds_alone():
    world, planner = PointWorld(wind=0.3), CEM(3, 30, 3, 2)
    start = world.at(torch.zeros(2, 2))
    generator = torch.get_rng_state()
    same = planner.search(world, start, [4, 4])
    assert torch.equal(same.mean[0], same.mean[1])
    assert not torch.equal(same.mean[0], planner.search(world, start, [4, 5]).mean[1])
    assert torch.equal(generator, torch.get_rng_state())


def test_it_plans_in_a_memory_of_world_models():
    """Any LatentModel will do: here the MDN-RNN, whose dreams draw pairs of numbers and whose end is uncertain."""
    model = MDNRNN(VAE(4, depth=2), MDNLSTM(4, 2, 8, 2), reward_head=True, done_head=True).eval()
    planner, start = CEM(3, 40, 4, 2), model.dynamics.initial(5)
    many = planner.search(model, start, range(5))
    assert many.mean.shape == (5, 3, 2)
    assert_close(planner.plan(model, start[:2], [3, 1]), many.mean[[3, 1], 0], atol=1e-4, rtol=1e-4)
    assert not many.mean.requires_grad


def test_bfloat16_is_for_the_models_products_alone():
    model = WorldModel(RSSM(GaussianLatent(4), 2, 64, 8, 8), depth=2, reward_layers=1, reward_units=8).eval()
    start = model.dynamics.initial(2)
    exact, rough = (CEM(2, 50, 5, 1, precision).search(model, start, [3, 4]) for precision in ("float32", "bfloat16"))
    assert rough.mean.dtype == rough.returns.dtype == torch.float32
    assert_close(rough.returns, exact.returns, atol=0.05, rtol=0.05)
    assert not torch.equal(rough.returns, exact.returns)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"elites": 11, "candidates": 10}, "fewer elites"), ({"iterations": 0}, "iterations is 0"), ({"horizon": 0}, "1")],
)
def test_a_search_that_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        CEM(**arguments)


def test_a_model_that_has_diverged_is_named():
    world = PointWorld(lambda x, goal: x.sum(-1) * float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        LUCKY.plan(world, world.at([[0.0, 0.0]]), [0])
    with pytest.raises(ValueError, match="2 seeds for 1 rows"):
        LUCKY.plan(world, world.at([[0.0, 0.0]]), [0, 1])


def test_a_recipe_builds_it_again():
    again = build_recipe(recipe_of(CEM(5, 20, 4, 3)))
    assert (again.horizon, again.candidates, again.elites, again.iterations) == (5, 20, 4, 3)
