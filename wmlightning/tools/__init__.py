"""The tools behind the commands: collect, evaluate, compare with published curves, inspect data, check the machine."""
