"""Long episodes are collected in parts: the agent learns between them, and a run that is cut continues soundly."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from online_support import BATCHES, agent, collector, data, environment, files, fit

from datamodules.segments import SegmentedEpisodes
from wmlightning.callbacks.between_epochs import online_episode_seed

LENGTH, SEGMENT = 20, 6
"""Decisions of an episode (40 environment steps) and of a part."""
PARTS = {
    "prefill_episodes": None,
    "prefill_decisions": 14,
    "episodes_per_epoch": None,
    "decisions_per_update": 2,
    "max_segment": SEGMENT,
}


def run(folder, num_envs=2, **options):
    return fit(folder, collect=collector(**PARTS, num_envs=num_envs), player=agent(steps=2 * LENGTH), **options)


def parts_of_episodes(store):
    """The parts of each episode by (rank, index)."""
    joined = SegmentedEpisodes(store.listing)
    episodes = [joined.parts(k) for k in range(len(joined))]
    assert len({(parts[0].rank, parts[0].index) for parts in episodes}) == len(episodes), "no part is missing"
    return {(parts[0].rank, parts[0].index): parts for parts in episodes}


def check_store(store, rank=0):
    """Every episode has all parts up to its last one, each of the right length, from its own seed."""
    found = {index: parts for (other, index), parts in parts_of_episodes(store).items() if other == rank}
    assert sorted(found) == list(range(len(found)))
    for index, parts in found.items():
        steps = [name.rows - 1 for name in parts]
        assert steps in ([6, 6, 6, 2][: len(steps)], [6, 6, 6][: len(steps)])
        assert [name.part for name in parts] == list(range(len(parts)))
        assert {store.contents(name).metadata["seed"] for name in parts} == {online_episode_seed(0, rank, index)}
    return found


def test_what_is_due_is_played_in_parts_and_an_episode_goes_on_with_a_later_policy(tmp_path):
    done = run(tmp_path, max_epochs=4)
    found = check_store(done.data.store)
    for updates in range(0, 5 * BATCHES, BATCHES):
        played = sum(name.rows - 1 for name in done.data.store.listing if name.birth <= updates)
        due = 14 + 2 * updates
        assert due <= played < due + 2 * SEGMENT, "Two rows may each finish the part that they are in."
    assert any(len({name.birth for name in parts}) > 1 for parts in found.values())
    progress = done.collect.progress
    still_open = {index: parts for _, index, parts in progress.open}
    assert still_open == {index: len(p) for index, p in found.items() if sum(n.rows - 1 for n in p) < LENGTH}
    assert progress.decisions == done.data.store.num_steps
    assert progress.env_steps == 2 * progress.decisions
    assert progress.begun == [len(found)]


def test_the_return_is_that_of_whole_episodes_and_is_logged_when_one_ends(tmp_path):
    done = run(tmp_path, num_envs=1, max_epochs=6)
    store = done.data.store
    totals = {}
    for position, name in enumerate(store.listing):
        totals.setdefault(name.index, []).append(store.read(position).total_reward)
    ended = [sum(rewards) for rewards in totals.values() if len(rewards) == 4]
    logged = [value for _, value in done.curves.named("collect/return")]
    assert logged == pytest.approx(ended, rel=1e-5), "One row ends at most one episode in a collection here."
    assert 2 <= len(logged) < len(done.curves.named("collect/env_steps"))


class VisibleEpisodes(Callback):
    """Records at each batch the names of the files that training reads."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(set(trainer.datamodule.store.names))


def test_a_part_is_trained_on_at_once(tmp_path):
    watched = VisibleEpisodes()
    done = run(tmp_path, callbacks=[watched], max_epochs=3)
    for batch, seen in enumerate(watched.seen):
        assert seen == {str(name) for name in done.data.store.listing if name.birth <= batch}


