"""Contenders that take turns, each turn in a process of its own, so that neither inherits the other's memory."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(256 << 20)}
"""glibc keeps freed memory instead of giving it back to the kernel and having it cleared again."""


def main(description: str, table: dict[str, dict[str, Callable[[], tuple[float, Callable[[], object]]]]]) -> None:
    """Compares the contenders of each row of a table and prints medians and their ratio.

    Args:
        description: what is measured.
        table: for each row `ours` and `reference`: functions that set up and return how much one repetition does and
            the repetition.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contender takes")
    parser.add_argument(
        "--repetitions", type=int, default=8, help="timed repetitions in a turn, after two untimed ones"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--allocator", choices=["default", "kept"], default="default", help="glibc's, for both sides")
    parser.add_argument("--rows", nargs="+", default=list(table), choices=list(table), help="what to compare")
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        row, contender = options.turn
        print(turn(table[row][contender], options.repetitions))
        return

    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)} | (KEPT if options.allocator == "kept" else {})
    arguments = [sys.executable, sys.argv[0], "--repetitions", str(options.repetitions), "--turn"]
    print(f"{options.threads} threads, {options.rounds} rounds in turn, fresh processes, allocator {options.allocator}")
    print(f"{'per second':24}{'ours':>12}{'reference':>12}{'ratio':>8}    range of the rounds' ratios")
    for row in options.rows:
        rates: dict[str, list[float]] = {contender: [] for contender in table[row]}
        for _ in range(options.rounds):
            for contender, found in rates.items():
                answer = subprocess.run(
                    [*arguments, row, contender], env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                found.append(float(answer.stdout))
        ours, reference = (statistics.median(rates[contender]) for contender in ("ours", "reference"))
        ratios = [one / other for one, other in zip(rates["ours"], rates["reference"], strict=True)]
        print(
            f"{row:24}{ours:>12,.0f}{reference:>12,.0f}{ours / reference:>8.2f}    "
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            flush=True,
        )


def turn(set_up: Callable[[], tuple[float, Callable[[], object]]], repetitions: int) -> float:
    """Work per second, from the median repetition."""
    work, repeat = set_up()
    seconds = []
    for _ in range(2 + repetitions):
        start = time.perf_counter()
        repeat()
        seconds.append(time.perf_counter() - start)
    return work / statistics.median(seconds[2:])
