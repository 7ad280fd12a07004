"""What comes in through Python is looked at where it comes in."""

import numpy as np
import pytest
import torch

from wmlightning.validation import check_observation

IMAGE = np.zeros((2, 64, 64, 3), np.uint8)
FIRST = np.ones(2, bool)
CARRY = {"seed": torch.arange(2), "step": torch.zeros(2, dtype=torch.int64)}


def test_images_of_stored_bytes_pass_uncopied():
    assert check_observation({"image": IMAGE, "vector": None}, FIRST, CARRY) is IMAGE
    assert check_observation({"image": IMAGE}, [True, False], CARRY) is IMAGE


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"image": np.float32(IMAGE)}, "images are float32 but uint8 0..255 is wanted: .*converted to uint8"),
        ({"image": np.float64(IMAGE)}, "images are float64 but uint8 0..255 is wanted: .*converted to uint8"),
        ({"image": torch.from_numpy(IMAGE)}, r"images are a Tensor but must be a numpy array: .*\.cpu\(\)\.numpy\(\)"),
        ({"image": IMAGE.tolist()}, "images are a list but must be a numpy array: convert them"),
        (
            {"image": IMAGE[0]},
            r"shape \(64, 64, 3\) but must be \(environments, height, width, channels\): .*image\[None",
        ),
        ({"image": IMAGE[None]}, r"shape \(1, 2, 64, 64, 3\) but must be \(environments, height, width, channels\)"),
        (IMAGE, "the observation is a ndarray but must be a dict: give {'image': images}"),
        (
            {"pixels": IMAGE, "vector": FIRST},
            "the observation holds pixels, vector but must hold image: give {'image': images}",
        ),
        ({}, "the observation holds nothing but must hold image: give {'image': images}"),
        ({"image": IMAGE[:1]}, r"is_first has shape \(2,\) but there are 1 images: give one flag for each image"),
    ],
)
def test_any_other_observation_is_refused_in_one_line_that_says_what_to_do(observation, message):
    with pytest.raises(ValueError, match=message) as error:
        check_observation(observation, FIRST, CARRY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("is_first", [True, [True], np.ones((2, 1), bool)])
def test_flags_that_are_not_one_for_each_image_are_refused(is_first):
    with pytest.raises(ValueError, match=r"is_first has shape .* but there are 2 images: give one flag for each image"):
        check_observation({"image": IMAGE}, is_first, CARRY)


def test_a_carry_of_another_number_of_rows_is_refused():
    carry = {"seed": torch.arange(3)}
    with pytest.raises(ValueError, match=r"the carry has 3 rows but there are 2 images: begin with policy\.initial\(2"):
        check_observation({"image": IMAGE}, FIRST, carry)
