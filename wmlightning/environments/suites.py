"""Gives any registered gymnasium id one interface; what is special about a family of environments is decided here.

A family with rules of its own is a function that returns a `Raw`, and a line in `make_raw`, which looks at the class
that an id's entry point names: the same environment under another id has the same rules. Everything else goes through
`plain`.
"""

import contextlib
import difflib
import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from wmlightning.environments.dm_control import DEBIAN, PREFIX, DMControl, choose_backend, find_task
from wmlightning.environments.dm_control import TIME_LIMIT as DM_CONTROL_LIMIT
from wmlightning.environments.dummy import DummyEnv
from wmlightning.environments.observations import SMALLEST_PICTURE, as_picture, choose, entries_of, why_no_picture
from wmlightning.environments.wrappers import Decisions, IntegerActions, OneHotActions, Pixels, SymmetricActions

# Otherwise pygame prints a greeting to stdout, once per worker.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# Pictures go into arrays; SDL looks for a screen otherwise, and complains where there is none.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

PACKAGES = {
    "ALE/": ("ale_py", "wmlightning[atari]"),
    "MiniGrid": ("minigrid", "wmlightning[minigrid]"),
    "BabyAI": ("minigrid", "wmlightning[minigrid]"),
    "Vizdoom": ("vizdoom.gymnasium_wrapper", "wmlightning[doom]"),
}
"""Beginnings of ids that another package registers: the module to import, the package to install."""

CAR_RACING = "gymnasium.envs.box2d.car_racing:CarRacing"
VIZDOOM = "vizdoom.gymnasium_wrapper.base_gymnasium_env:VizdoomEnv"
ATARI = "ale_py.env:AtariEnv"
MUJOCO = "gymnasium.envs.mujoco.mujoco_env:MujocoEnv"
HIGHWAY = "highway_env.envs.common.abstract:AbstractEnv"

BOX2D = "gymnasium.envs.box2d."
MUJOCO_MODULE = "gymnasium.envs.mujoco."
DRAWN_BY_PYGAME = (BOX2D, "gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
"""Modules of gymnasium whose environments look for pygame at their first picture only, in the middle of a run."""
LACKING = '{} needs {}: pip install "wmlightning[box2d]"'
"""Message where Box2D or pygame is missing."""


@dataclass
class Raw:
    """An environment without action repeat, and what is special about it.

    Args:
        env: takes the actions of `actions`.
        actions: wraps it so that actions are in [-1, 1] or one-hot.
        look: gives the picture from the raw observation.
        crop: what to keep of that picture, as of `EnvFactory`; None for all.
        time_limit: environment steps, where the id registers none and the suite has a default.
        decisions: repeats actions, counts steps and ends episodes at the limit.
        rendered: whether pictures are what the environment renders, rather than observations.
        ends_itself: whether it ends every episode after a number of steps of its own, so that it needs no limit.
        notices: lines for the user, said once at the start.
        conventions: what has to be recorded with episodes; see `EnvFactory.conventions`.
    """

    env: gym.Env
    actions: Callable[[gym.Env], gym.Env]
    look: Callable[[Any], np.ndarray]
    crop: list[int] | None = None
    time_limit: int | None = None
    decisions: Callable[..., gym.Env] = Decisions
    rendered: bool = False
    ends_itself: bool = False
    notices: tuple[str, ...] = ()
    conventions: tuple[str, ...] = ()


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
) -> Pixels:
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
    acting = raw.actions(raw.env)
    notices, conventions = raw.notices, raw.conventions
    if isinstance(acting, IntegerActions):
        conventions += ("integer actions of equal shares",)
    if limit is None and not raw.ends_itself:
        notices += (
            f"{id} has no time limit: an episode that does not end by itself is played for ever; set time_limit, such "
            "as 1000",
        )
    env = Pixels(raw.decisions(acting, action_repeat, limit, ignore_termination), raw.look, size, raw.crop, gray)
    env.notices, env.conventions = notices, conventions
    return env


def make_registered(spec: EnvSpec, arguments: dict[str, Any]) -> Pixels:
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
            raise ValueError(f"{module}:{id} names a module that cannot be imported ({error}): fix the id") from error
    if id.startswith(PREFIX):
        return find_task(id)
    _import_package(id)
    try:
        return gym.spec(id)
    except gym.error.Error as error:
        # What an id without its package's beginning may have meant.
        for package, _ in PACKAGES.values():
            with contextlib.suppress(Exception):
                importlib.import_module(package)
        if id in gym.registry:
            return gym.spec(id)
        raise ValueError(f"gymnasium knows no environment {id!r}: {_hint(id)}") from error


