"""How many threads torch computes with, for a while.

Threads of a matrix library spin while they wait for each other. Beside busy worker processes that steals from them more
than a second thread gives: a generation of the small CarRacing run took 17.2 s with two threads and 15.4 s with one, on
two cores with two workers.
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
