"""CMAES finds minima, is a function of its counters, and continues from its state bit for bit."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wmlightning.optimizers import CMAES


def sphere(candidates):
    return candidates.square().sum(-1)


def ellipsoid(size, seed=0, condition=100.0):
    """A quadratic bowl with random axes, from 1 to `condition` times as steep."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    scale = torch.logspace(0, np.log10(condition), size, dtype=torch.float64)
    return lambda candidates: (scale * (candidates @ axes).square()).sum(-1)


def search(size, population=12, seed=0, start=1.0, sigma=0.3):
    parameter = nn.Parameter(torch.full((size,), start))
    return parameter, CMAES([parameter], sigma, population, seed)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


@pytest.mark.parametrize("loss", [sphere, ellipsoid(10)], ids=["sphere", "rotated ellipsoid"])
def test_the_mean_finds_the_minimum(loss):
    parameter, optimizer = search(10)
    for _ in range(200):
        optimizer.step(loss)
    assert loss(parameter.detach()[None].double()).item() < 1e-6


def test_at_867_parameters_the_mean_comes_closer():
    parameter, optimizer = search(867, population=64, start=1.0, sigma=0.1)
    for _ in range(30):
        optimizer.step(sphere)
    assert parameter.square().mean() < 0.95


@given(direction=st.lists(st.floats(-1, 1), min_size=8, max_size=8).filter(lambda v: np.linalg.norm(v) > 0.1))
@settings(max_examples=5, deadline=None)
def test_on_a_sphere_no_direction_is_harder_than_another(direction):
    start = torch.tensor(direction) / np.linalg.norm(direction) * 3

    def generations(seed):
        optimizer = CMAES([nn.Parameter(start.clone())], 1.0, 10, seed)
        while optimizer.step(sphere) > 1e-3:
            assert optimizer.generation < 200
        return optimizer.generation

    assert 25 < np.mean([generations(seed) for seed in range(2)]) < 60


def test_lower_losses_attract_the_mean():
    parameter, optimizer = search(5, start=0.0)
    optimizer.step(lambda candidates: -candidates[:, 2])
    assert parameter[2] > 0.05
    assert optimizer.generation == 1
    torch.testing.assert_close(optimizer.mean.float(), parameter.detach())


@pytest.mark.parametrize(
    ("size", "population", "cut", "total"),
    [(20, 40, 1, 40), (20, 40, 25, 40), (400, 40, 2, 60), (400, 40, 50, 60), (20, 4, 7, 90), (20, 5, 8, 90)],
)
@pytest.mark.parametrize("asked", [False, True], ids=["between generations", "in a generation"])
def test_a_resumed_search_equals_an_uninterrupted_one_bit_for_bit(size, population, cut, total, asked):
    loss = ellipsoid(size)
    whole, optimizer = search(size, population)
    for _ in range(total):
        optimizer.step(loss)
    assert optimizer.state_dict()["state"]["sampler.count_eigen"] > 1

    first, begun = search(size, population)
    for _ in range(cut):
        begun.step(loss)
    if asked:
        begun.ask()
    state = saved_and_loaded({"first": first.detach(), "optimizer": begun.state_dict()})
    second, resumed = search(size, population, start=7.0, sigma=9.0)
    second.data.copy_(state["first"])
    resumed.load_state_dict(state["optimizer"])
    np.random.rand(3)  # noqa: NPY002 (the point: somebody else uses numpy's global state)
    for _ in range(total - cut):
        resumed.step(loss)
    assert torch.equal(whole, second)
    assert_same(optimizer.state_dict()["state"], resumed.state_dict()["state"])


def test_a_copy_goes_on_as_the_search_does():
    _, optimizer = search(6)
    optimizer.step(ellipsoid(6))
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert torch.equal(copied.ask(), optimizer.ask())


def test_candidates_neither_read_nor_move_the_global_random_states():
    _, first = search(6)
    np.random.seed(1)  # noqa: NPY002
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    candidates = first.ask()
    first.tell(candidates, sphere(candidates))
    after = first.ask()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.random.seed(2)  # noqa: NPY002
    _, second = search(6)
    assert torch.equal(second.ask(), candidates)
    second.step(sphere)
    assert torch.equal(second.ask(), after)


def test_asking_twice_gives_the_same_candidates_and_another_seed_gives_others():
    _, optimizer = search(6)
    assert torch.equal(optimizer.ask(), optimizer.ask())
    assert not torch.equal(optimizer.ask(), search(6, seed=1)[1].ask())


def test_a_closure_without_arguments_gets_its_candidates_from_ask():
    one, first = search(6)
    two, second = search(6)
    best = first.step(sphere)
    assert second.step(lambda: sphere(second.ask())) == best
    assert torch.equal(one, two)


def test_no_candidate_is_injected_at_400_parameters():
    _, optimizer = search(400)
    for _ in range(4):
        optimizer.step(sphere)
    steps = optimizer.ask() - optimizer.mean
    aligned = torch.nn.functional.cosine_similarity(steps[:, None], steps[None], dim=-1).fill_diagonal_(0)
    assert aligned.abs().max() < 0.5, "two-point adaptation would mirror two candidates"


def test_no_stopping_rule_of_the_library_stops_it():
    _, optimizer = search(3)
    for _ in range(200):
        optimizer.step(lambda candidates: torch.zeros(len(candidates)))
    assert optimizer.generation == 200


def test_it_says_nothing_and_writes_no_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    _, optimizer = search(3)
    for _ in range(5):
        optimizer.step(sphere)
    assert not list(tmp_path.iterdir())
    assert "".join(capfd.readouterr()) == ""


def test_several_parameters_are_searched_as_one_vector_in_their_order():
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]
    optimizer = CMAES(parameters, 0.3, 12)
    for _ in range(150):
        optimizer.step(lambda candidates: (candidates - torch.arange(7.0)).square().sum(-1))
    torch.testing.assert_close(parameters[0].detach(), torch.tensor([[0.0, 1], [2, 3]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(parameters[1].detach(), torch.tensor([4.0, 5, 6]), atol=1e-3, rtol=0)


def test_mistakes_are_named():
    parameter, optimizer = search(4)
    candidates = optimizer.ask()
    with pytest.raises(ValueError, match="candidate 3 is NaN"):
        optimizer.tell(candidates, [0.0, 1.0, 2.0, float("nan")] + 8 * [3.0])
    with pytest.raises(ValueError, match="every candidate that ask returned"):
        optimizer.tell(candidates[:5], range(5))
    with pytest.raises(ValueError, match="a population of 12"):
        search(4, population=8)[1].load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="sigma is 0"):
        CMAES([parameter], sigma=0.0)
    with pytest.raises(ValueError, match="at least 4"):
        CMAES([parameter], population=3)
    with pytest.raises(ValueError, match="seed is -1"):
        CMAES([parameter], seed=-1)


def test_the_checkpoints_seed_wins_with_a_warning():
    _, optimizer = search(4)
    _, other = search(4, seed=5)
    with pytest.warns(UserWarning, match="seed 0, not 5"):
        other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.ask(), optimizer.ask())


def test_without_matplotlib_nothing_is_said_of_plots():
    code = "import sys; sys.modules['matplotlib'] = None; import wmlightning.optimizers"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stderr) == (0, "")
