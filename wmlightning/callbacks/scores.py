"""What returns say: their mean, how sure it is, and which episodes are played to find it."""

from typing import Any

import numpy as np

from wmlightning.seeds import derive_seed


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Environment seeds of an evaluation; consecutive, so that no two episodes share one."""
    # The number itself is that of C's generation 4 too: zeros at the end of a name do not count.
    first = derive_seed(seed, 4) + 1
    return [(first + episode) % 2**32 for episode in range(episodes)]


def statistics(returns: list[float]) -> dict[str, Any]:
    """`returns` with their `mean`, `std` (of a sample) and `ci95` (see `interval`)."""
    return {
        "returns": returns,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns, ddof=1)),
        "ci95": interval(returns),
    }


def interval(values: Any) -> float:
    """Half-width of Student's 95% interval of the mean of independent values, at least 2 of them."""
    n = len(values)
    return float(student_quantile(n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def student_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t, right to a thousandth.

    Source: Abramowitz and Stegun, 26.7.5, beyond the four degrees where the expansion is not good enough.
    """
    if degrees <= 4:
        return (12.706, 4.303, 3.182, 2.776)[degrees - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
