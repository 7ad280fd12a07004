"""The one loop: an episode depends on its job alone, and everything recorded really happened."""

import numpy as np
import pytest
import torch

from datamodules.store import EpisodeStore
from datamodules.writer import BackgroundWriter, EpisodeWriter
from wmlightning.environments import workers
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies.exploration import SmoothNoisePolicy

COUNTER = EnvFactory("wmlightning/DummyCounter-v0", size=8, kwargs={"steps": 6})
# Episodes of different lengths, so that rows become free at different times.
CORRIDOR = EnvFactory("wmlightning/DummyCorridor-v0", size=8, kwargs={"steps": 25})
NOISE = SmoothNoisePolicy(2, timescale=3.0)
WANDER = SmoothNoisePolicy(3, timescale=3.0, mean=[0.0, 0.0, 0.3], discrete=True)


class Looking:
    """A policy that is not blind, and so is played in step."""

    def __init__(self, policy):
        self.initial, self.act = policy.initial, policy

    def __call__(self, observation, is_first, carry):
        assert observation["image"].any() or is_first.any()
        return self.act(observation, is_first, carry)


def recorded(path, factory, policy, seeds, num_envs, num_workers=0, **kwargs):
    store = EpisodeStore(path)
    with factory.vector(num_envs, num_workers) as envs:
        results = rollout(envs, policy, seeds, writer=EpisodeWriter(store), **kwargs)
    return results, [store.read(position) for position in range(len(store))]


def assert_same(one, two):
    assert one[0] == two[0]
    assert len(one[1]) == len(two[1])
    for first, second in zip(one[1], two[1], strict=True):
        assert first.metadata == second.metadata
        np.testing.assert_array_equal(first.observation["image"], second.observation["image"])
        for name in ("action", "reward", "is_first", "is_terminal"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_an_episode_depends_on_its_seed_and_not_on_rows_workers_or_company(tmp_path):
    seeds = [11, 5, 8, 5, 2, 99, 31]
    alone = recorded(tmp_path / "1", CORRIDOR, WANDER, seeds, 1)
    assert len({result.decisions for result in alone[0]}) > 2, "The lengths should differ for this to be a test."
    assert any(result.terminated for result in alone[0])
    assert_same(alone, recorded(tmp_path / "3", CORRIDOR, WANDER, seeds, 3))
    assert_same(alone, recorded(tmp_path / "16", CORRIDOR, WANDER, seeds, 16))
    assert_same(alone, recorded(tmp_path / "w", CORRIDOR, WANDER, seeds, 4, 2))
    assert_same(alone, recorded(tmp_path / "l", CORRIDOR, Looking(WANDER), seeds, 4, 2))
    backwards, _ = recorded(tmp_path / "b", CORRIDOR, WANDER, seeds[::-1], 3)
    assert [(r.seed, r.total_reward) for r in backwards[::-1]] == [(r.seed, r.total_reward) for r in alone[0]]


def test_results_come_in_the_order_of_the_jobs_and_add_up(tmp_path):
    results, episodes = recorded(tmp_path, CORRIDOR, WANDER, [4, 3, 2, 1], 2)
    assert [(result.seed, result.job) for result in results] == [(4, 0), (3, 1), (2, 2), (1, 3)]
    for result, episode in zip(results, episodes, strict=True):
        assert episode.num_steps == result.decisions == result.env_steps
        assert episode.total_reward == pytest.approx(result.total_reward, abs=1e-5)
        assert bool(episode.is_terminal[-1]) == result.terminated
        assert episode.metadata["seed"] == result.seed
        assert episode.metadata["environment"] == CORRIDOR.id
        assert episode.metadata["discrete"] is True


def test_action_t_led_to_image_t_in_what_is_recorded(tmp_path):
    _, episodes = recorded(tmp_path, COUNTER, NOISE, [0, 1, 2], 2)
    for episode in episodes:
        pixel = episode.observation["image"][:, 0, 0].astype(int)
        np.testing.assert_array_equal(pixel[:, 0], np.arange(7))
        np.testing.assert_array_equal(episode.reward, np.arange(7))
        np.testing.assert_array_equal(pixel[1:, 1:], np.rint(100 * episode.action[1:].astype(float) + 128))
        assert episode.is_first.tolist() == [True] + [False] * 6
        assert not episode.is_terminal.any(), "A time limit is not an end."


def test_the_indices_asked_for_are_the_ones_stored(tmp_path):
    recorded(tmp_path, COUNTER, NOISE, [7, 8], 2, indices=[30, 10])
    store = EpisodeStore(tmp_path)
    assert store.indices.tolist() == [10, 30]
    assert store.read(1).metadata["seed"] == 7


def test_env_steps_are_raw_steps():
    factory = EnvFactory("wmlightning/DummyCounter-v0", action_repeat=4, size=8, time_limit=10)
    with factory.vector(1) as envs:
        (result,) = rollout(envs, NOISE, [0])
    assert (result.decisions, result.env_steps, result.total_reward) == (3, 10, 55.0)


@pytest.mark.parametrize("policy", [NOISE, Looking(NOISE)], ids=["ahead", "in step"])
@pytest.mark.parametrize("kind", ["kill", "hang"])
def test_an_episode_whose_worker_dies_is_begun_again_and_comes_out_the_same(tmp_path, kind, policy):
    def play(name, marker, workers):
        kwargs = {"kind": kind, "marker": str(marker)}
        factory = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs=kwargs)
        store = EpisodeStore(tmp_path / name)
        with factory.vector(4, workers, timeout=2.0 if kind == "hang" else 60.0) as envs:
            results = rollout(envs, policy, list(range(8)), writer=EpisodeWriter(store))
        return results, [store.read(position) for position in range(len(store))]

    (tmp_path / "happened").touch()
    peaceful = play("peaceful", tmp_path / "happened", 0)
    with pytest.warns(UserWarning, match="worker 1"):
        assert_same(peaceful, play("struck", tmp_path / "fresh", 2))


