"""Pixels in, pixels out."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from wmlightning.networks import normalize, quantize, to_uint8

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("turn", [normalize, quantize])
def test_pixels_that_are_not_stored_bytes_are_refused_and_not_taken_for_black(turn, dtype):
    image = torch.ones(2, 8, 8, 3).to(dtype)
    with pytest.raises(
        ValueError, match=rf"images are {str(dtype)[6:]} but uint8 0..255 is wanted: .*\(255 \* image\)"
    ):
        turn(image)


@pytest.mark.parametrize("turn", [normalize, quantize])
def test_images_of_another_kind_or_with_too_few_axes_are_refused(turn):
    turn = inspect.unwrap(turn)  # without the check of annotations, which only tests have
    with pytest.raises(ValueError, match=r"images are a ndarray but must be a tensor: convert them by torch.as_tensor"):
        turn(LEVELS.numpy())
    with pytest.raises(
        ValueError, match=r"images have shape \(16, 16\) but must be \(\.\.\., height, width, channels\)"
    ):
        turn(LEVELS[0, ..., 0])


def test_every_level_survives_the_way_there_and_back():
    assert torch.equal(to_uint8(normalize(LEVELS)), LEVELS.permute(0, 3, 1, 2))


def test_pixels_out_of_range_are_clamped():
    assert to_uint8(torch.tensor([-0.1, 1.2])).tolist() == [0, 255]


def test_quantised_pixels_without_noise_are_32_levels():
    x = quantize(LEVELS, torch.zeros(1, 16, 16, 1))
    levels = ((x + 0.5) * 32).flatten()
    assert levels.tolist() == [value // 8 for value in range(256)]


def test_quantised_pixels_are_in_minus_a_half_to_a_half_and_noise_never_changes_the_level():
    largest = torch.full((1, 16, 16, 1), 1 - 2**-24)
    for noise in (torch.zeros_like(largest), largest, torch.rand_like(largest)):
        x = quantize(LEVELS, noise)
        assert -0.5 <= x.min() <= x.max() < 0.5
        assert torch.floor(32 * (x.flatten() + 0.5)).tolist() == [value // 8 for value in range(256)]


def test_quantised_pixels_get_their_own_noise_each_time_or_the_noise_they_are_given():
    image, noise = LEVELS.expand(2, 3, 16, 16, 1), torch.rand(2, 3, 16, 16, 1)
    assert not torch.equal(quantize(image), quantize(image))
    x = quantize(image, noise)
    assert x.shape == (6, 1, 16, 16)
    assert_close((x - quantize(image, torch.zeros_like(noise))).flatten(), noise.flatten() / 32, rtol=0, atol=1e-6)
    assert quantize(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)
