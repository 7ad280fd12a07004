"""The cross-entropy method: samples action sequences, imagines them, and fits the next samples to the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wmlightning.dynamics.state import State
from wmlightning.recipes import Recorded
from wmlightning.seeds import derive_seed


@dataclass
class Search:
    """The result of a search, for N environments.

    Args:
        mean: the plan, (N, H, A); its first action is the one to take.
        std: standard deviation of the last elites around it, (N, H, A).
        returns: predicted returns of each iteration's elites, best first, (N, iterations, elites).
    """

    mean: Float[Tensor, "rows horizon action"]
    std: Float[Tensor, "rows horizon action"]
    returns: Float[Tensor, "rows iterations elites"]

    @property
    def predicted(self) -> Float[Tensor, "rows"]:
        """The return that the model predicts: the mean over the last elites, optimistic because they are the best."""
        return self.returns[:, -1].mean(-1)


class CEM(Recorded):
    """Plans by imagining candidate action sequences and moving towards the best of them, repeatedly.

        mean = 0, std = 1                                           (H, A), at every decision
        repeat: actions ~ clip(N(mean, std^2), -1, 1)               candidates
                return  = sum over k = 1..H of reward(s[k]) * cont(s[1]) * ... * cont(s[k-1])
                mean, std = mean and sqrt(variance + 1e-6) of the elites, the candidates with the highest returns

    The first action of the last mean is taken, not the best candidate's, whose return is more a matter of chance. s[0]
    is the current state, the same for all candidates; from there each rolls the prior forward by sampling. Rewards are
    the predicted means at the states that the H actions lead to, undiscounted; a certain cont multiplies by 1. The
    variance is the population's.

    All environments are planned for at once, as one batch of N * candidates rows. An environment's noise is a function
    of its own seed, the iteration and the position, so its plan does not depend on the other environments. Rounding
    can differ with the size of the batch, and may, rarely, decide which of two equally good candidates is an elite.

    Args:
        horizon: imagined steps, H.
        candidates: action sequences in each iteration.
        elites: candidates that the next iteration is fitted to, at most `candidates`.
        iterations: number of iterations.
        precision: of the products in the model: "float32", or "bfloat16" for a device that multiplies those faster
            (a GPU, a CPU with AMX or AVX512-BF16; any other CPU is many times slower with it). Rewards are added and
            actions kept in float32 either way.

    Raises:
        ValueError: if a number is below 1, or there are more elites than candidates.

    Source: PlaNet (Hafner et al. 2019), Algorithm 2 and appendix A; their code (control/planning.py). Where they
    differ, the code is followed: the paper prints sum |a - mean| / (K - 1) for the new std.
    """

    def __init__(
        self,
        horizon: int = 12,
        candidates: int = 1000,
        elites: int = 100,
        iterations: int = 10,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        for name, count in (("horizon", horizon), ("elites", elites), ("iterations", iterations)):
            if count < 1:
                raise ValueError(f"{name} is {count} but must be at least 1")
        if elites > candidates:
            raise ValueError(f"elites is {elites} of {candidates} candidates: ask for fewer elites or more candidates")
        self.horizon = horizon
        self.candidates = candidates
        self.elites = elites
        self.iterations = iterations
        self.precision = precision

    def plan(
        self, model: Any, state: State, seeds: Int[Tensor, "rows"] | Sequence[int]
    ) -> Float[Tensor, "rows action"]:
        """Returns the action to take in each environment.

        Args:
            model: any `LatentModel` whose dynamics have `imagine_step` and `imagine_noise`.
            state: the current state of each environment, (N).
            seeds: whole numbers from 0, (N): each seeds the noise of its row.

        Raises:
            ValueError: if the model's predictions are not finite.
        """
        return self.search(model, state, seeds).mean[:, 0]

    @torch.no_grad()
    def search(self, model: Any, state: State, seeds: Int[Tensor, "rows"] | Sequence[int]) -> Search:
        """Plans as `plan` does and returns the whole search."""
        rows = len(state.stoch)
        device = state.stoch.device
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != rows:
            raise ValueError(f"there are {len(seeds)} seeds for {rows} rows: give each row its own")
        # All candidates of the first row, then of the second: `_noise` and `_returns` use the same order.
        start = state.map(lambda tensor: tensor.repeat_interleave(self.candidates, 0))
        mean = torch.zeros(rows, self.horizon, model.dynamics.action_size, device=device)
        std = torch.ones_like(mean)
        elite_returns = []
        for iteration in range(self.iterations):
            noise, steps = self._noise(model, seeds, iteration, device)
            actions = torch.addcmul(mean[:, None], std[:, None], noise).clamp_(-1, 1)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                returns = self._returns(model, start, actions, steps)
            best, chosen = returns.topk(self.elites, 1)
            elites = actions.gather(1, chosen[:, :, None, None].expand(-1, -1, *actions.shape[2:]))
            variance, mean = torch.var_mean(elites, 1, correction=0)
            std = (variance + 1e-6).sqrt()
            elite_returns.append(best)
        result = Search(mean, std, torch.stack(elite_returns, 1))
        if not bool(torch.isfinite(result.returns).all()):
            raise ValueError("the model predicts returns that are not finite: its weights have diverged, train it anew")
        return result

    def _returns(self, model: Any, start: State, actions: Tensor, steps: list[Any]) -> Tensor:
        """Predicted returns (N, J) of actions (N, J, H, A), all from one rollout of N * J rows."""
        state = start
        total = 0.0
        alive = 1.0
        for action, noise in zip(actions.flatten(0, 1).unbind(1), steps, strict=True):
            state = model.dynamics.imagine_step(state, action, noise=noise)
            features = state.features
            total = total + alive * model.reward(features).mean.float()
            # The reward for arriving at a terminal state counts; later rewards do not.
            alive = alive * model.cont(features).mean
        return torch.as_tensor(total).view(actions.shape[:2])

    def _noise(self, model: Any, seeds: list[int], iteration: int, device: torch.device) -> tuple[Tensor, list[Any]]:
        """Standard normal numbers for the actions, (N, J, H, A), and what `imagine_step` takes at each of the H steps.

        Each row draws from its own generator, so that this is the one thing that is not batched over rows.
        """
        size = self.candidates, self.horizon, model.dynamics.action_size
        action_noise = []
        step_noise = []
        for seed in seeds:
            generator = torch.Generator(device).manual_seed(derive_seed(seed, iteration))
            action_noise.append(torch.randn(size, generator=generator, device=device))
            step_noise.append(model.dynamics.imagine_noise(self.horizon * self.candidates, generator))
        starts = range(0, self.horizon * self.candidates, self.candidates)
        return torch.stack(action_noise), [_concatenate(step_noise, slice(k, k + self.candidates)) for k in starts]


def _concatenate(parts: Sequence[Any], chosen: slice) -> Any:
    """Concatenates a slice of every row's noise: a tensor, a tuple of them, or None if nothing is sampled."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], tuple):
        return tuple(_concatenate(part, chosen) for part in zip(*parts, strict=True))
    return parts[0][chosen] if len(parts) == 1 else torch.cat([part[chosen] for part in parts])
