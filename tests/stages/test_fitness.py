"""The fitness of a generation in dreams: equal to a plain loop's, independent of the batch, bounded in memory."""

import resource

import pytest
import torch
from torch.testing import assert_close

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.dream import DreamRules, begin_anywhere
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.controller import Controller
from wmlightning.seeds import derive_seed
from wmlightning.stages.fitness import DREAMS_PER_BATCH, DreamFitness, _aligned_shape, _split
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE


def dream_fitness(environment="wmlightning/DummyPixels-v0", action_size=2, restart=False, **settings):
    """The fitness in dreams of an untrained M, which last for a few steps."""
    torch.manual_seed(0)
    model = MDNRNN(VAE(4, depth=2), MDNLSTM(4, action_size, 8, 2, restart), reward_head=True, done_head=True).eval()
    model.heads.layers["done"].weight.data.mul_(8)
    model.heads.layers["done"].bias.data.fill_(-2.5)
    dream = DreamRules(**({"max_steps": 30, "done": True, "temperature": 1.5} | settings))
    controller = Controller("zch", 4, 8, action_size)
    fitness = DreamFitness(dream, model, controller, EnvFactory(environment))
    fitness.starts = torch.randn(5, 8)
    return fitness


def candidates_of(fitness, count):
    return torch.randn(count, fitness._parts[1].size, dtype=torch.float64)


@torch.no_grad()
def one_by_one(fitness, theta, seeds):
    """The same dreams as a plain loop: every candidate in turn, row by row of the noise."""
    model, controller = fitness._parts
    dream, dynamics, rows = fitness.dream, model.dynamics, []
    for candidate in theta.float():
        generator = torch.Generator().manual_seed(derive_seed(*seeds))
        state = begin_anywhere(model, dream, fitness.starts, len(seeds), generator)
        alive, total, steps = torch.ones(len(seeds)), torch.zeros(len(seeds)), torch.zeros(len(seeds))
        for _ in range(dream.max_steps):
            owner = torch.zeros(len(seeds), dtype=torch.long)
            action = controller.act(candidate[None], state.features, owner)
            if fitness.environment.spec.discrete:
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
def test_a_generation_has_the_returns_of_a_plain_loop(options):
    fitness = dream_fitness(**options)
    theta, seeds = candidates_of(fitness, 5), [3, 7, 1]
    returns, steps = fitness.play(theta, seeds * 5)
    expected_returns, expected_steps = one_by_one(fitness, theta, seeds)
    assert torch.equal(steps, expected_steps.long())
    assert_close(returns.float(), expected_returns, rtol=1e-4, atol=1e-5)
    assert steps.min() < 15 < steps.max(), "the test wants dreams of many lengths"


def test_candidates_with_the_same_seeds_meet_the_same_starts_and_noise():
    fitness = dream_fitness()
    shared = [2, 4, 6] * 4
    own = list(range(12))
    same = candidates_of(fitness, 1).expand(4, -1)
    together, apart = fitness.play(same, shared)[0], fitness.play(same, own)[0]
    assert torch.equal(together, together[:1].expand(4, 3))
    assert len(apart.unique()) == 12
    pairs = fitness.play(same, [1, 2, 3, 4, 5, 6] * 2)[0]
    assert torch.equal(pairs[:2], pairs[2:])
    assert not torch.equal(pairs[0], pairs[1])


def test_a_return_does_not_depend_on_the_other_candidates():
    fitness = dream_fitness()
    theta, others = candidates_of(fitness, 40), candidates_of(fitness, 40)
    others[7], others[30] = theta[7], theta[30]
    one, two = (fitness.play(rows, list(range(16)) * 40) for rows in (theta, others))
    for scores in zip(one, two, strict=True):
        assert torch.equal(scores[0][[7, 30]], scores[1][[7, 30]])
        assert not torch.equal(scores[0], scores[1])


def test_the_same_seeds_give_the_same_dreams_and_others_do_not():
    fitness = dream_fitness()
    theta = candidates_of(fitness, 2)
    runs = [fitness.play(theta, seeds)[0] for seeds in ([1, 2, 1, 2], [1, 2, 1, 2], [1, 3, 1, 3])]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_temperature_changes_a_dream():
    hot, cold = dream_fitness(temperature=2.0), dream_fitness(temperature=0.1)
    theta = candidates_of(hot, 2)
    assert not torch.equal(hot.play(theta, [1, 2] * 2)[0], cold.play(theta, [1, 2] * 2)[0])


def test_alive_counts_the_steps_survived_up_to_the_cap():
    fitness = dream_fitness(reward="alive", max_steps=12)
    returns, steps = fitness.play(candidates_of(fitness, 6), [1, 2, 3, 4] * 6)
    assert steps.max() == 12
    ended = steps < 12
    assert torch.equal(returns[ended].long(), steps[ended] - 1)
    assert ((returns[~ended] == 12) | (returns[~ended] == 11)).all()


@pytest.mark.parametrize("shape", [(64, 16), (6, 1), (1, 1024), (3, 100), (5, 300), (300, 1)])
def test_batches_cover_every_dream_once_and_are_no_larger_than_allowed(shape):
    seen = torch.zeros(shape, dtype=torch.int64)
    for rows, columns in _split(shape, DREAMS_PER_BATCH["cpu"]):
        seen[rows, columns] += 1
        assert seen[rows, columns].numel() <= DREAMS_PER_BATCH["cpu"]
    assert (seen == 1).all()


def test_shapes_are_multiples_of_eight_and_not_much_larger():
    for candidates in range(1, 70):
        for episodes in (1, 3, 5, 8, 16):
            shape = _aligned_shape(candidates, episodes)
            assert shape[0] >= candidates
            assert shape[1] >= episodes
            assert shape[0] * shape[1] % 8 == 0
            assert shape[0] * shape[1] < candidates * episodes + 8 * max(episodes, 8)


def test_long_dreams_take_no_more_memory_than_short_ones():
    for steps in (40, 600):
        fitness = dream_fitness(done=False, max_steps=steps)
        theta = candidates_of(fitness, 16)
        if steps == 40:
            fitness.play(theta, list(range(16)) * 16)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitness.play(theta, list(range(16)) * 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096, "kilobytes"


def test_a_controller_without_first_frames_cannot_dream():
    fitness = dream_fitness()
    fitness.starts = torch.zeros(0, 0)
    with pytest.raises(ValueError, match="no first frames"):
        fitness.play(candidates_of(fitness, 2), [1, 2])
