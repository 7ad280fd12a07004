"""Recipes: a part is rebuilt from plain JSON as it was, and only recorded parts can be built."""

import copy
import json
import pickle

import pytest
from torch import nn

from wmlightning.recipes import Recorded, build_recipe, recipe_of


class Wheel(Recorded, nn.Module):
    def __init__(self, radius: float = 1.0, spokes: int = 3) -> None:
        super().__init__()
        self.spokes = nn.Linear(spokes, 1)


class Cart(Recorded):
    def __init__(self, wheels: list[Wheel], name: str = "cart", load: dict | None = None) -> None:
        self.wheels, self.name, self.load = wheels, name, load


def test_a_nested_part_survives_a_round_trip_through_json():
    cart = Cart([Wheel(2.0, spokes=5), Wheel()], load={"stones": 3})
    recipe = json.loads(json.dumps(recipe_of(cart)))
    again = build_recipe(recipe)
    assert recipe_of(again) == recipe
    assert again.wheels[0].spokes.in_features == 5
    assert again.load == {"stones": 3}


def test_a_recipe_writes_the_defaults_down_so_that_later_defaults_cannot_change_it():
    assert recipe_of(Wheel())["init_args"] == {"radius": 1.0, "spokes": 3}


def test_a_wrong_argument_is_refused_where_it_is_given():
    with pytest.raises(TypeError, match="hubs"):
        Wheel(hubs=2)


def test_a_value_that_is_not_json_is_named():
    with pytest.raises(TypeError, match="a set cannot be written"):
        recipe_of(Cart([], load={"stones": {1, 2}}))


@pytest.mark.parametrize(
    ("path", "words"),
    [("wmlightning.gone.Part", "lacks"), ("subprocess.Popen", "not a Recorded part")],
)
def test_a_recipe_builds_only_parts_of_this_kind(path, words):
    with pytest.raises(ValueError, match=words):
        build_recipe({"class_path": path, "init_args": {}})


def test_an_argument_that_this_version_does_not_know_is_named():
    path = f"{Wheel.__module__}.Wheel"
    with pytest.raises(ValueError, match="Wheel cannot be built .*'hubs'"):
        build_recipe({"class_path": path, "init_args": {"hubs": 2}})


@pytest.mark.parametrize("again", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_part_can_be_copied_and_pickled(again):
    cart = again(Cart([Wheel(2.0)]))
    assert recipe_of(cart)["init_args"]["wheels"][0]["init_args"]["radius"] == 2.0