def _hint(id: str) -> str:
    """What the user may have meant by an id that is not registered."""
    closest = [other for other in gym.registry if other.rpartition("/")[2] == id]
    closest = closest or difflib.get_close_matches(id, list(gym.registry), n=3, cutoff=0.6)
    for task in (id, f"{id}-v0"):
        with contextlib.suppress(ValueError):
            closest = [find_task(PREFIX + task).id]
    own = "an environment of your own needs the module that registers it, as in module:id"
    if closest:
        return f"did you mean {' or '.join(closest)}? Otherwise, {own}"
    return f"{own}; gymnasium.pprint_registry() lists what there is"


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
    """Picks the family by the class that the entry point names, or one of its parents."""
    names = _class_names(spec)
    if f"{DMControl.__module__}:{DMControl.__qualname__}" in names:
        return dm_control(spec, kwargs, pixels, crop, size)
    # No child of it: what is drawn on demand is gymnasium's own class.
    if names[:1] == [CAR_RACING]:
        return car_racing(spec, kwargs, pixels, crop)
    if VIZDOOM in names:
        return doom(spec, kwargs, pixels, crop)
    if ATARI in names:
        return atari(spec, kwargs, pixels, crop, gray)
    if MUJOCO in names:
        return gymnasium_mujoco(spec, kwargs, pixels, crop)
    if HIGHWAY in names:
        return highway(spec, kwargs, pixels, crop)
    return plain(spec, kwargs, pixels, crop)


def plain(
    spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None, habit: str | None = None
) -> Raw:
    """Any environment: its native picture if it has one, else what it renders; habit is the suite's default."""
    env = _make(spec, kwargs)
    choice = choose(spec.id, env.observation_space, pixels, habit)
    look = choice.look
    if look is None:
        if env.render_mode != "rgb_array":
            entries = [key for key in entries_of(env.observation_space) if key]
            modes = (env.metadata or {}).get("render_modes", [])
            if "rgb_array" in modes:
                raise ValueError(
                    f"{spec.id} can render rgb_array but was made with render_mode {env.render_mode}: let its entry "
                    "point take render_mode as an argument and pass it on"
                )
            if not entries:
                why = why_no_picture(env.observation_space)
                raise ValueError(
                    f"{spec.id} does not render rgb_array, and its observation {why}: wrap it to give pictures "
                    f"(H, W, 3) of at least {SMALLEST_PICTURE} pixels a side"
                )
            raise ValueError(
                f"{spec.id} gives neither a picture of {SMALLEST_PICTURE} pixels a side nor rgb_array rendering: name "
                f"one of its observations {entries} with pixels, or wrap it"
            )
        _check_drawable(spec, env)
        look = lambda _: as_picture(env.render(), spec.id)  # noqa: E731
    return Raw(
        env,
        action_wrapper(env),
        look,
        None if isinstance(crop, str) else crop,
        rendered=choice.look is None,
        ends_itself=_ends_itself(env),
        notices=choice.notices,
        conventions=choice.conventions,
    )


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
        raise ValueError(f"{spec.id} got frame_skip in kwargs, which would count its steps wrongly: set action_repeat")
    raw = plain(spec, kwargs, pixels, crop, habit="screen")
    raw = replace(raw, env=LastPicture(raw.env), decisions=DoomDecisions)
    if raw.env.unwrapped.game.get_episode_timeout() > 0:  # type: ignore[attr-defined]
        # Stores from before this rule hold the engine's own time limit as terminal.
        raw = replace(raw, ends_itself=True, conventions=(*raw.conventions, "engine's time limit not terminal"))
    if (spec.kwargs | kwargs).get("scenario_config_file") == TAKE_COVER:
        # The paper uses the screen only; what is left out, health, needs no notice.
        return replace(raw, actions=ThreeWay, time_limit=TAKE_COVER_LIMIT, notices=())
    return raw


def atari(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None, gray: bool) -> Raw:
    """The Arcade Learning Environment by Dreamer V2's protocol; see `environments.atari`."""
    from wmlightning.environments.atari import PROTOCOL, TIME_LIMIT, AtariGame

    if pixels is not None:
        raise ValueError(f"{spec.id} has no observation {pixels!r}: leave pixels out")
    given = {"frameskip", "obs_type", "continuous", "sound_obs"} & kwargs.keys()
    if given := given | {name for name in ("continuous", "sound_obs") if spec.kwargs.get(name)}:
        raise ValueError(f"{spec.id} got {sorted(given)[0]}, which cannot be set by kwargs: set action_repeat and gray")
    own = {name: kwargs[name] for name in ("noops", "life_loss_ends") if name in kwargs}
    others = {name: value for name, value in kwargs.items() if name not in own}
    game = AtariGame(_make(spec, PROTOCOL | {"obs_type": "grayscale" if gray else "rgb"} | others), **own)
    raw = Raw(game, OneHotActions, lambda _: game.look(), None if isinstance(crop, str) else crop, TIME_LIMIT)
    if spec.id.startswith("ALE/"):
        return raw
    # Stores from before this rule hold other ids' games as they are registered.
    line = (
        f"{spec.id} is played by Dreamer V2's protocol, as ALE/ ids are: sticky actions, all 18 actions, up to 30 idle "
        "frames at the start; kwargs changes it"
    )
    return replace(raw, notices=(line,), conventions=("Atari protocol",))


