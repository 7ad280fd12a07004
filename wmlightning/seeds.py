"""Randomness as a function of counters: nothing to save, nothing to restore, nothing to drift.

Every random stream in the house is named by whole numbers that the run counts anyway (seed, rank, batch, episode), and
tuples of one length that differ give independent streams, with numbers below 2**32. Zeros at the end are not told apart
from nothing: where tuples of several lengths name environments, who evaluates does not take the number itself.
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
