"""A generation in the dream: whose score it is, what is shared, what is given up, and what it leaves behind."""

import resource

import pytest
import torch
from torch.testing import assert_close

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.dream import DreamRules, begin_anywhere
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.controller import Controller
from wmlightning.seeds import derive_seed
from wmlightning.stages.fitness import TOGETHER, DreamFitness, _batches, _full_rows
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE


def games_of(environment="wmlightning/DummyPixels-v0", action_size=2, restart=False, **settings):
    """Games in the dream of an untrained M whose dreams last for a few steps."""
    torch.manual_seed(0)
    model = MDNRNN(VAE(4, depth=2), MDNLSTM(4, action_size, 8, 2, restart), reward_head=True, done_head=True).eval()
    model.heads.layers["done"].weight.data.mul_(8)
    model.heads.layers["done"].bias.data.fill_(-2.5)
    dream = DreamRules(**({"max_steps": 30, "done": True, "temperature": 1.5} | settings))
    controller = Controller("zch", 4, 8, action_size)
    games = DreamFitness(dream, model, controller, EnvFactory(environment))
    games.starts = torch.randn(5, 8)
    return games


def candidates_of(games, count):
    return torch.randn(count, games._parts[1].size, dtype=torch.float64)


@torch.no_grad()
def one_by_one(games, theta, seeds):
    """The same dreams as a plain loop: every candidate in turn, row by row of the noise."""
    model, controller = games._parts
    dream, dynamics, rows = games.dream, model.dynamics, []
    for candidate in theta.float():
        generator = torch.Generator().manual_seed(derive_seed(*seeds))
        state = begin_anywhere(model, dream, games.starts, len(seeds), generator)
        alive, total, steps = torch.ones(len(seeds)), torch.zeros(len(seeds)), torch.zeros(len(seeds))
        for _ in range(dream.max_steps):
            owner = torch.zeros(len(seeds), dtype=torch.long)
            action = controller.act(candidate[None], state.features, owner)
            if games.environment.spec.discrete:
                action = torch.nn.functional.one_hot(action.argmax(-1), action.shape[-1]).float()
            noise = dynamics.imagine_noise(len(seeds), generator)
            state = dynamics.imagine_step(state, action, dream.temperature, noise)
            total, steps = total + alive * model.reward(state.features).mean, steps + alive
            alive = alive * (model.cont(state.features).mean >= 0.5)
        rows.append((total, steps))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    "options",
    [{}, {"restart": True}, {"environment": "wmlightning/DummyCorridor-v0", "action_size": 3, "temperature": 4.0}],
)
def test_a_generation_comes_to_what_a_plain_loop_comes_to(options):
    games = games_of(**options)
    theta, seeds = candidates_of(games, 5), [3, 7, 1]
    returns, steps = games.play(theta, seeds * 5)
    expected_returns, expected_steps = one_by_one(games, theta, seeds)
    assert torch.equal(steps, expected_steps.long())
    assert_close(returns.float(), expected_returns, rtol=1e-4, atol=1e-5)
    assert steps.min() < 15 < steps.max(), "the test wants dreams of many lengths"


def test_candidates_with_the_same_seeds_meet_the_same_starts_and_noise():
    games, shared, own = games_of(), [2, 4, 6] * 4, list(range(12))
    same = candidates_of(games, 1).expand(4, -1)
    together, apart = games.play(same, shared)[0], games.play(same, own)[0]
    assert torch.equal(together, together[:1].expand(4, 3))
    assert len(apart.unique()) == 12
    pairs = games.play(same, [1, 2, 3, 4, 5, 6] * 2)[0]
    assert torch.equal(pairs[:2], pairs[2:])
    assert not torch.equal(pairs[0], pairs[1])


def test_a_score_does_not_depend_on_who_is_beside():
    games = games_of()
    theta, others = candidates_of(games, 40), candidates_of(games, 40)
    others[7], others[30] = theta[7], theta[30]
    one, two = (games.play(rows, list(range(16)) * 40) for rows in (theta, others))
    for scores in zip(one, two, strict=True):
        assert torch.equal(scores[0][[7, 30]], scores[1][[7, 30]])
        assert not torch.equal(scores[0], scores[1])


def test_the_same_seeds_give_the_same_dreams_and_others_do_not():
    games = games_of()
    theta = candidates_of(games, 2)
    runs = [games.play(theta, seeds)[0] for seeds in ([1, 2, 1, 2], [1, 2, 1, 2], [1, 3, 1, 3])]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_temperature_changes_a_dream():
    hot, cold = games_of(temperature=2.0), games_of(temperature=0.1)
    theta = candidates_of(hot, 2)
    assert not torch.equal(hot.play(theta, [1, 2] * 2)[0], cold.play(theta, [1, 2] * 2)[0])


def test_alive_counts_the_steps_survived_up_to_the_cap():
    games = games_of(reward="alive", max_steps=12)
    returns, steps = games.play(candidates_of(games, 6), [1, 2, 3, 4] * 6)
    assert steps.max() == 12
    ended = steps < 12
    assert torch.equal(returns[ended].long(), steps[ended] - 1)
    assert ((returns[~ended] == 12) | (returns[~ended] == 11)).all()


@pytest.mark.parametrize("shape", [(64, 16), (6, 1), (1, 1024), (3, 100), (5, 300), (300, 1)])
def test_batches_cover_every_dream_once_and_are_no_larger_than_allowed(shape):
    seen = torch.zeros(shape, dtype=torch.int64)
    for which, when in _batches(shape, TOGETHER["cpu"]):
        seen[which, when] += 1
        assert seen[which, when].numel() <= TOGETHER["cpu"]
    assert (seen == 1).all()


def test_layouts_are_full_rows_of_eight_and_not_much_larger():
    for candidates in range(1, 70):
        for episodes in (1, 3, 5, 8, 16):
            shape = _full_rows(candidates, episodes)
            assert shape[0] >= candidates
            assert shape[1] >= episodes
            assert shape[0] * shape[1] % 8 == 0
            assert shape[0] * shape[1] < candidates * episodes + 8 * max(episodes, 8)


def test_long_dreams_take_no_more_memory_than_short_ones():
    for steps in (40, 600):
        games = games_of(done=False, max_steps=steps)
        theta = candidates_of(games, 16)
        if steps == 40:
            games.play(theta, list(range(16)) * 16)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    games.play(theta, list(range(16)) * 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096, "kilobytes"


def test_a_controller_without_first_frames_cannot_dream():
    games = games_of()
    games.starts = torch.zeros(0, 0)
    with pytest.raises(ValueError, match="no first frames"):
        games.play(candidates_of(games, 2), [1, 2])
