"""Experiments of several stages: the configuration file, the run folder, the runner and the closing tables."""
