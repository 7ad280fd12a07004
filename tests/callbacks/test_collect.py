"""Online collection: what is played, counted, logged, kept and refused."""

import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from online_support import BATCHES, Chaser, agent, collector, environment, files, fit

from wmlightning.callbacks.collect import online_episode_seed
from wmlightning.policies.exploration import ConstantPolicy


def test_it_plays_the_prefill_and_then_what_is_due_after_each_epoch(tmp_path):
    run = fit(tmp_path, max_epochs=3)
    births = [name.birth for name in run.data.store.listing]
    assert births == [0] * 3 + [BATCHES] * 2 + [2 * BATCHES] * 2 + [3 * BATCHES] * 2
    assert run.data.store.indices.tolist() == list(range(9))
    assert run.collect.progress.decisions == run.data.store.num_steps == 9 * 4


def test_environment_steps_are_those_really_made_and_the_x_axis_of_every_curve(tmp_path):
    run = fit(tmp_path, max_epochs=2)
    # 7 steps an episode, although 4 decisions repeat their actions twice.
    assert [x for x, _ in run.curves.named("collect/return")] == [3 * 7, 5 * 7, 7 * 7]
    assert [x for x, _ in run.curves.named("chaser/loss")] == [3 * 7] * BATCHES + [5 * 7] * BATCHES
    assert run.curves.named("collect/env_steps")[-1] == (49, 49.0)
    assert run.curves.named("collect/episodes")[-1] == (49, 7.0)
    assert run.curves.named("collect/decisions")[-1] == (49, 28.0)
    assert len(run.curves.named("collect/steps_per_second")) == 3
    assert len(run.curves.named("collect/updates_per_second")) == 2


def test_what_is_logged_of_the_returns_and_the_age_is_what_is_in_the_store(tmp_path):
    run = fit(tmp_path, max_epochs=1)
    returns = [run.data.store.read(k).total_reward for k in range(5)]
    assert [value for _, value in run.curves.named("collect/return")] == pytest.approx(
        [np.mean(returns[:3]), np.mean(returns[3:])]
    )
    # Three episodes of equal length born at batch 0, two at batch 4.
    assert [value for _, value in run.curves.named("collect/replay_age")] == [0.0, 3 / 5 * BATCHES]


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_decisions_due_do_not_depend_on_the_action_repeat_and_an_overshoot_reduces_them(tmp_path, repeat):
    collect = collector(prefill_episodes=None, prefill_decisions=10, episodes_per_epoch=None, decisions_per_update=1.5)
    run = fit(tmp_path, collect=collect, player=agent(action_repeat=repeat), max_epochs=6)
    length = -(-7 // repeat)
    played = 0
    for batch in range(0, 7 * BATCHES, BATCHES):
        played += sum(name.rows - 1 for name in run.data.store.listing if name.birth == batch)
        due = 10 + 1.5 * batch
        assert due <= played < due + 2 * length, "Two environments finish the episodes that they have begun."
    assert run.collect.progress.env_steps == 7 * len(run.data.store)
    assert run.curves.named("collect/overshoot")[-1][1] == played - due


def test_several_accumulated_batches_count_as_one_update(tmp_path):
    run = fit(tmp_path, max_epochs=8, accumulate_grad_batches=4)
    assert run.trainer.global_step == 8
    assert run.collect.progress.episodes == 3 + 8 // BATCHES * 2


def test_the_policy_is_random_before_the_first_update_and_then_the_agents(tmp_path):
    run = fit(tmp_path, max_epochs=1)
    random = np.concatenate([run.data.store.read(k).action[1:] for k in range(3)])
    assert len(np.unique(random)) == random.size
    other = fit(tmp_path / "other", collect=collector(prefill_policy=ConstantPolicy([1.0, 0.0])), max_epochs=1)
    assert (other.data.store.read(0).action[1:] == [1.0, 0.0]).all()
    assert not (other.data.store.read(3).action[1:] == [1.0, 0.0]).any()
    third = fit(tmp_path / "third", collect=collector(policy=ConstantPolicy([0.0, 1.0])), max_epochs=1)
    assert (third.data.store.read(3).action[1:] == [0.0, 1.0]).all()


def test_episodes_differ_in_their_seeds_and_name_them(tmp_path):
    run = fit(tmp_path, max_epochs=2)
    seeds = [run.data.store.contents(name).metadata["seed"] for name in run.data.store.listing]
    assert seeds == [online_episode_seed(0, 0, k) for k in range(7)]
    assert len(set(seeds)) == 7


def test_a_collection_changes_neither_the_learning_noise_nor_the_mode(tmp_path):
    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert pl_module.training
            assert torch.equal(torch.get_rng_state(), self.state)

        def on_train_batch_end(self, *_):
            self.state = torch.get_rng_state()

    fit(tmp_path, callbacks=[Watch()], max_epochs=2)


def test_an_epoch_trains_on_all_episodes_played_before_it(tmp_path):
    seen = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault(trainer.current_epoch, len(trainer.datamodule.store))

    fit(tmp_path, callbacks=[Look()], max_epochs=3)
    assert seen == {0: 3, 1: 5, 2: 7}


# --------------------------------------------------------------------------------------------------------------- caps


def test_under_a_cap_training_reads_the_newest_episodes_and_those_of_a_checkpoint_are_kept(tmp_path):
    folder, checkpoint = tmp_path / "spared", tmp_path / "spared/checkpoints/a.ckpt"

    def capped(folder=folder, **options):
        return fit(folder, settings={"cap_decisions": 4 * 4}, **options)

    free = capped(tmp_path / "free", max_epochs=4)
    assert free.data.store.indices.tolist() == [7, 8, 9, 10]
    first = capped(saving=[ModelCheckpoint(checkpoint.parent, "a", every_n_epochs=1)], max_epochs=1)
    assert first.data.store.indices.tolist() == [1, 2, 3, 4]
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"keeps 4 episodes .* beyond its cap"):
            later = capped(ckpt_path=checkpoint, max_epochs=4)
        assert later.data.store.indices.tolist() == [1, 2, 3, 4, 7, 8, 9, 10]
        assert [name.index for name in later.data.episodes(validation=False)] == [7, 8, 9, 10]
        assert files(free.folder).items() <= files(folder).items(), "What is kept changes nothing."
    later.trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint.unlink()
    last = capped(ckpt_path=tmp_path / "end.ckpt", max_epochs=5)
    assert last.data.store.indices.tolist() == [9, 10, 11, 12], "Nobody needs the others."


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_store_of_another_run_is_refused_before_anything_is_played(tmp_path):
    fit(tmp_path, max_epochs=1)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"holds episodes of another run .*--ckpt_path, or give data.path a folder"):
        fit(tmp_path, max_epochs=1)
    assert files(tmp_path) == before


