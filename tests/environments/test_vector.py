"""Environments side by side: nothing resets by itself, and a worker that dies is named and replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from wmlightning.environments import workers
from wmlightning.environments.factory import EnvFactory

ROOT = Path(__file__).parents[2]
COUNTER = EnvFactory("wmlightning/DummyCounter-v0", size=8, kwargs={"steps": 4})


def test_it_is_gymnasiums_vector_environment_without_automatic_resets():
    with COUNTER.vector(3) as envs:
        assert isinstance(envs, VectorEnv)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        observation, _ = envs.reset(seed=0)
        assert envs.observation_space.contains(observation)
        assert envs.action_space.shape == (3, 2)


def test_a_row_that_ended_rests_until_it_is_reset():
    with COUNTER.vector(2) as envs:
        envs.reset(seed=0)
        for _ in range(4):
            _, _, terminated, truncated, _ = envs.step(np.zeros((2, 2)))
        assert (terminated.tolist(), truncated.tolist()) == ([False, False], [True, True])
        envs.reset(options={"reset_mask": np.array([False, True])})
        observation, reward, terminated, truncated, infos = envs.step(np.zeros((2, 2)))
        assert reward.tolist() == [0.0, 1.0]
        assert truncated.tolist() == [False, False]
        assert infos["env_steps"].tolist() == [0, 1]
        assert observation["image"][:, 0, 0, 0].tolist() == [4, 1], "A resting row shows what it saw last."


def test_options_without_a_mask_reset_every_row():
    with COUNTER.vector(2) as envs:
        envs.reset(seed=0, options={"foo": 1})
        assert envs.step(np.zeros((2, 2)))[1].tolist() == [1.0, 1.0]


def test_rows_that_were_never_reset_do_not_step():
    with COUNTER.vector(2) as envs:
        _, reward, *_, infos = envs.step(np.zeros((2, 2)))
        assert reward.tolist() == [0.0, 0.0]
        assert infos["env_steps"].tolist() == [0, 0]


def test_worker_processes_give_what_this_process_gives():
    pixels = EnvFactory("wmlightning/DummyPixels-v0", size=16, action_repeat=2, time_limit=7)
    walks = []
    for count in (0, 2):
        with pixels.vector(3, count) as envs:
            seen = [envs.reset(seed=[5, 6, None])[0]["image"][:2]]
            for step in range(4):
                observation, *rest, infos = envs.step(np.full((3, 2), 0.1 * step))
                seen += [observation["image"][:2], *[value[:2] for value in rest], infos["env_steps"][:2]]
            walks.append(seen)
    for one, two in zip(*walks, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_an_environment_raises_is_told_with_its_row():
    factory = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs={"kind": "raise"})
    for count in (0, 1):
        with factory.vector(2, count) as envs:
            envs.reset(seed=[1, 3])
            for _ in range(4):
                envs.step(np.zeros((2, 2)))
            with pytest.raises(RuntimeError, match="environment 1 of 2, begun with seed 3.*ArithmeticError: the wheel"):
                envs.step(np.zeros((2, 2)))


def test_a_killed_worker_is_named_and_replaced_and_only_its_rows_are_lost():
    with COUNTER.vector(4, 2) as envs:
        envs.reset(seed=0)
        envs.step(np.zeros((4, 2)))
        assert envs.workers is not None
        victim = envs.workers.processes[1]
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        with pytest.warns(UserWarning, match=rf"worker 1 \(process {victim.pid}, rows 2 to 3\) died with exit code -9"):
            observation, *_, infos = envs.step(np.zeros((4, 2)))
        assert infos["crashed"].tolist() == [False, False, True, True]
        assert observation["image"][:2, 0, 0, 0].tolist() == [2, 2]
        envs.reset(options={"reset_mask": infos["crashed"]})
        observation, *_ = envs.step(np.zeros((4, 2)))
        assert observation["image"][:, 0, 0, 0].tolist() == [3, 3, 1, 1]


def test_a_hung_worker_is_killed_and_replaced():
    factory = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs={"kind": "hang"})
    with factory.vector(2, 2, timeout=1.5) as envs:
        envs.reset(seed=[1, 3])
        for _ in range(4):
            envs.step(np.zeros((2, 2)))
        with pytest.warns(UserWarning, match=r"worker 1 .* did not answer for 1.5 s"):
            *_, infos = envs.step(np.zeros((2, 2)))
        assert infos["crashed"].tolist() == [False, True]


def test_an_interrupted_step_does_not_leave_answers_that_a_later_one_mistakes_for_its_own(monkeypatch):
    with COUNTER.vector(2, 2) as envs:
        envs.reset(seed=0)
        with monkeypatch.context() as patch:
            patch.setattr(workers, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                envs.step(np.zeros((2, 2)))
        envs.reset(seed=0)
        observation, *_ = envs.step(np.zeros((2, 2)))
        assert observation["image"][:, 0, 0, 0].tolist() == [1, 1]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_worker_that_cannot_start_says_so():
    with pytest.raises(RuntimeError, match="define its class in a module"):
        workers.Workers(lambda: None, (1, 2, 8), 1, 1.0)  # type: ignore[arg-type,return-value]


def test_closing_ends_the_workers():
    envs = COUNTER.vector(2, 2)
    assert envs.workers is not None
    processes = list(envs.workers.processes)
    envs.close()
    assert all(process.poll() is not None for process in processes)


SCRIPT = """
import time
from wmlightning.environments.factory import EnvFactory
envs = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs={"kind": "hang"}).vector(2, 2)
print(*[process.pid for process in envs.workers.processes], flush=True)
envs.reset(seed=[1, 3])
for _ in range(9):
    envs.step(envs.action_space.sample())
"""


def test_workers_leave_with_a_parent_that_is_killed_even_where_they_hang():
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_needs_no_torch():
    code = (
        "import sys, wmlightning.environments.workers, wmlightning.environments.suites; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "False"


def test_numbers_of_environments_and_workers_must_make_sense():
    with pytest.raises(ValueError, match="num_envs is 0"):
        COUNTER.vector(0)


def test_an_id_that_only_the_parent_registered_reaches_the_workers():
    gym.register("tests/OnlyHere-v0", entry_point="wmlightning.environments.dummy:DummyCounter", kwargs={"steps": 2})
    with EnvFactory("tests/OnlyHere-v0", size=8).vector(1, 1) as envs:
        envs.reset(seed=0)
        envs.step(np.zeros((1, 2)))
        assert envs.step(np.zeros((1, 2)))[3].tolist() == [True]
