"""Callbacks around learning: collection, evaluation, guards, checkpoints, codes, progress."""