@pytest.mark.parametrize("cut", [6, 8], ids=["in the middle of an epoch", "on its last batch"])
def test_a_resumed_run_keeps_the_parts_in_its_checkpoint_and_begins_new_episodes_for_open_ones(tmp_path, cut):
    saving = [ModelCheckpoint(tmp_path, "cut", every_n_train_steps=cut, save_top_k=1)]
    first = run(tmp_path, saving=saving, max_steps=11)
    known = torch.load(tmp_path / "cut.ckpt", weights_only=True)["callbacks"]["Collect"]["progress"]
    open_then = {index: parts for _, index, parts in known["open"]}
    assert open_then
    before = files(tmp_path)
    resumed = run(tmp_path, ckpt_path=tmp_path / "cut.ckpt", max_steps=20)
    assert before.keys() - files(tmp_path).keys(), "what was played after the checkpoint is set aside"
    assert len(list((tmp_path / "episodes").glob("superseded-*/*.h5"))) == len(before.keys() - files(tmp_path).keys())
    found = check_store(resumed.data.store)
    for index, parts in open_then.items():
        assert len(found[index]) == parts, "an episode that was open then does not go on"
        assert not resumed.data.store.read(resumed.data.store.listing.index(found[index][-1])).is_terminal.any()
    for name, content in files(tmp_path).items():
        assert name not in before or before[name] == content
    assert resumed.collect.progress.begun[0] == len(found) > known["begun"][0]
    assert resumed.collect.progress.decisions == resumed.data.store.num_steps
    assert first.collect.progress.decisions >= known["decisions"]


def test_a_run_can_be_resumed_again_from_a_checkpoint_of_a_resumed_one(tmp_path):
    for end in (6, 11, 18):
        saving = [ModelCheckpoint(tmp_path, "cut", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)]
        ckpt = {"ckpt_path": tmp_path / "cut.ckpt"} if end > 6 else {}
        done = run(tmp_path, saving=saving, max_steps=end, **ckpt)
        check_store(done.data.store)
    assert done.collect.progress.decisions == done.data.store.num_steps


def test_two_processes_play_their_own_episodes_in_parts(tmp_path):
    options = PARTS | {"num_envs": 1}
    fit(
        tmp_path,
        collect=collector(**options),
        player=agent(steps=2 * LENGTH),
        callbacks=[SaveProgress(tmp_path)],
        devices=2,
        strategy="ddp_fork",
        max_epochs=3,
    )
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == other
    store = data(tmp_path).store
    for rank in range(2):
        found = check_store(store, rank)
        assert one["begun"][rank] == len(found)
        still_open = {index: parts for who, index, parts in one["open"] if who == rank}
        assert still_open == {index: len(p) for index, p in found.items() if sum(n.rows - 1 for n in p) < LENGTH}
    assert one["decisions"] == store.num_steps


class SaveProgress(Callback):
    """Saves the progress of every process."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        collect = next(callback for callback in trainer.callbacks if hasattr(callback, "progress"))
        torch.save(collect.progress.state(), f"{self.folder}/{trainer.global_rank}.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PARTS | {"max_segment": 0}, "max_segment is 0"),
        ({"max_segment": 5}, "set prefill_decisions and decisions_per_update"),
        (PARTS | {"prefill_episodes": 2, "prefill_decisions": None}, "set prefill_decisions"),
    ],
)
def test_parts_are_refused_where_the_schedule_counts_whole_episodes(options, message):
    with pytest.raises(ValueError, match=message):
        collector(**options)


def test_an_agent_may_collect_under_other_rules_than_its_own_environment_has(tmp_path):
    """The agent's own episodes have 4 decisions; those that it learns from 2."""
    done = fit(tmp_path, collect=collector(environment=environment(steps=4)), max_epochs=1)
    assert {name.rows for name in done.data.store.listing} == {3}


def test_an_environment_with_other_images_than_the_agents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give both the same pictures and actions"):
        fit(tmp_path, collect=collector(environment=environment("wmlightning/DummyCorridor-v0")), max_epochs=1)
    assert not files(tmp_path)
