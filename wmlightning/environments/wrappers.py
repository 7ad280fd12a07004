"""The layers between a raw environment and a policy, from the inside out.

    raw environment
    SymmetricActions | IntegerActions | OneHotActions
                                         what a policy sends -> what the environment takes
    Decisions                            action repeat, time limit, rewards summed, env steps counted
    Pixels                               one picture a decision: taken, cropped, resized

Pictures are taken outside the repeat, so frames in between need not be drawn.
"""

import warnings
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces

OLD = "follow gymnasium.Env (since 0.26), or wrap it in shimmy.GymV21CompatibilityV0"
"""Advice for an environment with an interface older than gymnasium's."""
FEW_PICTURES = 10
"""Pictures that an episode must have before it is strange that they are all equal."""
LONG_EPISODE = 50_000
"""Decisions of an episode without a time limit after which a warning says that it goes on."""


class SymmetricActions(gym.ActionWrapper):
    """Continuous actions in [-1, 1], flat, stretched to the environment's own bounds.

    Raises:
        ValueError: if a bound is infinite; wrap the environment in one that has bounds.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, spaces.Box)
        if not space.is_bounded():
            raise ValueError(f"{env} has actions without bounds, {space}: give its action space finite low and high")
        self.shape, self.low, self.high = space.shape, space.low, space.high
        self.action_space = spaces.Box(-1, 1, (int(np.prod(space.shape)),), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """-1 is the environment's low, +1 its high; what lies outside is clipped."""
        share = (np.clip(action, -1, 1).astype(np.float64).reshape(self.shape) + 1) / 2
        return (self.low + share * (self.high.astype(np.float64) - self.low)).astype(self.low.dtype)


class IntegerActions(SymmetricActions):
    """Actions in [-1, 1], flat, for a Box of whole numbers (or of bool): every value gets an equal share of [-1, 1].

        low = -1, high = 1     action  -1 ..... -1/3 ..... 1/3 ..... 1
                               value       -1    |    0     |    1

    Stretching to the bounds and rounding down, as `SymmetricActions` would, plays the highest value at 1 only.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.lowest = self.low.astype(object)
        self.counts = self.high.astype(object) - self.lowest + 1

    def action(self, action: np.ndarray) -> np.ndarray:
        """-1 is the environment's low, +1 its high, and equal parts between them are the values between them."""
        share = (np.clip(action, -1, 1).astype(np.float64).reshape(self.shape) + 1) / 2
        # Python's integers: differences of int64 bounds overflow, and uint8 ones do so at 0..255.
        steps = [min(int(part * count), count - 1) for part, count in zip(share.flat, self.counts.flat, strict=True)]
        values = [int(lowest) + step for lowest, step in zip(self.lowest.flat, steps, strict=True)]
        return np.array(values, self.low.dtype).reshape(self.shape)


