"""A picture in another form is brought into ours; what is taken for none is named, with what is used instead."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from datamodules.store import EpisodeStore
from datamodules.writer import EpisodeWriter
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.observations import as_picture
from wmlightning.environments.rollout import rollout
from wmlightning.policies import HeldActionsPolicy

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
RENDERED = 7


class Shows(gym.Env):
    """Observes what it is given and renders one colour."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.Discrete(2)

    def __init__(self, space=None, observation=None, rendered=None, render_mode=None):
        self.observation_space, self.observation, self.render_mode = space, observation, render_mode
        self.rendered = np.full((50, 50, 3), RENDERED, np.uint8) if rendered is None else rendered

    def reset(self, *, seed=None, options=None):
        return self.observation, {}

    def step(self, action):
        return self.observation, 0.0, True, False, {}

    def render(self):
        return self.rendered


gym.register("tests/Shows-v0", entry_point=Shows)


def factory_of(space, observation, size=48, **options):
    given = {"space": space, "observation": observation, **options.pop("kwargs", {})}
    return EnvFactory("tests/Shows-v0", size=size, time_limit=5, kwargs=given, **options)


def seen(space, observation, **options):
    """The picture, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        factory = factory_of(space, observation, **options)
        image = factory.make().reset(seed=0)[0]["image"]
        factory.make()
    assert len(said) <= 1, "once at the start, in one line"
    assert not any("\n" in str(warning.message) for warning in said)
    return image, "".join(str(warning.message) for warning in said)


def picture_space(shape, dtype=np.uint8, high=255):
    return spaces.Box(0, high, shape, dtype)


PLAIN = seen(picture_space(PICTURE.shape), PICTURE)[0]
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
FLOATS = (PICTURE / 255).astype(np.float32)
ALPHA = np.concatenate([PICTURE, np.full((40, 48, 1), 9, np.uint8)], 2)


@pytest.mark.parametrize(
    ("space", "observation", "says"),
    [
        (picture_space((3, 40, 48)), PICTURE.transpose(2, 0, 1), ""),
        (picture_space((40, 48, 4)), ALPHA, "fourth channel of the observation (40, 48, 4) is taken for alpha"),
        (picture_space((40, 48, 3), np.float32, 1), FLOATS, ""),
        (picture_space((3, 40, 48), np.float64, 1), FLOATS.astype(np.float64).transpose(2, 0, 1), ""),
        (
            spaces.Tuple([VECTOR, picture_space((40, 48, 3))]),
            (np.zeros(3, np.float32), PICTURE),
            "pictures are its observation '1'; not used: 0 (3 numbers); set pixels to 1 or render to choose",
        ),
        (
            spaces.Dict({"speed": VECTOR, "view": picture_space((3, 40, 48))}),
            {"speed": np.zeros(3, np.float32), "view": PICTURE.transpose(2, 0, 1)},
            "pictures are its observation 'view'; not used: speed (3 numbers); set pixels to view or render to choose",
        ),
        (spaces.Dict({"view": picture_space((40, 48, 3))}), {"view": PICTURE}, ""),
    ],
)
def test_a_picture_in_any_known_form_is_the_same_picture(space, observation, says):
    image, said = seen(space, observation)
    np.testing.assert_array_equal(image, PLAIN)
    assert says in said
    assert bool(says) == bool(said)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (picture_space((4, 84, 84)), "no picture: has shape (4, 84, 84) (stacked frames?)"),
        (picture_space((4, 84, 84, 3)), "no picture: has shape (4, 84, 84, 3) (stacked frames?)"),
        (picture_space((31, 40)), "no picture: has shape (31, 40), below 32 pixels a side"),
        (picture_space((31, 40, 3)), "no picture: has shape (31, 40, 3), below 32 pixels a side"),
        (picture_space((40, 48, 3), np.int64), "no picture: is int64"),
        (picture_space((40, 48, 3), np.float32), "no picture: holds floats from 0 to 255"),
        (
            spaces.Dict({"left": picture_space((40, 48, 3)), "right": picture_space((40, 48, 3))}),
            "left (picture of shape (40, 48, 3)), right (picture of shape (40, 48, 3)); set pixels to left or right or",
        ),
        (
            spaces.Dict({"cells": picture_space((7, 7, 3)), "mission": spaces.Text(9)}),
            "cells (no picture: has shape (7, 7, 3), below 32 pixels a side), mission (no picture: is a Text)",
        ),
    ],
)
def test_what_is_taken_for_no_picture_is_named_with_what_is_used_instead(space, says):
    image, said = seen(space, space.sample())
    assert (image == RENDERED).all()
    assert "pictures are what it renders; not used: " in said
    assert says in said


@pytest.mark.parametrize(
    "space",
    [VECTOR, spaces.Discrete(5), spaces.Box(-9, 9, (5, 5), np.float32), spaces.Dict({"goal": VECTOR, "state": VECTOR})],
)
def test_an_environment_of_numbers_is_rendered_without_a_word(space):
    image, said = seen(space, space.sample())
    assert (image == RENDERED).all()
    assert said == ""


@pytest.mark.parametrize(("pixels", "value"), [("render", RENDERED), ("cells", 3)])
def test_who_has_chosen_is_not_warned(pixels, value):
    space = spaces.Dict({"cells": picture_space((3, 9, 9)), "speed": VECTOR})
    image, said = seen(space, {"cells": np.full((3, 9, 9), 3, np.uint8), "speed": np.zeros(3)}, pixels=pixels)
    assert (image == value).all()
    assert said == ""


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (VECTOR, r"has shape \(3,\)"),
        (picture_space((4, 84, 84)), r"has shape \(4, 84, 84\) \(stacked frames\?\)"),
        (picture_space((40, 48, 3), np.int64), "is int64"),
        (spaces.Text(4), "is a Text"),
    ],
)
def test_an_observation_that_is_no_picture_cannot_be_chosen(entry, why):
    with pytest.raises(ValueError, match=f"observation 'odd' {why}.* set pixels to another"):
        factory_of(spaces.Dict({"odd": entry}), None, pixels="odd").make()


@pytest.mark.parametrize(
    ("rendered", "says"),
    [
        ([PICTURE, PICTURE], "gives a list of 2 as its picture, but one array is wanted: use render_mode rgb_array"),
        (np.zeros((4, 40, 48), np.uint8), r"gives a picture of shape \(4, 40, 48\), but it must be uint8, or floats"),
        (np.zeros((40, 48, 3), np.int32), "gives a picture of int32, but it must be uint8"),
        (np.full((40, 48, 3), 200.0), r"floats from 200 to 200, but they must lie in \[0, 1\]"),
        (np.full((40, 48, 3), np.nan), r"floats from nan to nan"),
    ],
)
def test_a_rendered_picture_of_another_form_is_refused_in_one_line(rendered, says):
    env = factory_of(VECTOR, np.zeros(3), kwargs={"rendered": rendered}).make()
    with pytest.raises(ValueError, match=says) as raised:
        env.reset(seed=0)
    assert "\n" not in str(raised.value)


def test_nothing_rendered_is_refused_in_one_line():
    with pytest.raises(ValueError, match="gives a NoneType as its picture, but an array is wanted: fix its render"):
        as_picture(None, "tests/Shows-v0")


@pytest.mark.parametrize("rendered", [ALPHA, PICTURE.transpose(2, 0, 1), PICTURE / 255])
def test_a_rendered_picture_of_a_known_form_is_taken(rendered):
    image, _ = seen(VECTOR, np.zeros(3), kwargs={"rendered": rendered})
    np.testing.assert_array_equal(image, PLAIN)


def test_a_store_from_before_a_form_was_read_is_not_mixed_with_later_episodes(tmp_path):
    factory = factory_of(picture_space((3, 40, 48)), PICTURE.transpose(2, 0, 1))
    assert factory.conventions == "native picture"
    assert factory_of(picture_space((40, 48, 3)), PICTURE).conventions is None
    assert factory_of(VECTOR, np.zeros(3)).conventions is None
    for folder, conventions in ((tmp_path / "now", factory.conventions), (tmp_path / "before", None)):
        with factory.vector(1) as envs:
            assert envs.description["conventions"] == factory.conventions
            if conventions is None:
                del envs.description["conventions"]
            rollout(envs, HeldActionsPolicy(2, 1, discrete=True), [0], writer=EpisodeWriter(EpisodeStore(folder)))
    factory.check_recorded(EpisodeStore(tmp_path / "now"))
    with pytest.raises(ValueError, match="recorded with conventions None but tests/Shows-v0 has native picture now"):
        factory.check_recorded(EpisodeStore(tmp_path / "before"))
