"""RSSM: the recurrent state-space model of PlaNet and Dreamer."""

from wmlightning.dynamics.recurrent import Recurrent


class RSSM(Recurrent):
    """A recurrent state-space model: a memory that is certain and a latent that is not.

        dream:      a ---> [h'] ---> (z')         observe:   a ---> [h'] ---> (z')
                          ^   ^                                    ^   ^       ^
                         [h] (z)                                  [h] (z)     (o)

    [h] is `deter`, carried by the cell; (z) is `stoch`, drawn from `latent`. The prior of z' reads h' and nothing else,
    and an image reaches the memory only through the sample of z.

    At PlaNet's sizes and 6 actions it has 557,320 parameters: Dreamer V1's 557,920 but for the 600 numbers of the
    second bias that its kind of GRU has.

    Args:
        latent: the kind of z, e.g. GaussianLatent(30).
        action_size: numbers in an action.
        embed_size: numbers the encoder makes of an image.
        deter_size: width of h.
        hidden_size: width of the dense layers.

    Source: Hafner et al. 2019 (PlaNet), figure 2c and equation 4; models/rssm.py of their code, whose first release let
    the prior read the cell's input instead of h.
    """
