"""Prints a failed command's error as one line that says what to do, and warnings without the line of code."""

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


def error_line(error: Exception) -> str:
    """Returns an error as one line, with its type and place unless the message explains itself."""
    if isinstance(error, OSError) and error.errno in FULL and error.strerror:
        return f"a disk is full ({one_line(error)}): free some space and go on; what was finished is whole"
    if explains_itself(error):
        return one_line(error)
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if _ours(frame.filename)]
    place = f" in {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{place}: {one_line(error)} (WMLIGHTNING_DEBUG=1 shows the traceback)"


def one_line(error: Exception) -> str:
    """Returns the message on one line: the first sentence, or of jsonargparse's error what it says of the value."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    if not (isinstance(error, ArgumentError) or lines[:1] == ["Does not validate against any of the Union subtypes"]):
        # A line that ends in a colon introduces the next.
        end = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
        return " ".join(lines[: end + 1]) or type(error).__name__
    noise = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value", "Not a valid")
    noise += ("Expected a path", "Subclass types expect", "a class path (str)", "a dict with")
    lines = [line for line in lines if not line.startswith(noise)]
    # Of arguments that take a path or a part.
    kept = [line for line in lines if not line.startswith("Expected a <class 'str'>")] or lines
    message = " ".join(dict.fromkeys(kept)) or type(error).__name__
    return message.replace("Expected a dot import path string:", "there is no class")


def explains_itself(error: BaseException) -> bool:
    """Returns whether the message suffices: it is about files or settings, or this package raised it on purpose."""
    if isinstance(error, ArgumentError | OSError | MisconfigurationException):
        return True
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    if _ours(origin) and isinstance(error, ValueError | RuntimeError):
        return True
    # The parser of the command line wraps the errors of a part's constructor.
    return error.__cause__ is not None and explains_itself(error.__cause__)


@contextlib.contextmanager
def clean_warnings() -> Iterator[None]:
    """Prints warnings as `wmlightning: warning: ...`, without the line of code that raised them.

    Prints OSErrors of threads in the same way: TensorBoard writes in a thread, and raises the error at its next call.
    With WMLIGHTNING_DEBUG all of them keep their place in the code.
    """
    format_before = warnings.formatwarning
    excepthook_before = threading.excepthook

    def clean(message: Warning | str, category: type[Warning], *place: object) -> str:
        if os.environ.get("WMLIGHTNING_DEBUG") or category is not UserWarning:
            return format_before(message, category, *place)  # type: ignore[arg-type]
        return f"wmlightning: warning: {' '.join(str(message).split())}\n"

    def print_thread_error(thread: Any) -> None:
        if os.environ.get("WMLIGHTNING_DEBUG") or not isinstance(thread.exc_value, OSError):
            excepthook_before(thread)
        else:
            print(clean(str(thread.exc_value), UserWarning), end="", file=sys.stderr)

    warnings.formatwarning = clean  # type: ignore[assignment]
    threading.excepthook = print_thread_error
    try:
        yield
    finally:
        warnings.formatwarning = format_before
        threading.excepthook = excepthook_before


def _ours(filename: str) -> bool:
    return any(Path(filename).is_relative_to(package) for package in PACKAGES)
