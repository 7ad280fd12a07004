"""Settings every test shares: shape annotations are checked, and torch keeps to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

from jaxtyping import install_import_hook

# Before anything of ours is imported, so that every shape is checked in the tests, and nowhere else.
install_import_hook(["wmlightning", "datamodules"], "beartype.beartype")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Two cores, many tests: one thread each rounds the same everywhere and is no slower at these sizes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
