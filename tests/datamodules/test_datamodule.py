import os

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.datamodule import EpisodeDataModule, held_out
from datamodules.datasets import FrameDataset, WindowDataset
from datamodules.files import EpisodeName
from datamodules.samplers import ConsecutiveWindows, UniformWindows
from datamodules.store import EpisodeStore

LENGTHS = [20, 15, 30, 25, 18, 40, 22, 19, 27, 33, 21, 16]


class Recorder(lightning.LightningModule):
    """Records every batch that the Trainer gives it."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated, self.tested, self.predicted = [], [], [], []
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.fail_at:
            raise RuntimeError("stop here")
        self.seen.append(where(batch))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(where(batch))

    def test_step(self, batch, batch_idx):
        self.tested.append(where(batch))

    def predict_step(self, whole, batch_idx):
        self.predicted.append((whole.index, whole.batch.shape[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Unvalidated(Recorder):
    validation_step = None  # type: ignore[assignment]


def where(batch):
    return batch.observation["where"].int().tolist()


def data(path, dataset=None, **options):
    dataset = dataset or WindowDataset(UniformWindows(5))
    settings = {"batch_size": 3, "updates_per_epoch": 4, "validation_fraction": 0.25, "validation_batches": 2}
    return EpisodeDataModule(str(path), dataset, **(settings | options))


def trainer(root, callbacks=(), **options):
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 3,
        "enable_checkpointing": bool(callbacks),
    }
    return lightning.Trainer(default_root_dir=root, callbacks=list(callbacks), **(settings | options))


@pytest.fixture(scope="module")
def path(store_of):
    return store_of(LENGTHS).path


def test_an_epoch_has_as_many_batches_as_asked_for_and_the_next_goes_on(path, tmp_path):
    recorder = Unvalidated()
    trainer(tmp_path).fit(recorder, datamodule=data(path))
    store = EpisodeStore(path)
    module = data(path)
    train = module.episodes(validation=False)
    assert len(recorder.seen) == 12
    assert recorder.seen == [where(module.dataset.draw(store, train, 0, b, 3)) for b in range(12)]


CUTS = {
    "in the middle of an epoch": (6, {"every_n_train_steps": 6}),
    "on its last batch": (8, {"every_n_train_steps": 8}),
    "at its end": (8, {"every_n_epochs": 2, "save_on_train_epoch_end": True}),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", [Unvalidated, Recorder])
@pytest.mark.parametrize("dataset", [WindowDataset(UniformWindows(5)), WindowDataset(ConsecutiveWindows(4))])
def test_a_resumed_run_reads_what_an_uninterrupted_one_reads(path, tmp_path, cut, kind, dataset):
    batches, when = CUTS[cut]
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, **when)
    whole, rest = kind(), kind()
    trainer(tmp_path, [saving]).fit(whole, datamodule=data(path, dataset))
    (checkpoint,) = tmp_path.glob(f"*step={batches}.ckpt")
    trainer(tmp_path).fit(rest, datamodule=data(path, dataset), ckpt_path=checkpoint, weights_only=True)
    assert len(whole.seen) == 12
    assert rest.seen == whole.seen[batches:]


def test_a_run_that_died_goes_on_with_the_batch_it_died_in(path, tmp_path):
    saving = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True)
    died, rest, whole = Unvalidated(fail_at=5), Unvalidated(), Unvalidated()
    with pytest.raises(RuntimeError, match="stop here"):
        trainer(tmp_path, [saving]).fit(died, datamodule=data(path))
    (checkpoint, *_) = sorted(tmp_path.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)[-1:]
    trainer(tmp_path).fit(rest, datamodule=data(path), ckpt_path=checkpoint, weights_only=True)
    trainer(tmp_path).fit(whole, datamodule=data(path))
    assert died.seen + rest.seen == whole.seen


def test_reading_processes_give_the_same_batches(path, tmp_path):
    seen = []
    for workers in (0, 2):
        recorder = Unvalidated()
        trainer(tmp_path, max_epochs=2).fit(recorder, datamodule=data(path, num_workers=workers))
        seen.append(recorder.seen)
    assert len(seen[0]) == 8
    assert seen[0] == seen[1]


def test_a_compressed_store_gives_the_same_batches(path, store_of):
    packed = store_of(LENGTHS, compression="gzip").path
    raw, other = data(path).train_dataloader(), data(packed, num_workers=1).train_dataloader()
    assert [where(batch) for batch in raw] == [where(batch) for batch in other]


def test_the_loader_leaves_the_learning_noise_alone(path):
    for workers in (0, 1):
        state = torch.get_rng_state()
        list(data(path, num_workers=workers).train_dataloader())
        assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_see_the_halves_of_the_batch_that_one_would_see(path, tmp_path):
    class Writing(Unvalidated):
        def on_train_end(self):
            torch.save(self.seen, tmp_path / f"{self.global_rank}.pt")

    # A forked process in a busy test run may be lost at exit after its work is done: the files tell.
    trainer(tmp_path, devices=2, strategy="ddp_fork", max_epochs=2).fit(Writing(), datamodule=data(path))
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = Unvalidated()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=data(path, batch_size=6))
    assert [left + right for left, right in zip(*halves, strict=True)] == whole.seen


def test_episodes_that_arrive_are_seen_from_the_next_epoch_on(store_of, episode, tmp_path):
    store = store_of(LENGTHS[:4])

    class Collecting(Unvalidated):
        def on_train_epoch_end(self):
            store.append(episode(len(store), 30), len(store))

    collecting = Collecting()
    module = data(store.path, updates_per_epoch=30, validation_fraction=0.0)
    trainer(tmp_path, max_epochs=3).fit(collecting, datamodule=module)
    by_epoch = [
        {row[0] for batch in collecting.seen[30 * e : 30 * e + 30] for window in batch for row in window}
        for e in range(3)
    ]
    assert max(by_epoch[0]) == 3
    assert 4 in by_epoch[1]
    assert 5 in by_epoch[2]


def test_a_store_filled_after_the_loader_was_made_is_seen_in_the_first_epoch(tmp_path, episode):
    class Prefilling(Unvalidated):
        def on_train_start(self):
            for index in range(4):
                self.trainer.datamodule.store.append(episode(index, 20), index)

    recorder = Prefilling()
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=data(tmp_path / "store"))
    assert len(recorder.seen) == 4


def test_validation_and_test_show_the_same_held_out_windows_every_time(path, tmp_path):
    recorder, module = Recorder(), data(path)
    fitting = trainer(tmp_path)
    fitting.fit(recorder, datamodule=module)
    kept = {name.index for name in module.episodes(validation=True)}
    assert len(recorder.validated) == 3 * 2
    assert recorder.validated[:2] == recorder.validated[2:4] == recorder.validated[4:]
    trained = {row[0] for batch in recorder.seen for window in batch for row in window}
    validated = {row[0] for batch in recorder.validated for window in batch for row in window}
    assert validated <= kept
    assert not trained & kept
    batches = sum(LENGTHS[index] for index in kept) // (3 * 5)
    for _ in range(2):
        trainer(tmp_path).test(recorder, datamodule=data(path), verbose=False)
    assert len(recorder.tested) == 2 * batches
    assert recorder.tested[:batches] == recorder.tested[batches:]


def test_testing_frames_shows_held_out_frames_at_most_once(path):
    module = data(path, FrameDataset(), batch_size=8)
    rows = [tuple(row[0]) for batch in module.test_dataloader() for row in where(batch)]
    kept = {(n.index, row) for n in module.episodes(validation=True) for row in range(n.rows)}
    assert len(rows) == len(set(rows)) > len(kept) - 8
    assert set(rows) <= kept


def test_prediction_goes_through_every_whole_episode(path, tmp_path):
    recorder = Recorder()
    trainer(tmp_path).predict(recorder, datamodule=data(path), return_predictions=False)
    assert recorder.predicted == list(enumerate(LENGTHS))


def test_a_prediction_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no episodes: collect some"):
        trainer(tmp_path).predict(Recorder(), datamodule=data(tmp_path / "nowhere"), return_predictions=False)


def test_prediction_passes_over_a_damaged_episode(store_of, tmp_path):
    store = store_of([10, 12, 14])
    os.truncate(f"{store.path}/{store.names[1]}", 0)
    recorder = Recorder()
    with pytest.warns(UserWarning, match="1 of 3 episodes"):
        trainer(tmp_path).predict(recorder, datamodule=data(store.path), return_predictions=False)
    assert recorder.predicted == [(0, 10), (2, 14)]


def test_episodes_shorter_than_a_window_are_counted_in_a_warning(store_of):
    loader = data(store_of([30, 4, 30, 5]).path, validation_fraction=0.0).train_dataloader()
    with pytest.warns(UserWarning, match="1 of 4 episodes in .* are shorter than a window of 5 rows"):
        batches = [where(batch) for batch in loader]
    assert {row[0] for batch in batches for window in batch for row in window} == {0, 2, 3}


def test_without_held_out_episodes_nothing_is_validated(path, tmp_path):
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=data(path, validation_fraction=0.0))
    assert len(recorder.seen) == 4
    assert recorder.validated == []


def test_the_spec_is_what_the_files_hold(path, tmp_path):
    spec = data(path).spec
    assert spec.observation == {"where": ((2,), "float32")}
    assert (spec.action_size, spec.discrete) == (2, False)


def test_what_is_wrong_is_said_in_one_line(tmp_path, store_of):
    with pytest.raises(ValueError, match="holds no episodes: collect some"):
        next(iter(data(tmp_path / "none").train_dataloader()))
    with pytest.raises(ValueError, match="holds no episodes: collect some"):
        _ = data(tmp_path / "none").spec
    lonely = store_of([30]).path
    with pytest.raises(ValueError, match="of the 1 episodes in .* none is held out"):
        next(iter(data(lonely).val_dataloader()))
    with pytest.raises(ValueError, match=r"longest of 1 episodes has 30 rows .* but windows need 31"):
        next(iter(data(lonely, WindowDataset(UniformWindows(31))).train_dataloader()))
    with pytest.raises(ValueError, match="validation_fraction is 0.7"):
        data(lonely, validation_fraction=0.7)
    with pytest.raises(ValueError, match="batch_size is 0"):
        data(lonely, batch_size=0)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5])
def test_the_held_out_share_is_as_asked_and_does_not_change_as_data_arrives(fraction):
    names = [EpisodeName(index, rank, 0, 10) for index in range(1000) for rank in range(2)]
    out = held_out(names, fraction, seed=3)
    assert out.mean() == fraction
    for count in (2, 3, 10, 57, 999):
        assert held_out(names[: 2 * count], fraction, seed=3).tolist() == out[: 2 * count].tolist()
        assert 0 < held_out(names[: 2 * count], fraction, seed=3).sum() < 2 * count
    assert held_out(names, fraction, seed=4).tolist() != out.tolist()
    places = {name.index % round(1 / fraction) for name, is_out in zip(names, out, strict=True) if is_out}
    assert len(places) == round(1 / fraction), "not a modulus of the index"
