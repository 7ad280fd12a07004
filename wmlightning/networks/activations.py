"""The two nonlinearities of the papers, by name."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "elu"]
"""Which nonlinearity stands between layers."""

LAYERS = {"relu": nn.ReLU, "elu": nn.ELU}

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu_, "elu": functional.elu_}
"""The nonlinearities as functions that overwrite their argument, which saves a copy of it.

For what a linear layer has just made and nobody else holds: its gradient does not need its output, and the
nonlinearity's own is found from the result.
"""
