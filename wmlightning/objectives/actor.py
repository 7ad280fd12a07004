"""Losses of an actor on imagined trajectories: through the dynamics, REINFORCE, or a mixture of both."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from wmlightning.recipes import Recorded


class ActorLoss(Recorded, ABC):
    """Turns the returns of dreams into a loss of the policy that acted in them (abstract).

    Attributes:
        through_dynamics: whether the gradient flows through the returns, so that the dream must keep its graph.
        needs_value: whether it reads `log_prob` and `value`; otherwise they may be None.
    """

    through_dynamics: bool
    needs_value: bool

    @abstractmethod
    def __call__(
        self,
        log_prob: Float[Tensor, "rows horizon"] | None,
        returns: Float[Tensor, "rows horizon"],
        value: Float[Tensor, "rows horizon"] | None,
    ) -> Float[Tensor, "rows horizon"]:
        """Returns the loss of every step of every dream, (N, H), before weighting and averaging.

        Args:
            log_prob: ln pi(a[t] | s[t]) of the dream's actions, which are detached.
            returns: G[t].
            value: v(s[t]), the baseline; no gradient reaches it.
        """


class DynamicsBackprop(ActorLoss):
    """Maximises the return by its gradient through reward, value and dynamics to the actions:  loss = -G[t].

    Source: Hafner et al. 2020 (Dreamer V1), equation 7; Dreamer V2 for continuous actions.
    """

    through_dynamics = True
    needs_value = False

    def __call__(
        self,
        log_prob: Float[Tensor, "rows horizon"] | None,
        returns: Float[Tensor, "rows horizon"],
        value: Float[Tensor, "rows horizon"] | None,
    ) -> Float[Tensor, "rows horizon"]:
        """Returns -G[t]; neither probability nor value is read."""
        return -returns


class Reinforce(ActorLoss):
    """Makes actions likelier whose return exceeded the value:  loss = -ln pi(a[t] | s[t]) sg(G[t] - v(s[t])).

    The gradient is unbiased and has more variance than that through the dynamics. Only the policy has to be
    differentiable.

    Source: Williams 1992; Hafner et al. 2021 (Dreamer V2), equation 6, for discrete actions.
    """

    through_dynamics = False
    needs_value = True

    def __call__(
        self,
        log_prob: Float[Tensor, "rows horizon"] | None,
        returns: Float[Tensor, "rows horizon"],
        value: Float[Tensor, "rows horizon"] | None,
    ) -> Float[Tensor, "rows horizon"]:
        """Returns -ln pi sg(G[t] - v[t])."""
        assert log_prob is not None, "log_prob is read where needs_value is true"
        assert value is not None, "value is read where needs_value is true"
        return -log_prob * (returns - value).detach()


class Mixed(ActorLoss):
    """Both gradients in a fixed share:  loss = rho * Reinforce + (1 - rho) * DynamicsBackprop.

    Args:
        reinforce: rho, the share of `Reinforce`, in [0, 1]. (The authors' code counts the other share: its
            `actor_grad_mix` is 1 - rho.)

    Raises:
        ValueError: for a share outside [0, 1].

    Source: Hafner et al. 2021 (Dreamer V2), equation 6.
    """

    through_dynamics = True
    needs_value = True

    def __init__(self, reinforce: float = 0.1) -> None:
        if not 0 <= reinforce <= 1:
            raise ValueError(f"reinforce is {reinforce} but is a share: give a number in [0, 1]")
        self.reinforce = reinforce
        self._parts = Reinforce(), DynamicsBackprop()

    def __call__(
        self,
        log_prob: Float[Tensor, "rows horizon"] | None,
        returns: Float[Tensor, "rows horizon"],
        value: Float[Tensor, "rows horizon"] | None,
    ) -> Float[Tensor, "rows horizon"]:
        """Returns rho times one loss and 1 - rho times the other."""
        reinforce, dynamics = (part(log_prob, returns, value) for part in self._parts)
        return self.reinforce * reinforce + (1 - self.reinforce) * dynamics
