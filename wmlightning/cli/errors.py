"""What a command ends with when it fails: one line that says what to do, and clean warnings on the way there."""

import contextlib
import importlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.files import FULL

PACKAGES = (Path(__file__).parents[1], Path(importlib.import_module("datamodules").__file__ or "").parent)


def last_words(error: Exception) -> str:
    """The one line that a command ends with. Where the message alone would say little it gets its type and a place."""
    if isinstance(error, OSError) and error.errno in FULL and error.strerror:
        return f"a disk is full ({one_line(error)}): free some space and go on; what was finished is whole"
    if expected(error):
        return one_line(error)
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if _ours(frame.filename)]
    place = f" in {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{place}: {one_line(error)} (WMLIGHTNING_DEBUG=1 shows the way there)"


def one_line(error: Exception) -> str:
    """The message on one line: of jsonargparse's without its trail of all that it tried, of others the beginning."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    if not (isinstance(error, ArgumentError) or lines[:1] == ["Does not validate against any of the Union subtypes"]):
        # A line that ends in a colon announces the next.
        end = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
        return " ".join(lines[: end + 1]) or type(error).__name__
    noise = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value", "Not a valid")
    noise += ("Expected a path", "Subclass types expect", "a class path (str)", "a dict with")
    lines = [line for line in lines if not line.startswith(noise)]
    # Where a part may also be named by a path.
    said = [line for line in lines if not line.startswith("Expected a <class 'str'>")] or lines
    words = " ".join(said) or type(error).__name__
    return words.replace("Expected a dot import path string:", "there is no class")


def expected(error: BaseException) -> bool:
    """Whether the error's line says all: it is about files or settings, or our code raised it on purpose."""
    if isinstance(error, ArgumentError | OSError | MisconfigurationException):
        return True
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    if _ours(origin) and isinstance(error, ValueError | RuntimeError):
        return True
    # What a part's constructor refuses, the parser of the command line wraps.
    return error.__cause__ is not None and expected(error.__cause__)


@contextlib.contextmanager
def clean_warnings() -> Iterator[None]:
    """Prints warnings as `wmlightning: warning: ...`, without the line of code that gave them.

    So also what a thread could not read or write: TensorBoard's writes by itself, and the command hears of it next
    time. With WMLIGHTNING_DEBUG all keep their place.
    """
    before, threads = warnings.formatwarning, threading.excepthook

    def clean(message: Warning | str, category: type[Warning], *place: object) -> str:
        if os.environ.get("WMLIGHTNING_DEBUG") or category is not UserWarning:
            return before(message, category, *place)  # type: ignore[arg-type]
        return f"wmlightning: warning: {' '.join(str(message).split())}\n"

    def ended(thread: Any) -> None:
        if os.environ.get("WMLIGHTNING_DEBUG") or not isinstance(thread.exc_value, OSError):
            threads(thread)
        else:
            print(clean(str(thread.exc_value), UserWarning), end="", file=sys.stderr)

    warnings.formatwarning = clean  # type: ignore[assignment]
    threading.excepthook = ended
    try:
        yield
    finally:
        warnings.formatwarning, threading.excepthook = before, threads


def _ours(filename: str) -> bool:
    return any(Path(filename).is_relative_to(package) for package in PACKAGES)
