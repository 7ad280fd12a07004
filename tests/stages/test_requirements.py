"""Advice about what the data lack is advice that helps."""

import pytest

from datamodules.episode import Spec
from wmlightning.stages.requirements import check_images


@pytest.mark.parametrize(
    ("observation", "cure"),
    [
        ({"image": ((64, 64, 1), "uint8")}, "set channels to 1"),
        ({"image": ((64, 64, 3), "float32")}, "record them as uint8"),
        ({"image": ((64, 64), "uint8")}, r"record images of 64x64, of shape \(64, 64, 1\) or"),
        ({"image": ((64, 64, 4), "uint8")}, r"record images of 64x64, of shape \(64, 64, 1\) or"),
        ({"image": ((32, 32, 3), "uint8")}, "record images of 64x64"),
        ({"pixels": ((64, 64, 3), "uint8")}, "have pixels but no image .* record the picture under the key image"),
        ({"mean": ((32,), "float32"), "logvar": ((32,), "float32")}, "a folder of episodes, not of codes"),
    ],
)
def test_images_of_another_form_are_refused_with_a_cure_that_helps(observation, cure):
    with pytest.raises(ValueError, match=cure):
        check_images(Spec(observation, 2, False), "the episodes", 3, "channels")


def test_images_of_the_right_form_pass():
    check_images(Spec({"image": ((64, 64, 3), "uint8")}, 2, False), "the episodes", 3, "channels")