class OneHotActions(gym.ActionWrapper):
    """Discrete actions as one-hot float32 vectors; the largest entry is taken."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, spaces.Discrete)
        self.start = int(space.start)
        self.action_space = spaces.Box(0, 1, (int(space.n),), np.float32)

    def action(self, action: np.ndarray) -> int:
        """The position of the largest entry."""
        return self.start + int(np.argmax(action))


class Decisions(gym.Wrapper):
    """One step of this wrapper is one decision: the action repeated, rewards summed, raw steps counted.

    The repeat stops where the episode ends, so the last one may be short; `info["env_steps"]` says how many raw steps
    were really made. A time limit truncates and never terminates.

    Args:
        env: an environment without a time limit of its own wrapper.
        action_repeat: raw steps a decision, at least 1.
        time_limit: raw steps after which the episode is truncated; None for no limit.
        ignore_termination: step on past `terminated` until the limit, as the original collection did
            (`full_episode`). Rewards after the end are whatever the environment gives: CarRacing goes on paying -100 a
            step outside the field, and -0.1 after a finished lap.
    """

    def __init__(
        self, env: gym.Env, action_repeat: int = 1, time_limit: int | None = None, ignore_termination: bool = False
    ) -> None:
        super().__init__(env)
        self.action_repeat, self.time_limit, self.ignore_termination = action_repeat, time_limit, ignore_termination
        self.env_steps = self.decisions = 0

    @property
    def at_limit(self) -> bool:
        """Whether the episode has reached the time limit."""
        return self.time_limit is not None and self.env_steps >= self.time_limit

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begins an episode; no raw step is counted."""
        self.env_steps = self.decisions = 0
        try:
            answer = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            if "unexpected keyword argument 'seed'" in str(error) or "unexpected keyword argument 'options'" in str(
                error
            ):
                raise ValueError(
                    f"reset of {_name(self)} fails ({error}), but it must take seed and options: {OLD}"
                ) from error
            raise
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise ValueError(f"reset of {_name(self)} gives a {type(answer).__name__}, not (observation, info): {OLD}")
        observation, info = answer
        return observation, info | {"env_steps": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """One decision."""
        total, made = 0.0, 0
        self.count_decision()
        while True:
            observation, reward, terminated, truncated, info = self._answer(action)
            total, made = total + reward, made + 1
            self.env_steps += 1
            terminated = bool(terminated) and not self.ignore_termination
            truncated = bool(truncated) or self.at_limit
            if terminated or truncated or made == self.action_repeat:
                return observation, total, terminated, truncated, info | {"env_steps": made}

    def _answer(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Calls the environment's own step, checks the result and makes the reward a float.

        Raises:
            ValueError: if it does not give five values, or the reward is not one number.
        """
        try:
            answer: Any = self.env.step(action)
        except ValueError as error:
            # gymnasium's own wrappers unpack it before we see it.
            if "values to unpack (expected 5" in str(error):
                raise ValueError(f"step of {_name(self)} does not give five values ({error}): {OLD}") from error
            raise
        if not isinstance(answer, tuple) or len(answer) != 5:
            found = f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
            raise ValueError(f"step of {_name(self)} gives {found}, not five: {OLD}")
        observation, reward, terminated, truncated, info = answer
        if type(reward) is not float:
            number = np.asarray(reward)
            if number.size != 1 or number.dtype == object:
                found = reward if number.size == 1 else f"an array of shape {number.shape}"
                raise ValueError(
                    f"the reward of {_name(self)} is {found}, but one number is wanted: wrap the environment in one "
                    "that gives one, such as a weighted sum"
                )
            reward = float(number.item())
        return observation, reward, terminated, truncated, info

    def count_decision(self) -> None:
        """Counts a decision; warns of an episode that lasts very long and has no time limit."""
        self.decisions += 1
        if self.decisions == LONG_EPISODE and self.time_limit is None:
            warnings.warn(
                f"an episode of {_name(self)} has lasted {LONG_EPISODE} decisions "
                "and there is no time limit: set time_limit if it should have ended",
                stacklevel=2,
            )


class Pixels(gym.Wrapper):
    """Observations become {"image": uint8 (size, size, channels)}: looked at once a decision, cropped, resized.

    Args:
        env: the environment to look at.
        look: gives the picture, uint8 (H, W, 3), (H, W, 1) or (H, W), from the raw observation.
        size: side of the result in pixels.
        crop: what to keep before resizing: rows [first, last), or rows and columns [first, last, first, last); None
            keeps all.
        gray: one channel, the luminance of colours, instead of three.
    """

    def __init__(
        self,
        env: gym.Env,
        look: Callable[[Any], np.ndarray],
        size: int = 64,
        crop: list[int] | None = None,
        gray: bool = False,
    ) -> None:
        super().__init__(env)
        self.look, self.size, self.crop = look, size, crop or []
        self.channels = 1 if gray else 3
        self.picture: np.ndarray | None = None
        self.shape: tuple[int, ...] | None = None
        self.first: np.ndarray | None = None
        self.pictures, self.warned = 0, False
        self.notices: tuple[str, ...] = ()
        self.conventions: tuple[str, ...] = ()
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (size, size, self.channels), np.uint8)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begins an episode and takes its first picture."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.shape = None
        seen = self.observe(observation)
        self.first, self.pictures = seen["image"], 1
        return seen, info

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """Makes one decision and takes one picture."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self.observe(observation)
        self._compare(seen["image"], terminated or truncated)
        return seen, float(reward), terminated, truncated, info

    def _compare(self, image: np.ndarray, over: bool) -> None:
        """Warns once where an episode of some length shows one and the same picture from its first to its last."""
        self.pictures += 1
        if self.first is None or not np.array_equal(image, self.first):
            self.first = None
        elif over and self.pictures >= FEW_PICTURES and not self.warned:
            self.warned = True
            warnings.warn(
                f"all {self.pictures} pictures of an episode of {_name(self)} are "
                f"equal (mean {image.mean():.0f} of 255): look whether it draws, or set pixels to another observation",
                stacklevel=3,
            )

    def observe(self, observation: Any) -> dict[str, np.ndarray]:
        """The policy's view of a raw observation.

        Raises:
            ValueError: if the picture is not uint8, or not as large as it was when the episode began.
        """
        self.picture = image = np.asarray(self.look(observation))
        self.shape = self.shape or image.shape
        if image.dtype != np.uint8 or image.shape != self.shape:
            raise ValueError(
                f"the picture is {image.dtype} {image.shape} but uint8 {self.shape} is wanted, as large as when the "
                "episode began: fix the environment"
            )
        for axis, last in enumerate(self.crop[1::2]):
            if last > image.shape[axis]:
                kind = ("row", "column")[axis]
                raise ValueError(
                    f"crop ends at {kind} {last} but the picture has {image.shape[axis]} {kind}s: crop less"
                )
        image = image[tuple(slice(*self.crop[k : k + 2]) for k in range(0, len(self.crop), 2))]
        resized = image.shape[:2] != (self.size, self.size)
        # cv2 wants contiguous rows; where it makes no new ones a copy, for the environment may draw there again.
        image = np.ascontiguousarray(image) if resized else np.array(image)
        if self.channels == 1 and image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if resized:
            # Area averaging is its only filter that does not alias when shrinking.
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        if image.ndim == 2:
            image = image[..., None]
        return {"image": image if image.shape[2] == self.channels else np.repeat(image, self.channels, 2)}

    def render(self) -> Any:
        """A picture for people: the environment's own `rgb_array` where it has one, else the one last looked at."""
        return self.env.render() if self.env.render_mode == "rgb_array" else self.picture


def _name(env: gym.Env) -> str:
    """The id of an environment, or its class where it is not registered."""
    spec = env.unwrapped.spec
    return spec.id if spec else type(env.unwrapped).__name__