def dm_control(
    spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None, size: int
) -> Raw:
    """The control suite: drawn at the size asked for, once a decision; see `environments.dm_control`."""
    if pixels not in (None, "render"):
        raise ValueError(f"{spec.id} has no observation {pixels!r}: leave pixels out")
    env = _make(spec, kwargs)
    task = env.unwrapped
    assert isinstance(task, DMControl)
    rows = None if isinstance(crop, str) else crop
    return Raw(env, SymmetricActions, lambda _: task.look(size, size), rows, DM_CONTROL_LIMIT)


def gymnasium_mujoco(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None) -> Raw:
    """gymnasium's MuJoCo models: drawn by the camera that follows the body, where the model has one.

    gymnasium's default is a camera that stands still, out of whose sight a running body goes.
    """
    mujoco: Any = importlib.import_module("mujoco")
    raw = plain(spec, kwargs, pixels, crop)
    renderer = getattr(raw.env.unwrapped, "mujoco_renderer", None)
    chosen = {"camera_id", "camera_name", "default_camera_config"} & (spec.kwargs | kwargs).keys()
    if renderer is None or chosen or not raw.rendered:
        return raw
    camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera < 0:
        return raw
    renderer.camera_id = camera
    return replace(raw, conventions=(*raw.conventions, "camera that follows"))


def highway(spec: EnvSpec, kwargs: dict[str, Any], pixels: str | None, crop: list[int] | str | None) -> Raw:
    """highway_env, which draws nothing where SDL has no screen, although it draws offscreen: it is switched on."""
    raw = plain(spec, kwargs, pixels, crop)
    raw = replace(raw, ends_itself=True)
    if not raw.rendered:
        return raw
    road: Any = raw.env.unwrapped

    def look(observation: Any) -> np.ndarray:
        picture = raw.look(observation)
        if road.viewer is not None and not road.viewer.enabled:
            # It was made by this first drawing.
            road.viewer.enabled = True
            picture = raw.look(observation)
        return picture

    return replace(raw, look=look, conventions=(*raw.conventions, "drawn without a screen"))


def action_wrapper(env: gym.Env) -> Callable[[gym.Env], gym.Env]:
    """The wrapper that fits an environment's action space.

    Raises:
        ValueError: for a space that is neither Box nor Discrete.
    """
    if isinstance(env.action_space, spaces.Discrete):
        return OneHotActions
    if isinstance(env.action_space, spaces.Box):
        kind = env.action_space.dtype
        return IntegerActions if np.issubdtype(kind, np.integer) or kind == np.bool_ else SymmetricActions
    raise ValueError(f"{env} takes {env.action_space}: only Box and Discrete actions are supported, so wrap it")


def _make(spec: EnvSpec, kwargs: dict[str, Any]) -> gym.Env:
    """gym.make without gymnasium's time limit and checker; it renders if it can, and its errors are one line."""
    if str(spec.entry_point).startswith(MUJOCO_MODULE) and choose_backend() is None:
        raise ValueError(f"{spec.id} cannot be drawn, for neither EGL nor OSMesa works here: {DEBIAN}")
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        render = {"render_mode": "rgb_array"} if _renders(creator) else {}
        return gym.make(spec, max_episode_steps=-1, disable_env_checker=True, **(render | kwargs))
    except (TypeError, ValueError, AssertionError, ImportError, gym.error.Error) as error:
        if isinstance(error, gym.error.DependencyNotInstalled) and str(spec.entry_point).startswith(BOX2D):
            raise ValueError(LACKING.format(spec.id, "Box2D and pygame")) from error
        if isinstance(error, ImportError) and str(spec.entry_point).startswith(MUJOCO_MODULE):
            raise ValueError(f'{spec.id} needs {error.name}: pip install "gymnasium[mujoco]"') from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{spec.id} cannot be made with kwargs {kwargs}: {reason}") from error


def _renders(creator: Any) -> bool:
    """Whether an entry point takes render_mode rgb_array: a class says so itself, a function by its arguments."""
    metadata = getattr(creator, "metadata", None)
    if isinstance(metadata, dict):
        return "rgb_array" in metadata.get("render_modes", [])
    return "render_mode" in inspect.signature(creator).parameters


def _check_drawable(spec: EnvSpec, env: gym.Env) -> None:
    if any(kind.__module__.startswith(DRAWN_BY_PYGAME) for kind in type(env.unwrapped).__mro__):
        try:
            importlib.import_module("pygame")
        except ImportError as error:
            raise ValueError(LACKING.format(spec.id, "pygame to be drawn")) from error


def _class_names(spec: EnvSpec) -> list[str]:
    """ "module:Class" of the class that makes the environment, then of its parents; none of a function."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except Exception:
        # `_make` says why, in one line.
        return [spec.entry_point] if isinstance(spec.entry_point, str) else []
    kinds = creator.__mro__ if isinstance(creator, type) else ()
    return [f"{kind.__module__}:{kind.__qualname__}" for kind in kinds]


def _ends_itself(env: gym.Env) -> bool:
    """Whether an environment without a registered limit is known to cut its episodes (MiniGrid's attribute, ours)."""
    core = env.unwrapped
    return isinstance(core, DummyEnv) or isinstance(getattr(core, "max_steps", None), int)
