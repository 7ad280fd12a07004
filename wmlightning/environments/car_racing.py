"""CarRacing drawn only when a picture is taken, and several times faster; the picture stays gymnasium's bit for bit.

What is replaced, and why no pixel changes in the rows that are kept (0 to 83 of 96, above the indicators):

* `step` and `reset` draw a frame each, which is 99% of their time. Here `_render("state_pixels")` draws nothing and
  `look` draws. Drawing only reads the car, the clock and the tiles' colours, so physics and random numbers stay.
* The field is one huge polygon. Where the whole window lies inside it, filling the window is the same.
* `_render_road` turns the corners of 400 grass patches and some 300 tiles in Python. Here numpy leaves out what cannot
  touch the window and turns the rest, with the float64 operations of pygame's `Vector2.rotate_rad` in their order. The
  rule by which gymnasium leaves polygons out is kept as well. Tiles change colour when touched, so colours are read
  at every look. No clip rectangle is set: it would bend anti-aliased lines.
* The bar and the score lie in rows 700 to 800 of the window, which shrink to rows 84 to 95, so nothing is drawn there.
* `smoothscale` shrinks columns first, then rows, with eight bits in between. So columns may be shrunk before the frame
  is flipped, which then costs a tenth. The three surfaces lie over numpy arrays and are kept: allocating them anew
  costs more than all the drawing.

A test compares with gymnasium over two tracks. At run time the first frame of every environment is drawn both ways;
if gymnasium's internals have changed, a warning says so and the stock drawing is used.
"""

import warnings
from typing import Any

import gymnasium.envs.box2d.car_racing as stock
import numpy as np
import pygame
from gymnasium import ActionWrapper, Env, spaces
from pygame import gfxdraw

ALL_ROWS, KEPT_ROWS = stock.STATE_H, 84
"""Rows of a frame, and those of them that show the track; the rest is the indicator bar."""

_WIDTH, _HEIGHT = stock.WINDOW_W, stock.WINDOW_H
# The window is drawn upside down: the bar's rows come first.
_TOP = _HEIGHT - _HEIGHT * KEPT_ROWS // ALL_ROWS
# Anti-aliased edges reach a pixel beyond their corners; a few more cost nothing.
_MARGIN = 4


