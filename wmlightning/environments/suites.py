"""Makes any registered gymnasium id look alike; what is special about a family of environments is said here.

A family with habits of its own is a function that returns a `Raw`, and a line in `make_raw`. Everything else goes
through `plain`.
"""

import difflib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

import wmlightning.environments.dummy  # noqa: F401 (registers its ids)
from wmlightning.environments.dm_control import PREFIX, DMControl, find_task
from wmlightning.environments.wrappers import Decisions, OneHotActions, Pixels, SymmetricActions

# pygame greets on stdout otherwise, once per worker.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# Pictures go into arrays; SDL looks for a screen otherwise, and complains where there is none.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

PACKAGES = {
    "ALE/": ("ale_py", "wmlightning[atari]"),
    "MiniGrid": ("minigrid", "wmlightning[minigrid]"),
    "Vizdoom": ("vizdoom.gymnasium_wrapper", "wmlightning[doom]"),
}
"""Beginnings of ids that another package registers: the module to import, the package to install."""

BOX2D = "gymnasium.envs.box2d."
DRAWN_BY_PYGAME = (BOX2D, "gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
"""Modules of gymnasium whose environments look for pygame at their first picture only, in the middle of a run."""
LACKING = '{} needs {}: pip install "wmlightning[box2d]"'
"""What is said where Box2D or pygame is not there."""

SMALLEST_PICTURE = 32
"""A native observation with a side shorter than this is taken for something else than a picture (MiniGrid: 7x7 ids)."""


@dataclass
class Raw:
    """An environment with one step a step, and what is special about it.

    Args:
        env: takes the actions of `actions`.
        actions: wraps it so that actions are in [-1, 1] or one-hot.
        look: gives the picture from the raw observation.
        crop: what to keep of that picture, as of `EnvFactory`; None for all.
        time_limit: environment steps, where the id registers none and the suite has a habit.
        decisions: repeats actions, counts steps and ends episodes at the limit.
    """

    env: gym.Env
    actions: Callable[[gym.Env], gym.Env]
    look: Callable[[Any], np.ndarray]
    crop: list[int] | None = None
    time_limit: int | None = None
    decisions: Callable[..., gym.Env] = Decisions


def make_env(
    id: str,
    action_repeat: int = 1,
    size: int = 64,
    time_limit: int | None = None,
    crop: list[int] | str | None = "auto",
    ignore_termination: bool = False,
    pixels: str | None = None,
    kwargs: dict[str, Any] | None = None,
    gray: bool = False,
) -> gym.Env:
    """Builds one environment; the arguments are `EnvFactory`'s.

    Raises:
        ValueError: in one line that says what to do, if the id is unknown, its package is not installed, or it has no
            pixels, no time limit where one is needed, or actions of another kind.
    """
    spec = find_spec(id)
    raw = make_raw(spec, kwargs or {}, pixels, crop, size, gray)
    limit = next((n for n in (time_limit, spec.max_episode_steps, raw.time_limit) if n is not None), None)
    if ignore_termination and limit is None:
        raise ValueError(f"{id} registers no time limit, so ignoring termination would never end: set time_limit")
    env = raw.decisions(raw.actions(raw.env), action_repeat, limit, ignore_termination)
    return Pixels(env, raw.look, size, raw.crop, gray)


def make_registered(spec: EnvSpec, arguments: dict[str, Any]) -> gym.Env:
    """`make_env` in a process that may not know the id yet: a user's own registration travels with the call."""
    _import_package(spec.id)
    gym.registry.setdefault(spec.id, spec)
    return make_env(**arguments)


def find_spec(id: str) -> EnvSpec:
    """The registration of an id; imports the package that registers it, if that is known.

    Raises:
        ValueError: if there is none, naming the package to install or the closest ids.
    """
    module, _, id = id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{module}:{id} names a module that cannot be imported ({error}): mend the id") from error
    if id.startswith(PREFIX):
        return find_task(id)
    _import_package(id)
    try:
        return gym.spec(id)
    except gym.error.Error as error:
        closest = difflib.get_close_matches(id, list(gym.registry), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(closest)}?" if closest else "gymnasium.pprint_registry() lists what there is"
        raise ValueError(f"gymnasium knows no environment {id!r}: {hint}") from error


def _import_package(id: str) -> None:
    """Imports the package that registers an id, if one is known.

    Raises:
        ValueError: naming the package to install, if it is not here.
    """
    for beginning, (module, package) in PACKAGES.items():
        if id.startswith(beginning):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ValueError(f'{id} needs a package that is not here: pip install "{package}"') from error


def make_raw(
    spec: EnvSpec,
    kwargs: dict[str, Any],
    pixels: str | None,
    crop: list[int] | str | None,
    size: int = 64,
    gray: bool = False,
) -> Raw:
    """Picks the family."""
    if spec.id.startswith(PREFIX):
        return dm_control(spec, kwargs, pixels, crop, size)
    if spec.entry_point == "gymnasium.envs.box2d.car_racing:CarRacing":
        return car_racing(spec, kwargs, pixels, crop)
    if spec.id.startswith("Vizdoom"):
        return doom(spec, kwargs, pixels, crop)
    if spec.id.startswith("ALE/"):
        return atari(spec, kwargs, pixels, crop, gray)
    return plain(spec, kwargs, pixels, crop)


def plain(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None) -> Raw:
    """Any environment: its native picture if it has one, else what it renders."""
    env = _make(spec, kwargs)
    key = _native_picture(env.observation_space) if pixels is None else pixels
    entries = list(env.observation_space) if isinstance(env.observation_space, spaces.Dict) else []
    look: Callable[[Any], np.ndarray]
    if key == "render":
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"{spec.id} gives neither a picture of {SMALLEST_PICTURE} pixels a side nor rgb_array rendering: name "
                f"one of its observations {entries} with pixels, or wrap it"
            )
        _check_drawable(spec, env)
        look = lambda _: env.render()  # noqa: E731 # type: ignore[assignment]
    elif key == "":
        look = lambda observation: observation  # noqa: E731
    elif key in entries:
        look = lambda observation: observation[key]  # noqa: E731
    else:
        raise ValueError(f"{spec.id} has no observation {key!r}: set pixels to render or to one of {entries}")
    return Raw(env, action_wrapper(env), look, None if isinstance(crop, str) else crop)


