"""Randomness as a function of counters: nothing to save, nothing to restore, nothing to drift.

Every random stream in the house is named by whole numbers that the run counts anyway (seed, rank, batch, episode), and
two different tuples give independent streams.
"""

import numpy as np


def derive_seed(*counters: int) -> int:
    """Hashes whole numbers >= 0 to one seed in [0, 2**32), the same on every machine.

    Raises:
        ValueError: for a negative number.
    """
    if min(counters) < 0:
        raise ValueError(f"a seed is {min(counters)} but seeds are whole numbers from 0 on: give such a one")
    return int(np.random.SeedSequence(counters).generate_state(1)[0])
