"""The controller C of World Models: small enough to be evolved rather than trained by gradients."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wmlightning.recipes import Recorded


class Controller(Recorded, nn.Module):
    """Maps the features of a world model to actions, with one parameter vector or with a whole population of them.

        action = tanh(W x + b)                      or, with one hidden layer,       tanh(W2 tanh(W1 x + b1) + b2)

    x is a part of the features [z, h, c]: the code alone, code and memory output, or all of them. The parameters are
    one flat vector, `theta`, that starts at zero: a layer's weights (outputs, inputs) row by row, then its biases; the
    hidden layer before the output layer.

    Args:
        features: "z", "zh" (the paper's CarRacing controller) or "zch" (its Doom controller).
        latent_size: numbers in z.
        memory_size: numbers in h, and again in c.
        action_size: numbers in an action.
        hidden_size: units of the hidden layer; 0 for none.
        bias: whether layers have biases (the paper's Doom controller has none).

    Raises:
        ValueError: if `features` is none of the three.

    Source: Ha and Schmidhuber 2018, section 2.4 and appendix (867, 1,088 and, with 40 hidden units on z, 1,443
    parameters). Their Doom code orders its inputs [z, c, h]; the function is the same.
    """

    def __init__(
        self,
        features: str = "zh",
        latent_size: int = 32,
        memory_size: int = 256,
        action_size: int = 3,
        hidden_size: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        widths = {"z": latent_size, "zh": latent_size + memory_size, "zch": latent_size + 2 * memory_size}
        if features not in widths:
            raise ValueError(f'features is "{features}" but must be "z", "zh" or "zch": choose one')
        self.input_size = widths[features]
        self.hidden_size = hidden_size
        self.bias = bias
        sizes = [self.input_size, *([hidden_size] if hidden_size else []), action_size]
        self.shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.size = sum(outputs * (inputs + bias) for outputs, inputs in self.shapes)
        self.theta = nn.Parameter(torch.zeros(self.size))

    def forward(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows action"]:
        """Acts with the controller's own parameters: features (N, F) to actions (N, A) in [-1, 1]."""
        return self.act(
            self.theta[None], features, torch.zeros(len(features), dtype=torch.long, device=features.device)
        )

    def act(
        self,
        candidates: Float[Tensor, "population size"],
        features: Float[Tensor, "rows features"],
        owner: Int[Tensor, "rows"],
    ) -> Float[Tensor, "rows action"]:
        """Acts with many parameter vectors at once, with one batched product for each layer.

        Args:
            candidates: parameter vectors, (P, n).
            features: [z, h, c] of each row, (N, F).
            owner: which candidate acts in each row, (N,).

        Returns:
            Actions in [-1, 1], (N, A). A row's action does not depend on the other rows.
        """
        theta = candidates[owner]
        hidden = features[:, : self.input_size, None]
        start = 0
        for outputs, inputs in self.shapes:
            end = start + outputs * inputs
            hidden = torch.bmm(theta[:, start:end].unflatten(1, (outputs, inputs)), hidden)
            if self.bias:
                start = end
                end = end + outputs
                hidden = hidden + theta[:, start:end, None]
            hidden = torch.tanh(hidden)
            start = end
        return hidden.squeeze(-1)

    def act_together(
        self, candidates: Float[Tensor, "population size"], features: Float[Tensor, "population episodes features"]
    ) -> Float[Tensor, "population episodes action"]:
        """As `act` where all candidates have equally many rows: one product for each candidate instead of each row.

        Args:
            candidates: parameter vectors, (P, n).
            features: [z, h, c] of each candidate's rows, (P, E, F).

        Returns:
            Actions in [-1, 1], (P, E, A).
        """
        hidden = features[..., : self.input_size]
        start = 0
        for outputs, inputs in self.shapes:
            end = start + outputs * inputs
            weight = candidates[:, start:end].unflatten(1, (outputs, inputs)).mT
            if self.bias:
                start = end
                end = end + outputs
                hidden = torch.baddbmm(candidates[:, None, start:end], hidden, weight)
            else:
                hidden = torch.bmm(hidden, weight)
            hidden = torch.tanh(hidden)
            start = end
        return hidden
