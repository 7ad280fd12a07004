"""What CMA-ES itself costs: ask and tell for the CarRacing controller, ours beside the bare library.

    python tests/benchmarks/bench_cmaes.py

In one run, taking turns, on a loss that costs nothing. The limit is a mean of 40 ms a generation at 867 parameters and
64 candidates. Not a test: nothing here passes or fails.
"""

import argparse
import time

import cma
import numpy as np
import torch

from wmlightning.optimizers import CMAES


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[867, 1088, 1443], help="numbers of parameters")
    parser.add_argument("--population", type=int, default=64, help="candidates in a generation")
    parser.add_argument(
        "--generations", type=int, default=104, help="a multiple of 26, ours decomposes once in as many"
    )
    options = parser.parse_args()
    print(f"{'':16}{'ours, ms a generation':>36}{'the library alone':>36}")
    print(f"{'parameters':16}" + 2 * f"{'mean':>12}{'median':>12}{'worst':>12}")
    for size in options.sizes:
        ours = CMAES([torch.nn.Parameter(torch.zeros(size))], 0.1, options.population)
        library = cma.CMAEvolutionStrategy(
            np.zeros(size),
            0.1,
            {"popsize": options.population, "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA, "verbose": -10},
        )
        milliseconds = np.array([(generation(ours), generation(library)) for _ in range(options.generations)])
        numbers = [f(column) for column in milliseconds.T for f in (np.mean, np.median, np.max)]
        print(f"{size:<16}" + "".join(f"{number:>12.1f}" for number in numbers))


def generation(search: CMAES | cma.CMAEvolutionStrategy) -> float:
    """Milliseconds of one ask and one tell."""
    start = time.perf_counter()
    candidates = search.ask()
    asked = time.perf_counter() - start
    losses = [float(np.square(candidate).sum()) for candidate in np.asarray(candidates)]
    start = time.perf_counter()
    search.tell(candidates, losses)
    return 1000 * (asked + time.perf_counter() - start)


if __name__ == "__main__":
    main()