def test_where_nothing_is_looked_at_short_and_long_episodes_share_rows_without_a_trace(tmp_path):
    factories = [COUNTER, EnvFactory(COUNTER.id, size=8, kwargs={"steps": 100})]
    for factory in factories:
        alone = recorded(tmp_path / f"{id(factory)}", factory, NOISE, list(range(9)), 1)
        for rows, processes in ((1, 1), (5, 2)):
            path = tmp_path / f"{id(factory)}-{rows}"
            assert_same(alone, recorded(path, factory, NOISE, list(range(9)), rows, processes))


class Asked(SmoothNoisePolicy):
    """Notes what it is called with."""

    def __call__(self, observation, is_first, carry):
        calls.append((sorted(observation), len(is_first)))
        return super().__call__(observation, is_first, carry)


calls: list[tuple[list[str], int]] = []


@pytest.mark.parametrize(
    ("workers", "options", "asked"),
    [
        (2, {}, {((), 2)}),
        (0, {}, {(("image",), 4)}),
        (2, {"may_begin": lambda decisions: decisions < 20}, {(("image",), 4)}),
    ],
)
def test_a_policy_is_asked_ahead_where_it_is_blind_there_are_workers_and_nobody_counts(workers, options, asked):
    calls.clear()
    with COUNTER.vector(4, workers) as envs:
        results = rollout(envs, Asked(2), list(range(6)), **options)
    assert {(tuple(keys), rows) for keys, rows in calls} == asked
    assert len(results) == (4 if options else 6)


def test_rows_ahead_do_not_wait_for_a_slow_worker(tmp_path):
    factory = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs={"kind": "hang", "marker": str(tmp_path / "m")})
    told = []
    with factory.vector(2, 2, timeout=3.0) as envs:
        with pytest.warns(UserWarning, match="worker 1"):
            rollout(envs, NOISE, [0, 3, *range(4, 12)], progress=lambda *numbers: told.append(numbers))
        assert envs.env_steps_made >= 100
    # The first to be told of while the row with seed 3 hangs is all that the other row can play.
    assert max(decisions for _, _, decisions in told[:-2]) >= 90


@pytest.mark.filterwarnings("ignore:environment worker")
def test_an_episode_that_always_kills_its_worker_ends_the_rollout_with_its_seed():
    factory = EnvFactory("accidents:tests/Accident-v0", size=8)
    with factory.vector(1, 1) as envs, pytest.raises(RuntimeError, match="seed 3 killed its worker 3 times"):
        rollout(envs, NOISE, [3])


class Watcher:
    """A policy that notes what it is called with."""

    def __init__(self):
        self.rows, self.firsts, self.steps = set(), 0, []

    def initial(self, n, seeds=None):
        return {"step": torch.zeros(n, dtype=torch.int64), "mark": torch.arange(n)}

    def __call__(self, observation, is_first, carry):
        self.rows.add((len(observation["image"]), len(is_first), len(carry["step"])))
        self.firsts += int(is_first.sum())
        self.steps.append(carry["step"].tolist())
        return np.zeros((len(is_first), 2), np.float32), {**carry, "step": carry["step"] + 1}


