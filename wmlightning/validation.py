"""Numbers in their range, said in one line."""

import math


def at_least(least: float | int, **numbers: float | int) -> None:
    """Makes sure of `least <= number < infinity` for every number given by name.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in numbers.items():
        if not least <= value < math.inf:
            cure = "raise it" if value < least else "give a finite number"
            raise ValueError(f"{name} is {value} but must be at least {least}: {cure}")


def below(bound: float | int, **numbers: float | int) -> None:
    """Makes sure of `number < bound` for every number given by name; raises ValueError as `at_least` does."""
    for name, value in numbers.items():
        if not value < bound:
            raise ValueError(f"{name} is {value} but must be below {bound}: lower it")


def above(bound: float | int, **numbers: float | int) -> None:
    """Makes sure of `bound < number < infinity` for every number given by name; ValueError as of `at_least` if not."""
    for name, value in numbers.items():
        if not bound < value < math.inf:
            raise ValueError(f"{name} is {value} but must be above {bound}, and finite: correct it")