def car_racing(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None) -> Raw:
    """CarRacing: drawn on demand, the indicators cropped off, half gas at action zero."""
    try:
        from wmlightning.environments.car_racing import ALL_ROWS, KEPT_ROWS, CarRacingActions, CarRacingOnDemand
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ValueError(LACKING.format(spec.id, "Box2D and pygame")) from error
    env = _make(replace(spec, entry_point=CarRacingOnDemand), kwargs)
    car = env.unwrapped
    assert isinstance(car, CarRacingOnDemand)
    actions = CarRacingActions if car.continuous else OneHotActions
    if pixels == "render":
        return Raw(env, actions, lambda _: env.render(), None if isinstance(crop, str) else crop)  # type: ignore[arg-type,return-value]
    if pixels is not None:
        raise ValueError(f"{spec.id} has no observation {pixels!r}: leave pixels out, or set it to render")
    if not isinstance(crop, str) and crop and len(crop) == 4:
        return Raw(env, actions, lambda _: car.look(slice(None)), crop)
    rows = slice(0, KEPT_ROWS) if isinstance(crop, str) else slice(*(crop or [None]))
    if (rows.stop or 0) > ALL_ROWS:
        raise ValueError(f"crop ends at row {rows.stop} but {spec.id} has {ALL_ROWS}: crop less")
    return Raw(env, actions, lambda _: car.look(rows))


