"""Planners: search for actions in a world model."""

from wmlightning.planners.cem import CEM, Search

__all__ = ["CEM", "Search"]
