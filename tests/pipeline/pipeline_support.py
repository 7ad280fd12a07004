"""What the tests of pipelines share."""

import multiprocessing
import os

import torch

from wmlightning.__main__ import main


class Commands:
    """Replaces the command line: records each command, and raises KeyboardInterrupt for those in `fail`."""

    def __init__(self, fail=()):
        self.run, self.fail = [], set(fail)

    def __call__(self, command):
        self.run.append(command)
        if command[0] in self.fail:
            raise KeyboardInterrupt
        return {"loss": len(self.run)}


def in_child(command):
    """Runs the command in a fork, which has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main(command)))
    process.start()
    return process


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]
