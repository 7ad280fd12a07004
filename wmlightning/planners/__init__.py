"""Search: which actions to take, given a world to imagine them in."""

from wmlightning.planners.cem import CEM, Search

__all__ = ["CEM", "Search"]
