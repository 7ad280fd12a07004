"""Four tiny pixel environments for tests and notebooks: deterministic given a seed, and drawn in microseconds.

They draw at the size asked for (`size`), return the picture as their observation and know nothing of the wrappers.
They are registered with gymnasium when this module is imported, without a time limit of gymnasium's:

    wmlightning/DummyPixels-v0     drive a red dot to a green one; continuous actions, ends by truncation only
    wmlightning/DummyCorridor-v0   walk to the goal at the right; discrete actions, the goal is terminal
    wmlightning/DummyFork-v0       catch a ball whose way branches by chance; continuous actions, arriving is terminal
    wmlightning/DummyCounter-v0    the picture spells out step and last action; for tests of time alignment
"""

import abc
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class DummyEnv(gym.Env, abc.ABC):
    """What the dummies share: a picture as observation, the same from `render`, and an end after `steps` (abstract).

    Args:
        size: side of the picture in pixels, at least 8.
        steps: length of an episode in environment steps; reaching it truncates, never terminates.
        render_mode: "rgb_array" or None; the picture is the same.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(self, size: int = 64, steps: int = 50, render_mode: str | None = None) -> None:
        if size < 8:
            raise ValueError(f"size is {size} but a dummy needs at least 8 pixels a side: ask for size=8")
        self.size, self.steps, self.render_mode, self.time = size, steps, render_mode, 0
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begins an episode that is a function of the seed alone."""
        super().reset(seed=seed)
        self.time = 0
        self.begin()
        return self.render(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One environment step."""
        self.time += 1
        reward, terminated = self.move(action)
        return self.render(), reward, terminated, self.time >= self.steps, {}

    @abc.abstractmethod
    def render(self) -> np.ndarray:  # type: ignore[override]
        """The world as a picture, (size, size, 3) uint8."""

    @abc.abstractmethod
    def begin(self) -> None:
        """Draws the starting state from `self.np_random`."""

    @abc.abstractmethod
    def move(self, action: Any) -> tuple[float, bool]:
        """Moves the world; returns reward and whether it ended."""

    def square(self, picture: np.ndarray, x: float, y: float, color: tuple[int, int, int]) -> None:
        """Draws a square an eighth of the picture wide, its centre at (x, y) in [0, 1]."""
        side = self.size // 8
        left, top = round(x * (self.size - side)), round(y * (self.size - side))
        picture[top : top + side, left : left + side] = color


class DummyPixels(DummyEnv):
    """A red dot chases a green one on the unit square.

    Actions are velocities in [-1, 1]^2, moved by a tenth a step. The reward is minus the distance between the dots. The
    red dot starts somewhere on the left, the green one rests somewhere on the right, so that a constant action "right"
    already beats standing still, and a linear controller that sees both dots beats that.
    """

    def __init__(self, size: int = 64, steps: int = 50, render_mode: str | None = None) -> None:
        super().__init__(size, steps, render_mode)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.agent, self.target = np.zeros(2), np.ones(2)

    def begin(self) -> None:
        """Places both dots."""
        self.agent = self.np_random.uniform((0.0, 0.0), (0.4, 1.0))
        self.target = self.np_random.uniform((0.6, 0.0), (1.0, 1.0))

    def move(self, action: Any) -> tuple[float, bool]:
        """Moves the red dot; the walls stop it."""
        self.agent = np.clip(self.agent + 0.1 * np.asarray(action, np.float64), 0, 1)
        return -float(np.linalg.norm(self.agent - self.target)), False

    def render(self) -> np.ndarray:
        """Both dots on black, (size, size, 3) uint8."""
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        self.square(picture, self.target[0], self.target[1], (0, 255, 0))
        self.square(picture, self.agent[0], self.agent[1], (255, 0, 0))
        return picture


class DummyCorridor(DummyEnv):
    """A corridor of ten cells with the goal in the last one.

    Actions: 0 left, 1 stay, 2 right. Every step costs 0.01; the goal gives 1 and is terminal.
    """

    cells = 10

    def __init__(self, size: int = 64, steps: int = 50, render_mode: str | None = None) -> None:
        super().__init__(size, steps, render_mode)
        self.action_space = spaces.Discrete(3)
        self.cell = 0

    def begin(self) -> None:
        """Places the walker in the left half."""
        self.cell = int(self.np_random.integers(self.cells // 2))

    def move(self, action: Any) -> tuple[float, bool]:
        """Walks one cell."""
        self.cell = int(np.clip(self.cell + int(action) - 1, 0, self.cells - 1))
        arrived = self.cell == self.cells - 1
        return (1.0 if arrived else -0.01), arrived

    def render(self) -> np.ndarray:
        """Walker and goal on grey, (size, size, 3) uint8."""
        picture = np.full((self.size, self.size, 3), 40, np.uint8)
        self.square(picture, 1.0, 0.5, (0, 0, 255))
        self.square(picture, self.cell / (self.cells - 1), 0.5, (255, 255, 0))
        return picture


class DummyFork(DummyEnv):
    """A ball rolls to the right, and at a fork takes one of three lanes by chance; a paddle waits at the right wall.

        time    0    1    2    3    4    5    6    7
                               o    o    o    o   |o|      one of three lanes,
                o    o    o                       | |      which no picture before time 3 foretells
                                                  | |

    Actions are velocities of the paddle in [-1, 1], moved by 0.15 a step. The arrival is terminal and pays 1 less twice
    the distance between paddle and ball, in units of the picture: 1 for a catch, -1 for the far end; nothing else pays.
    From the middle the paddle reaches every lane after the fork, from one end never the other: so it is best to wait
    there, and a policy that is certain of a lane before the fork loses.
    """

    columns, fork, lanes = 8, 3, (0.0, 0.5, 1.0)

    def __init__(self, size: int = 64, steps: int = 50, render_mode: str | None = None) -> None:
        super().__init__(size, steps, render_mode)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.lane, self.paddle = 0.5, 0.5

    def begin(self) -> None:
        """Tosses the lane and places the paddle."""
        self.lane = self.lanes[int(self.np_random.integers(len(self.lanes)))]
        self.paddle = float(self.np_random.uniform(0.25, 0.75))

    def move(self, action: Any) -> tuple[float, bool]:
        """Rolls the ball on and moves the paddle; the walls stop it."""
        self.paddle = float(np.clip(self.paddle + 0.15 * float(np.asarray(action)[0]), 0, 1))
        arrived = self.time == self.columns - 1
        return (1.0 - 2.0 * abs(self.paddle - self.lane) if arrived else 0.0), arrived

    def render(self) -> np.ndarray:
        """Paddle and ball on dark blue, (size, size, 3) uint8."""
        picture = np.full((self.size, self.size, 3), (0, 0, 40), np.uint8)
        self.square(picture, 1.0, self.paddle, (0, 255, 0))
        height = self.lane if self.time >= self.fork else 0.5
        self.square(picture, min(1.0, self.time / (self.columns - 1)), height, (255, 255, 255))
        return picture


class DummyCounter(DummyEnv):
    """Spells out its own history: red is the step, green and blue the last action, and the reward is the step.

    red = step mod 256; green, blue = round(100 a + 128) of the two actions that led here (0 at the reset).
    """

    def __init__(self, size: int = 64, steps: int = 50, render_mode: str | None = None) -> None:
        super().__init__(size, steps, render_mode)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.last = np.zeros(2)

    def begin(self) -> None:
        """Forgets the last action."""
        self.last = np.zeros(2)

    def move(self, action: Any) -> tuple[float, bool]:
        """Keeps the action, to be drawn."""
        self.last = np.asarray(action)
        return float(self.time), False

    def render(self) -> np.ndarray:
        """One colour, (size, size, 3) uint8."""
        color = [self.time % 256, *np.rint(100 * self.last + 128 * (self.time > 0)).astype(int)]
        return np.full((self.size, self.size, 3), color, np.uint8)


for _name in ("DummyPixels", "DummyCorridor", "DummyFork", "DummyCounter"):
    gym.register(f"wmlightning/{_name}-v0", entry_point=f"{__name__}:{_name}")
