"""Dreams and returns are drawn as they are learned from, episodes as they were played, and drawing leaves no trace."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from square_support import events_in, squares, trainer
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.samplers import UniformWindows
from wmlightning.distributions.bounded import OneHot, TanhNormal, TruncatedNormal
from wmlightning.distributions.categorical import CategoricalLatent
from wmlightning.distributions.latents import GaussianLatent
from wmlightning.dynamics import RSSM
from wmlightning.dynamics.state import State
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.target import TargetNetwork
from wmlightning.objectives.actor import DynamicsBackprop, Reinforce
from wmlightning.pictures.imagination import (
    LogBehaviour,
    PlayedEpisode,
    ReturnComparison,
    action_chart,
    captioned_dreams,
    compare_returns,
    play_with_states,
    return_chart,
    return_comparison_chart,
)
from wmlightning.pictures.predictions import LogPredictions, group_entropies, usage_chart
from wmlightning.stages.actor_critic import ActorCritic
from wmlightning.stages.dreamer import Dreamer
from wmlightning.stages.world_model import WorldModel

ROWS = 10
CRITIC = {"actor_layers": 1, "actor_units": 8, "critic_layers": 1, "critic_units": 8, "horizon": 4}


def world(discrete=False, latent=None, **options):
    torch.manual_seed(0)
    dynamics = RSSM(latent or GaussianLatent(4), 3 if discrete else 2, 64, deter_size=6, hidden_size=8)
    return WorldModel(dynamics, **{"depth": 2, "reward_layers": 1, "reward_units": 8} | options)


def dreamer(discrete=False, behaviour=None, **options):
    model = world(discrete, **options)
    if discrete:
        settings = {"actor": OneHot(), "objective": Reinforce(), "target": TargetNetwork(2, 1.0)}
    else:
        settings = {"actor": TruncatedNormal(), "objective": DynamicsBackprop()}
    actor_critic = ActorCritic(**CRITIC | settings | (behaviour or {}))
    name = "DummyCorridor" if discrete else "DummyPixels"
    return Dreamer(model, actor_critic, EnvFactory(f"wmlightning/{name}-v0", time_limit=9)).eval()


def starts(agent, n=3):
    deter, stoch = torch.randn(n, 6), torch.randn(n, agent.world_model.dynamics.latent.sample_size)
    return State(deter, stoch, stoch.repeat(1, 2))


@pytest.fixture(scope="module", params=[False, True], ids=["continuous", "discrete"])
def stores(request, tmp_path_factory):
    """Whether actions are discrete, and episodes of such actions."""
    return request.param, squares(tmp_path_factory.mktemp("store"), ROWS, discrete=request.param)


def fit(folder, stage, path, callbacks=(), steps=2):
    windows = WindowDataset(UniformWindows(6))
    trainer(folder, callbacks, steps).fit(stage, EpisodeDataModule(str(path), windows, 2, 4, validation_fraction=0.4))
    return stage


def compared(rewards, terminated, agent, horizon=2):
    states = [starts(agent, 1) for _ in rewards]
    return states, compare_returns(agent, PlayedEpisode(states, rewards, terminated), horizon)


def imagine(agent, n=3, cont=1.0, **options):
    """A dream as pictures make it: without gradients."""
    with torch.no_grad():
        return agent.actor_critic.imagine(agent.world_model, starts(agent, n), torch.ones(n) * cont, **options)


# ------------------------------------------------------------------------------------------------------------- dreams


@pytest.mark.parametrize("discrete", [False, True], ids=["dynamics", "reinforce"])
def test_a_dream_that_is_drawn_is_the_dream_that_is_learned_from(discrete):
    """Bit for bit from the same noise; a longer one begins with it."""
    agent = dreamer(discrete)
    start, cont = starts(agent), torch.ones(3)
    torch.manual_seed(1)
    learned = agent.actor_critic.imagine(agent.world_model, start, cont)
    for horizon in (None, 7):
        torch.manual_seed(1)
        with torch.no_grad():
            drawn = agent.actor_critic.imagine(agent.world_model, start, cont, horizon=horizon)
        assert drawn.action.shape[1] == (horizon or 4)
        assert torch.equal(drawn.action[:, :4], learned.action)
        assert torch.equal(drawn.states.features[:, :5], learned.states.features)
        assert_close(drawn.policy[:, :4], learned.policy.detach())


@pytest.mark.parametrize("include_start", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("discrete", [False, True], ids=["dynamics", "reinforce"])
def test_the_returns_that_are_drawn_are_those_that_the_critic_learns_towards(discrete, include_start):
    agent = dreamer(discrete, behaviour={"include_start": include_start}, cont_layers=1, cont_units=8)
    actor_critic = agent.actor_critic
    dream = imagine(agent, cont=torch.tensor([1.0, 1.0, 0.0]))
    with torch.no_grad():
        drawn = actor_critic.returns(agent.world_model, dream, include_start=True)
        learned = actor_critic.returns(agent.world_model, dream)
        behaved = actor_critic.learn(agent.world_model, dream)
    first = 0 if include_start else 1
    assert learned.returns.shape == (3, 4 - first)
    for name in ("reward", "returns", "value", "target_value"):
        assert_close(getattr(drawn, name)[:, first:], getattr(learned, name))
    error = 0.5 * (drawn.value - drawn.returns)[:, first:].square()
    assert_close((learned.weight * error).mean(), behaved.critic_loss)
    assert_close(drawn.returns[2, 0], drawn.reward[2, 0], msg="nothing follows the end of an episode")
    assert drawn.discount[2, 0] == 0


def test_without_a_critic_returns_are_what_the_dream_still_pays():
    agent = dreamer(behaviour={"has_critic": False})
    dream = imagine(agent)
    with torch.no_grad():
        predicted = agent.actor_critic.returns(agent.world_model, dream)
        reward = agent.world_model.reward(dream.states.features).mean
    assert predicted.value is None
    gamma = agent.actor_critic.discount
    assert_close(predicted.returns[:, 0], sum(gamma**k * reward[:, k] for k in range(5)))
    assert return_chart(predicted).shape == (300, 560, 3)


def test_every_picture_of_dreams_comes_from_the_methods_that_are_learned_with(tmp_path, stores, monkeypatch):
    discrete, path = stores
    agent, calls = dreamer(discrete), []
    for name in ("imagine", "returns"):
        method = getattr(agent.actor_critic, name)
        monkeypatch.setattr(
            agent.actor_critic,
            name,
            lambda *arguments, _name=name, _method=method, **options: (
                calls.append((_name, torch.is_grad_enabled())) or _method(*arguments, **options)
            ),
        )
    fit(tmp_path, agent, path, [LogBehaviour(0, steps=2, decisions=3)], steps=1)
    # One dream is learned from, two are drawn, and one from every state of the episode is compared with it.
    assert sorted(calls) == sorted(
        [("imagine", True), ("returns", True)] + 3 * [("imagine", False)] + 2 * [("returns", False)]
    )


def test_every_frame_of_a_dream_has_its_predicted_reward_and_value_below():
    agent = dreamer()
    dream = imagine(agent, 2, horizon=3)
    frames = captioned_dreams(agent, dream)
    with torch.no_grad():
        image = agent.world_model.decode(dream.states.features)
        agent.actor_critic.critic.last.bias += 1
        other = captioned_dreams(agent, dream)
    assert len(frames) == 4
    assert {frame.shape for frame in frames} == {(256 + 22, 2 * 256 + 6, 3)}
    seen = frames[2][:256, :256][::4, ::4]
    assert np.abs(seen.astype(int) - (image[0, 2].numpy() * 255).round()).max() == 0
    assert (frames[2][:256] == other[2][:256]).all()
    assert (frames[2][256:] != other[2][256:]).any(), "the value is written on the bar"


@pytest.mark.parametrize(("size", "discrete"), [(1, False), (3, False), (9, False), (4, True)])
def test_actions_of_every_kind_and_number_have_a_histogram(size, discrete):
    numbers = torch.rand(50, size) * 2 - 1
    actions = torch.eye(size)[torch.arange(50) % size] if discrete else numbers
    picture = action_chart(actions, discrete, "Dreamt actions")
    assert picture.shape[1:] == (640, 3)
    assert (picture != 255).mean() > 0.01


# --------------------------------------------------------------------------------------------------------- comparison


def test_realised_returns_are_discounted_from_the_decision_on_and_unknown_beyond_a_cut():
    agent = dreamer(behaviour={"discount": 0.5})
    _, found = compared([1.0, 2.0, 4.0], False, agent)
    assert found.realised[:2] == pytest.approx([2.0, 4.0])
    assert math.isnan(found.realised[2])


def test_after_an_end_nothing_more_is_paid():
    agent = dreamer(behaviour={"discount": 0.5})
    _, found = compared([1.0, 2.0, 4.0], True, agent)
    assert found.realised == pytest.approx([2.0, 4.0, 4.0])
    # From a state's own arrival on, as the critic counts: r1 is paid for arriving at state 1.
    assert found.monte_carlo == pytest.approx([0 + 0.5 * (1 + 0.5 * (2 + 0.5 * 4)), 1 + 0.5 * (2 + 2), 2 + 0.5 * 4])


def test_an_episode_that_was_cut_off_goes_on_with_the_value_of_its_last_state():
    agent = dreamer(behaviour={"discount": 0.5})
    states, found = compared([1.0, 2.0, 4.0], False, agent)
    last = float(agent.actor_critic.critic(states[-1].features).detach())
    assert found.value[-1] == pytest.approx(last)
    assert found.monte_carlo == pytest.approx([0.5 * (1 + 0.5 * last), 1 + 0.5 * last, last])


def test_a_dream_from_each_state_follows_the_likeliest_actions():
    agent = dreamer(behaviour={"discount": 0.5})
    torch.manual_seed(3)
    states, _ = compared([1.0, 2.0], True, agent)
    torch.manual_seed(4)
    with torch.no_grad():
        found = compare_returns(agent, PlayedEpisode(states, [1.0, 2.0], True), 3)
        torch.manual_seed(4)
        model, actor_critic = agent.world_model, agent.actor_critic
        state = State(*(torch.cat([getattr(one, n) for one in states]) for n in ("deter", "stoch", "params")))
        total = 0
        for k in range(3):
            state = model.dynamics.imagine_step(
                state, actor_critic.distribution.mode(actor_critic.actor(state.features))
            )
            total = total + 0.5**k * model.reward(state.features).mean
    assert found.imagined == pytest.approx(total.numpy(), rel=1e-5)


def test_realised_rewards_are_squashed_where_learned_ones_are():
    agent = dreamer(reward_squash="tanh", behaviour={"discount": 1.0})
    _, found = compared([2.0], True, agent, horizon=1)
    assert found.realised == pytest.approx([math.tanh(2.0)])


def test_a_label_that_holds_the_discount_discounts():
    agent = dreamer(cont_layers=1, cont_units=8, cont_label=0.5, behaviour={"discount": 1.0})
    _, found = compared([1.0, 2.0], True, agent)
    assert found.realised == pytest.approx([2.0, 2.0])


def test_differences_are_means_over_the_decisions_of_which_all_is_known():
    nan = float("nan")
    found = ReturnComparison(
        np.array([1.0, 3.0, 9.0]), np.array([0.0, 2.0, nan]), np.array([5.0, 6.0, 7.0]), np.array([4.0, 4.0, 4.0]), 2
    )
    assert found.scalars == {
        "imagined": 2.0,
        "realised": 1.0,
        "exploited": 1.0,
        "value": 6.0,
        "monte_carlo": 4.0,
        "overestimated": 2.0,
    }
    picture = return_comparison_chart(found)
    without = return_comparison_chart(ReturnComparison(found.imagined, found.realised, None, None, 2))
    assert picture.shape[0] > without.shape[0]


@pytest.mark.parametrize("decisions", [4, 100])
def test_an_episode_is_played_by_the_policy_and_its_states_are_recorded(decisions):
    agent = dreamer(behaviour={"actor": TanhNormal()})
    with torch.no_grad():
        played = play_with_states(agent.policy(explore=False), agent.environment, 7, decisions)
    assert len(played.states) == len(played.rewards) == min(decisions, 9)
    assert {tuple(state.features.shape) for state in played.states} == {(1, 10)}
    assert not torch.equal(played.states[0].features, played.states[1].features)
    assert not played.terminated


# -------------------------------------------------------------------------------------------------------------- usage


def test_entropy_per_group_tells_dead_undecided_and_useful_groups_apart():
    latent = CategoricalLatent(3, 4)
    sure = torch.full((8, 3, 4), -30.0)
    sure[:, 0, 1] = 30.0  # always the same class
    sure[:, 1] = 0.0  # never any class
    sure[torch.arange(8), 2, torch.arange(8) % 4] = 30.0  # every class, and sure of it
    used, unsure = group_entropies(latent, sure.flatten(-2).reshape(2, 4, 12))
    assert_close(used, torch.tensor([0.0, math.log(4), math.log(4)]))
    assert_close(unsure, torch.tensor([0.0, math.log(4), 0.0]))
    assert usage_chart(latent, sure.flatten(-2)).shape[1] == 760


# ---------------------------------------------------------------------------------------------------------- callbacks


def test_a_dreamer_is_shown_from_all_sides(tmp_path, stores):
    discrete, path = stores
    latent = CategoricalLatent(3, 4) if discrete else None
    callbacks = [LogBehaviour(0, dreams=2, steps=5, decisions=20), LogPredictions(0, context=3, horizon=5)]
    fit(tmp_path, dreamer(discrete, latent=latent), path, callbacks)
    names = {f"behaviour/{name}" for name in ("dreams", "returns", "entropy", "actions", "imagined_and_realised")}
    events = events_in(tmp_path)
    assert names <= set(events.Tags()["images"])
    assert ("world_model/categorical_usage" in events.Tags()["images"]) == discrete
    film = Image.open(tmp_path / "pictures" / "dreams.gif")
    assert film.n_frames == 6
    scalars = {f"behaviour/{name}" for name in ("imagined", "realised", "exploited", "value", "monte_carlo")}
    assert scalars | {"behaviour/overestimated", "behaviour/dream_entropy"} <= set(events.Tags()["scalars"])


def test_drawing_leaves_no_trace_in_training(tmp_path, stores):
    discrete, path = stores
    plain = fit(tmp_path / "plain", dreamer(discrete), path, steps=3)
    drawn = fit(tmp_path / "drawn", dreamer(discrete), path, [LogBehaviour(1, steps=2, decisions=3)], steps=3)
    assert_close(drawn.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_without_episodes_to_play_dreams_are_still_drawn(tmp_path, stores):
    discrete, path = stores
    fit(tmp_path, dreamer(discrete), path, [LogBehaviour(0, steps=2, decisions=0)], steps=1)
    assert (tmp_path / "pictures" / "returns.png").is_file()
    assert not (tmp_path / "pictures" / "imagined_and_realised.png").exists()


def test_a_stage_without_an_actor_is_refused(tmp_path, stores):
    discrete, path = stores
    with pytest.raises(ValueError, match="WorldModel has none: use it with Dreamer"):
        fit(tmp_path, world(discrete), path, [LogBehaviour()])


@pytest.mark.parametrize("wrong", [{"dreams": 0}, {"dreams": 9}, {"steps": 0}, {"decisions": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="ask for 1 to 8"):
        LogBehaviour(**wrong)
