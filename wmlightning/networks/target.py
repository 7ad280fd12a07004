"""Weights that are not trained while others are: target networks, and modules frozen within a `with` block."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wmlightning.recipes import Recorded
from wmlightning.validation import at_least


class TargetNetwork(Recorded, nn.Module):
    """A slowly updated copy of a network, so that targets do not change with every update of the network itself.

        at update 0                       copy = source
        at every `every`th update         copy = (1 - share) copy + share source

    The defaults of Dreamer V2's critic; `TargetNetwork(1, 1.0)` is the source itself, and nothing is copied (Dreamer
    V1). The copy has no gradient, and is part of the checkpoint.

    Args:
        every: gradient steps between two updates of the copy, at least 1.
        share: weight of the source in an update, above 0 and at most 1.

    Raises:
        ValueError: if a number is out of its range.

    Source: Dreamer V2 (Hafner et al. 2021), section 3.3: a hard copy every 100 gradient steps.
    """

    renewed_at: Tensor

    def __init__(self, every: int = 100, share: float = 1.0) -> None:
        super().__init__()
        at_least(1, every=every)
        if not 0 < share <= 1:
            raise ValueError(f"share is {share} but must be above 0 and at most 1: 1 copies all of it")
        self.every = every
        self.share = share
        self.copy: nn.Module | None = None
        # The last update at which the copy was renewed: with accumulated gradients several batches share one update.
        self.register_buffer("renewed_at", torch.tensor(-1))

    def attach(self, source: nn.Module) -> None:
        """Makes the copy of the source, unless the source itself is used."""
        if (self.every, self.share) != (1, 1.0):
            self.copy = copy.deepcopy(source).requires_grad_(False)

    def of(self, source: nn.Module) -> nn.Module:
        """Returns the network that computes targets: the copy, or the source itself."""
        return source if self.copy is None else self.copy

    @torch.no_grad()
    def renew(self, source: nn.Module, updates: int) -> None:
        """Updates the copy from the source if an update is due.

        Args:
            source: the network that learns.
            updates: gradient steps made so far; 0 copies all of it.
        """
        if self.copy is None or updates % self.every or int(self.renewed_at) == updates:
            return
        share = self.share if updates else 1.0
        for old, new in zip(self.copy.parameters(), source.parameters(), strict=True):
            old.copy_(new) if share == 1 else old.lerp_(new, share)
        self.renewed_at.fill_(updates)


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Makes weights constants within a `with` block: gradients flow through them to the inputs but not to them.

    (Under autocast a weight that is not frozen may come from a cache, whose gradient goes to where it was filled.)
    """
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
