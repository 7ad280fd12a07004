"""Seeds as functions of counters, so that no state of a random generator is saved or restored.

A random stream is identified by a tuple of whole numbers that the run counts anyway (seed, rank, batch, episode).
Different tuples of one length, of numbers below 2**32, give independent streams. Tuples that differ only in zeros at
the end give the same number: so evaluation, whose tuple is shorter than that of collected episodes, adds 1 to what it
derives.
"""

import numpy as np


def derive_seed(*counters: int) -> int:
    """Hashes whole numbers >= 0 into one seed in [0, 2**32), the same on every machine.

    Raises:
        ValueError: for a negative number.
    """
    if min(counters) < 0:
        raise ValueError(f"a seed is {min(counters)} but must be a whole number from 0 on: give another")
    return int(np.random.SeedSequence(counters).generate_state(1)[0])
