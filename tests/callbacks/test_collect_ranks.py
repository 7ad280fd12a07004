"""Two processes play their shares of one run and learn from what both have played."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from online_support import BATCHES, agent, collector, data, files, fit
from torch.testing import assert_close

from wmlightning.callbacks.collect import online_episode_seed
from wmlightning.callbacks.evaluate import Evaluate


class Report(Callback):
    """Saves what every process has seen, batch by batch, and its results: a forked one leaves nothing else."""

    def __init__(self, folder):
        self.folder, self.seen, self.weights = folder, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.datamodule.store.names)
        self.weights.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})

    def on_train_end(self, trainer, pl_module):
        progress = next(c for c in trainer.callbacks if hasattr(c, "progress")).progress.state()
        curves = [[*key, values] for key, values in trainer.logger.exact.items()] if trainer.is_global_zero else []
        report = {"seen": self.seen, "weights": self.weights, "progress": progress, "curves": curves}
        torch.save(report, f"{self.folder}/{trainer.global_rank}.pt")


WAYS = {
    "episodes": {"prefill_episodes": 3, "episodes_per_epoch": 3},
    "decisions": {
        "prefill_episodes": None,
        "prefill_decisions": 20,
        "episodes_per_epoch": None,
        "decisions_per_update": 3.5,
    },
}


def run(folder, way, name="whole", saving=(), ckpt_path=None, **limit):
    """A run of two processes, and what each reports."""
    folder.joinpath(name).mkdir(parents=True)
    fit(
        folder,
        callbacks=[Evaluate(every_epochs=1, episodes=3), Report(folder / name)],
        collect=collector(**way, num_envs=1),
        player=agent(),
        saving=saving,
        ckpt_path=ckpt_path,
        devices=2,
        strategy="ddp_fork",
        **limit,
    )
    return [torch.load(folder / name / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_each_plays_its_share_and_both_learn_the_same_from_all_of_it(tmp_path, way):
    ranks = run(tmp_path, way, max_epochs=3)
    for one, other in zip(ranks[0]["weights"], ranks[1]["weights"], strict=True):
        assert_close(one, other, rtol=0, atol=0)
    assert ranks[0]["seen"] == ranks[1]["seen"]
    assert ranks[0]["progress"] == ranks[1]["progress"]

    store = data(tmp_path).store
    by_rank = [[name for name in store.listing if name.rank == rank] for rank in range(2)]
    for rank, names in enumerate(by_rank):
        assert [name.index for name in names] == list(range(len(names)))
        seeds = [store.contents(name).metadata["seed"] for name in names]
        assert seeds == [online_episode_seed(0, rank, k) for k in range(len(names))]
    assert abs(len(by_rank[0]) - len(by_rank[1])) <= 1

    for updates in range(0, 4 * BATCHES, BATCHES):
        played = [name for name in store.listing if name.birth <= updates]
        if way.get("episodes_per_epoch"):
            assert len(played) == 3 + 3 * updates // BATCHES, "as many as one process would have played"
        else:
            due = 20 + 3.5 * updates
            assert due <= sum(name.rows - 1 for name in played) < due + 2 * 4
    assert ranks[0]["progress"]["env_steps"] == 7 * len(store)


@pytest.mark.slow
def test_two_processes_that_are_cut_and_resumed_go_on_exactly(tmp_path):
    for way in WAYS.values():
        folder = tmp_path / str(len(way))
        whole = run(folder / "whole", way, max_epochs=3)
        cut = folder / "cut"
        run(cut, way, "first", [ModelCheckpoint(cut, "a", every_n_train_steps=6, save_top_k=1)], max_steps=10)
        resumed = run(cut, way, "resumed", ckpt_path=cut / "a.ckpt", max_epochs=3)
        assert files(cut) == files(folder / "whole")
        for rank in range(2):
            assert_close(resumed[rank]["weights"], whole[rank]["weights"][6:], rtol=0, atol=0)
            assert resumed[rank]["progress"] == whole[rank]["progress"]
        logged = {(name, x): values for name, x, values in whole[0]["curves"]}
        assert all(logged[name, x][-len(values) :] == values for name, x, values in resumed[0]["curves"])
