"""LatentPolicy: the order inside a step, noise as a function of (seed, step), and independent rows."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.dynamics.rssm import RSSM
from wmlightning.interfaces import Policy
from wmlightning.networks.controller import Controller
from wmlightning.policies.latent import LatentPolicy
from wmlightning.policies.state_filter import StateFilter, row_noise
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE
from wmlightning.stages.world_model import WorldModel

LATENT, ACTION, MEMORY = 4, 2, 8


@pytest.fixture
def model():
    return MDNRNN(VAE(LATENT, depth=2), MDNLSTM(LATENT, ACTION, MEMORY, 2)).eval()


@pytest.fixture
def controller():
    return Controller("zch", LATENT, MEMORY, ACTION)


@pytest.fixture
def candidates(controller):
    return torch.randn(5, controller.size)


def frames(rows, seed=0):
    return {"image": np.random.default_rng(seed).integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)}


def play(policy, carry, rows, steps=4, resets=()):
    """Actions (steps, rows) on pictures that are the row's and the step's."""
    actions = []
    for step in range(steps):
        image = np.concatenate([frames(1, 100 * row + step)["image"] for row in rows])
        is_first = np.array([step == 0 or (row, step) in resets for row in rows])
        action, carry = policy({"image": image}, is_first, carry)
        actions.append(action)
    return np.stack(actions)


def lstm(cell, x, h, c):
    gates = x @ cell.input_weight.T + h @ cell.hidden_weight.T + cell.bias
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c], -1)


def test_float_images_are_refused_instead_of_being_read_as_black(model, controller, candidates):
    policy = LatentPolicy(model, controller, candidates)
    with pytest.raises(ValueError, match="images are float32 but uint8 0..255 is wanted"):
        policy({"image": frames(2)["image"].astype(np.float32) / 255}, np.ones(2, bool), policy.initial(2))


def test_it_is_a_policy(model, controller, candidates):
    policy = LatentPolicy(model, controller, candidates)
    assert isinstance(policy, Policy)
    action, carry = policy(frames(3), np.ones(3, bool), policy.initial(3))
    assert action.shape == (3, ACTION)
    assert action.dtype == np.float32
    assert np.abs(action).max() < 1
    assert all(len(value) == 3 for value in carry.values())


def test_a_step_on_paper(model, controller, candidates):
    """z0 from V; a0 from (z0, h0 = 0); h1 = M(z0, a0); z1 from V; a1 from (z1, h1)."""
    policy = LatentPolicy(model, controller, candidates)
    carry, owner = policy.begin([2], [7]), torch.tensor([2])
    memory, z = torch.zeros(1, 2 * MEMORY), torch.zeros(1, LATENT)
    action = torch.zeros(1, ACTION)
    for step in range(3):
        image = frames(1, step)
        given, carry = policy(image, np.array([step == 0]), carry)
        if step:
            memory = lstm(model.dynamics.cell, torch.cat([z, action], -1), *memory.chunk(2, -1))
        mean, logvar = model.encode(torch.from_numpy(image["image"])).chunk(2, -1)
        z = mean + (logvar / 2).exp() * torch.from_numpy(row_noise(np.array([7]), np.array([step]), LATENT)).float()
        action = controller.act(candidates, torch.cat([z, memory], -1), owner)
        assert_close(torch.from_numpy(given), action.detach())


def test_a_first_image_makes_a_row_forget_and_leaves_the_others_alone(model, controller, candidates):
    policy = LatentPolicy(model, controller, candidates)
    plain = play(policy, policy.initial(3), [0, 1, 2])
    reset = play(policy, policy.initial(3), [0, 1, 2], resets=[(1, 2)])
    assert np.array_equal(plain[:, [0, 2]], reset[:, [0, 2]])
    assert not np.array_equal(plain[2:, 1], reset[2:, 1])
    fresh = policy.initial(1, [1])
    fresh["step"] += 2  # the stream of noise goes on
    image = {"image": frames(1, 102)["image"]}
    assert_close(policy(image, np.array([True]), fresh)[0][0], reset[2, 1])


@pytest.mark.parametrize("rows", [[0], [3, 1], [7, 6, 5, 4, 3, 2, 1, 0], list(range(13))])
def test_a_row_acts_alike_alone_and_in_company(model, controller, candidates, rows):
    policy = LatentPolicy(model, controller, candidates)
    many = play(policy, policy.begin([row % 5 for row in range(8)], list(range(8))), list(range(8)))
    some = play(policy, policy.begin([row % 5 for row in rows], rows), rows)
    for place, row in enumerate(rows[:8]):
        if row < 8:
            assert_close(some[:, place], many[:, row], rtol=1e-5, atol=1e-6)


def test_up_to_eight_rows_agree_bit_for_bit(model, controller, candidates):
    policy = LatentPolicy(model, controller, candidates)
    eight = play(policy, policy.initial(8), list(range(8)))
    assert np.array_equal(play(policy, policy.initial(3, [5, 1, 2]), [5, 1, 2]), eight[:, [5, 1, 2]])


def test_each_row_acts_by_its_own_candidate(model, controller, candidates):
    both = LatentPolicy(model, controller, candidates)
    together = play(both, both.begin([4, 1], [9, 9]), [0, 0])
    for place, owner in enumerate([4, 1]):
        alone = LatentPolicy(model, controller, candidates[owner : owner + 1])
        assert_close(play(alone, alone.initial(1, [9]), [0])[:, 0], together[:, place])


def test_discrete_actions_are_one_hot_and_m_reads_them(model, controller, candidates):
    policy = LatentPolicy(model, controller, candidates, discrete=True)
    action, carry = policy(frames(6), np.ones(6, bool), policy.begin([0, 1, 2, 3, 4, 0], list(range(6))))
    assert (np.sort(action, 1) == [0, 1]).all()
    assert np.array_equal(carry["action"].numpy(), action)
    assert len(np.unique(action, axis=0)) == 2


@pytest.mark.parametrize("rows", [3, 8, 20])
def test_states_are_those_of_the_state_filter(model, controller, candidates, rows):
    """Bit for bit, whether one thread computes them or all."""
    policy, state_filter = LatentPolicy(model, controller, candidates), StateFilter(model)
    carry = policy.begin([row % 5 for row in range(rows)], list(range(rows)))
    for step in range(3):
        image, is_first = frames(rows, step), np.full(rows, step == 0)
        state, noise = state_filter.observe(image, is_first, carry)
        assert noise.shape[1] == 0
        owners = carry["owner"]
        _, carry = policy(image, is_first, carry)
        assert torch.equal(carry["stoch"], state.stoch[:rows])
        assert torch.equal(carry["deter"], state.deter[:rows])
        assert torch.equal(carry["owner"], owners)


def test_on_a_world_model_that_quantises_images_a_row_acts_alike_alone_and_in_company():
    """Pixels are dequantised with the row's own noise too."""
    world = WorldModel(RSSM(GaussianLatent(LATENT), ACTION, 64, MEMORY, 8), depth=2, reward_units=8).eval()
    controller = Controller("zh", LATENT, MEMORY, ACTION)
    policy = LatentPolicy(world, controller, torch.randn(1, controller.size))
    many = play(policy, policy.initial(8), list(range(8)))
    assert np.array_equal(play(policy, policy.initial(2, [6, 1]), [6, 1]), many[:, [6, 1]])


