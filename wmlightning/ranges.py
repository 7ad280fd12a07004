"""Numbers in their range, said in one line."""


def at_least(least: float | int, **numbers: float | int) -> None:
    """Makes sure of `number >= least` for every number given by name.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"{name} is {value} but must be at least {least}: raise it")


def below(bound: float | int, **numbers: float | int) -> None:
    """Makes sure of `number < bound` for every number given by name; raises ValueError as `at_least` does."""
    for name, value in numbers.items():
        if not value < bound:
            raise ValueError(f"{name} is {value} but must be below {bound}: lower it")


def above(bound: float | int, **numbers: float | int) -> None:
    """Makes sure of `number > bound` for every number given by name; raises ValueError as `at_least` does."""
    for name, value in numbers.items():
        if not value > bound:
            raise ValueError(f"{name} is {value} but must be above {bound}: raise it")
