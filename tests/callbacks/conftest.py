"""Lets tests import `online_support` and `square_support`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
