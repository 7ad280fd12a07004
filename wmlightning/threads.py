"""How many threads torch computes with, for a while.

Threads of a matrix library spin while they wait for each other, on cores that busy worker processes could use. How much
that costs is not settled: on two cores with two workers, a generation of the small CarRacing run took 15.3 to 18.5 s
with two threads (3 generations) and 14.0 to 17.2 s with one (those that evaluate left out).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Computes with `number` threads, at least 1, inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)
