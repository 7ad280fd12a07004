"""Lets tests, and the workers they start, import `accidents`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
