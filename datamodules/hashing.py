"""Random numbers as functions of counters: the same on every machine and with every version of numpy."""

from math import isqrt

import numpy as np


def mix(*counters: int | np.ndarray) -> np.ndarray:
    """Hashes whole numbers >= 0 to 64 random bits each (splitmix64, folded over the arguments).

    Args:
        counters: numbers or arrays of them, broadcast against each other.

    Returns:
        uint64, at least one-dimensional. Written out here because numpy's generators may draw other numbers in its next
        version.
    """
    state = np.zeros(1, np.uint64)
    for counter in counters:
        state = _scramble(state ^ np.atleast_1d(np.asarray(counter)).astype(np.uint64))
    return state


def uniform_below(limit: int | np.ndarray, *counters: int | np.ndarray) -> np.ndarray:
    """Returns uniform whole numbers from 0 to limit - 1 as a function of the counters, int64."""
    uniform = (mix(*counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (uniform * limit).astype(np.int64)


def permuted(places: np.ndarray, total: int, *counters: int) -> np.ndarray:
    """Maps places by a random permutation of 0 .. total - 1 that is a function of the counters, int64.

    Each place is computed by itself, so that an order of any length takes no memory: a Feistel network of four rounds
    on pairs (left, right) in the smallest near-square table with at least `total` places. A result of `total` or more
    goes through the network again.

    Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains (generalised Feistel, cycle walking).
    """
    columns = isqrt(total - 1) + 1
    sizes = (np.uint64(columns), np.uint64(-(-total // columns)))
    keys = mix(*counters, np.arange(4))
    values = places.astype(np.uint64)
    outside = np.ones(len(values), np.bool_)
    while outside.any():
        right, left = np.divmod(values[outside], sizes[0])
        for number, key in enumerate(keys):
            size = sizes[number % 2]
            left, right = right, (left + _scramble(right ^ key) % size) % size
        values[outside] = right * sizes[0] + left
        outside = values >= np.uint64(total)
    return values.astype(np.int64)


def _scramble(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
