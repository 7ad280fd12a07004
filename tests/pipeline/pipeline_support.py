"""What the tests of pipelines share."""

import multiprocessing
import os

import torch

from wmlightning.__main__ import main


class Commands:
    """Stands for the command line: notes what is run, and fails where told to."""

    def __init__(self, fail=()):
        self.run, self.fail = [], set(fail)

    def __call__(self, words):
        self.run.append(words)
        if words[0] in self.fail:
            raise KeyboardInterrupt
        return {"loss": len(self.run)}


def in_child(words):
    """Runs the command in a fork, which has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main(words)))
    process.start()
    return process


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]
