"""The two nonlinearities of the papers, by name."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "elu"]
"""The nonlinearity between two layers."""

LAYERS = {"relu": nn.ReLU, "elu": nn.ELU}

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu_, "elu": functional.elu_}
"""The nonlinearities as functions that overwrite their argument, which saves a copy of it.

For the output of a linear layer that is used nowhere else: the gradient of the layer does not need its output, and that
of the nonlinearity is computed from the result.
"""