def test_the_policy_always_sees_all_rows_and_a_new_episode_gets_a_fresh_carry():
    policy = Watcher()
    with COUNTER.vector(4) as envs:
        rollout(envs, policy, list(range(6)))
    assert policy.rows == {(4, 4, 4)}
    assert policy.firsts == 6
    assert policy.steps[0] == [0, 0, 0, 0]
    assert policy.steps[6][:2] == [0, 0], "Rows 0 and 1 begin the last two jobs at the seventh call."


def test_begin_is_asked_for_the_carry_of_the_jobs_that_begin():
    asked = []

    def begin(jobs):
        asked.extend(jobs)
        return {"step": torch.tensor([100 * job for job in jobs]), "mark": torch.tensor(jobs)}

    policy = Watcher()
    with COUNTER.vector(2) as envs:
        rollout(envs, policy, [0, 0, 0], begin=begin)
    assert asked == [0, 1, 2]
    assert policy.steps[0] == [0, 100]
    assert policy.steps[6][0] == 200


def test_a_rollout_stops_when_it_is_asked_to_and_keeps_whole_episodes_only(tmp_path):
    calls = []

    def should_stop():
        calls.append(1)
        return len(calls) > 10

    results, episodes = recorded(tmp_path, COUNTER, NOISE, list(range(9)), 2, should_stop=should_stop)
    assert [result.job for result in results] == [0, 1]
    assert [len(episode) for episode in episodes] == [7, 7]


def test_a_rollout_ahead_that_stops_or_is_interrupted_leaves_the_environments_usable(tmp_path, monkeypatch):
    factory = EnvFactory(COUNTER.id, size=8, kwargs={"steps": 100})
    whole = recorded(tmp_path / "whole", factory, NOISE, [5, 6, 7], 1)
    calls = iter([False] * 3 + [True])
    store = EpisodeStore(tmp_path / "stopped")
    with factory.vector(2, 2) as envs:
        with BackgroundWriter(EpisodeWriter(store)) as writer:
            assert rollout(envs, NOISE, [1, 2, 3], writer=writer, should_stop=lambda: next(calls)) == []
        assert len(store) == 0
        with monkeypatch.context() as patch:
            patch.setattr(workers, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                rollout(envs, NOISE, [1, 2, 3])
        before = envs.env_steps_made
        with BackgroundWriter(EpisodeWriter(store)) as writer:
            results = rollout(envs, NOISE, [5, 6, 7], writer=writer)
        assert envs.env_steps_made - before >= 300
        envs.reset(seed=0)
        assert envs.step(np.zeros((2, 2)))[0]["image"][:, 0, 0, 0].tolist() == [1, 1]
    assert_same(whole, (results, [store.read(position) for position in range(3)]))


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_an_environment_raises_ahead_is_told_with_its_row():
    factory = EnvFactory("accidents:tests/Accident-v0", size=8, kwargs={"kind": "raise"})
    with factory.vector(2, 2) as envs, pytest.raises(RuntimeError, match="begun with seed 3.*the wheel"):
        rollout(envs, NOISE, [1, 3])


def test_progress_counts_episodes_and_decisions():
    told = []
    with COUNTER.vector(2) as envs:
        rollout(envs, NOISE, [0, 1, 2], progress=lambda *numbers: told.append(numbers))
    assert told[0] == (0, 3, 0)
    assert told[-1] == (3, 3, 18)
    assert told == sorted(told)
    with COUNTER.vector(2, 2) as envs:
        rollout(envs, NOISE, [0, 1, 2], progress=lambda *numbers: told.append(numbers))
        assert envs.env_steps_made == 18
    assert told[-1] == (3, 3, 18)


def test_a_policy_of_another_size_or_with_nan_is_refused_in_one_line():
    with COUNTER.vector(1) as envs:
        with pytest.raises(ValueError, match="give the policy this action_size"):
            rollout(envs, SmoothNoisePolicy(3), [0])

        class Nan(Watcher):
            def __call__(self, observation, is_first, carry):
                return np.full((1, 2), np.nan, np.float32), carry

        with pytest.raises(ValueError, match=r"^the policy acts with \[nan, nan\]: actions must be finite"):
            rollout(envs, Nan(), [0])

    with COUNTER.vector(1, 1) as envs:
        for policy, says in (
            (SmoothNoisePolicy(1), "give the policy"),
            (SmoothNoisePolicy(2, mean=[np.nan] * 2), "fin"),
        ):
            with pytest.raises(ValueError, match=says):
                rollout(envs, policy, [0])
