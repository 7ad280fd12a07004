"""RSSM: the recurrent state-space model of PlaNet and Dreamer."""

from wmlightning.dynamics.recurrent import Recurrent


class RSSM(Recurrent):
    """A recurrent state-space model: a deterministic memory and a stochastic latent.

        dream:      a ---> [h'] ---> (z')         observe:   a ---> [h'] ---> (z')
                          ^   ^                                    ^   ^       ^
                         [h] (z)                                  [h] (z)     (o)

    [h] is `deter`, carried by the cell; (z) is `stoch`, drawn from `latent`. The prior of z' reads only h',
    and an image reaches the memory only through the sample of z.

                        latent                 cell                activation   deter, hidden   parameters, 6 actions
        PlaNet          GaussianLatent(30)     "gru"               "relu"       200, 200        557,320
        Dreamer V1      GaussianLatent(30)     "keras_gru"         "elu"        200, 200        557,920
        V2 on DMC       CategoricalLatent()    "layer_norm_gru"    "elu"        200, 200        1,247,248
        V2 on Atari     CategoricalLatent()    "layer_norm_gru"    "elu"        600, 600        5,664,848 (18 actions)

    with embeds of 1,024 numbers, in Dreamer V2 of 1,536.

    Args:
        latent: the kind of distribution of z.
        action_size: numbers in an action.
        embed_size: width of the encoder's output.
        deter_size: width of h.
        hidden_size: width of the dense layers.
        cell: "gru" (as PlaNet), "keras_gru" (as the code of Dreamer V1) or "layer_norm_gru" (Dreamer V2).
        activation: of the dense layers.

    Source: Hafner et al. 2019 (PlaNet), figure 2c and equation 4; models/rssm.py of their code, whose first release let
    the prior read the cell's input instead of h. Hafner et al. 2020 and 2021 (Dreamer V1 and V2).
    """
