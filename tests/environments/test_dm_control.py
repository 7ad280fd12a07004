"""The control suite looks like any other environment, and what it lacks is said in one line."""

import gc
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from datamodules.episode import Spec
from wmlightning.environments import dm_control
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.environments.suites import make_env

INSTALLED = importlib.util.find_spec("dm_control") is not None
needs_extra = pytest.mark.skipif(not INSTALLED, reason=f"the control suite is not here: {dm_control.EXTRA}")
needs_backend = pytest.mark.skipif(
    not INSTALLED or dm_control.choose_backend() is None, reason=f"nothing here can draw: {dm_control.DEBIAN}"
)
CARTPOLE = "dm_control/cartpole-swingup-v0"


def first_picture(id, **kwargs):
    env = EnvFactory(id, kwargs=kwargs).make()
    image = env.reset(seed=0)[0]["image"]
    env.close()
    return image


@needs_backend
@pytest.mark.parametrize(
    ("id", "size"), [(CARTPOLE, 1), ("dm_control/ball_in_cup-catch-v0", 2), ("dm_control/quadruped-walk-v0", 12)]
)
def test_a_task_gives_64x64_pictures_and_actions_between_minus_one_and_one(id, size):
    factory = EnvFactory(id, action_repeat=8)
    assert factory.spec == Spec({"image": ((64, 64, 3), "uint8")}, size, False)
    env = factory.make()
    image = env.reset(seed=0)[0]["image"]
    assert image.std() > 5
    observation, reward, terminated, truncated, info = env.step(np.ones(size, np.float32))
    assert (observation["image"] != image).any()
    assert 0 <= reward <= 8
    assert (terminated, truncated, info["env_steps"]) == (False, False, 8)
    assert env.render().shape == (240, 320, 3), "for people"
    env.close()


@needs_backend
def test_an_episode_is_a_function_of_its_seed_whatever_was_played_before():
    env = EnvFactory(CARTPOLE, action_repeat=4, time_limit=20).make()

    def play(seed):
        images, rewards = [env.reset(seed=seed)[0]["image"]], []
        for _ in range(5):
            observation, reward, *_ = env.step(np.array([0.7], np.float32))
            images.append(observation["image"])
            rewards.append(reward)
        return np.stack(images), rewards

    first, other, again = play(3), play(4), play(3)
    assert (first[0] == again[0]).all()
    assert first[1] == again[1]
    assert (first[0] != other[0]).any()
    env.close()


@needs_backend
def test_an_episode_is_cut_off_after_a_thousand_steps_and_never_terminates():
    env, steps, truncated = EnvFactory(CARTPOLE, action_repeat=300, kwargs={"fast_render": True}).make(), [], False
    env.reset(seed=0)
    while not truncated:
        _, _, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        steps.append(info["env_steps"])
        assert not terminated
    assert steps == [300, 300, 300, 100]
    env.close()
    long = make_env(CARTPOLE, action_repeat=1001, time_limit=1200, kwargs={"fast_render": True})
    long.reset(seed=0)
    assert long.step(np.zeros(1, np.float32))[3:][0] is False, "the limit is ours, not the suite's"
    long.close()


@needs_backend
def test_fast_render_shows_the_same_world_in_other_pixels():
    plain, fast = (first_picture("dm_control/cheetah-run-v0", fast_render=fast) for fast in (False, True))
    difference = np.abs(plain.astype(int) - fast)
    assert difference.max() > 0
    assert difference.mean() < 8


@needs_backend
def test_the_picture_is_the_one_that_the_suite_itself_draws():
    from dm_control import suite

    env = suite.load("cheetah", "run", task_kwargs={"random": 0})
    env.reset()
    expected = env.physics.render(64, 64, camera_id=0)
    env.physics.free()
    assert (first_picture("dm_control/cheetah-run-v0") == expected).all()


@needs_backend
def test_quadruped_is_seen_by_its_third_camera():
    id = "dm_control/quadruped-walk-v0"
    usual, first, third = first_picture(id), first_picture(id, camera=0), first_picture(id, camera=2)
    assert (usual == third).all()
    assert (usual != first).any()


@needs_backend
def test_workers_play_the_same_episodes_as_one_process():
    class Push:
        def initial(self, n, seeds=None):
            return {}

        def __call__(self, observation, is_first, carry):
            return np.full((len(is_first), 1), 0.5, np.float32), carry

    factory = EnvFactory(CARTPOLE, action_repeat=8, time_limit=40, kwargs={"fast_render": True})
    results = []
    for workers in (0, 2):
        with factory.vector(2, workers) as envs:
            results.append(rollout(envs, Push(), [1, 2, 3]))
    assert results[0] == results[1]


