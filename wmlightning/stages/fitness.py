"""Fitness of a generation of controllers: returns of episodes in the real environment, or in dreams.

`RealFitness` and `DreamFitness` have one interface: `play` takes candidates and the environment seeds of their episodes
and returns the return and the steps of every episode. What is played depends on candidates and seeds alone; several
processes divide the episodes, and the result does not depend on how many they are.
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

DREAMS_PER_BATCH = {"cpu": 512, "cuda": 1024}
"""Dreams in one batch. A fixed number, so that a batch rounds alike however many processes divide the dreams: on a CPU
small enough for the cache, on a GPU large enough to hide the cost of launching kernels."""
COMPACT_EVERY = 8
"""Steps between two checks of how many dreams of a batch have ended."""
COMPACT_BELOW = 0.8
"""The unfinished dreams move to a smaller batch if its size is at most this fraction of the present one."""

Scores = tuple[Float[Tensor, "population episodes"], Int[Tensor, "population episodes"]]


class RealFitness:
    """Plays candidates in the real environment, with one pass of V and M for all of them.

    Attributes:
        steps_buffer: buffer of the stage that counts the steps played here.

    Args:
        environment: where to play.
        num_envs: environments in each process, stepped as one batch.
        num_workers: worker processes for them, in each process; 0 steps them in the process itself.
        policy_of: makes the policy of some candidates, (P, n).
    """

    steps_buffer = "env_steps"

    def __init__(
        self,
        environment: EnvFactory,
        num_envs: int,
        num_workers: int,
        policy_of: Callable[[Tensor], LatentPolicy],
    ) -> None:
        self.environment = environment
        self.num_envs = num_envs
        self.num_workers = num_workers
        self.policy_of = policy_of
        self.envs: Any = None

    def prepare(self) -> None:
        """Does nothing: `play` opens the environments."""

    def play(self, candidates: Float[Tensor, "population size"], seeds: list[int], trainer: Trainer) -> Scores:
        """Plays every candidate's episodes.

        Args:
            candidates: parameter vectors, (P, n).
            seeds: environment seeds, candidate by candidate, P * E of them.
            trainer: gives the rank and number of processes, and says whether to stop.

        Returns:
            Returns, float64 (P, E), and environment steps, int64 (P, E), of all processes.

        Raises:
            SIGTERMException: if the trainer was asked to stop.
        """
        if self.envs is None:
            self.envs = self.environment.vector(self.num_envs, self.num_workers)
        policy = self.policy_of(candidates)
        episodes = len(seeds) // len(candidates)
        own_episodes = range(trainer.global_rank, len(seeds), trainer.world_size)
        results = rollout(
            self.envs,
            policy,
            [seeds[episode] for episode in own_episodes],
            begin=lambda jobs: policy.begin(
                [own_episodes[job] // episodes for job in jobs],
                [derive_seed(seeds[own_episodes[job]], 1) for job in jobs],
            ),
            should_stop=lambda: trainer.received_sigterm,
        )
        if len(results) < len(own_episodes):
            # As Lightning does between batches: it saves the last finished generation, and this one is played again.
            raise SIGTERMException
        scores = torch.zeros(2, len(seeds), dtype=torch.float64)
        for episode, result in zip(own_episodes, results, strict=True):
            scores[0, episode] = result.total_reward
            scores[1, episode] = result.env_steps
        return _sum_over_ranks(scores.view(2, len(candidates), episodes), trainer)

    def close(self) -> None:
        """Closes the environments."""
        envs, self.envs = self.envs, None
        if envs is not None:
            envs.close()


class DreamFitness(nn.Module):
    """Plays candidates in the dreams of a world model: population x episodes as one batch, without an environment.

    First frames and noise are functions of a candidate's seeds, not of the candidate: candidates with the same seeds
    have the same first frames and the same noise at every step. The checkpoint contains the first frames. Each step
    only adds to sums, so memory does not grow with the length of dreams.

    Attributes:
        steps_buffer: buffer of the stage that counts the steps dreamt here.
        starts: embeds of the first frames of dreams, (frames, embed); empty before `prepare`.

    Args:
        dream: the rules of the dreams.
        model: a `LatentModel`.
        controller: has `act_together(candidates, features)`, see `networks.controller.Controller`.
        environment: says whether actions are discrete: then the action is the largest output, one-hot.
    """

    steps_buffer = "dream_steps"
    starts: Tensor

    def __init__(self, dream: DreamRules, model: Any, controller: Any, environment: EnvFactory) -> None:
        super().__init__()
        dream.check(model)
        self.dream = dream
        self.environment = environment
        # In a tuple, so that they are not registered as submodules.
        self._parts = model, controller
        self.register_buffer("starts", torch.zeros(0, 0))

    def prepare(self) -> None:
        """Reads the first frames, unless they came with a checkpoint.

        Raises:
            ValueError: if there are none, or another V wrote their codes.
        """
        if not len(self.starts):
            self.starts = self.dream.first_embeds(self._parts[0]).clone()

    def play(
        self, candidates: Float[Tensor, "population size"], seeds: list[int], trainer: Trainer | None = None
    ) -> Scores:
        """Plays every candidate's episodes; arguments and result as in `RealFitness.play`, with dreamt steps.

            seeds (P, E)             1 2 3     candidates 0 and 2 have the same row of seeds,
                                     4 5 6     so they are one group and read the same noise
                                     1 2 3
            seed_groups (G, E)       1 2 3     noise and first states have G * E rows: row group[p] * E + e
                                     4 5 6     belongs to episode e of candidate p

        Without a trainer this process plays all of them.
        """
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not len(self.starts):
            raise ValueError("this controller has no first frames to begin a dream at: train it in its dream first")
        table = np.array(seeds).reshape(len(candidates), -1)
        seed_groups, group = np.unique(table, axis=0, return_inverse=True)
        scores = torch.zeros(2, *table.shape, dtype=torch.float64)
        parts = list(_split(table.shape, DREAMS_PER_BATCH.get(self.starts.device.type, 1024)))[rank::world]
        with torch.inference_mode():
            generator = torch.Generator(self.starts.device)
            generator.manual_seed(derive_seed(*seed_groups.reshape(-1).tolist()))
            model, _ = self._parts
            first_states = begin_anywhere(model, self.dream, self.starts, seed_groups.size, generator)
            theta = candidates.to(self.starts)
            batches = []
            for rows, columns in parts:
                noise_row = group.reshape(-1)[rows, None] * table.shape[1] + np.arange(table.shape[1])[columns]
                noise_row = torch.from_numpy(noise_row).to(generator.device)
                batches.append(_DreamBatch(self, theta[rows], noise_row, first_states))
            unfinished = batches
            for step in range(1, self.dream.max_steps + 1):
                if trainer is not None and trainer.received_sigterm:
                    raise SIGTERMException
                # Every process draws all of the noise, so that each dream has its own whichever process plays it.
                noise = model.dynamics.imagine_noise(seed_groups.size, generator)
                for batch in unfinished:
                    batch.step(noise)
                if step % COMPACT_EVERY == 0:
                    unfinished = [batch for batch in unfinished if batch.compact()]
                    if not unfinished:
                        break
            for (rows, columns), batch in zip(parts, batches, strict=True):
                scores[0, rows, columns], scores[1, rows, columns] = batch.scores()
        return _sum_over_ranks(scores, trainer)

    def close(self) -> None:
        """Does nothing: no environment is open."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}starts" in state_dict:
            # There may be any number of first frames.
            self.starts = torch.empty_like(state_dict[f"{prefix}starts"], device=self.starts.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _DreamBatch:
    """Dreams of some candidates as one batch of shape (candidates, episodes), which shrinks while dreams end.

    Beside the states, every dream of the batch has:

        episode      index of its episode among all of these candidates' episodes, where returns and steps add up; the
                     index one past the last is that of padding
        alive        whether the dream has not ended, and is not padding
        noise_row    its row of the noise and of the first states

    Args:
        fitness: has the rules of the dreams, the model and the controller.
        theta: the candidates' parameters, (P, n).
        noise_row: int64 (P, E).
        first_states: of all seeds.
    """

    def __init__(
        self, fitness: DreamFitness, theta: Tensor, noise_row: Int[Tensor, "candidates episodes"], first_states: State
    ) -> None:
        self.fitness = fitness
        self.theta = theta
        self.shape = tuple(noise_row.shape)
        self.padding = noise_row.numel()
        device = noise_row.device
        self.returns = torch.zeros(self.padding + 1, dtype=torch.float64, device=device)
        self.steps = torch.zeros(self.padding + 1, dtype=torch.int64, device=device)
        self.episode = torch.arange(self.padding, device=device).view(self.shape)
        self.alive = torch.ones(self.shape, dtype=torch.bool, device=device)
        self.noise_row = noise_row.reshape(-1)
        self.state = first_states[self.noise_row]
        self._move_to(*_aligned_shape(*self.shape))

    def step(self, noise: tuple[Tensor, ...]) -> None:
        """Makes one step of every dream."""
        model, controller = self.fitness._parts
        features = self.state.features
        action = controller.act_together(self.theta, features.view(*self.alive.shape, -1)).flatten(0, 1)
        if self.fitness.environment.spec.discrete:
            action = functional.one_hot(action.argmax(-1), action.shape[-1]).to(action.dtype)
        own_noise = tuple(part[self.noise_row] for part in noise)
        self.state, reward, over = self.fitness.dream.step(model, self.state, action, own_noise)
        alive = self.alive.view(-1)
        episode = self.episode.view(-1)
        self.returns.index_add_(0, episode, torch.where(alive, reward, 0.0).double())
        self.steps.index_add_(0, episode, alive.long())
        alive &= ~over

    def compact(self) -> bool:
        """Moves the unfinished dreams to a smaller batch if that saves enough; returns whether there are any."""
        counts = self.alive.sum(1)
        candidates = int((counts > 0).sum())
        episodes = int(counts.max())
        if candidates:
            # At least two, because a product with one candidate's matrix is computed, and rounded, in another way.
            shape = _aligned_shape(max(candidates, min(2, self.shape[0])), episodes)
            if shape[0] * shape[1] <= COMPACT_BELOW * self.alive.numel():
                self._move_to(*shape)
        return candidates > 0

    def scores(self) -> tuple[Tensor, Tensor]:
        """Returns the returns and the steps of all episodes, each (P, E)."""
        return self.returns[:-1].view(self.shape), self.steps[:-1].view(self.shape)

    def _move_to(self, candidates: int, episodes: int) -> None:
        """Copies the unfinished dreams into a batch of this shape, those of each candidate side by side.

            4 x 3    A . A         2 x 2    A A
                     . . .                  C .
                     . C .
                     . . .

        A and C are unfinished dreams of two candidates; a dot is a dream that has ended, or padding.
        """
        counts = self.alive.sum(1)
        kept = functional.pad(counts.nonzero()[:, 0], (0, candidates))[:candidates]
        is_candidate = torch.arange(candidates, device=kept.device) < (counts > 0).sum()
        column = torch.arange(episodes, device=kept.device)
        alive_first = self.alive.byte().sort(dim=1, descending=True, stable=True).indices[kept]
        source = kept[:, None] * self.alive.shape[1] + alive_first[:, column.clamp(max=self.alive.shape[1] - 1)]
        self.alive = is_candidate[:, None] & (column < counts[kept, None])
        source = torch.where(self.alive, source, 0).view(-1)
        self.episode = torch.where(self.alive, self.episode.view(-1)[source].view_as(self.alive), self.padding)
        self.noise_row = self.noise_row[source]
        self.state = self.state[source]
        self.theta = self.theta[kept]


def _split(shape: tuple[int, ...], limit: int) -> Iterator[tuple[slice, slice]]:
    """Cuts (candidates, episodes) into parts of at most `limit` dreams, of whole candidates where they fit."""
    population, episodes = shape
    columns = min(episodes, limit)
    rows = limit // columns
    for first in range(0, population, rows):
        for start in range(0, episodes, columns):
            yield slice(first, first + rows), slice(start, start + columns)


def _aligned_shape(candidates: int, episodes: int) -> tuple[int, int]:
    """The smallest shape that holds so many dreams and has a multiple of 8 of them.

    Then a row of a matrix product is rounded in the same way whatever the other rows are (as in `policies.latent`).
    """
    shapes = []
    for rows in range(candidates, candidates + 8):
        unit = 8 // gcd(rows, 8)
        shapes.append((rows, -(-episodes // unit) * unit))
    return min(shapes, key=lambda shape: shape[0] * shape[1])


def _sum_over_ranks(scores: Tensor, trainer: Trainer | None) -> Scores:
    """Joins the scores of all processes, each of which has zeros where another one played."""
    if trainer is not None and trainer.world_size > 1:
        # A number plus zeros is exact: the number of processes changes no rounding.
        scores = cast(Tensor, trainer.strategy.reduce(scores.to(trainer.strategy.root_device), reduce_op="sum")).cpu()
    return scores[0], scores[1].long()
