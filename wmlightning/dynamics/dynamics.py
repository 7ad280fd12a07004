"""What RNN, SSM and RSSM have in common: how a transition becomes windows that are observed and dreams."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wmlightning.distributions.latents import Latent
from wmlightning.dynamics.state import State, stack_states
from wmlightning.networks.mlp import split_glorot
from wmlightning.recipes import Recorded


class Dynamics(Recorded, nn.Module, ABC):
    """A state [deter, stoch] that steps through time, with an image to look at or without (abstract).

        context[t] = step(state[t-1], action[t])          state and action of a row are zero where is_first[t]
        prior[t]   = p(stoch[t] | context[t])             what can be known before the image
        post[t]    = q(stoch[t] | context[t], embed[t])   what is known with it
        deter[t]   = the first `deter_size` numbers of context[t]

    with action[t] the one that led to image t, as drawn in `datamodules/episode.py`. So there is one way only from an
    image into what comes later: the sample of its posterior. A graphical model says what `step`, prior and posterior
    are; all that depends on time is written here, once. The shares of actions and embeds in the first layers are
    computed for a whole window at once, and so is the prior's head.

    Args:
        latent: the kind of `stoch`.
        action_size: numbers in an action.
        embed_size: numbers the encoder makes of an image.
        deter_size: width of `deter`; 0 where the model has none.
    """

    from_action: nn.Module
    from_embed: nn.Module

    def __init__(self, latent: Latent, action_size: int, embed_size: int, deter_size: int) -> None:
        super().__init__()
        for name, size in (("action_size", action_size), ("embed_size", embed_size)):
            if size < 1:
                raise ValueError(f"{name} is {size} but must be at least 1")
        self.latent, self.action_size = latent, action_size
        self.embed_size, self.deter_size = embed_size, deter_size
        self.feature_size = latent.sample_size + deter_size

    # ------------------------------------------------------------------------------------ what a graphical model says

    @abstractmethod
    def step(self, deter: Tensor, stoch: Tensor, action_share: Tensor) -> Tensor:
        """The next context (N, .) from the state before."""

    @abstractmethod
    def prior_params(self, context: Tensor) -> Tensor:
        """Parameters of p(stoch | context), (..., P)."""

    @abstractmethod
    def posterior_params(self, context: Tensor, embed_share: Tensor) -> Tensor:
        """Parameters of q(stoch | context, embed), (..., P)."""

    # ------------------------------------------------------------------------------------------------- written once

    def action_share(self, action: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch hidden"]:
        """What actions contribute to `step`, whatever the state."""
        return self.from_action(action)

    def embed_share(self, embed: Float[Tensor, "*batch embed"]) -> Float[Tensor, "*batch hidden"]:
        """What embeds contribute to the posterior, whatever the state."""
        return self.from_embed(embed)

    def initial(self, n: int) -> State:
        """The state before anything was seen: n rows of zeros."""
        weight = next(self.parameters())
        sizes = (self.deter_size, self.latent.sample_size, self.latent.param_size)
        return State(*(torch.zeros(n, size, device=weight.device) for size in sizes))

    def observe_step(
        self,
        state: State,
        action: Float[Tensor, "rows action"],
        embed: Float[Tensor, "rows embed"],
        is_first: Bool[Tensor, "rows"],
        noise: Float[Tensor, "rows latent"] | None = None,
    ) -> tuple[State, State]:
        """Takes in one image.

        Args:
            state: the state at t - 1; its `params` are not read.
            action: the action that led to the image.
            embed: the encoder's numbers of the image.
            is_first: a true row forgets everything before, its action too.
            noise: as from `observe_noise`; None draws it from torch's generator.

        Returns:
            The posterior and the prior; nothing is drawn from the latter (`stoch` of width 0).
        """
        noises = None if noise is None else noise[:, None]
        posterior, prior = self.observe(embed[:, None], action[:, None], is_first[:, None], state, noises)
        return posterior[:, 0], prior[:, 0]

    def observe(
        self,
        embeds: Float[Tensor, "batch time embed"],
        actions: Float[Tensor, "batch time action"],
        is_first: Bool[Tensor, "batch time"],
        state: State | None = None,
        noise: Float[Tensor, "batch time latent"] | None = None,
    ) -> tuple[State, State]:
        """Takes in whole windows, from `state` (at t = -1) or from `initial(B)`.

        Returns:
            Posterior and prior, (B, T, .), as in `observe_step`.
        """
        state = self.initial(len(embeds)) if state is None else state
        deter, stoch = state.deter, state.stoch
        forget = is_first[..., None]
        # unbind, not [:, t]: the gradient of T slices is T whole windows.
        action_shares = self.action_share(actions.masked_fill(forget, 0.0)).unbind(1)
        embed_shares = self.embed_share(embeds).unbind(1)
        noises: Iterable[Tensor | None] = [None] * len(action_shares) if noise is None else noise.unbind(1)
        contexts, stochs, params = [], [], []
        for action, embed, gone, drawn in zip(action_shares, embed_shares, forget.unbind(1), noises, strict=True):
            context = self.step(deter.masked_fill(gone, 0.0), stoch.masked_fill(gone, 0.0), action)
            params.append(self.posterior_params(context, embed).float())
            deter, stoch = context[..., : self.deter_size], self.latent.sample(params[-1], noise=drawn)
            contexts.append(context)
            stochs.append(stoch)
        context = torch.stack(contexts, 1)
        deter = context[..., : self.deter_size]
        posterior = State(deter, torch.stack(stochs, 1), torch.stack(params, 1))
        return posterior, State(deter, posterior.stoch[..., :0], self.prior_params(context).float())

    def imagine_step(
        self,
        state: State,
        action: Float[Tensor, "rows action"],
        temperature: float = 1.0,
        noise: Float[Tensor, "rows latent"] | None = None,
    ) -> State:
        """Dreams one step.

        Args:
            state: where one is, (N); its `params` are not read.
            action: what is done there, (N, A).
            temperature: uncertainty of the dream, at least 0; 1 is what the model has learned.
            noise: as from `imagine_noise`; None draws it from torch's generator.

        Returns:
            The state one arrives at, (N).
        """
        return self._dream(state, self.action_share(action), temperature, noise)

    def imagine(
        self,
        state: State,
        actions: Float[Tensor, "rows horizon action"],
        temperature: float = 1.0,
        noise: Float[Tensor, "rows horizon latent"] | None = None,
    ) -> State:
        """Dreams H steps: start (N) and actions (N, H, A) to states (N, H), start excluded.

        `actions[:, k]` is taken at state k, and output k is the state after it (unlike a Batch's actions).
        """
        shares = self.action_share(actions).unbind(1)
        noises: Iterable[Tensor | None] = [None] * len(shares) if noise is None else noise.unbind(1)
        states = []
        for share, drawn in zip(shares, noises, strict=True):
            state = self._dream(state, share, temperature, drawn)
            states.append(state)
        return stack_states(states, 1)

    def observe_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """The noise that `observe_step` takes for so many rows, from a generator on this model's device."""
        return self.latent.noise(rows, generator)

    def imagine_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """The noise that `imagine_step` takes for so many rows, from a generator on this model's device."""
        return self.latent.noise(rows, generator)

    def _dream(self, state: State, action_share: Tensor, temperature: float, noise: Tensor | None) -> State:
        context = self.step(state.deter, state.stoch, action_share)
        params = self.prior_params(context).float()
        return State(context[..., : self.deter_size], self.latent.sample(params, temperature, noise), params)

    def _to_params(self, head: nn.Linear) -> None:
        """Starts the weights of a head that gives parameters of the latent."""
        split_glorot(head, self.latent.param_layers)
