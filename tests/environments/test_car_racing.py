"""CarRacing drawn on demand is gymnasium's CarRacing, frame by frame, bit by bit."""

import numpy as np
import pytest
from gymnasium.envs.box2d.car_racing import CarRacing

from wmlightning.environments.car_racing import ALL_ROWS, KEPT_ROWS, CarRacingActions, CarRacingOnDemand
from wmlightning.environments.factory import EnvFactory

TRACK = slice(0, KEPT_ROWS)


def actions_of(seed, steps):
    noise = np.random.default_rng(seed).uniform(size=(steps, 3))
    return (noise * [1.2, 1.0, 0.3] - [0.6, 0, 0.2]).clip([-1, 0, 0], 1).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 7])
def test_frames_and_rewards_are_gymnasiums_through_the_opening_zoom_and_after(seed):
    stock, ours = CarRacing(render_mode="rgb_array"), CarRacingOnDemand(render_mode="rgb_array")
    frame, _ = stock.reset(seed=seed)
    ours.reset(seed=seed)
    np.testing.assert_array_equal(ours.look(TRACK), frame[TRACK])
    for action in actions_of(seed, 70):  # The zoom lasts 50 steps.
        frame, *expected = stock.step(action)
        _, *got = ours.step(action)
        np.testing.assert_array_equal(ours.look(TRACK), frame[TRACK])
        assert got == expected
    assert ours._quick, "The quick drawing must have been used."


def test_the_edge_of_the_world_is_drawn_alike():
    stock, ours = CarRacing(render_mode="rgb_array"), CarRacingOnDemand(render_mode="rgb_array")
    for env in (stock, ours):
        env.reset(seed=1)
        env.t = 2.0
    for position in ((330.0, 20.0), (-340.0, -338.0), (500.0, 0.0)):
        for env in (stock, ours):
            env.car.hull.position = position
        np.testing.assert_array_equal(ours.look(TRACK), stock._render("state_pixels")[TRACK])


def test_the_indicators_are_there_where_they_are_not_cropped():
    stock, ours = CarRacing(render_mode="rgb_array"), CarRacingOnDemand(render_mode="rgb_array")
    frame, _ = stock.reset(seed=2)
    ours.reset(seed=2)
    for action in actions_of(2, 4):
        frame, *_ = stock.step(action)
        ours.step(action)
        np.testing.assert_array_equal(ours.look(slice(None)), frame)
    assert ours._quick
    assert EnvFactory("CarRacing-v3", crop=None, size=ALL_ROWS).make().reset(seed=2)[0]["image"][88:].min() == 0


def test_randomized_colours_are_drawn_alike():
    stock, ours = (kind(render_mode="rgb_array", domain_randomize=True) for kind in (CarRacing, CarRacingOnDemand))
    frame, _ = stock.reset(seed=3)
    ours.reset(seed=3)
    np.testing.assert_array_equal(ours.look(TRACK), frame[TRACK])


def test_frames_that_nobody_sees_are_not_drawn(monkeypatch):
    drawn = []
    draw = CarRacingOnDemand._draw_track
    monkeypatch.setattr(CarRacingOnDemand, "_draw_track", lambda self: drawn.append(1) or draw(self))
    env = EnvFactory("CarRacing-v3", action_repeat=8).make()
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(3, np.float32))
    assert len(drawn) == 1 + 3


def test_should_gymnasium_draw_differently_one_day_its_own_drawing_is_used(monkeypatch):
    monkeypatch.setattr(CarRacingOnDemand, "_draw_track", lambda self: np.zeros((KEPT_ROWS, 96, 3), np.uint8))
    stock, ours = CarRacing(render_mode="rgb_array"), CarRacingOnDemand(render_mode="rgb_array")
    frame, _ = stock.reset(seed=0)
    ours.reset(seed=0)
    with pytest.warns(UserWarning, match="drawn by gymnasium itself"):
        np.testing.assert_array_equal(ours.look(TRACK), frame[TRACK])
    frame, *_ = stock.step(actions_of(0, 1)[0])
    ours.step(actions_of(0, 1)[0])
    np.testing.assert_array_equal(ours.look(TRACK), frame[TRACK])


@pytest.mark.parametrize(
    ("sent", "taken"),
    [([0, 0, 0], [0, 0.5, 0]), ([-1, 1, 1], [-1, 1, 1]), ([1, -1, -1], [1, 0, 0]), ([5, 5, 5], [1, 1, 1])],
)
def test_zero_is_half_gas_and_the_brake_has_no_negative_side(sent, taken):
    wrapper = CarRacingActions(CarRacing())
    np.testing.assert_array_equal(wrapper.action(np.array(sent, np.float32)), np.array(taken, np.float32))


def test_a_discrete_car_takes_one_hot_actions_and_the_lap_rule_is_passed_on():
    factory = EnvFactory("CarRacing-v3", kwargs={"continuous": False, "lap_complete_percent": 1.0})
    assert (factory.spec.action_size, factory.spec.discrete) == (5, True)
    assert factory.make().unwrapped.lap_complete_percent == 1.0


def test_videos_get_a_larger_frame():
    env = EnvFactory("CarRacing-v3").make()
    env.reset(seed=0)
    assert env.render().shape == (400, 600, 3)
