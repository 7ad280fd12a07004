"""States and images: each state fits its own image better than others, and other processes' images are others too."""

import math
import multiprocessing

import pytest
import torch
from torch import distributed
from torch.distributions import Normal
from torch.testing import assert_close

from wmlightning.objectives import Contrastive
from wmlightning.objectives.contrastive import log_prob_of_pairs
from wmlightning.recipes import build_recipe, recipe_of

B, T, E, F = 3, 4, 5, 6


def make(**options):
    torch.manual_seed(3)
    return Contrastive(E, F, 1, 8, **options)


def window(rows=B):
    return torch.randn(rows, T, E), torch.randn(rows, T, F)


def by_hand(model, embeds, features):
    """Equation 12 as it stands, one state and one image at a time."""
    mean, std = (tensor.flatten(0, 1) for tensor in model.mean_std(embeds))
    states = features.flatten(0, 1)
    table = torch.stack([Normal(mean, std).log_prob(state).sum(-1) for state in states])
    return (table.logsumexp(1) - table.diagonal()).unflatten(0, features.shape[:2])


def test_it_is_equation_12():
    model, (embeds, features) = make(), window()
    loss = model(embeds, features)
    assert loss.shape == (B, T)
    assert_close(loss, by_hand(model, embeds, features), rtol=1e-4, atol=1e-4)


def test_its_gradients_are_those_of_equation_12_to_embeds_states_and_weights():
    model, given = make(), [tensor.requires_grad_() for tensor in window()]
    everything = [*given, *model.parameters()]
    grads = [torch.autograd.grad(way(*given).sum(), everything) for way in (model, lambda *w: by_hand(model, *w))]
    assert_close(*grads, rtol=1e-3, atol=1e-4)
    assert all(grad.abs().max() > 0 for grad in grads[0])


def test_states_that_say_nothing_of_their_images_cost_the_logarithm_of_how_many_there_are():
    loss = make()(torch.zeros(B, T, E), torch.randn(B, T, F))
    assert_close(loss, torch.full((B, T), math.log(B * T)))


def test_states_that_are_where_their_images_say_cost_next_to_nothing():
    model, (embeds, _) = make(min_std=0.01), window()
    torch.nn.init.constant_(model.head.last.bias[F:], -20.0)
    torch.nn.init.zeros_(model.head.last.weight[F:])
    loss = model(embeds, model.mean_std(embeds)[0])
    assert 0 <= loss.max() < 1e-3


def test_a_density_of_pairs_is_torchs_also_where_values_are_large_and_stds_small():
    for std in (0.05, 1.0):
        mean = 30 + torch.randn(7, F)
        values = mean[:5] + std * torch.randn(5, F)
        expected = Normal(mean.double(), std).log_prob(values.double()[:, None]).sum(-1)
        assert_close(
            log_prob_of_pairs(values, mean, torch.full_like(mean, std)), expected.float(), rtol=1e-4, atol=2e-3
        )


def test_it_is_float32_under_mixed_precision():
    model, (embeds, features) = make(), window()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(embeds, features)
    assert loss.dtype == torch.float32
    assert_close(loss, model(embeds, features), rtol=0.05, atol=0.1)


def test_it_has_the_published_sizes():
    count = sum(p.numel() for p in Contrastive(1024, 230).parameters())
    assert count == (1024 * 400 + 400) + 2 * (400 * 400 + 400) + (400 * 460 + 460)
    _, std = Contrastive(E, F).mean_std(torch.zeros(E))
    assert_close(std, torch.full((F,), 1.01))


def learn(rank, folder, embeds, features):
    """One of two processes: its half of the batch, its loss and the mean of both gradients, written down."""
    distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    half = slice(rank * B, (rank + 1) * B)
    model, embeds, features = make(), embeds[half].clone().requires_grad_(), features[half]
    loss = model(embeds, features)
    loss.mean().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    for grad in grads:
        distributed.all_reduce(grad)
    torch.save((loss.detach(), [grad / 2 for grad in grads], embeds.grad / 2), f"{folder}/{rank}.pt")
    distributed.barrier()


def test_two_processes_are_one_with_the_double_batch(tmp_path):
    embeds, features = window(2 * B)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=learn, args=(rank, tmp_path, embeds, features)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    (loss, grads, moved), (other_loss, other_grads, other_moved) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    model, embeds = make(), embeds.requires_grad_()
    whole = model(embeds, features)
    whole.mean().backward()
    assert_close(torch.cat([loss, other_loss]), whole.detach())
    assert_close(torch.cat([moved, other_moved]), embeds.grad)
    assert_close(grads, other_grads, rtol=0, atol=0)
    assert_close(grads, [parameter.grad for parameter in model.parameters()])


def test_without_sizes_it_takes_those_of_the_world_model_it_becomes_part_of():
    (embeds, features), later, now = window(), Contrastive(layers=1, units=8), make()
    torch.manual_seed(3)
    later.build(E, F)
    assert torch.equal(later(embeds, features), now(embeds, features))
    for fits in (later, now):
        fits.build(E, F)
        assert torch.equal(later(embeds, features), now(embeds, features))


def test_sizes_that_do_not_fit_the_world_model_are_refused_and_so_is_one_alone():
    with pytest.raises(ValueError, match=r"\(5, 6\) but the world model has \(5, 7\): give it these, or neither"):
        make().build(E, F + 1)
    for sizes in ((E, None), (None, F)):
        with pytest.raises(ValueError, match="give both sizes or neither"):
            Contrastive(*sizes)


def test_a_least_std_of_zero_is_refused():
    with pytest.raises(ValueError, match="min_std is 0.0 but must be above 0"):
        make(min_std=0.0)


def test_a_recipe_builds_it_again():
    model, (embeds, features) = make(), window()
    again = build_recipe(recipe_of(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(embeds, features), model(embeds, features))
