"""What an actor dreams and what comes of it is drawn as it is, and drawing leaves no trace."""

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
    compare_returns,
    dream_on,
    play_with_states,
    predicted_returns,
    return_comparison_chart,
    written_frames,
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
    teacher = ActorCritic(**CRITIC | settings | (behaviour or {}))
    name = "DummyCorridor" if discrete else "DummyPixels"
    return Dreamer(model, teacher, EnvFactory(f"wmlightning/{name}-v0", time_limit=9)).eval()


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


def reckoned(rewards, terminated, agent, horizon=2):
    beliefs = [starts(agent, 1) for _ in rewards]
    with torch.no_grad():
        return beliefs, compare_returns(agent, PlayedEpisode(beliefs, rewards, terminated), horizon)


# ------------------------------------------------------------------------------------------------------------- dreams


@pytest.mark.parametrize("discrete", [False, True], ids=["dynamics", "reinforce"])
def test_a_dream_that_is_drawn_is_the_dream_that_is_learned_from(discrete):
    agent = dreamer(discrete)
    start, cont = starts(agent), torch.ones(3)
    torch.manual_seed(1)
    drawn = dream_on(agent, start, cont, 4)
    torch.manual_seed(1)
    learned = agent.actor_critic.imagine(agent.world_model, start, cont)
    assert_close(drawn.action, learned.action.detach())
    assert_close(drawn.states.features, learned.states.features.detach())
    assert_close(drawn.policy, learned.policy.detach())


@pytest.mark.parametrize("discrete", [False, True], ids=["dynamics", "reinforce"])
def test_the_returns_that_are_drawn_are_those_that_the_critic_learns_towards(discrete):
    agent = dreamer(discrete, cont_layers=1, cont_units=8)
    teacher = agent.actor_critic
    dream = dream_on(agent, starts(agent), torch.tensor([1.0, 1.0, 0.0]), teacher.horizon)
    found = predicted_returns(agent, dream)
    with torch.no_grad():
        behaved = teacher.learn(agent.world_model, dream)
        discount, weight = teacher.discounts_and_weights(
            agent.world_model.cont(dream.states.features[:, :-1]).mean, dream.cont
        )
    error = 0.5 * (found["value"][:, :-1] - found["returns"]).square()
    assert_close((weight * error).mean(), behaved.critic_loss)
    assert_close(found["returns"][2, 0], found["reward"][2, 0], msg="nothing follows the end of an episode")
    assert discount[2, 0] == 0


def test_without_a_critic_returns_are_what_the_dream_still_pays():
    agent = dreamer(behaviour={"has_critic": False})
    found = predicted_returns(agent, dream_on(agent, starts(agent), torch.ones(3), 4))
    assert "value" not in found
    gamma, reward = agent.actor_critic.discount, found["reward"]
    assert_close(found["returns"][:, 0], sum(gamma**k * reward[:, k] for k in range(5)))


def test_every_frame_of_a_dream_is_its_picture_with_what_is_thought_of_it_below():
    agent = dreamer()
    dream = dream_on(agent, starts(agent, 2), torch.ones(2), 3)
    with torch.no_grad():
        found = predicted_returns(agent, dream)
        frames = written_frames(agent, dream, found)
        other = written_frames(agent, dream, {**found, "value": found["value"] + 1})
        image = agent.world_model.decode(dream.states.features)
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


# ---------------------------------------------------------------------------------------------------------- reckoning


def test_what_was_paid_is_discounted_from_the_decision_on_and_unknown_beyond_a_cut():
    agent = dreamer(behaviour={"discount": 0.5})
    _, found = reckoned([1.0, 2.0, 4.0], False, agent)
    assert found.realised[:2] == pytest.approx([2.0, 4.0])
    assert math.isnan(found.realised[2])


def test_after_an_end_nothing_more_is_paid():
    agent = dreamer(behaviour={"discount": 0.5})
    _, found = reckoned([1.0, 2.0, 4.0], True, agent)
    assert found.realised == pytest.approx([2.0, 4.0, 4.0])
    # From a belief's own arrival on, as the critic counts: r1 is paid for arriving at belief 1.
    assert found.monte_carlo == pytest.approx([0 + 0.5 * (1 + 0.5 * (2 + 0.5 * 4)), 1 + 0.5 * (2 + 2), 2 + 0.5 * 4])


def test_an_episode_that_was_cut_off_goes_on_with_the_value_of_its_last_belief():
    agent = dreamer(behaviour={"discount": 0.5})
    beliefs, found = reckoned([1.0, 2.0, 4.0], False, agent)
    last = float(agent.actor_critic.critic(beliefs[-1].features).detach())
    assert found.value[-1] == pytest.approx(last)
    assert found.monte_carlo == pytest.approx([0.5 * (1 + 0.5 * last), 1 + 0.5 * last, last])


def test_a_dream_from_each_belief_follows_the_likeliest_actions():
    agent = dreamer(behaviour={"discount": 0.5})
    torch.manual_seed(3)
    beliefs, _ = reckoned([1.0, 2.0], True, agent)
    torch.manual_seed(4)
    with torch.no_grad():
        found = compare_returns(agent, PlayedEpisode(beliefs, [1.0, 2.0], True), 3)
        torch.manual_seed(4)
        model, teacher = agent.world_model, agent.actor_critic
        state = State(*(torch.cat([getattr(b, n) for b in beliefs]) for n in ("deter", "stoch", "params")))
        total = 0
        for k in range(3):
            state = model.dynamics.imagine_step(state, teacher.distribution.mode(teacher.actor(state.features)))
            total = total + 0.5**k * model.reward(state.features).mean
    assert found.imagined == pytest.approx(total.numpy(), rel=1e-5)


def test_paid_rewards_are_squashed_where_learned_ones_are():
    agent = dreamer(reward_squash="tanh", behaviour={"discount": 1.0})
    _, found = reckoned([2.0], True, agent, horizon=1)
    assert found.realised == pytest.approx([math.tanh(2.0)])


def test_a_label_that_holds_the_discount_discounts():
    agent = dreamer(cont_layers=1, cont_units=8, cont_label=0.5, behaviour={"discount": 1.0})
    _, found = reckoned([1.0, 2.0], True, agent)
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
def test_an_episode_is_played_by_the_policy_and_its_beliefs_are_kept(decisions):
    agent = dreamer(behaviour={"actor": TanhNormal()})
    with torch.no_grad():
        played = play_with_states(agent.policy(explore=False), agent.environment, 7, decisions)
    assert len(played.beliefs) == len(played.rewards) == min(decisions, 9)
    assert {tuple(belief.features.shape) for belief in played.beliefs} == {(1, 10)}
    assert not torch.equal(played.beliefs[0].features, played.beliefs[1].features)
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
    names = {f"behaviour/{name}" for name in ("dreams", "returns", "entropy", "actions", "reckoning")}
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
    assert not (tmp_path / "pictures" / "reckoning.png").exists()


def test_a_stage_without_an_actor_is_told_so(tmp_path, stores):
    discrete, path = stores
    with pytest.raises(ValueError, match="WorldModel has none: use it with Dreamer"):
        fit(tmp_path, world(discrete), path, [LogBehaviour()])


@pytest.mark.parametrize("wrong", [{"dreams": 0}, {"dreams": 9}, {"steps": 0}, {"decisions": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="ask for 1 to 8"):
        LogBehaviour(**wrong)