@needs_backend
@pytest.mark.parametrize(
    ("id", "kwargs", "says"),
    [
        ("dm_control/cartpole-swing_up-v0", {}, "did you mean dm_control/cartpole-swingup"),
        ("dm_control/cheeta-run-v0", {}, "did you mean dm_control/cheetah-run-v0"),
        ("dm_control/cartpole-swingup-v1", {}, "did you mean dm_control/cartpole-swingup-v0"),
        ("dm_control/x", {}, "ids look like dm_control/cartpole-swingup-v0"),
        (CARTPOLE, {"camera": 7}, "cameras 0 to 1"),
        (CARTPOLE, {"shadows": False}, "shadows"),
        ("dm_control/lqr-lqr_2_1-v0", {}, "actions without bounds"),
    ],
)
def test_what_cannot_be_made_says_in_one_line_what_to_do(id, kwargs, says):
    with pytest.raises(ValueError, match=says) as raised:
        EnvFactory(id, kwargs=kwargs).make()
    assert "\n" not in str(raised.value)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ValueError, match=r'pip install "wmlightning\[dmc\]"'):
        EnvFactory(CARTPOLE).make()


@needs_extra
def test_a_mujoco_that_breaks_the_suite_is_named(monkeypatch):
    monkeypatch.setattr(dm_control, "version", lambda name: "4.0.0")
    with pytest.raises(ValueError, match="needs mujoco 3 but 4.0.0 is installed"):
        EnvFactory(CARTPOLE).make()


@needs_extra
def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(dm_control, "_egl_works", lambda: False)
    monkeypatch.setattr(dm_control.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ValueError, match="neither EGL nor OSMesa works here: apt-get install libegl1"):
        EnvFactory(CARTPOLE).make()


@needs_extra
@pytest.mark.parametrize(("egl", "osmesa", "chosen"), [(True, True, "egl"), (False, True, "osmesa")])
def test_osmesa_is_what_draws_where_egl_does_not(monkeypatch, egl, osmesa, chosen):
    monkeypatch.setenv("MUJOCO_GL", "to be restored")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(dm_control, "_egl_works", lambda: egl)
    monkeypatch.setattr(dm_control.ctypes.util, "find_library", lambda name: "libOSMesa.so.8" if osmesa else None)
    assert dm_control.choose_backend() == chosen
    assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert dm_control.choose_backend() == "glfw", "what the user has set is left alone"


@needs_extra
@pytest.mark.parametrize("backend", ["glfw", ""])
def test_glfw_without_a_screen_is_refused_in_one_line_before_anything_is_played(backend):
    code = f"""
from wmlightning.environments.factory import EnvFactory
try:
    EnvFactory({CARTPOLE!r}).make()
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "PYOPENGL_PLATFORM"):
        environment.pop(name, None)
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    [line] = ran.stdout.splitlines()
    assert line.startswith(f"{CARTPOLE} cannot be drawn with MUJOCO_GL={backend} (GLFWError")
    assert "unset MUJOCO_GL" in line
    assert (ran.returncode, ran.stderr) == (0, "")


@needs_backend
def test_what_drawing_fails_at_leaves_nothing_that_complains_when_it_goes(monkeypatch):
    import mujoco

    def broken(*_):
        raise mujoco.FatalError("no OpenGL here")

    complaints, env = [], EnvFactory(CARTPOLE).make()
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    monkeypatch.setattr(mujoco, "MjrContext", broken)
    with pytest.raises(RuntimeError, match="cannot be drawn with MUJOCO_GL=.*no OpenGL here"):
        env.reset(seed=0)
    env.close()
    gc.collect()
    assert not complaints


@needs_extra
@pytest.mark.parametrize("backend", ["osmesa", "nonsense"])
def test_a_backend_that_was_asked_for_draws_or_says_in_one_line_why_not(backend):
    code = f"from wmlightning.environments.factory import EnvFactory as E; print(E({CARTPOLE!r}).make().reset()[0])"
    environment = os.environ | {"MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYOPENGL_PLATFORM", None)
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if ran.returncode:
        [last] = [line for line in ran.stderr.splitlines() if line.startswith(("ValueError", "RuntimeError"))][-1:]
        assert f"cannot be drawn with MUJOCO_GL={backend}" in last
    else:
        assert backend == "osmesa"
