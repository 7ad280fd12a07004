"""A bar that shows how far long work is."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """tqdm's bar; where there is no terminal to redraw it on, it comes every ten seconds instead of ten a second.

    Args:
        options: tqdm's own.
    """
    options.setdefault("mininterval", 0.1 if sys.stderr.isatty() else 10.0)
    return tqdm(**options)
