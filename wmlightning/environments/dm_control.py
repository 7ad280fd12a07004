"""DeepMind's control suite as gymnasium environments, and the choice of a renderer that needs no display.

An id is `dm_control/<domain>-<task>-v0`, such as dm_control/cartpole-swingup-v0 or dm_control/ball_in_cup-catch-v0, for
every task of `dm_control.suite`. What is special about the family, and where the code handles it:

* Without a display and without `MUJOCO_GL`, mujoco crashes at the first frame. `choose_backend`
  looks first: EGL where it works (a graphics card, or Mesa in software), else OSMesa, else one line that says what to
  install. What the user has set is left alone, but GLFW is refused without a screen: it would fail at the first frame.
* An episode is a function of its seed: the task draws from its own random state, which `reset` sets anew. Building the
  task again would compile its model and open a graphics context each time.
* Nothing terminates: after 1,000 environment steps the suite stops, which is a time limit.
* Shadows, reflections and smooth edges are most of the drawing; `fast_render` leaves them out, for other pixels.
"""

import contextlib
import ctypes
import ctypes.util
import difflib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

PREFIX = "dm_control/"
EXTRA = 'pip install "wmlightning[dmc]"'
DEBIAN = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 (or libosmesa6)"
TIME_LIMIT = 1000
"""Environment steps of an episode, in every task with a limit."""
CAMERAS = {"quadruped": 2}
"""The camera that pictures are taken with, where it is not the first: quadruped's stands too near to see its legs."""
GLFW = ("glfw", "on", "enable", "enabled", "true", "1", "")
"""Values of `MUJOCO_GL` by which dm_control understands GLFW."""
_UNBOUNDED = 1e6


