"""The controller has the papers' sizes and acts for a population as for one."""

import pytest
import torch
from torch.testing import assert_close

from wmlightning.networks.controller import Controller
from wmlightning.recipes import build_recipe, recipe_of


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({}, 867),
        ({"features": "zch", "latent_size": 64, "memory_size": 512, "action_size": 1, "bias": False}, 1088),
        ({"features": "z", "hidden_size": 40}, 1443),
    ],
    ids=["CarRacing", "Doom", "V only, hidden layer"],
)
def test_the_published_controllers_have_the_published_sizes(arguments, parameters):
    controller = Controller(**arguments)
    assert controller.size == sum(p.numel() for p in controller.parameters()) == parameters


def test_one_layer_on_paper():  # z = 1, 2; h = 3; c = 4; theta is W row by row, then b
    controller = Controller("zh", latent_size=2, memory_size=1, action_size=2)
    theta = torch.tensor([[0.1, 0.2, 0.3, -0.1, 0.0, 0.1, 0.5, -0.5]])
    action = controller.act(theta, torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0]))
    assert_close(action, torch.tanh(torch.tensor([[0.1 + 0.4 + 0.9 + 0.5, -0.1 + 0.3 - 0.5]])))


def test_a_hidden_layer_on_paper():  # h1 = tanh(2 z + 1), a = tanh(3 h1 - 1)
    controller = Controller("z", latent_size=1, memory_size=1, action_size=1, hidden_size=1)
    action = controller.act(torch.tensor([[2.0, 1, 3, -1]]), torch.tensor([[0.5, 9, 9]]), torch.tensor([0]))
    assert_close(action, torch.tanh(3 * torch.tanh(torch.tensor([[2.0]])) - 1))


@pytest.mark.parametrize(("features", "blind_from"), [("z", 3), ("zh", 8), ("zch", 13)])
def test_it_sees_its_features_and_no_others(features, blind_from):
    controller = Controller(features, latent_size=3, memory_size=5, action_size=2)
    theta, x = torch.randn(1, controller.size), torch.randn(1, 13).requires_grad_()
    controller.act(theta, x, torch.tensor([0])).sum().backward()
    assert (x.grad[0, :blind_from] != 0).all()
    assert (x.grad[0, blind_from:] == 0).all()


@pytest.mark.parametrize("hidden_size", [0, 7])
def test_a_population_acts_as_each_candidate_would_alone(hidden_size):
    controller = Controller(latent_size=4, memory_size=6, hidden_size=hidden_size)
    candidates, features = torch.randn(5, controller.size), torch.randn(9, 16)
    owner = torch.tensor([4, 0, 0, 3, 2, 1, 4, 4, 2])
    together = controller.act(candidates, features, owner)
    for row, candidate in enumerate(owner):
        controller.theta.data.copy_(candidates[candidate])
        assert torch.equal(together[row], controller(features[row : row + 1])[0])


@pytest.mark.parametrize(("hidden_size", "bias"), [(0, True), (0, False), (7, True)])
def test_candidates_with_as_many_rows_each_act_together_as_row_by_row(hidden_size, bias):
    controller = Controller(latent_size=4, memory_size=6, hidden_size=hidden_size, bias=bias)
    candidates, features = torch.randn(5, controller.size), torch.randn(5, 3, 16)
    owner = torch.arange(5).repeat_interleave(3)
    expected = controller.act(candidates, features.flatten(0, 1), owner).view(5, 3, 3)
    assert_close(controller.act_together(candidates, features), expected)


def test_the_first_controller_does_nothing():
    assert (Controller()(torch.randn(3, 544)) == 0).all()


def test_it_is_rebuilt_from_its_recipe():
    controller = Controller("zch", 3, 5, 2, hidden_size=4, bias=False)
    assert build_recipe(recipe_of(controller)).shapes == controller.shapes


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match='must be "z", "zh" or "zch"'):
        Controller("zhc")
