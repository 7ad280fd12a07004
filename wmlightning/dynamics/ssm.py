"""SSM: PlaNet's comparison without a deterministic part."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.dynamics import Dynamics
from wmlightning.networks.activations import IN_PLACE, Activation
from wmlightning.networks.conv import initialize
from wmlightning.networks.mlp import joint_linears


class SSM(Dynamics):
    """A state-space model: the whole state is stochastic, and the past is known only through samples.

        dream:      a ---> (z')         observe:   a ---> (z')
                            ^                              ^ ^
                           (z)                           (z) (o)

        prior = dense(f(W [z, a]))            posterior = dense(f(W [prior's mean, prior's std, embed]))

    with f the activation. (z) is `stoch`; `deter` has width 0, and features are z alone. The context of `Dynamics` is
    the prior's parameters.

    Args:
        latent: the kind of z; a Gaussian, whose mean and std the posterior reads.
        action_size: numbers in an action.
        embed_size: width of the encoder's output.
        hidden_size: width of the dense layers.
        activation: of the dense layers.

    Source: Hafner et al. 2019 (PlaNet), figure 2b; models/ssm.py of their code.
    """

    def __init__(
        self,
        latent: GaussianLatent,
        action_size: int,
        embed_size: int = 1024,
        hidden_size: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(latent, action_size, embed_size, 0)
        self._activate = IN_PLACE[activation]
        self.gaussian = latent
        self.from_stoch, self.from_action = joint_linears([latent.sample_size, action_size], hidden_size)
        self.prior = nn.Linear(hidden_size, latent.param_size)
        self.from_prior, self.from_embed = joint_linears([latent.param_size, embed_size], hidden_size)
        self.posterior = nn.Linear(hidden_size, latent.param_size)
        for head in (self.prior, self.posterior):
            initialize(head)
            self._initialize_head(head)

    def step(
        self,
        deter: Float[Tensor, "rows none"],
        stoch: Float[Tensor, "rows stoch"],
        action_share: Float[Tensor, "rows hidden"],
    ) -> Float[Tensor, "rows params"]:
        """Returns the prior's parameters, which are the whole context."""
        return self.prior(self._activate(self.from_stoch(stoch) + action_share))

    def prior_params(self, context: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch params"]:
        """Returns the context itself."""
        return context

    def posterior_params(
        self, context: Float[Tensor, "*batch params"], embed_share: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch params"]:
        """q(z | prior's mean and std, embed)."""
        moments = torch.cat(self.gaussian.mean_std(context), -1)
        return self.posterior(self._activate(self.from_prior(moments) + embed_share))
