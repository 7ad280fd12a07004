"""Lets tests import `square_support`, and `online_support`, which the callbacks' tests share."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "callbacks")]
