"""The cross-entropy method: many imagined action sequences, of which the best say where to search next."""

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
    """What a search came to, for N environments.

    Args:
        mean: the plan, (N, H, A); its first action is the one to take.
        std: how sure the search is of it, (N, H, A).
        returns: predicted returns of each iteration's elites, best first, (N, iterations, elites).
    """

    mean: Float[Tensor, "rows horizon action"]
    std: Float[Tensor, "rows horizon action"]
    returns: Float[Tensor, "rows iterations elites"]

    @property
    def predicted(self) -> Float[Tensor, "rows"]:
        """The return that the model promises: the mean over the last elites. Choosing them makes it optimistic."""
        return self.returns[:, -1].mean(-1)


class CEM(Recorded):
    """Plans by imagining candidate action sequences and moving towards the best of them, over and over.

        mean = 0, std = 1                                           (H, A), anew at every decision
        repeat: actions ~ clip(N(mean, std^2), -1, 1)               candidates
                return  = sum over k = 1..H of reward(s[k]) * cont(s[1]) * ... * cont(s[k-1])
                mean, std = mean and sqrt(variance + 1e-6) of the elites, the candidates with the highest returns

    The first action of the last mean is taken: not the best candidate's, which owes more to luck. s[0] is the state one
    is in and the same for all candidates; from there each rolls the prior forward by sampling. Rewards are the
    predicted means at the states that the H actions lead to, undiscounted; a certain cont multiplies by 1. The variance
    is the population's.

    All environments are planned for at once, as one batch of N * candidates rows. An environment's noise is a function
    of its own seed, the iteration and the position, so its plan is the same whoever is planned for beside it. Rounding
    can differ with the size of the batch, and may, rarely, decide which of two equally good candidates is an elite.

    Args:
        horizon: steps that are imagined, H.
        candidates: action sequences an iteration.
        elites: how many of them the next iteration is fitted to, at most `candidates`.
        iterations: how often.
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
        self.horizon, self.candidates, self.elites, self.iterations = horizon, candidates, elites, iterations
        self.precision = precision

    def plan(
        self, model: Any, state: State, seeds: Int[Tensor, "rows"] | Sequence[int]
    ) -> Float[Tensor, "rows action"]:
        """The action to take in each environment.

        Args:
            model: the world to imagine in, any `LatentModel` whose dynamics have `imagine_step` and `imagine_noise`.
            state: where each environment is, (N).
            seeds: whole numbers from 0, (N): each names the noise of its row.

        Raises:
            ValueError: if what the model predicts is not finite.
        """
        return self.search(model, state, seeds).mean[:, 0]

    @torch.no_grad()
    def search(self, model: Any, state: State, seeds: Int[Tensor, "rows"] | Sequence[int]) -> Search:
        """As `plan`, with all that was found on the way."""
        rows, device = len(state.stoch), state.stoch.device
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != rows:
            raise ValueError(f"there are {len(seeds)} seeds for {rows} rows: give each row its own")
        # Row by row all of its candidates, the order in which `_noise` and `_returns` lay theirs out too.
        start = state.map(lambda tensor: tensor.repeat_interleave(self.candidates, 0))
        mean = torch.zeros(rows, self.horizon, model.dynamics.action_size, device=device)
        std, found = torch.ones_like(mean), []
        for iteration in range(self.iterations):
            noise, steps = self._noise(model, seeds, iteration, device)
            actions = torch.addcmul(mean[:, None], std[:, None], noise).clamp_(-1, 1)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                returns = self._returns(model, start, actions, steps)
            best, chosen = returns.topk(self.elites, 1)
            elites = actions.gather(1, chosen[:, :, None, None].expand(-1, -1, *actions.shape[2:]))
            variance, mean = torch.var_mean(elites, 1, correction=0)
            std = (variance + 1e-6).sqrt()
            found.append(best)
        result = Search(mean, std, torch.stack(found, 1))
        if not bool(torch.isfinite(result.returns).all()):
            raise ValueError("the model predicts returns that are not finite: its weights have diverged, train it anew")
        return result

    def _returns(self, model: Any, start: State, actions: Tensor, steps: list[Any]) -> Tensor:
        """Predicted returns (N, J) of actions (N, J, H, A), all from one rollout of N * J rows."""
        state, total, alive = start, 0.0, 1.0
        for action, noise in zip(actions.flatten(0, 1).unbind(1), steps, strict=True):
            state = model.dynamics.imagine_step(state, action, noise=noise)
            features = state.features
            total = total + alive * model.reward(features).mean.float()
            # Arriving where the world ends still pays; what would come after does not.
            alive = alive * model.cont(features).mean
        return torch.as_tensor(total).view(actions.shape[:2])

    def _noise(self, model: Any, seeds: list[int], iteration: int, device: torch.device) -> tuple[Tensor, list[Any]]:
        """Standard normal numbers for the actions, (N, J, H, A), and what `imagine_step` takes at each of the H steps.

        Row by row, each from a generator of its own: drawing is the one thing that cannot be done for all at once.
        """
        size = self.candidates, self.horizon, model.dynamics.action_size
        drawn, dreamt = [], []
        for seed in seeds:
            generator = torch.Generator(device).manual_seed(derive_seed(seed, iteration))
            drawn.append(torch.randn(size, generator=generator, device=device))
            dreamt.append(model.dynamics.imagine_noise(self.horizon * self.candidates, generator))
        starts = range(0, self.horizon * self.candidates, self.candidates)
        return torch.stack(drawn), [_joined(dreamt, slice(k, k + self.candidates)) for k in starts]


def _joined(parts: Sequence[Any], chosen: slice) -> Any:
    """The chosen noise of all rows, one after the other: a tensor, a tuple of them, or None if nothing is sampled."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], tuple):
        return tuple(_joined(part, chosen) for part in zip(*parts, strict=True))
    return parts[0][chosen] if len(parts) == 1 else torch.cat([part[chosen] for part in parts])
