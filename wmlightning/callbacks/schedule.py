"""How many episodes or decisions an online run has to collect: arithmetic on counters that are equal in all processes.

After G updates the prefill and G * decisions_per_update decisions are due, or the prefill and G / updates_per_epoch *
episodes_per_epoch episodes. Episodes begin only while something is due, and all that have begun are finished, so a run
collects a little more than is due; the surplus reduces what is due at the next collection.

    update             0          100        200        decisions_per_update = 0.29, prefill_decisions = 10
    due in all         10         39         68
    collected before   0          50         50         one episode has 50 decisions
    due now            10         -11        18
"""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Literal

from datamodules.files import EpisodeName

Unit = Literal["episodes", "decisions"]


@dataclass
class CollectionProgress:
    """How much a run has collected.

    A decision is one action chosen, which the environment may repeat for several environment steps.

    Args:
        begun: episodes that each process has begun; all of them are finished but for those in `open`.
        decisions: decisions made in all episodes.
        env_steps: environment steps made, with those of episodes that were lost to a crash.
        prefilled: updates, episodes and decisions at the end of the prefill; empty before.
        visible: number of episodes (or parts of episodes) that training reads, and of the decisions in them.
        open: (rank, index, finished parts) of each episode that goes on, where episodes are collected in parts.
    """

    begun: list[int] = field(default_factory=list)
    decisions: int = 0
    env_steps: int = 0
    prefilled: list[int] = field(default_factory=list)
    visible: list[int] = field(default_factory=lambda: [0, 0])
    open: list[list[int]] = field(default_factory=list)

    @property
    def episodes(self) -> int:
        """Episodes that all processes have begun."""
        return sum(self.begun)

    def next_index(self, rank: int) -> int:
        """Returns the index of the next episode that a process begins."""
        return self.begun[rank] if rank < len(self.begun) else 0

    def add(self, episodes: list[int], decisions: int, env_steps: int, open: list[list[int]] | None = None) -> None:
        """Adds one collection.

        Args:
            episodes: number of episodes that each process has begun in it.
            decisions: decisions of all processes.
            env_steps: environment steps of all processes.
            open: (rank, index, finished parts) of each episode that goes on.
        """
        world = max(len(episodes), len(self.begun))
        before = self.begun + [0] * (world - len(self.begun))
        new = episodes + [0] * (world - len(episodes))
        self.begun = [old + more for old, more in zip(before, new, strict=True)]
        self.decisions += decisions
        self.env_steps += env_steps
        self.open = open or []

    def includes(self, name: EpisodeName) -> bool:
        """Whether an episode, or a part of one, has been collected so far."""
        begun = name.rank < len(self.begun) and name.index < self.begun[name.rank]
        return begun and all(name.part < parts for *episode, parts in self.open if episode == [name.rank, name.index])

    def visible_among(self, listing: list[EpisodeName]) -> list[EpisodeName]:
        """Returns the episodes of a listing that training read at this progress: the newest that it includes."""
        included = sorted(filter(self.includes, listing), key=lambda name: name.arrival)
        return included[max(0, len(included) - self.visible[0]) :]

    def state(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint, from which `CollectionProgress(**state)` builds an equal object."""
        return asdict(self)


class Schedule:
    """How much a run collects, before the first update and per update after it.

    Args:
        prefill_episodes: episodes before the first update; 5 if neither it nor prefill_decisions is given.
        prefill_decisions: decisions before the first update.
        episodes_per_epoch: episodes for every `updates_per_epoch` updates; 1 if neither it nor decisions_per_update is
            given.
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
        _check_one_of("prefill_episodes", prefill_episodes, "prefill_decisions", prefill_decisions, 1)
        _check_one_of("episodes_per_epoch", episodes_per_epoch, "decisions_per_update", decisions_per_update, 0)
        if prefill_decisions is not None:
            self.prefill_unit: Unit = "decisions"
            self.prefill = prefill_decisions
        else:
            self.prefill_unit = "episodes"
            self.prefill = 5 if prefill_episodes is None else prefill_episodes
        self.unit: Unit = "episodes" if decisions_per_update is None else "decisions"
        # Converted from its decimal text, so that 0.29 * 100 is exactly 29.
        self.decisions_per_update = Fraction(str(decisions_per_update or 0))
        self.episodes_per_epoch = 1 if episodes_per_epoch is None else episodes_per_epoch

    def due(self, progress: CollectionProgress, updates: int, updates_per_epoch: int) -> tuple[Unit, int]:
        """Returns the unit in which collection is due now and how much; a negative number is a surplus.

        Args:
            progress: what has been collected.
            updates: gradient steps made.
            updates_per_epoch: gradient steps for which `episodes_per_epoch` episodes are due.
        """
        if not progress.prefilled:
            return self.prefill_unit, self.prefill
        updates_then, episodes_then, decisions_then = progress.prefilled
        if self.unit == "decisions":
            rate = self.decisions_per_update
            done = progress.decisions
            done_then = decisions_then
        else:
            rate = Fraction(self.episodes_per_epoch, updates_per_epoch)
            done = progress.episodes
            done_then = episodes_then
        # The surplus of a prefill in this unit counts; a prefill in the other unit changes nothing that is due.
        prefill = self.prefill if self.unit == self.prefill_unit else done_then
        return self.unit, prefill + int((updates - updates_then) * rate) - done


def _check_one_of(name: str, value: Any, other_name: str, other: Any, least: int) -> None:
    """Checks that at most one of two settings is given, and that it is not too small; raises ValueError if not."""
    if value is not None and other is not None:
        raise ValueError(f"{name} is {value} and {other_name} {other}, but only one can hold: set one to null")
    for given_name, given in ((name, value), (other_name, other)):
        if given is not None and given < least:
            raise ValueError(f"{given_name} is {given} but must be at least {least}")


def share(due: int, rank: int, world: int, first_rank: int) -> int:
    """Returns a process's share of what is due. Shares differ by one at most; the larger ones begin at first_rank."""
    return due // world + ((rank - first_rank) % world < due % world)
