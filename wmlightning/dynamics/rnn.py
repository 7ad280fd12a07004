"""RNN: PlaNet's comparison without a stochastic part."""

from typing import Literal

from wmlightning.distributions.latents import Latent, MeanLatent
from wmlightning.dynamics.recurrent import Recurrent
from wmlightning.networks.activations import Activation


class RNN(Recurrent):
    """A deterministic recurrent network: an RSSM with means in the place of samples.

        dream:      a ---> [h'] ---> [m']         observe:   a ---> [h'] ---> [m']
                          ^   ^                                    ^   ^       ^
                         [h] [m]                                  [h] [m]     (o)

    [h] is `deter`, carried by the cell; [m], the mean of `latent`, is `stoch`. There is no noise, and the KL is
    identically zero. Therefore no loss trains the prior's mean to match the posterior's, and a dream runs on a layer
    that was never trained, as in the published comparison. Observation overshooting trains the prior, and so do the
    rewards of latent overshooting and `prior_error`.

    Args:
        latent: the one whose mean is `stoch`; its noise and its KL are not used.
        action_size: numbers in an action.
        embed_size: width of the encoder's output.
        deter_size: width of h.
        hidden_size: width of the dense layers.
        prior_error: weight of half the squared distance between the means of posterior and prior, which then takes the
            place of the KL (free nats included); 0 as in the authors' code.
        cell: which gated unit, as of an RSSM.
        activation: of the dense layers.

    Source: Hafner et al. 2019 (PlaNet), figure 2a; README of their code (`mean_only: True, divergence_scale: 0.0`).
    """

    def __init__(
        self,
        latent: Latent,
        action_size: int,
        embed_size: int = 1024,
        deter_size: int = 200,
        hidden_size: int = 200,
        prior_error: float = 0.0,
        cell: Literal["gru", "keras_gru", "layer_norm_gru"] = "gru",
        activation: Activation = "relu",
    ) -> None:
        mean = MeanLatent(latent, prior_error)
        super().__init__(mean, action_size, embed_size, deter_size, hidden_size, cell, activation)