def find_task(id: str) -> EnvSpec:
    """The registration of `dm_control/<domain>-<task>-v0`; nothing is built yet.

    Raises:
        ValueError: in one line, if the extra is not installed, dm_control breaks with this version of mujoco, nothing
            here can draw, or there is no such task; then with the nearest ids.
    """
    suite = _import_suite(id)
    tasks = {f"{domain}-{task}-v0": (domain, task) for domain, task in suite.ALL_TASKS}
    name = id.removeprefix(PREFIX)
    if name not in tasks:
        closest = [PREFIX + other for other in difflib.get_close_matches(name, list(tasks), n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(closest)}?" if closest else f"ids look like {PREFIX}cartpole-swingup-v0"
        raise ValueError(f"the control suite has no task {id!r}: {hint}")
    domain, task = tasks[name]
    kwargs = {"domain": domain, "task": task}
    return EnvSpec(id, entry_point=f"{__name__}:DMControl", max_episode_steps=TIME_LIMIT, kwargs=kwargs)


class DMControl(gym.Env):
    """One task of the suite.

    The observation is what the task measures, joined, float64 (n,); pictures come from `look`.

    Args:
        domain: such as cartpole.
        task: such as swingup.
        camera: number of the camera; None is the papers': 2 for quadruped, else 0.
        fast_render: draw without shadows, reflections and smoothed edges, several times faster and slightly different.
        render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        domain: str,
        task: str,
        camera: int | None = None,
        fast_render: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.name, self.render_mode = f"{PREFIX}{domain}-{task}-v0", render_mode
        suite = _import_suite(self.name)
        with _quiet():
            # Time limits are counted outside; the suite itself would silently begin anew after its own.
            self.suite = suite.load(domain, task, task_kwargs={"random": 0, "time_limit": float("inf")})
        cameras = self.suite.physics.model.ncam
        self.camera = CAMERAS.get(domain, 0) if camera is None else camera
        if not -1 <= self.camera < cameras:
            raise ValueError(f"camera is {self.camera} but {self.name} has cameras 0 to {cameras - 1}: choose another")
        self.flags = {"shadow": False, "reflection": False} if fast_render else None
        if fast_render:
            quality = self.suite.physics.model.vis.quality
            quality.shadowsize = quality.offsamples = 0
        action = self.suite.action_spec()
        low, high = (
            np.where(np.abs(b) > _UNBOUNDED, np.copysign(np.inf, b), b) for b in (action.minimum, action.maximum)
        )
        self.action_space = spaces.Box(low, high, action.shape, np.float64)
        size = sum(int(np.prod(entry.shape)) for entry in self.suite.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self._views: dict[tuple[int, int], Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begins an episode that is a function of the seed alone."""
        super().reset(seed=seed)
        if seed is not None:
            # What RandomState(seed) would draw; the task keeps the object.
            self.suite.task.random.seed(seed % 2**32)
        return _joined(self.suite.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step of the suite."""
        moment = self.suite.step(action)
        over = moment.last()
        return _joined(moment.observation), float(moment.reward), over and moment.discount == 0, over, {}

    def look(self, height: int, width: int) -> np.ndarray:
        """The picture of the chosen camera, drawn at this size, uint8 (height, width, 3).

        Raises:
            RuntimeError: in one line, if drawing fails.
        """
        from dm_control.mujoco.engine import Camera

        try:
            if (height, width) not in self._views:
                # Kept, for allocating its scene takes as long as drawing it.
                self._views[height, width] = Camera(self.suite.physics, height, width, self.camera)
            return self._views[height, width].render(render_flag_overrides=self.flags)
        except Exception as error:
            raise RuntimeError(_cannot_draw(self.name, error)) from error

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A picture for people, uint8 (240, 320, 3)."""
        return self.look(240, 320)

    def close(self) -> None:
        """Frees the graphics context."""
        if "_views" in self.__dict__:
            self._views.clear()
            self.suite.physics.free()
            self.suite.close()


def choose_backend() -> str | None:
    """Sets `MUJOCO_GL` where it is unset: egl if it works here, else osmesa.

    Returns:
        The backend that mujoco draws with, or None where none works. On other systems than Linux mujoco chooses.
    """
    if "MUJOCO_GL" not in os.environ and sys.platform.startswith("linux"):
        found = "egl" if _egl_works() else "osmesa" if ctypes.util.find_library("OSMesa") else None
        if found is None:
            return None
        os.environ["MUJOCO_GL"] = found
    return os.environ.get("MUJOCO_GL", sys.platform)


def _import_suite(id: str) -> Any:
    if importlib.util.find_spec("dm_control") is None or importlib.util.find_spec("mujoco") is None:
        raise ValueError(f"{id} needs a package that is not here: {EXTRA}")
    with contextlib.suppress(PackageNotFoundError):
        if int(version("mujoco").partition(".")[0]) > 3:
            raise ValueError(f"{id} needs mujoco 3 but {version('mujoco')} is installed: {EXTRA}")
    if choose_backend() is None:
        raise ValueError(f"{id} cannot be drawn, for neither EGL nor OSMesa works here: {DEBIAN}")
    try:
        if os.environ.get("MUJOCO_GL") in GLFW:
            _begin_glfw()
        from dm_control import suite
        from dm_control.mujoco.wrapper.core import MjrContext
    except Exception as error:
        raise ValueError(_cannot_draw(id, error)) from error
    # A renderer whose construction failed has nothing to free; its finalizer would print an error to stderr.
    MjrContext._ptr = staticmethod(lambda: None)  # type: ignore[attr-defined]
    return suite


def _begin_glfw() -> None:
    """Raises where GLFW finds no screen; through mujoco GLFW would only warn of that."""
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("error", glfw.GLFWError)
        if not glfw.init():
            raise RuntimeError("GLFW finds no screen")


def _cannot_draw(id: str, error: Exception) -> str:
    backend = os.environ.get("MUJOCO_GL", "unset")
    return (
        f"{id} cannot be drawn with MUJOCO_GL={backend} ({type(error).__name__}: {' '.join(str(error).split())}): "
        f"unset MUJOCO_GL to let wmlightning choose, or {DEBIAN}"
    )


def _egl_works() -> bool:
    """Whether EGL opens a display here; asked of the library itself, since a failed import cannot be undone."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        if not ctypes.util.find_library("OpenGL") and not ctypes.util.find_library("GL"):
            return False
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        find, show = (egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
        if not find or not show:
            return False
        devices, count = (ctypes.c_void_p * 32)(), ctypes.c_int(0)
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        query = ctypes.CFUNCTYPE(ctypes.c_uint, integer, pointer, ctypes.POINTER(integer))(find)
        display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(show)
        if not query(len(devices), devices, ctypes.byref(count)):
            return False
        egl.eglInitialize.argtypes = [pointer, pointer, pointer]
        platform_device = 0x313F
        displays = (display_of(platform_device, device, None) for device in devices[: count.value])
        return any(display and egl.eglInitialize(display, None, None) for display in displays)
    except (OSError, AttributeError):
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, absl logs errors only: some models use words that mujoco warns about at every build."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _joined(observation: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(entry, np.float64)) for entry in observation.values()])
