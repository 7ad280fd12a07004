"""The base of RNN, SSM and RSSM: it runs one transition over observed windows and over dreams."""

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
    """Steps a state [deter, stoch] through time, with images (`observe`) or without (`imagine`) (abstract).

        context[t] = step(state[t-1], action[t])          state and action of a row are zero where is_first[t]
        prior[t]   = p(stoch[t] | context[t])             predicted before the image
        post[t]    = q(stoch[t] | context[t], embed[t])   inferred with it
        deter[t]   = the first `deter_size` numbers of context[t]

    with action[t] the one that led to image t, as drawn in `datamodules/episode.py`. So an image influences later
    states only through the sample of its posterior. A graphical model defines `step`, prior and posterior; the loops
    over time are written here, once. The products of actions and embeds in the first layers are computed for a whole
    window at once, and so is the prior's head.

    Args:
        latent: the kind of distribution of `stoch`.
        action_size: numbers in an action.
        embed_size: width of the encoder's output.
        deter_size: width of `deter`; 0 where the model has none.
    """

    from_action: nn.Module
    from_embed: nn.Module

    def __init__(self, latent: Latent, action_size: int, embed_size: int, deter_size: int) -> None:
        super().__init__()
        for name, size in (("action_size", action_size), ("embed_size", embed_size)):
            if size < 1:
                raise ValueError(f"{name} is {size} but must be at least 1")
        self.latent = latent
        self.action_size = action_size
        self.embed_size = embed_size
        self.deter_size = deter_size
        self.feature_size = latent.sample_size + deter_size

    # -------------------------------------------------------------------------------- defined by the graphical models

    @abstractmethod
    def step(self, deter: Tensor, stoch: Tensor, action_share: Tensor) -> Tensor:
        """Returns the next context (N, .) from the state before."""

    @abstractmethod
    def prior_params(self, context: Tensor) -> Tensor:
        """Returns the parameters of p(stoch | context), (..., P)."""

    @abstractmethod
    def posterior_params(self, context: Tensor, embed_share: Tensor) -> Tensor:
        """Returns the parameters of q(stoch | context, embed), (..., P)."""

    # ------------------------------------------------------------------------------------------- common to all models

    def action_share(self, action: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch hidden"]:
        """Returns the part of the first layer of `step` that depends on actions alone."""
        return self.from_action(action)

    def embed_share(self, embed: Float[Tensor, "*batch embed"]) -> Float[Tensor, "*batch hidden"]:
        """Returns the part of the posterior's first layer that depends on embeds alone."""
        return self.from_embed(embed)

    def initial(self, n: int) -> State:
        """Returns the state before the first image: n rows of zeros."""
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
        """Updates the state with one image.

        Args:
            state: the state at t - 1; its `params` are not read.
            action: the action that led to the image.
            embed: the encoder's output for the image.
            is_first: where true, state and action are set to zero first.
            noise: as from `observe_noise`; None draws it from torch's generator.

        Returns:
            The posterior and the prior; the prior is not sampled (its `stoch` has width 0).
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
        """Updates the state along whole windows, from `state` (at t = -1) or from `initial(B)`.

        Returns:
            Posterior and prior, (B, T, .), as in `observe_step`.
        """
        state = self.initial(len(embeds)) if state is None else state
        deter = state.deter
        stoch = state.stoch
        forget = is_first[..., None]
        # unbind, not [:, t]: the gradient of T slices is T whole windows.
        action_shares = self.action_share(actions.masked_fill(forget, 0.0)).unbind(1)
        embed_shares = self.embed_share(embeds).unbind(1)
        noises: Iterable[Tensor | None] = [None] * len(action_shares) if noise is None else noise.unbind(1)
        contexts = []
        stochs = []
        params = []
        for action, embed, gone, drawn in zip(action_shares, embed_shares, forget.unbind(1), noises, strict=True):
            context = self.step(deter.masked_fill(gone, 0.0), stoch.masked_fill(gone, 0.0), action)
            params.append(self.posterior_params(context, embed).float())
            deter = context[..., : self.deter_size]
            stoch = self.latent.sample(params[-1], noise=drawn)
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
        """Predicts one step without an image.

        Args:
            state: the current state, (N); its `params` are not read.
            action: the action taken there, (N, A).
            temperature: uncertainty of the dream, at least 0; 1 is the learned distribution.
            noise: as from `imagine_noise`; None draws it from torch's generator.

        Returns:
            The next state, (N).
        """
        return self._imagine_step(state, self.action_share(action), temperature, noise)

    def imagine(
        self,
        state: State,
        actions: Float[Tensor, "rows horizon action"],
        temperature: float = 1.0,
        noise: Float[Tensor, "rows horizon latent"] | None = None,
    ) -> State:
        """Predicts H steps without images: start (N) and actions (N, H, A) to states (N, H), start excluded.

        `actions[:, k]` is taken at state k, and output k is the state after it (unlike a Batch's actions).
        """
        shares = self.action_share(actions).unbind(1)
        noises: Iterable[Tensor | None] = [None] * len(shares) if noise is None else noise.unbind(1)
        states = []
        for share, drawn in zip(shares, noises, strict=True):
            state = self._imagine_step(state, share, temperature, drawn)
            states.append(state)
        return stack_states(states, 1)

    def observe_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draws the noise of `observe_step` for a number of rows, from a generator on this model's device."""
        return self.latent.noise(rows, generator)

    def imagine_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draws the noise of `imagine_step` for a number of rows, from a generator on this model's device."""
        return self.latent.noise(rows, generator)

    def _imagine_step(self, state: State, action_share: Tensor, temperature: float, noise: Tensor | None) -> State:
        context = self.step(state.deter, state.stoch, action_share)
        params = self.prior_params(context).float()
        return State(context[..., : self.deter_size], self.latent.sample(params, temperature, noise), params)

    def _initialize_head(self, head: nn.Linear) -> None:
        """Initializes the weights of a layer that outputs parameters of the latent."""
        split_glorot(head, self.latent.param_layers)