def test_the_decoder_rests(model, controller, candidates, monkeypatch):
    monkeypatch.setattr(model.vae, "decode", None)
    monkeypatch.setattr(model.vae.decoder, "forward", None)
    policy = LatentPolicy(model, controller, candidates)
    policy(frames(2), np.ones(2, bool), policy.initial(2))


def test_row_noise_is_normal_and_independent_over_seeds_steps_and_dimensions():
    seed, step = (axis.ravel() for axis in np.meshgrid(np.arange(60), np.arange(60)))
    noise = row_noise(seed, step, 7)
    n = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(n)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / n)
    grid = noise.reshape(60, 60, 7)
    for axis in range(3):
        lagged = (np.moveaxis(grid, axis, 0)[1:] * np.moveaxis(grid, axis, 0)[:-1]).mean()
        assert abs(lagged) < 4 / np.sqrt(n)
    assert abs((grid * grid.transpose(1, 0, 2))[~np.eye(60, dtype=bool)].mean()) < 6 / np.sqrt(n)


def test_row_noise_depends_on_its_own_counters_alone():
    noise = row_noise(np.array([3, 2**32 - 1, 3]), np.array([0, 10**6, 1]), 5)
    assert np.array_equal(row_noise(np.array([2**32 - 1]), np.array([10**6]), 5), noise[1:2])
    assert np.array_equal(row_noise(np.array([3]), np.array([1]), 5)[0], noise[2])
    assert not np.array_equal(noise[0], noise[2])
    assert np.isfinite(noise).all()
