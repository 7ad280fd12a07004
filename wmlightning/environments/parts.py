"""Long episodes in parts (segments), so that learning does not wait for their ends: `PartedVectorEnv` and its policy.

A rollout finishes every episode that it begins, and an episode of Atari may take 27,000 decisions: a policy that learns
between rollouts would not learn for as long. So the rollout treats a part as an episode. A part ends after
`max_segment` decisions, as if by a time limit, and where the rollout then resets the row, the episode goes on, in
this rollout or in the next.

    tick                 k           k+1            k+2         max_segment reached at k
    the rollout orders   step        reset          step
    the environment      step        rests          step        the same episode
    the rollout sees     truncated   is_first       step        and the writer closes one file and begins the next
    the policy sees      step        no is_first    step        with the carry that it had at k
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.writer import EpisodeWriter
from wmlightning.environments.rollout import EpisodeResult, write_rows
from wmlightning.environments.rows import IDLE, RESET, STEP
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Carry, Policy
from wmlightning.seeds import derive_seed


@dataclass
class PartedEpisode:
    """An episode that is played in parts.

    Args:
        index: its number in the store.
        seed: environment seed.
        part: parts that are finished.
        decisions: those of the part that is being played.
        total_reward: of the whole episode so far.
        carry: the policy's carry when the last part ended, one row; None for a fresh one.
    """

    index: int
    seed: int
    part: int = 0
    decisions: int = 0
    total_reward: float = 0.0
    carry: Carry | None = None

    @property
    def is_between_parts(self) -> bool:
        """Whether one is finished and the next has not begun."""
        return self.part > 0 and self.decisions == 0


class PartedVectorEnv(PixelVectorEnv):
    """A `PixelVectorEnv` whose rows end after max_segment decisions and go on with their episode at the next reset.

    Seeds of a reset are ignored: episode k of this object has the seed `seed_of(first + k)`, in any row. An episode
    whose worker dies ends with its last finished part; the next one begins in its place.

    Attributes:
        games: the episode that each row plays, or has paused.
        finished: episodes that have ended since this list was last emptied.
        next_index: number of the next episode that begins.

    Args:
        max_segment: decisions of a part.
        seed_of: environment seed by number of the episode.
        first: number of the first episode.
        arguments: those of `PixelVectorEnv`.

    Raises:
        ValueError: if max_segment is below 1.
    """

    def __init__(self, *arguments: Any, max_segment: int, seed_of: Callable[[int], int], first: int = 0) -> None:
        if max_segment < 1:
            raise ValueError(f"max_segment is {max_segment} but must be at least 1")
        super().__init__(*arguments)
        self.max_segment, self.seed_of, self.next_index = max_segment, seed_of, first
        self.games: dict[int, PartedEpisode] = {}
        self.finished: list[PartedEpisode] = []
        self._cut: list[int] = []

    def tick(self, order: np.ndarray, actions: np.ndarray | None = None, seeds: np.ndarray | None = None) -> np.ndarray:
        """As of `PixelVectorEnv`, but rows that are between two parts of an episode go on with it at a reset."""
        resets = np.flatnonzero(order == RESET).tolist()
        goes_on = [row for row in resets if row in self.games and self.games[row].is_between_parts]
        own_seeds = np.full(self.num_envs, -1, np.int64)
        for row in (row for row in resets if row not in goes_on):
            self.games[row] = self._begin()
            own_seeds[row] = self.games[row].seed
        asked = order.copy()
        asked[goes_on] = IDLE
        crashed, buffer = super().tick(asked, actions, own_seeds), self.buffer
        buffer.order[:] = order
        self.running[goes_on] = ~crashed[goes_on]
        for row in np.flatnonzero(crashed).tolist():
            self.games.pop(row, None)
        for row in np.flatnonzero((order == STEP) & ~crashed).tolist():
            self._count(row)
        return crashed

    def _begin(self) -> PartedEpisode:
        index, self.next_index = self.next_index, self.next_index + 1
        return PartedEpisode(index, self.seed_of(index))

    def _count(self, row: int) -> None:
        game, buffer = self.games[row], self.buffer
        game.decisions, game.total_reward = game.decisions + 1, game.total_reward + float(buffer.reward[row])
        if buffer.terminated[row] or buffer.truncated[row]:
            self.finished.append(self.games.pop(row))
        elif game.decisions == self.max_segment:
            game.part, game.decisions = game.part + 1, 0
            buffer.truncated[row], self.running[row] = True, False
            self._cut.append(row)

    def remember(self, carry: Carry | None) -> None:
        """Keeps the policy's carry of the episodes whose part has just ended.

        Args:
            carry: what the policy returned with the part's last action, before the observation that followed.
        """
        for row in self._cut:
            if carry is not None and row in self.games:
                self.games[row].carry = {key: value[row : row + 1].clone() for key, value in carry.items()}
        self._cut = []

    def forget(self) -> None:
        """Drops the carries of paused episodes, because another policy goes on with them."""
        for game in self.games.values():
            game.carry = None


class PartsPolicy:
    """Plays episodes in parts as if they were whole: it carries the policy's memory across a reset between two parts.

    Args:
        policy: chooses the actions.
        envs: where it acts.
    """

    def __init__(self, policy: Policy, envs: PartedVectorEnv) -> None:
        self.policy, self.envs = policy, envs
        self.last: Carry | None = None

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """See `Policy`."""
        return self.policy.initial(n, seeds)

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """See `Policy`; where an episode goes on, is_first is cleared and its carry is restored."""
        self.envs.remember(self.last)
        begun = [row for row in np.flatnonzero(is_first).tolist() if row in self.envs.games]
        is_first = is_first.copy()
        for row in begun:
            game = self.envs.games[row]
            is_first[row] = game.carry is None
            fresh = game.carry or self.policy.initial(1, [derive_seed(game.seed, 1)])
            carry = write_rows(carry, fresh, [row], self.envs.num_envs)
        action, self.last = self.policy(observation, is_first, carry)
        return action, self.last

    def leave(self, forget: bool = False) -> None:
        """Keeps the carries of the open episodes; with forget drops them, because another policy goes on."""
        self.envs.remember(self.last)
        if forget:
            self.envs.forget()


class PartsWriter(EpisodeWriter):
    """An `EpisodeWriter` that names files by the episode and part that a row plays.

    Args:
        envs: where the episodes are played.
        arguments: those of `EpisodeWriter`.
    """

    def __init__(self, envs: PartedVectorEnv, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.envs = envs

    def begin(
        self,
        row: int,
        observation: dict[str, np.ndarray],
        index: int,
        metadata: dict[str, Any] | None = None,
        part: int = 0,
    ) -> None:
        """See `EpisodeWriter.begin`; index, part and seed are the parted episode's."""
        game = self.envs.games[row]
        super().begin(row, observation, game.index, (metadata or {}) | {"seed": game.seed}, game.part)


def games_of(envs: PixelVectorEnv, results: list[EpisodeResult], first: int) -> list[int | float]:
    """Counts the episodes of a rollout, as equally many numbers for every rollout in these environments.

    Args:
        envs: where it was played. Where in parts, the episodes that have ended are taken out of `finished`.
        results: its results, of episodes or of parts.
        first: the number of the next episode before it.

    Returns:
        Episodes begun, episodes ended, their summed return; where in parts, index and finished parts of each row's open
        episode, -1 and -1 for none.
    """
    if not isinstance(envs, PartedVectorEnv):
        return [len(results), len(results), sum(result.total_reward for result in results)]
    ended, envs.finished = envs.finished, []
    games = [envs.games.get(row) for row in range(envs.num_envs)]
    paused: list[int | float] = [number for game in games for number in ((game.index, game.part) if game else (-1, -1))]
    return [envs.next_index - first, len(ended), sum(game.total_reward for game in ended), *paused]
