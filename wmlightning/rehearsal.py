"""What the stages of a pipeline will leave behind, known while they are checked and none of them has run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS = "rows"
"""In a folder of episodes, where the rows of the longest that it can hold are promised."""
EPISODES = "episodes"
"""In a folder of episodes, where their number is promised."""
_REHEARSALS: list[dict[str, Any]] = []


@contextlib.contextmanager
def rehearsal() -> Iterator[None]:
    """While it lasts, `promised` finds what `promise` named."""
    _REHEARSALS.append({})
    try:
        yield
    finally:
        _REHEARSALS.pop()


def promise(path: str | Path, what: Any) -> None:
    """Says what will be there, if this is a rehearsal: a stage for its checkpoint, a Spec for a folder of episodes."""
    if _REHEARSALS:
        _REHEARSALS[-1][os.path.abspath(path)] = what


def check_there(path: str | Path) -> None:
    """Makes sure that a folder which is read holds something by then; outside a rehearsal nothing is checked.

    Raises:
        ValueError: if it is empty and nothing was promised there.
    """
    if _REHEARSALS and promised(path) is None and not (os.path.isdir(path) and os.listdir(path)):
        raise ValueError(f"there is nothing in {path} and no stage before this one writes there: correct the path")


def promised(path: str | Path) -> Any:
    """What was promised to be there; None without a promise."""
    return _REHEARSALS[-1].get(os.path.abspath(path)) if _REHEARSALS else None
