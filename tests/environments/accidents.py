"""An environment that kills or hangs its process, or raises, once or always; for tests of what happens then."""

import os
import signal
import time
from pathlib import Path

import gymnasium as gym

from wmlightning.environments.dummy import DummyCounter


class Accident(DummyCounter):
    """A counter with an accident at step 5 of episodes whose seed is 3.

    Args:
        kind: "kill", "hang" or "raise".
        marker: a file; where it exists the accident has happened and does not happen again. Empty: it always happens.
    """

    def __init__(self, kind="kill", marker="", size=64, steps=10, render_mode=None):
        super().__init__(size, steps, render_mode)
        self.kind, self.marker, self.seed = kind, marker, None

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return super().reset(seed=seed, options=options)

    def move(self, action):
        if self.seed == 3 and self.time == 5 and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "hang":
                time.sleep(1000)
            raise ArithmeticError("the wheel came off")
        return super().move(action)


gym.register("tests/Accident-v0", entry_point="accidents:Accident")
