"""Dynamics with the memory of a gated recurrent cell: the base of RNN and RSSM."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wmlightning.distributions.latents import Latent
from wmlightning.dynamics.dynamics import Dynamics
from wmlightning.networks.activations import IN_PLACE, Activation
from wmlightning.networks.cells import CELLS
from wmlightning.networks.conv import initialize
from wmlightning.networks.mlp import MLP, joint_linears


class Recurrent(Dynamics):
    """Dynamics whose context is the memory h of a gated recurrent unit (abstract; see RNN and RSSM).

        x     = f(W [stoch, action])            h' = cell(x, h)
        prior = dense(f(dense(h')))             posterior = dense(f(dense([h', embed])))

    with f the activation.

    Args:
        latent: the kind of distribution of `stoch`.
        action_size: numbers in an action.
        embed_size: width of the encoder's output.
        deter_size: width of h.
        hidden_size: width of the dense layers.
        cell: which gated unit, by its name in `CELLS`.
        activation: of the dense layers.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(
        self,
        latent: Latent,
        action_size: int,
        embed_size: int = 1024,
        deter_size: int = 200,
        hidden_size: int = 200,
        cell: Literal["gru", "keras_gru", "layer_norm_gru"] = "gru",
        activation: Activation = "relu",
    ) -> None:
        if deter_size < 1:
            raise ValueError(f"deter_size is {deter_size} but must be at least 1: use SSM for a model without deter")
        super().__init__(latent, action_size, embed_size, deter_size)
        self._activate = IN_PLACE[activation]
        self.from_stoch, self.from_action = joint_linears([latent.sample_size, action_size], hidden_size)
        self.cell = CELLS[cell](hidden_size, deter_size)
        self.prior = MLP(deter_size, latent.param_size, 1, hidden_size, activation)
        self.from_deter, self.from_embed = joint_linears([deter_size, embed_size], hidden_size)
        self.posterior = nn.Linear(hidden_size, latent.param_size)
        initialize(self.posterior)
        for head in (self.prior.last, self.posterior):
            self._initialize_head(head)

    def step(
        self,
        deter: Float[Tensor, "rows deter"],
        stoch: Float[Tensor, "rows stoch"],
        action_share: Float[Tensor, "rows hidden"],
    ) -> Float[Tensor, "rows deter"]:
        """Returns the next h."""
        return self.cell(self._activate(torch.addmm(action_share, stoch, self.from_stoch.weight.t())), deter)

    def prior_params(self, context: Float[Tensor, "*batch deter"]) -> Float[Tensor, "*batch params"]:
        """p(stoch | h)."""
        return self.prior(context)

    def posterior_params(
        self, context: Float[Tensor, "*batch deter"], embed_share: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch params"]:
        """q(stoch | h, embed)."""
        return self.posterior(self._activate(self.from_deter(context) + embed_share))
