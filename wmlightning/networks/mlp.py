"""Dense layers: a stack of them, and one layer split by its inputs."""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from wmlightning.networks.activations import LAYERS, Activation
from wmlightning.networks.conv import initialize
from wmlightning.recipes import Recorded
from wmlightning.validation import at_least


class MLP(Recorded, nn.Module):
    """Dense layers with an activation after each but the last. Weights start Glorot uniform, biases zero.

    Args:
        input_size: width of the input.
        output_size: width of the output.
        layers: hidden layers, at least 0.
        units: width of a hidden layer.
        activation: "relu" (PlaNet) or "elu" (Dreamer).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        layers: int = 1,
        units: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        at_least(0, layers=layers)
        at_least(1, units=units)
        steps: list[nn.Module] = []
        for before, after in pairwise([input_size, *([units] * layers)]):
            steps += [nn.Linear(before, after), LAYERS[activation](inplace=True)]
        self.layers = nn.Sequential(*steps, nn.Linear(units if layers else input_size, output_size))
        initialize(self)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, inputs: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch output"]:
        """(..., input_size) to (..., output_size)."""
        # Rows in one axis: with more, a linear layer returns a view, and overwriting a view copies its gradient.
        outputs = self.layers(inputs.reshape(-1, inputs.shape[-1]))
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def joint_linears(input_sizes: Sequence[int], output_size: int) -> list[nn.Linear]:
    """Splits one dense layer over concatenated inputs into one layer for each input, whose outputs add up.

        W [x, y] + b = W_x x + (W_y y + b)

    So the product with an input that is known for a whole window is computed once, outside the loop over time. The
    weights start within the Glorot bound of the joint layer; the last of the layers has the bias, zero.

    Args:
        input_sizes: width of each input.
        output_size: width of the output.
    """
    bound = math.sqrt(6 / (sum(input_sizes) + output_size))
    layers = [nn.Linear(size, output_size, bias=k == len(input_sizes) - 1) for k, size in enumerate(input_sizes)]
    for layer in layers:
        nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layers[-1].bias)
    return layers


def split_glorot(layer: nn.Linear, parts: int) -> None:
    """Initializes a layer as several layers of equal width side by side, each with its own Glorot bound."""
    for part in layer.weight.detach().chunk(parts):
        nn.init.xavier_uniform_(part)
