"""Returns of imagined trajectories, and the weights of their steps."""

import torch
from jaxtyping import Float
from torch import Tensor


def lambda_return(
    reward: Float[Tensor, "rows horizon"],
    value: Float[Tensor, "rows states"],
    discount: Float[Tensor, "rows horizon"],
    lambda_: float = 0.95,
) -> Float[Tensor, "rows horizon"]:
    """Blends n-step returns of a dream, weighting longer ones by lambda.

        G[t] = r[t] + d[t] * ((1 - lambda) * v[t+1] + lambda * G[t+1]),     G[H] = v[H]

        index        0      1     ...    H-1     H
        reward       r0     r1    ...    rH-1            all three are the heads at the state of their index:
        discount     d0     d1    ...    dH-1            the reward of ARRIVING there, whether it goes on from there
        value        v0     v1    ...    vH-1    vH
        returns      G0     G1    ...    GH-1

    lambda_ = 0 is the one-step target, lambda_ = 1 the full sum bootstrapped at the horizon. v0 is not used.

    Args:
        reward: r[0..H-1], predicted at the same states as value, shape (N, H). (Dreamer V3 counts r[t+1]: never mix.)
        value: v[0..H], one longer than reward because the last one bootstraps, shape (N, H + 1).
        discount: d[0..H-1], gamma times the probability of going on, in [0, 1], shape (N, H).
        lambda_: trust in longer returns, in [0, 1].

    Returns:
        G[0..H-1], shape (N, H), in units of reward. Gradients flow through every argument.

    Raises:
        ValueError: if value is not one step longer than reward, or lambda_ is outside [0, 1].

    Source: Hafner et al. 2021 (Dreamer V2), equation 4. Dreamer V1 (equations 4 to 6) prints the same quantity as a
    weighted sum.
    """
    if value.shape[1] != reward.shape[1] + 1:
        raise ValueError(
            f"there are {value.shape[1]} values for {reward.shape[1]} rewards but one more is needed: pass the "
            "critic's value of the last dreamt state too"
        )
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"lambda_ is {lambda_} but must be in [0, 1]")
    # The part without G[t+1], for all t at once, and the factor of G[t+1].
    known = torch.addcmul(reward, discount, value[:, 1:], value=1 - lambda_)
    share = discount * lambda_
    # unbind, not [:, t]: the gradient of H slices is H whole dreams.
    returns = [value[:, -1]]
    for part, factor in zip(reversed(known.unbind(1)), reversed(share.unbind(1)), strict=True):
        returns.append(torch.addcmul(part, factor, returns[-1]))
    return torch.stack(returns[:0:-1], 1)


def discount_weights(discount: Float[Tensor, "rows horizon"]) -> Float[Tensor, "rows horizon"]:
    """Returns the weight of each step of a dream: the product of the discounts of earlier steps.

        w[0] = 1,     w[t] = d[0] * ... * d[t-1]

    The discounts are those of EARLIER steps: the state that ends an episode still counts, what is dreamt after it does
    not.

    Args:
        discount: d[0..H-1] as in `lambda_return`, shape (N, H).

    Returns:
        w[0..H-1], shape (N, H), detached: a policy must not learn to end bad episodes early.

    Source: Hafner et al. 2021 (Dreamer V2), section 2 (weights of equations 5 and 6); the code of Dreamer V1.
    """
    discount = discount.detach()
    return torch.cat([torch.ones_like(discount[:, :1]), discount[:, :-1]], 1).cumprod(1)