class CarRacingOnDemand(stock.CarRacing):
    """gymnasium's CarRacing whose frames are drawn by `look`, not by `step` (observations of `step` are None)."""

    _quick: bool | None = None
    _corners_of: Any = None

    def look(self, rows: slice) -> np.ndarray:
        """The given rows of the 96x96 frame, as gymnasium would draw them, uint8 (number of rows, 96, 3)."""
        if self._quick is not None:
            return self._draw(rows)
        self._quick = False
        expected = self._draw(rows)
        self._quick = True
        try:
            same = np.array_equal(self._draw(rows), expected)
        except Exception:
            same = False
        if not same:
            self._quick = False
            warnings.warn(
                "this gymnasium draws CarRacing in another way than the quick drawing does: frames are drawn by "
                "gymnasium itself, several times slower",
                stacklevel=2,
            )
        return expected

    def _render(self, mode: str) -> Any:
        return None if mode == "state_pixels" else super()._render(mode)

    def _render_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        if self._quick:
            self._draw_ground(zoom, translation, angle, 0)
        else:
            super()._render_road(zoom, translation, angle)

    def _draw(self, rows: slice) -> np.ndarray:
        if self._quick and rows.indices(ALL_ROWS)[1] <= KEPT_ROWS:
            return self._draw_track()[rows]
        return super()._render("state_pixels")[rows]  # type: ignore[index]

    def _draw_track(self) -> np.ndarray:
        """The frame without bar and score, (84, 96, 3)."""
        assert self.car is not None
        if "_window" not in self.__dict__:
            self._window, _ = _surface(_WIDTH, _HEIGHT)
            self._thin, self._thin_pixels = _surface(stock.STATE_W, _HEIGHT)
            self._upright, self._upright_pixels = _surface(stock.STATE_W, _HEIGHT)
            self._small, self._small_pixels = _surface(stock.STATE_W, ALL_ROWS)
            below = _HEIGHT - _TOP
            self._window_kept = self._window.subsurface((0, _TOP, _WIDTH, below))
            self._thin_kept = self._thin.subsurface((0, _TOP, stock.STATE_W, below))
        # gymnasium's camera, line by line.
        angle = -self.car.hull.angle
        zoom = 0.1 * stock.SCALE * max(1 - self.t, 0) + stock.ZOOM * stock.SCALE * min(self.t, 1)
        scroll_x = -(self.car.hull.position[0]) * zoom
        scroll_y = -(self.car.hull.position[1]) * zoom
        turned = pygame.math.Vector2((scroll_x, scroll_y)).rotate_rad(angle)
        translation = (_WIDTH / 2 + turned[0], _HEIGHT / 4 + turned[1])
        self.surf = self._window
        self._draw_ground(zoom, translation, angle, _TOP)
        self.car.draw(self._window, zoom, translation, angle, False)
        pygame.transform.smoothscale(self._window_kept, self._thin_kept.get_size(), self._thin_kept)
        self._upright_pixels[:] = self._thin_pixels[::-1]
        pygame.transform.smoothscale(self._upright, self._small.get_size(), self._small)
        return self._small_pixels[:KEPT_ROWS, :, :3].copy()

    def _draw_ground(self, zoom: float, translation: tuple[float, float], angle: float, top: int) -> None:
        """Field, grass and road on `self.surf`, where they can touch its rows from `top` on."""
        if self._corners_of is not self.road_poly:
            self._turn_into_arrays()
        cosine, sine = pygame.math.Vector2(1, 0).rotate_rad(angle)
        # Where the window's middle and corners are in the world.
        shift_x, shift_y = _WIDTH / 2 - translation[0], _HEIGHT / 2 - translation[1]
        middle_x = (cosine * shift_x + sine * shift_y) / zoom
        middle_y = (cosine * shift_y - sine * shift_x) / zoom
        reach = (np.hypot(_WIDTH, _HEIGHT) / 2 + _MARGIN) / zoom
        if max(abs(middle_x), abs(middle_y)) + reach < stock.PLAYFIELD - 1:
            self.surf.fill([int(c) for c in self.bg_color])
        else:
            self.surf.fill(0)
            b = stock.PLAYFIELD
            field = [(b, b), (b, -b), (-b, -b), (-b, b)]
            self._draw_colored_polygon(self.surf, field, self.bg_color, zoom, translation, angle, clip=False)

        distance = np.hypot(self._middle[:, 0] - middle_x, self._middle[:, 1] - middle_y)
        near = np.flatnonzero(distance < reach + self._radius)
        x, y = self._corners[near, :, 0], self._corners[near, :, 1]
        x, y = (
            (cosine * x - sine * y) * zoom + translation[0],
            (sine * x + cosine * y) * zoom + translation[1],
        )
        edge = stock.MAX_SHAPE_DIM
        drawn = ((x >= -edge) & (x <= _WIDTH + edge) & (y >= -edge) & (y <= _HEIGHT + edge)).any(1)
        drawn &= (x.max(1) > -_MARGIN) & (x.min(1) < _WIDTH + _MARGIN)
        drawn &= (y.max(1) > top - _MARGIN) & (y.min(1) < _HEIGHT + _MARGIN)
        grass = [int(c) for c in self.grass_color]
        points = np.stack([x[drawn], y[drawn]], -1).tolist()
        for place, polygon in zip(near[drawn].tolist(), points, strict=True):
            tile = place - self._num_grass
            color = grass if tile < 0 else [int(c) for c in self.road_poly[tile][1]]
            gfxdraw.aapolygon(self.surf, polygon, color)
            gfxdraw.filled_polygon(self.surf, polygon, color)

    def _turn_into_arrays(self) -> None:
        """The corners of every grass patch and every tile, once per track, in gymnasium's order of drawing."""
        g = stock.GRASS_DIM
        polygons = [
            [(g * x + g, g * y), (g * x, g * y), (g * x, g * y + g), (g * x + g, g * y + g)]
            for x in range(-20, 20, 2)
            for y in range(-20, 20, 2)
        ]
        self._num_grass = len(polygons)
        polygons += [[(p[0], p[1]) for p in polygon] for polygon, _ in self.road_poly]
        self._corners = np.array(polygons, np.float64)
        self._middle = self._corners.mean(1)
        self._radius = np.hypot(*np.moveaxis(self._corners - self._middle[:, None], 2, 0)).max(1)
        self._corners_of = self.road_poly


class CarRacingActions(ActionWrapper):
    """Three actions in [-1, 1]: steer = a0, gas = (a1 + 1) / 2, brake = a2 clipped to [0, 1].

    So the zero action is half gas, as in the paper. Source: Ha and Schmidhuber 2018; carracing/model.py of their code.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.action_space = spaces.Box(-1, 1, (3,), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """Converts the action to gymnasium's steering, gas and brake."""
        steer, gas, brake = np.clip(action, -1, 1)
        return np.array([steer, (gas + 1) / 2, max(brake, 0)], np.float32)


def _surface(width: int, height: int) -> tuple[pygame.Surface, np.ndarray]:
    """A surface without alpha, and its pixels as a writable view, uint8 (height, width, 4), red first."""
    pixels = np.zeros((height, width, 4), np.uint8)
    return pygame.image.frombuffer(pixels.data, (width, height), "RGBX"), pixels
