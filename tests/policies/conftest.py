"""Lets tests import `toy_worlds`, which the planner's tests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "planners"))
