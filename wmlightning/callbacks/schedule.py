"""What an online run owes, and what it has paid: arithmetic on counters that are equal in every process.

After G updates a run owes its prefill and G * decisions_per_update decisions, or G / updates_per_epoch *
episodes_per_epoch episodes. Episodes begin only while something is owed; all that have begun are finished, so a run
pays a little more than it owes, and the overshoot counts for the next time.
"""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Literal

from datamodules.files import EpisodeName

Unit = Literal["episodes", "decisions"]


@dataclass
class CollectionProgress:
    """What has been played.

    Args:
        begun: episodes that each process has begun, all of them finished but for those that are open.
        decisions: actions chosen in them.
        env_steps: environment steps made, those of episodes that came to nothing included.
        prefilled: updates, episodes and decisions when the prefill was done; empty before.
        view: episodes (or parts of such) and decisions that are learned from.
        open: (rank, index, finished parts) of each episode that is still being played, part by part.
    """

    begun: list[int] = field(default_factory=list)
    decisions: int = 0
    env_steps: int = 0
    prefilled: list[int] = field(default_factory=list)
    view: list[int] = field(default_factory=lambda: [0, 0])
    open: list[list[int]] = field(default_factory=list)

    @property
    def episodes(self) -> int:
        """Episodes of all processes."""
        return sum(self.begun)

    def first(self, rank: int) -> int:
        """The number of the next episode that a process begins."""
        return self.begun[rank] if rank < len(self.begun) else 0

    def add(self, episodes: list[int], decisions: int, env_steps: int, open: list[list[int]] | None = None) -> None:
        """Takes down a collection: the episodes of each process, decisions and environment steps of all together.

        Args:
            episodes: begun by each process.
            decisions: of all.
            env_steps: of all.
            open: (rank, index, finished parts) of each that is not finished.
        """
        world = max(len(episodes), len(self.begun))
        before, new = (counts + [0] * (world - len(counts)) for counts in (self.begun, episodes))
        self.begun = [old + more for old, more in zip(before, new, strict=True)]
        self.decisions += decisions
        self.env_steps += env_steps
        self.open = open or []

    def counts(self, name: EpisodeName) -> bool:
        """Whether this episode, or part of one, is among those played."""
        begun = name.rank < len(self.begun) and name.index < self.begun[name.rank]
        return begun and all(name.part < parts for *game, parts in self.open if game == [name.rank, name.index])

    def in_view(self, listing: list[EpisodeName]) -> list[EpisodeName]:
        """Those of the listing that were learned from when this progress was written: the newest it counts."""
        counted = sorted(filter(self.counts, listing), key=lambda name: name.arrival)
        return counted[max(0, len(counted) - self.view[0]) :]

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `CollectionProgress(**state)` is the way back."""
        return asdict(self)


class Schedule:
    """How much a run plays.

    Args:
        prefill_episodes: episodes before the first update; 5 where neither it nor prefill_decisions is given.
        prefill_decisions: decisions before the first update.
        episodes_per_epoch: episodes for every `updates_per_epoch` updates; 1 where neither is given.
        decisions_per_update: decisions for every update; may be a fraction.

    Raises:
        ValueError: if both of a pair are given, or a number is too small.
    """

    def __init__(
        self,
        prefill_episodes: int | None = None,
        prefill_decisions: int | None = None,
        episodes_per_epoch: int | None = None,
        decisions_per_update: float | int | None = None,
    ) -> None:
        pairs = (
            ("prefill_episodes", prefill_episodes, "prefill_decisions", prefill_decisions, 1),
            ("episodes_per_epoch", episodes_per_epoch, "decisions_per_update", decisions_per_update, 0),
        )
        for first, number, second, other, least in pairs:
            if number is not None and other is not None:
                raise ValueError(f"{first} is {number} and {second} {other}, but only one can hold: set one to null")
            for name, value in ((first, number), (second, other)):
                if value is not None and value < least:
                    raise ValueError(f"{name} is {value} but must be at least {least}")
        self.prefill_unit: Unit = "episodes" if prefill_decisions is None else "decisions"
        self.prefill = (5 if prefill_episodes is None else prefill_episodes) if prefill_decisions is None else 0
        self.prefill = self.prefill or int(prefill_decisions or 0)
        self.unit: Unit = "episodes" if decisions_per_update is None else "decisions"
        # As it is written: 0.29 * 100 is 29 here.
        self.rate = Fraction(str(decisions_per_update)) if decisions_per_update is not None else Fraction(0)
        self.episodes_per_epoch = 1 if episodes_per_epoch is None else episodes_per_epoch

    def debt(self, progress: CollectionProgress, updates: int, updates_per_epoch: int) -> tuple[Unit, int]:
        """What is owed now, and in which unit; negative is credit.

        Args:
            progress: what has been played.
            updates: gradient steps made.
            updates_per_epoch: gradient steps for which `episodes_per_epoch` episodes are owed.
        """
        if not progress.prefilled:
            return self.prefill_unit, self.prefill
        begun_at, *prefilled = progress.prefilled
        rate = self.rate if self.unit == "decisions" else Fraction(self.episodes_per_epoch, updates_per_epoch)
        base = self.prefill if self.unit == self.prefill_unit else prefilled[self.unit == "decisions"]
        paid = progress.decisions if self.unit == "decisions" else progress.episodes
        return self.unit, base + int((updates - begun_at) * rate) - paid


def share(debt: int, rank: int, world: int, turn: int) -> int:
    """One process's part of a debt; parts differ by one at most, and whose is larger goes round with `turn`."""
    return debt // world + ((rank - turn) % world < debt % world)
