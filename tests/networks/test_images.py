"""Pixels in, pixels out."""

import pytest
import torch
from torch.testing import assert_close

from wmlightning.networks import normalize, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_pixels_are_divided_by_255_and_shifted(shift):
    assert_close(normalize(LEVELS, shift).flatten(), torch.arange(256) / 255 + shift)


def test_black_is_exactly_zero_and_white_exactly_one():
    assert normalize(LEVELS).min() == 0.0
    assert normalize(LEVELS).max() == 1.0


def test_leading_axes_are_flattened_and_channels_come_first_without_moving_them():
    images = torch.randint(0, 256, (2, 3, 8, 6, 4), dtype=torch.uint8)
    pixels = normalize(images)
    assert pixels.shape == (6, 4, 8, 6)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert_close(pixels[5, 1], images[1, 2, :, :, 1] / 255)


def test_every_level_survives_the_way_there_and_back():
    assert torch.equal(to_uint8(normalize(LEVELS)), LEVELS.permute(0, 3, 1, 2))


def test_pixels_out_of_range_are_clamped():
    assert to_uint8(torch.tensor([-0.1, 1.2])).tolist() == [0, 255]
