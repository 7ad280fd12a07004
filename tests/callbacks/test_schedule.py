"""What is due in an online run: as much as in the papers' runs, in shares that add up."""

import pytest

from datamodules.files import EpisodeName
from wmlightning.callbacks.schedule import CollectionProgress, Schedule, share

PAPERS = {
    "PlaNet: 1,000 episodes are 100k updates": ({"prefill_episodes": 5}, 1000, None, 1, 100_000, 1005),
    "Dreamer V1: 1e6 environment steps at repeat 2": ({"decisions_per_update": 5}, 500, 2, 500, 100_000, 1_000_000),
    "Dreamer V2, DMC: 1e6 environment steps": ({"decisions_per_update": 5}, 500, 2, 500, 100_000, 1_000_000),
    "Dreamer V2, Atari, paper: 200M frames": ({"decisions_per_update": 4}, 27_000, 4, 5, 12_500_000, 200_000_000),
    "Dreamer V2, Atari, code: 200M frames": ({"decisions_per_update": 16}, 27_000, 4, 5, 3_125_000, 200_000_000),
}


@pytest.mark.parametrize(("options", "length", "repeat", "prefill", "updates", "steps"), PAPERS.values(), ids=PAPERS)
def test_the_papers_runs_collect_what_they_say(options, length, repeat, prefill, updates, steps):
    if repeat is None:  # counted in episodes, at any action repeat and length
        schedule, progress = Schedule(**options), CollectionProgress([5], prefilled=[0, 5, 5 * length])
        assert schedule.due(progress, updates, 100) == ("episodes", steps - 5)
    else:
        schedule = Schedule(prefill_decisions=prefill, **options)
        progress = CollectionProgress([1], prefill, prefilled=[0, 1, prefill])
        unit, due = schedule.due(progress, updates, 100)
        assert (unit, due * repeat) == ("decisions", steps)


def test_every_hundred_updates_of_planet_one_episode_is_due_and_never_more():
    schedule, progress = Schedule(), CollectionProgress()
    assert schedule.due(progress, 0, 100) == ("episodes", 5)
    progress.add([5], 5 * 125, 5 * 1000)
    progress.prefilled = [0, 5, 625]
    for updates in range(0, 1001, 100):
        assert schedule.due(progress, updates, 100) == ("episodes", min(1, updates // 100))
        progress.add([min(1, updates // 100)], 125, 1000)
    assert progress.episodes == 15


def test_an_overshoot_reduces_what_is_due_later():
    schedule, progress = Schedule(prefill_decisions=10, decisions_per_update=0.29), CollectionProgress()
    progress.add([1], 50, 50)
    progress.prefilled = [0, 1, 50]
    due = [schedule.due(progress, updates, 100)[1] for updates in (0, 100, 200)]
    assert due == [-40, -11, 18], "10 + floor(0.29 updates) - 50"


def test_a_prefill_in_the_other_unit_does_not_change_what_is_due():
    progress = CollectionProgress([3], 600, prefilled=[0, 3, 600])
    assert Schedule(prefill_episodes=3, decisions_per_update=5).due(progress, 100, 100) == ("decisions", 500)
    assert Schedule(prefill_decisions=500, episodes_per_epoch=2).due(progress, 100, 100) == ("episodes", 2)


def test_an_online_run_on_trained_weights_has_nothing_to_collect_for_earlier_updates():
    assert Schedule().due(CollectionProgress([5], 10, prefilled=[7000, 5, 10]), 7100, 100) == ("episodes", 1)


def test_shares_add_up_and_take_turns():
    for due in range(12):
        for world in (1, 2, 3, 5):
            for first_rank in range(world):
                shares = [share(due, rank, world, first_rank) for rank in range(world)]
                assert sum(shares) == due
                assert max(shares) - min(shares) <= 1
    assert [share(1, rank, 2, first_rank=5 % 2) for rank in range(2)] == [0, 1]


def test_progress_tells_the_runs_own_episodes_from_others():
    progress = CollectionProgress([2, 1], visible=[2, 9])
    listing = [EpisodeName(0, 0, 0, 5), EpisodeName(0, 1, 0, 5), EpisodeName(1, 0, 4, 6), EpisodeName(1, 1, 4, 5)]
    assert [progress.includes(name) for name in listing] == [True, True, True, False]
    assert progress.visible_among(listing) == [listing[1], listing[2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_episodes": 5, "prefill_decisions": 10}, "only one can hold"),
        ({"episodes_per_epoch": 5, "decisions_per_update": 0.5}, "only one can hold"),
        ({"prefill_decisions": 0}, "prefill_decisions is 0 but must be at least 1"),
        ({"decisions_per_update": -1.0}, "at least 0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


def test_progress_tells_how_many_parts_of_an_open_episode_it_includes():
    progress = CollectionProgress(begun=[2], decisions=16, visible=[3, 12], open=[[0, 1, 2]])
    parts = [EpisodeName(1, 0, birth, 5, part) for part, birth in enumerate((0, 4, 8))]
    listing = [EpisodeName(0, 0, 0, 5), *parts]
    assert [progress.includes(name) for name in listing] == [True, True, True, False]
    assert progress.visible_among(listing) == listing[:3]
    assert CollectionProgress(**progress.state()) == progress
