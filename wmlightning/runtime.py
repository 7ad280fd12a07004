"""Torch's number of threads, progress bars, and printed lines.

Threads of a matrix library spin while they wait for each other, on cores that busy worker processes could use. How much
that costs is not settled: on two cores with two workers, a generation of the small CarRacing run took 15.3 to 18.5 s
with two threads (3 generations) and 14.0 to 17.2 s with one (without those that evaluate).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Computes with `number` threads, at least 1, inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress_bar(**options: Any) -> tqdm:
    """Returns tqdm's bar; if standard error is no terminal, it is printed every ten seconds instead of ten a second.

    Args:
        options: those of tqdm.
    """
    options.setdefault("mininterval", 0.1 if sys.stderr.isatty() else 10.0)
    return tqdm(**options)


def print_line(line: str) -> None:
    """Prints a line and flushes it, so that a log shows it while the stage runs."""
    print(line, flush=True)
