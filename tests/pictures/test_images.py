"""Frames to tables, charts, PNG and GIF: the parts that pictures are made of."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from wmlightning.pictures.charts import bar_chart, heat_map, line_chart, ticks
from wmlightning.pictures.images import captioned, encode_gif, encode_png, enlarge, error_map, stack, table, to_frames


def gif_length(encoded):
    return Image.open(io.BytesIO(encoded)).n_frames  # type: ignore[attr-defined]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_a_table_holds_every_frame_enlarged_and_in_its_place():
    frames = noise(3, 8, 8, 3)
    picture = table({"a": frames, "b": frames[::-1]}, scale=2)
    found = [
        (y, x)
        for y in range(picture.shape[0] - 16)
        for x in range(picture.shape[1] - 16)
        if np.array_equal(picture[y : y + 16, x : x + 16], enlarge(frames[0], 2))
    ]
    assert len(found) == 2, "each row shows the frame once"
    assert found[0][1] < found[1][1], "first in its row, and last in the row below"


def test_a_table_is_as_large_as_its_frames_names_and_captions_ask():
    frames = noise(3, 8, 8, 3)
    bare, captions = table({"a": frames}, scale=2), table({"a": frames}, ["0", "1", "2"], scale=2)
    assert captions.shape[0] == bare.shape[0] + 18
    assert table({"a": frames, "b": frames}, scale=2).shape[0] == bare.shape[0] + 18
    assert table({"a": frames}, scale=2, divide_at=1).shape[1] > bare.shape[1]


def test_stacked_pictures_keep_their_pixels_and_are_filled_with_white():
    wide, narrow = noise(4, 10, 3), noise(4, 6, 3)
    both = stack([wide, narrow], gap=2)
    assert both.shape == (10, 10, 3)
    np.testing.assert_array_equal(both[:4], wide)
    np.testing.assert_array_equal(both[6:, :6], narrow)
    assert (both[4:6] == 255).all()
    assert (both[6:, 6:] == 255).all()


def test_images_become_rgb_bytes_whatever_they_were():
    grey = torch.tensor([0.0, 0.5, 1.0, float("nan")]).view(1, 2, 2, 1)
    np.testing.assert_array_equal(to_frames(grey)[..., 1].ravel(), [0, 128, 255, 0])
    assert to_frames(noise(2, 3, 8, 8, 3)).shape == (2, 3, 8, 8, 3)


def test_no_error_is_white_and_half_the_range_is_dark():
    black = np.zeros((4, 4, 3), np.uint8)
    assert (error_map(black, black) == 255).all()
    assert (error_map(black, black + 128) < 30).all()


def test_a_png_gives_back_every_pixel():
    picture = noise(9, 7, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(picture)))), picture)


def test_a_gif_has_as_many_pictures_as_frames_and_runs_for_ever():
    frames = [captioned(noise(8, 8, 3), f"step {k}") for k in range(7)]
    encoded = encode_gif(frames, fps=20)
    film = Image.open(io.BytesIO(encoded))
    assert gif_length(encoded) == 7
    assert film.size == (frames[0].shape[1], frames[0].shape[0])
    assert (film.info["loop"], film.info["duration"]) == (0, 50)


def test_a_gif_keeps_the_colour_of_a_small_thing():
    frame = np.full((64, 64, 3), (100, 200, 100), np.uint8) + noise(64, 64, 1) // 32
    frame[30:33, 30:32] = (200, 0, 0)
    shown = np.asarray(Image.open(io.BytesIO(encode_gif([frame]))).convert("RGB"))
    assert np.abs(shown[31, 31].astype(int) - (200, 0, 0)).max() < 40


def test_a_film_that_would_be_too_large_is_made_again_with_less_of_its_flicker():
    steady = noise(64, 64, 3) // 2
    film = [steady + noise(64, 64, 3) // 20 * (k % 2) for k in range(10)]
    assert len(encode_gif(film, wanted_bytes=10_000)) < len(encode_gif(film)) / 3


def test_a_faint_flicker_costs_no_bytes():
    steady = noise(64, 64, 3) // 2
    flicker = [steady + np.uint8(shift) for shift in (0, 3, 1, 5) * 5]
    assert len(encode_gif(flicker)) < 1.2 * len(encode_gif(flicker[:1]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3, 7, [-2, 0, 2, 4, 6]), (0, 900, [0, 200, 400, 600, 800])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [5.0], [float("nan")] * 3, [1.0, float("inf"), -2.0], [4.0, 4.0]])
def test_charts_are_drawn_whatever_the_numbers(values):
    steps = list(range(len(values)))
    assert line_chart({"loss": (steps, values)}, size=(300, 200)).shape == (200, 300, 3)
    assert bar_chart(values, [str(k) for k in steps], size=(300, 200)).shape == (200, 300, 3)
    assert heat_map(np.array([values]), size=(300, 200)).shape == (200, 300, 3)


def test_a_longer_bar_has_more_ink():
    def ink(values):
        return [(column != 255).any(-1).sum() for column in np.split(bar_chart(values, ["", ""])[50:230, 40:780], 2, 1)]

    short, long = ink([1.0, 3.0])
    assert long > 2 * short
