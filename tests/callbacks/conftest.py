"""Lets tests import `online_support`, and `square_support`, which the pictures' tests share."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "pictures")]