def test_a_checkpoint_without_its_episodes_is_refused(tmp_path):
    saving = [ModelCheckpoint(tmp_path, "a", every_n_epochs=1)]
    fit(tmp_path, saving=saving, max_epochs=1)
    shutil.rmtree(tmp_path / "episodes")
    with pytest.raises(ValueError, match="learned from 5 episodes with 20 decisions but .* has 0 of them with 0"):
        fit(tmp_path, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


def test_another_action_repeat_than_the_stores_is_refused(tmp_path):
    fit(tmp_path, saving=[ModelCheckpoint(tmp_path, "a", every_n_epochs=1)], max_epochs=1)
    with pytest.raises(ValueError, match="recorded with action_repeat 2 but the agent has 1"):
        fit(tmp_path, player=agent(action_repeat=1), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


def test_a_validation_that_would_find_nothing_is_refused_before_anything_is_played(tmp_path):
    with pytest.raises(ValueError, match="prefill_episodes is 1 but .* collect at least 2, or set data.valid"):
        fit(tmp_path, collect=collector(prefill_episodes=1), settings={"validation_fraction": 0.1})
    assert not (tmp_path / "episodes").exists()


def test_a_stage_that_is_no_agent_is_refused(tmp_path):
    player = Chaser(environment())
    del player.environment
    with pytest.raises(ValueError, match="Collect wants an agent with a policy and an environment, which Chaser"):
        fit(tmp_path, player=player, max_epochs=1)


def test_num_workers_change_nothing(tmp_path):
    one = fit(tmp_path / "one", max_epochs=1)
    two = fit(tmp_path / "two", collect=collector(num_workers=1), max_epochs=1)
    assert files(one.folder) == files(two.folder)
