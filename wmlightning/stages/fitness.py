"""How a generation of controllers is played: in the real environment, or wholly inside a dream.

Both ways keep one promise, `play`: they are given candidates and the seeds of each one's episodes, and say what every
episode came to. What is played depends on candidates and seeds alone, and several processes share it out without a
trace in the result.
"""

from collections.abc import Callable, Iterator
from math import gcd
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.nn import functional

from wmlightning.dynamics.state import State
from wmlightning.environments.dream import DreamRules, begin_anywhere
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies.latent import LatentPolicy
from wmlightning.seeds import derive_seed

TOGETHER = {"cpu": 512, "cuda": 1024}
"""Dreamers in one batch. A fixed number, so that every batch rounds alike however many processes share them out; on a
CPU it is small enough for the cache, on a GPU large enough to hide what launching kernels costs."""
LOOK_EVERY = 8
"""Steps between two looks at who still dreams."""
WORTH_IT = 0.8
"""Those who dream on are gathered into a smaller batch when it is at most this part of the present one."""

Scores = tuple[Float[Tensor, "population episodes"], Int[Tensor, "population episodes"]]


class RealFitness:
    """Plays candidates in the real environment, V and M once for all of them.

    Args:
        environment: where to play.
        num_envs: environments side by side in each process.
        num_workers: worker processes for them, in each process; 0 keeps them in this one.
        policy_of: makes the policy of some candidates, (P, n).
    """

    counter = "env_steps"

    def __init__(
        self,
        environment: EnvFactory,
        num_envs: int,
        num_workers: int,
        policy_of: Callable[[Tensor], LatentPolicy],
    ) -> None:
        self.environment, self.num_envs, self.num_workers = environment, num_envs, num_workers
        self.policy_of = policy_of
        self.envs: Any = None

    def prepare(self) -> None:
        """Nothing: environments are opened when they are first played in."""

    def play(self, candidates: Float[Tensor, "population size"], seeds: list[int], trainer: Trainer) -> Scores:
        """Plays every candidate's episodes.

        Args:
            candidates: parameter vectors, (P, n).
            seeds: environment seeds, candidate by candidate, P * E of them.
            trainer: says which process this is, and whether to stop.

        Returns:
            Returns, float64 (P, E), and environment steps, int64 (P, E), of all processes.

        Raises:
            SIGTERMException: if the trainer was asked to stop.
        """
        if self.envs is None:
            self.envs = self.environment.vector(self.num_envs, self.num_workers)
        policy, episodes = self.policy_of(candidates), len(seeds) // len(candidates)
        share = range(trainer.global_rank, len(seeds), trainer.world_size)
        results = rollout(
            self.envs,
            policy,
            [seeds[job] for job in share],
            begin=lambda jobs: policy.begin(
                [share[j] // episodes for j in jobs], [derive_seed(seeds[share[j]], 1) for j in jobs]
            ),
            should_stop=lambda: trainer.received_sigterm,
        )
        if len(results) < len(share):
            # As Lightning does between batches: the last finished generation is saved, this one will be played again.
            raise SIGTERMException
        scores = torch.zeros(2, len(seeds), dtype=torch.float64)
        for job, result in zip(share, results, strict=True):
            scores[0, job], scores[1, job] = result.total_reward, result.env_steps
        return _of_all(scores.view(2, len(candidates), episodes), trainer)

    def close(self) -> None:
        """Closes the environments."""
        envs, self.envs = self.envs, None
        if envs is not None:
            envs.close()


class DreamFitness(nn.Module):
    """Plays candidates in the dream of a world model: population x episodes as one batch, nothing real.

    Starts and noise belong to a candidate's seeds, not to the candidate: those with the same seeds begin at the same
    frames and meet the same noise at every step. The first frames that dreams begin at are part of the checkpoint.
    Nothing is kept of a step but sums, so memory does not grow with the length of dreams.

    Args:
        dream: what the dream is like.
        model: a `LatentModel`.
        controller: has `act_together(candidates, features)`, see `networks.controller.Controller`.
        environment: says whether actions are discrete: then the largest output acts, one-hot.
    """

    counter = "dream_steps"
    starts: Tensor

    def __init__(self, dream: DreamRules, model: Any, controller: Any, environment: EnvFactory) -> None:
        super().__init__()
        dream.check(model)
        self.dream, self.environment = dream, environment
        # In a tuple, so that they become no part of this module.
        self._parts = model, controller
        self.register_buffer("starts", torch.zeros(0, 0))

    def prepare(self) -> None:
        """Reads the first frames, unless a checkpoint has brought them.

        Raises:
            ValueError: if there are none, or another V wrote their codes.
        """
        if not len(self.starts):
            self.starts = self.dream.first_embeds(self._parts[0]).clone()

    def play(
        self, candidates: Float[Tensor, "population size"], seeds: list[int], trainer: Trainer | None = None
    ) -> Scores:
        """Plays every candidate's episodes; arguments and result as in `RealFitness.play`, with dreamt steps.

        Without a trainer all of it is played in this process.
        """
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not len(self.starts):
            raise ValueError("this controller has no first frames to begin a dream at: train it in its dream first")
        table = np.array(seeds).reshape(len(candidates), -1)
        groups, group = np.unique(table, axis=0, return_inverse=True)
        scores = torch.zeros(2, *table.shape, dtype=torch.float64)
        batches = list(_batches(table.shape, TOGETHER.get(self.starts.device.type, 1024)))[rank::world]
        with torch.inference_mode():
            generator = torch.Generator(self.starts.device)
            generator.manual_seed(derive_seed(*groups.reshape(-1).tolist()))
            model, _ = self._parts
            begun = begin_anywhere(model, self.dream, self.starts, groups.size, generator)
            dreamers, theta = [], candidates.to(self.starts)
            for which, when in batches:
                place = group.reshape(-1)[which, None] * table.shape[1] + np.arange(table.shape[1])[when]
                dreamers.append(_Dreamers(self, theta[which], torch.from_numpy(place).to(generator.device), begun))
            dreaming = dreamers
            for step in range(1, self.dream.max_steps + 1):
                if trainer is not None and trainer.received_sigterm:
                    raise SIGTERMException
                # Every process draws all of it, whatever its own share needs.
                noise = model.dynamics.imagine_noise(groups.size, generator)
                for some in dreaming:
                    some.step(noise)
                if step % LOOK_EVERY == 0:
                    dreaming = [some for some in dreaming if some.gather()]
                    if not dreaming:
                        break
            for (which, when), some in zip(batches, dreamers, strict=True):
                scores[0, which, when], scores[1, which, when] = some.scores()
        return _of_all(scores, trainer)

    def close(self) -> None:
        """Nothing stays open."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}starts" in state_dict:  # of as many as there were
            self.starts = torch.empty_like(state_dict[f"{prefix}starts"], device=self.starts.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Dreamers:
    """Some candidates' dreams, laid out (candidates, episodes); rows of those that are over are given up in time.

        slot     whose episode a row dreams; the last number, one too many, is nobody's
        live     whether it still counts
        place    which row of the noise it meets

    Args:
        games: dream, model and controller.
        theta: the candidates' parameters, (P, n).
        place: where in the noise, and among the states begun, each episode stands, int64 (P, E).
        begun: first states.
    """

    def __init__(
        self, games: DreamFitness, theta: Tensor, place: Int[Tensor, "candidates episodes"], begun: State
    ) -> None:
        self.fitness, self.theta, self.shape = games, theta, tuple(place.shape)
        device, self.nobody = place.device, place.numel()
        self.returns = torch.zeros(self.nobody + 1, dtype=torch.float64, device=device)
        self.steps = torch.zeros(self.nobody + 1, dtype=torch.int64, device=device)
        self.slot = torch.arange(self.nobody, device=device).view(self.shape)
        self.live = torch.ones(self.shape, dtype=torch.bool, device=device)
        self.place, self.state = place.reshape(-1), begun[place.reshape(-1)]
        self._lay_out(*_full_rows(*self.shape))

    def step(self, noise: tuple[Tensor, ...]) -> None:
        """One step of every dream."""
        model, controller = self.fitness._parts
        features = self.state.features
        action = controller.act_together(self.theta, features.view(*self.live.shape, -1)).flatten(0, 1)
        if self.fitness.environment.spec.discrete:
            action = functional.one_hot(action.argmax(-1), action.shape[-1]).to(action.dtype)
        mine = tuple(part[self.place] for part in noise)
        self.state, reward, over = self.fitness.dream.step(model, self.state, action, mine)
        live, slot = self.live.view(-1), self.slot.view(-1)
        self.returns.index_add_(0, slot, torch.where(live, reward, 0.0).double())
        self.steps.index_add_(0, slot, live.long())
        live &= ~over

    def gather(self) -> bool:
        """Moves those who dream on into a smaller batch, where that is worth it; whether there are any."""
        counts = self.live.sum(1)
        candidates, episodes = int((counts > 0).sum()), int(counts.max())
        if candidates:
            # One candidate alone would be another kind of matrix product.
            shape = _full_rows(max(candidates, min(2, self.shape[0])), episodes)
            if shape[0] * shape[1] <= WORTH_IT * self.live.numel():
                self._lay_out(*shape)
        return candidates > 0

    def scores(self) -> tuple[Tensor, Tensor]:
        """Returns and steps, (P, E)."""
        return self.returns[:-1].view(self.shape), self.steps[:-1].view(self.shape)

    def _lay_out(self, candidates: int, episodes: int) -> None:
        counts = self.live.sum(1)
        kept = functional.pad(counts.nonzero()[:, 0], (0, candidates))[:candidates]
        full = torch.arange(candidates, device=kept.device) < (counts > 0).sum()
        column = torch.arange(episodes, device=kept.device)
        first_live = self.live.byte().sort(dim=1, descending=True, stable=True).indices[kept]
        row = kept[:, None] * self.live.shape[1] + first_live[:, column.clamp(max=self.live.shape[1] - 1)]
        self.live = full[:, None] & (column < counts[kept, None])
        row = torch.where(self.live, row, 0).view(-1)
        self.slot = torch.where(self.live, self.slot.view(-1)[row].view_as(self.live), self.nobody)
        self.place, self.state, self.theta = self.place[row], self.state[row], self.theta[kept]


def _batches(shape: tuple[int, ...], together: int) -> Iterator[tuple[slice, slice]]:
    """Cuts (candidates, episodes) into parts of at most so many dreamers, whole candidates where they fit."""
    population, episodes = shape
    wide = min(episodes, together)
    high = together // wide
    for first in range(0, population, high):
        for start in range(0, episodes, wide):
            yield slice(first, first + high), slice(start, start + wide)


def _full_rows(candidates: int, episodes: int) -> tuple[int, int]:
    """The smallest layout with room for so many whose rows are a multiple of 8.

    Then a row of a matrix product rounds the same whoever stands beside it (as in `policies.latent`).
    """
    shapes = []
    for high in range(candidates, candidates + 8):
        unit = 8 // gcd(high, 8)
        shapes.append((high, -(-episodes // unit) * unit))
    return min(shapes, key=lambda shape: shape[0] * shape[1])


def _of_all(scores: Tensor, trainer: Trainer | None) -> Scores:
    if trainer is not None and trainer.world_size > 1:
        # Every number is added to zeros only, so that no rounding depends on the number of processes.
        scores = cast(Tensor, trainer.strategy.reduce(scores.to(trainer.strategy.root_device), reduce_op="sum")).cpu()
    return scores[0], scores[1].long()