def doom(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None) -> Raw:
    """ViZDoom: the screen, repeated inside the engine; Take Cover with the paper's action and time limit."""
    from wmlightning.environments.doom import TAKE_COVER, TAKE_COVER_LIMIT, DoomDecisions, LastPicture, ThreeWay

    if "frame_skip" in kwargs:
        raise ValueError(f"{spec.id} is told frame_skip, which would count its steps wrongly: set action_repeat")
    raw = plain(spec, kwargs, pixels or "screen", crop)
    env = LastPicture(raw.env)
    if spec.id == TAKE_COVER:
        return replace(raw, env=env, actions=ThreeWay, time_limit=TAKE_COVER_LIMIT, decisions=DoomDecisions)
    return replace(raw, env=env, decisions=DoomDecisions)


def atari(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None, gray: bool) -> Raw:
    """The Arcade Learning Environment by Dreamer V2's protocol; see `environments.atari`."""
    from wmlightning.environments.atari import PROTOCOL, TIME_LIMIT, AtariGame

    if pixels is not None:
        raise ValueError(f"{spec.id} has no observation {pixels!r}: leave pixels out")
    if told := {"frameskip", "obs_type", "continuous", "sound_obs"} & kwargs.keys():
        raise ValueError(f"{spec.id} is told {sorted(told)[0]}, which is not for kwargs: set action_repeat and gray")
    own = {name: kwargs[name] for name in ("noops", "life_loss_ends") if name in kwargs}
    others = {name: value for name, value in kwargs.items() if name not in own}
    game = AtariGame(_make(spec, PROTOCOL | {"obs_type": "grayscale" if gray else "rgb"} | others), **own)
    return Raw(game, OneHotActions, lambda _: game.look(), None if isinstance(crop, str) else crop, TIME_LIMIT)


def dm_control(
    spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None, size: int
) -> Raw:
    """The control suite: drawn at the size asked for, once a decision; see `environments.dm_control`."""
    if pixels not in (None, "render"):
        raise ValueError(f"{spec.id} has no observation {pixels!r}: leave pixels out")
    env = _make(spec, kwargs)
    task = env.unwrapped
    assert isinstance(task, DMControl)
    return Raw(env, SymmetricActions, lambda _: task.look(size, size), None if isinstance(crop, str) else crop)


def action_wrapper(env: gym.Env) -> Callable[[gym.Env], gym.Env]:
    """The wrapper that fits an environment's action space.

    Raises:
        ValueError: for a space that is neither Box nor Discrete.
    """
    if isinstance(env.action_space, spaces.Discrete):
        return OneHotActions
    if isinstance(env.action_space, spaces.Box):
        return SymmetricActions
    raise ValueError(f"{env} takes {env.action_space}: only Box and Discrete actions are supported, so wrap it")


def _make(spec: EnvSpec, kwargs: dict[str, Any]) -> gym.Env:
    """gym.make without gymnasium's time limit and checker; it renders if it can, and its errors are one line."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        modes = getattr(creator, "metadata", {}).get("render_modes", [])
        render = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}
        return gym.make(spec, max_episode_steps=-1, disable_env_checker=True, **(render | kwargs))
    except (TypeError, ValueError, AssertionError, ImportError, gym.error.Error) as error:
        if isinstance(error, gym.error.DependencyNotInstalled) and str(spec.entry_point).startswith(BOX2D):
            raise ValueError(LACKING.format(spec.id, "Box2D and pygame")) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{spec.id} cannot be made with kwargs {kwargs}: {reason}") from error


def _check_drawable(spec: EnvSpec, env: gym.Env) -> None:
    if any(kind.__module__.startswith(DRAWN_BY_PYGAME) for kind in type(env.unwrapped).__mro__):
        try:
            importlib.import_module("pygame")
        except ImportError as error:
            raise ValueError(LACKING.format(spec.id, "pygame to be drawn")) from error


def _native_picture(space: spaces.Space) -> str:
    """The key of the only picture among the observations; "" if the observation itself is one; else "render"."""
    if _is_picture(space):
        return ""
    if isinstance(space, spaces.Dict):
        keys = [key for key, entry in space.items() if _is_picture(entry)]
        if len(keys) == 1:
            return keys[0]
    return "render"


def _is_picture(space: spaces.Space) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    shape = space.shape
    flat_or_color = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    return flat_or_color and min(shape[:2]) >= SMALLEST_PICTURE
