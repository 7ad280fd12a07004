"""Freed memory is kept for what comes next, where the C library can do it and nobody has told it otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from wmlightning.cli.allocator import keep_freed_memory

STEPS = """
import resource, sys
from wmlightning.cli.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "ours" else None
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [b"1" * (size << 20) for size in (3, 40, 8, 70)]
    del parts
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way, **variables):
    """Whether memory was kept, and pages that ten steps of 121 MiB fetched from the system."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    words, env = [sys.executable, "-c", STEPS, way], unset | variables
    got = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    kept, pages = got.stdout.split()
    return kept, int(pages)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")


@needs_glibc
def test_a_step_uses_the_memory_of_the_step_before():
    assert faults("theirs")[1] > 100_000, "or there is nothing to gain"
    kept, pages = faults("ours")
    assert kept == "True"
    assert pages < 1_000


@needs_glibc
@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "LD_PRELOAD"])
def test_what_the_user_has_set_is_left_alone(variable):
    kept, pages = faults("ours", **{variable: "1" if variable.startswith("MALLOC") else ""})
    assert kept == "False"
    assert pages > 100_000


def test_a_c_library_that_cannot_is_no_error(monkeypatch):
    for name in ("LD_PRELOAD", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
