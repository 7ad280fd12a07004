"""The memory M of World Models: a recurrent network that predicts a mixture of Gaussians for the next code."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wmlightning.distributions.mixture import GaussianMixture
from wmlightning.dynamics.state import State, stack_states
from wmlightning.networks.cells import LSTM
from wmlightning.networks.conv import initialize
from wmlightning.recipes import Recorded
from wmlightning.validation import at_least


class MDNLSTM(Recorded, nn.Module):
    """An LSTM memory that predicts the next code as a mixture of Gaussians.

        dream:      (z)                           observe:   (z)     (o)
                      \\                                        \\      |
               a ---> [h'] ---> (z')                    a ---> [h']  (z')
                       |                                         |
                      [h]                                       [h]

        deter[t] = [h, c][t] = LSTM([z[t-1], action[t]], deter[t-1])        exactly 0 where is_first[t]
        stoch[t] = z[t]       observed: mean + std * noise of the embed;    dreamt: a sample of the mixture of h[t]

    The code z comes from V where there is an image, and from the mixture in a dream. action[t] is the one that led to
    image t, as drawn in `datamodules/episode.py`. So the memory at t has seen the codes up to t - 1, and a controller
    that acts on (z[t], h[t]) reads h before M consumes z[t] and its own action. The first h and c of an episode are
    zero.

    `State.params` of a posterior is V's [mean, logvar]; of a prior or a dreamt state the parameters for `mixture`.

    Args:
        latent_size: numbers in a code z.
        action_size: numbers in an action.
        hidden_size: width of h and of c.
        mixtures: Gaussians for each number of z.
        input_is_first: add an input that is 1 where the code is the first of its episode (the Doom model). It is
            detected by a memory of exact zeros, which no later step has.

    Source: Ha and Schmidhuber 2018, section 2.3; their released code (carracing/rnn/rnn.py, doomrnn/doomrnn.py).
    Weights start as in TensorFlow: Glorot uniform, zero biases but 1 for the forget gate.
    """

    def __init__(
        self,
        latent_size: int = 32,
        action_size: int = 3,
        hidden_size: int = 256,
        mixtures: int = 5,
        input_is_first: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, latent_size=latent_size, action_size=action_size, hidden_size=hidden_size, mixtures=mixtures)
        self.latent_size = latent_size
        self.action_size = action_size
        self.hidden_size = hidden_size
        self.mixtures = mixtures
        self.input_is_first = input_is_first
        self.cell = LSTM(latent_size + action_size + int(input_is_first), hidden_size)
        self.head = nn.Linear(hidden_size, 3 * mixtures * latent_size)
        initialize(self.head)

    def initial(self, n: int) -> State:
        """Returns the state before the first image: n rows of zeros."""
        weight = self.head.weight
        sizes = (2 * self.hidden_size, self.latent_size, 2 * self.latent_size)
        return State(*(weight.new_zeros(n, size) for size in sizes))

    def mixture(self, params: Float[Tensor, "*batch params"], temperature: float = 1.0) -> GaussianMixture:
        """Returns the distribution of z with the `params` of a prior or of a dreamt state."""
        return GaussianMixture.from_params(params, self.latent_size, temperature)

    def code(
        self, embed: Float[Tensor, "*batch embed"], noise: Float[Tensor, "*batch latent"] | None = None
    ) -> Float[Tensor, "*batch latent"]:
        """Draws z from V's Gaussian: embed = [mean, logvar], noise standard normal, or None to draw it."""
        mean, logvar = embed.chunk(2, -1)
        return torch.addcmul(mean, torch.exp(0.5 * logvar), torch.randn_like(mean) if noise is None else noise)

    def observe_step(
        self,
        state: State,
        action: Float[Tensor, "rows action"],
        embed: Float[Tensor, "rows embed"],
        is_first: Bool[Tensor, "rows"],
        noise: Float[Tensor, "rows latent"] | None = None,
    ) -> tuple[State, State]:
        """Updates the memory with one image.

        Args:
            state: the state at t - 1.
            action: the action that led to the image.
            embed: V's [mean, logvar] of the image.
            is_first: where true, the memory is set to zero.
            noise: standard normal numbers for z; None draws them from torch's generator.

        Returns:
            The posterior, whose z is drawn from V, and the prior, whose `params` are the mixture's; the prior is not
            sampled (its `stoch` has width 0).
        """
        deter = self._advance(state, action).masked_fill(is_first[:, None], 0.0)
        return self._states(deter, self.code(embed, noise), embed)

    def observe(
        self,
        embeds: Float[Tensor, "batch time embed"],
        actions: Float[Tensor, "batch time action"],
        is_first: Bool[Tensor, "batch time"],
        state: State | None = None,
        noise: Float[Tensor, "batch time latent"] | None = None,
    ) -> tuple[State, State]:
        """Updates the memory along windows: `observe_step` at every t, from `state` (at t = -1) or from `initial(B)`.

        Returns:
            Posterior and prior, (B, T, .), as in `observe_step`.
        """
        codes = self.code(embeds, noise)
        state = self.initial(len(codes)) if state is None else state
        projected = self.cell.project(self._inputs(state, codes, actions, is_first))
        hidden, cell = state.deter.chunk(2, -1)
        deters = []
        # unbind, not [:, t]: the gradient of T slices is T whole windows.
        for inputs, forget in zip(projected.unbind(1), is_first[..., None].unbind(1), strict=True):
            deters.append(torch.cat(self.cell.step(inputs, hidden, cell), -1).masked_fill(forget, 0.0))
            hidden, cell = deters[-1].chunk(2, -1)
        return self._states(torch.stack(deters, 1), codes, embeds)

    def remember(
        self,
        codes: Float[Tensor, "batch time latent"],
        actions: Float[Tensor, "batch time action"],
        is_first: Bool[Tensor, "batch time"],
        state: State | None = None,
    ) -> tuple[Float[Tensor, "batch time hidden"], State]:
        """Runs the memory over given codes in one fused call, for training; gives every h but only the last c.

        Returns:
            h, (B, T, hidden), in memory with time first, and the posterior at the last t, (B, .), its params zero.
        """
        state = self.initial(len(codes)) if state is None else state
        inputs = self._inputs(state, codes, actions, is_first)
        hiddens, hidden, cell = self.cell(inputs, *state.deter.chunk(2, -1), is_first)
        return hiddens, State(torch.cat([hidden, cell], -1), codes[:, -1], torch.zeros_like(state.params))

    def imagine_step(
        self,
        state: State,
        action: Float[Tensor, "rows action"],
        temperature: float = 1.0,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> State:
        """Predicts one step without an image.

        Args:
            state: the current state, (N).
            action: the action taken there, (N, A).
            temperature: uncertainty of the dream, above 0; 1 is the learned distribution.
            noise: see `GaussianMixture.sample`; None draws it from torch's generator.

        Returns:
            The next state, (N).
        """
        deter = self._advance(state, action)
        params = self.head(deter[..., : self.hidden_size])
        return State(deter, self.mixture(params, temperature).sample(noise), params)

    def observe_noise(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows latent"]:
        """Draws the noise of `observe_step` for a number of rows, from a generator on this memory's device."""
        return torch.randn(rows, self.latent_size, generator=generator, device=generator.device)

    def imagine_noise(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws the noise of `imagine_step` for a number of rows, from a generator on this memory's device."""
        sizes = (rows, self.latent_size)
        device = generator.device
        return torch.rand(sizes, generator=generator, device=device), torch.randn(
            sizes, generator=generator, device=device
        )

    def imagine(self, state: State, actions: Float[Tensor, "rows horizon action"], temperature: float = 1.0) -> State:
        """Predicts H steps without images: start (N) and actions (N, H, A) to states (N, H), start excluded.

        `actions[:, k]` is taken at state k, and output k is the state after it (unlike a Batch's actions).
        """
        states = []
        for action in actions.unbind(1):
            state = self.imagine_step(state, action, temperature)
            states.append(state)
        return stack_states(states, 1)

    def _states(self, deter: Tensor, code: Tensor, embed: Tensor) -> tuple[State, State]:
        prior = State(deter, code[..., :0], self.head(deter[..., : self.hidden_size]))
        return State(deter, code, embed), prior

    def _advance(self, state: State, action: Tensor) -> Tensor:
        inputs = torch.cat([state.stoch, action, *self._first_flags(state)], -1)
        if not torch.is_grad_enabled():
            return self.cell.advance(inputs, state.deter)
        return torch.cat(self.cell.step(self.cell.project(inputs), *state.deter.chunk(2, -1)), -1)

    def _inputs(self, state: State, codes: Tensor, actions: Tensor, is_first: Tensor) -> Tensor:
        """Returns the LSTM's inputs at every t: the code before, the action, and (Doom) whether that code was a first.

        t              0             1          2
        code           state.stoch   z[0]       z[1]
        action         a[0]          a[1]       a[2]
        first          state         first[0]   first[1]
        """
        parts = [torch.cat([state.stoch[:, None], codes[:, :-1]], 1), actions.to(codes.dtype)]
        for flag in self._first_flags(state):
            parts.append(torch.cat([flag[:, None], is_first[:, :-1, None].to(flag.dtype)], 1))
        return torch.cat(parts, -1)

    def _first_flags(self, state: State) -> list[Tensor]:
        # 16 numbers of the memory are enough: they are all exactly zero only after a reset.
        return [(state.deter[:, :16] == 0).all(-1, keepdim=True).to(state.stoch.dtype)] if self.input_is_first else []
