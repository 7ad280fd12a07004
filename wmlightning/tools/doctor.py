"""What this machine has, and what to install for what it lacks."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "lightning", "torchmetrics", "gymnasium", "h5py", "numpy", "cma", "tensorboard", "jsonargparse")


def diagnose() -> list[tuple[bool, str]]:
    """Checks Python, the packages, the devices and one rendered frame each of CarRacing and Doom.

    Returns:
        Lines to print, each with whether it is in order.
    """
    return [_check(check) for check in (_python, _packages, _device, _box2d, _doom)]


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
        return False, " ".join(str(error).split())


def _python() -> str:
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
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"no GPU: training runs on the CPU, {torch.get_num_threads()} threads"


def _box2d() -> str:
    return _rendered("CarRacing-v3", "pip install --force-reinstall pygame-ce")


def _doom() -> str:
    return _rendered("VizdoomTakeCover-v1", "pip install --force-reinstall vizdoom")


def _rendered(id: str, cure: str) -> str:
    from wmlightning.environments.factory import EnvFactory

    env = EnvFactory(id).make()
    try:
        image = env.reset(seed=0)[0]["image"]
    finally:
        env.close()
    if image.std() < 1:
        raise RuntimeError(f"{id} renders an empty picture: {cure}")
    return f"{id} renders {image.shape[1]}x{image.shape[0]} pictures without a display"
