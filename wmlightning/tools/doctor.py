"""Checks what this machine has, and names what to install for what it lacks."""

import os
import platform
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "lightning", "torchmetrics", "gymnasium", "h5py", "numpy", "cma", "tensorboard", "jsonargparse")
OLDEST = (3, 11)


def diagnose() -> list[tuple[bool, str]]:
    """Checks Python, the packages, the devices and one rendered frame of each suite.

    Returns:
        Lines to print, each with whether the check passed; a line of a failed check says what to install.
    """
    checks = (_python, _packages, _device, _classic, _box2d, _doom, _dm_control, _atari, _minigrid)
    return [_check(check) for check in checks]


def main(args: list[str]) -> int:
    """Prints the diagnosis; returns 1 if something is missing."""
    if args:
        print("usage: wmlightning doctor        checks this machine and says what to install; it has no options")
        return 0 if args[0] in ("-h", "--help") else 2
    lines = diagnose()
    for good, line in lines:
        print(f"ok       {line}" if good else f"missing  {line}")
    return 0 if all(good for good, _ in lines) else 1


def _check(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, check()
    except Exception as error:
        return False, " ".join(str(error).split()) or type(error).__name__


def _python() -> str:
    if sys.version_info < OLDEST:
        raise RuntimeError(f"Python is {platform.python_version()}: install Python 3.11 or newer")
    return f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            raise RuntimeError(f"{name} is missing: pip install wmlightning") from None
    return ", ".join(found)


def _device() -> str:
    """Adds two numbers on every device: a driver that does not fit the wheel fails here, not in `fit`."""
    import torch

    if torch.cuda.is_available():
        return ", ".join(_adds_up(f"cuda:{number}") for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return f"Apple GPU ({_adds_up('mps')})"
    _adds_up("cpu")
    built = "a torch built for CPUs" if torch.version.cuda is None else "a torch that finds no GPU"
    return f"no GPU, {built}: training runs on the CPU, {torch.get_num_threads()} threads"


def _adds_up(device: str) -> str:
    import torch

    try:
        if float(torch.ones(2, device=device).sum()) != 2:
            raise RuntimeError("1 + 1 is not 2")
    except RuntimeError as error:
        raise RuntimeError(
            f"{device} does not compute ({error}): install the torch that fits its driver, https://pytorch.org"
        ) from error
    return f"{device} {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else device


def _classic() -> str:
    return _rendered("Pendulum-v1", 'pip install "wmlightning[box2d]"')


def _box2d() -> str:
    return _rendered("CarRacing-v3", "pip install --force-reinstall pygame-ce")


def _doom() -> str:
    return _rendered("VizdoomTakeCover-v1", "pip install --force-reinstall vizdoom")


def _dm_control() -> str:
    from wmlightning.environments.dm_control import DEBIAN

    line = _rendered("dm_control/cartpole-swingup-v0", DEBIAN)
    return f"{line} (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')})"


def _atari() -> str:
    return _rendered("ALE/Pong-v5", "pip install --force-reinstall ale-py")


def _minigrid() -> str:
    return _rendered("MiniGrid-Empty-Random-5x5-v0", "pip install --force-reinstall minigrid")


def _rendered(id: str, cure: str) -> str:
    """Renders one environment's first image; `cure` is the advice for an installed suite that draws nothing."""
    from gymnasium.error import DependencyNotInstalled

    from wmlightning.environments.factory import EnvFactory

    with warnings.catch_warnings():
        # What it says of other observations is for somebody who plays there.
        warnings.simplefilter("ignore")
        env = EnvFactory(id).make()
    try:
        image = env.reset(seed=0)[0]["image"]
    except DependencyNotInstalled as error:
        raise RuntimeError(f"{id} cannot be drawn ({error}): {cure}") from error
    finally:
        env.close()
    if image.std() < 1:
        raise RuntimeError(f"{id} renders an empty picture: {cure}")
    return f"{id} renders {image.shape[1]}x{image.shape[0]} pictures without a display"
