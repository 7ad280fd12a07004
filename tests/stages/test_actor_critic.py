"""ActorCritic: dreams, the terms of returns and losses, and the parts that each loss trains."""

import pytest
import torch
from dreamer_support import KINDS, actor_critic, data, dreamer, kinds, moved, windows_for, world
from stage_support import trainer
from torch import nn
from torch.testing import assert_close

from wmlightning.distributions.bounded import OneHot, TanhNormal
from wmlightning.dynamics import RNN, SSM
from wmlightning.dynamics.state import State
from wmlightning.networks.target import TargetNetwork, frozen
from wmlightning.objectives.actor import DynamicsBackprop, Mixed, Reinforce
from wmlightning.stages.actor_critic import ActorCritic, Dream


class Certain:
    """A distribution of which only the mean is used."""

    def __init__(self, mean):
        self.mean = mean


class Script:
    """A world whose features are reward, cont and value."""

    def reward(self, features):
        return Certain(features[..., 0])

    def cont(self, features):
        return Certain(features[..., 1])


class Third(nn.Module):
    """A critic whose value is the third feature, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, features):
        return self.weight * features[..., 2:]


def scripted(reward, cont, value, true_cont=1.0, **options):
    """An actor-critic and a dream of one row in which the heads predict these numbers."""
    states = torch.tensor([reward, cont, value], dtype=torch.float32).T[None]
    horizon = states.shape[1] - 1
    options = {"discount": 0.9, "lambda_": 0.5, "horizon": horizon} | options
    learner = actor_critic("v1", action_size=2, feature_size=3, include_start=True, **options)
    if learner.critic is not None:
        learner.critic = Third()
        learner.target.copy = None
    state = State(torch.zeros(1, horizon + 1, 0), states, states[..., :0])
    policy, action = torch.randn(1, horizon, 4), torch.rand(1, horizon, 2) - 0.5
    return learner, Dream(state, action, policy.requires_grad_(), torch.tensor([true_cont]))


REWARD, VALUE, ONES = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0], [1.0] * 4
RETURNS, WEIGHTS = torch.tensor([24.8725, 33.05, 39.0]), torch.tensor([1.0, 0.9, 0.81])


def test_the_losses_of_a_dream_with_its_start_on_paper():
    """Acceptance numbers for r = 1 2 3 4, v = 10 20 30 40, discount .9, lambda .5."""
    learner, dream = scripted(REWARD, ONES, VALUE)
    behaved = learner.learn(Script(), dream)
    assert_close(behaved.actor_loss, -(WEIGHTS * RETURNS).mean())
    assert_close(behaved.critic_loss, (WEIGHTS * 0.5 * (torch.tensor([10.0, 20.0, 30.0]) - RETURNS).square()).mean())
    assert_close(behaved.metrics["dream/return"], (WEIGHTS * RETURNS).sum() / WEIGHTS.sum())


def test_without_its_start_the_first_term_is_that_of_the_first_dreamt_state():
    """Dreamer V1: the same numbers one state later, whatever the start holds."""
    learner, dream = scripted([77.0, *REWARD], [0.3, *ONES], [99.0, *VALUE])
    learner.include_start = False
    behaved = learner.learn(Script(), dream)
    assert_close(behaved.actor_loss, -(WEIGHTS * RETURNS).mean())


def test_a_return_that_ends_within_the_dream_on_paper():
    learner, dream = scripted(REWARD, [1.0, 0.0, 1.0, 1.0], VALUE)
    returns, weights = torch.tensor([10.9, 2.0, 39.0]), torch.tensor([1.0, 0.9, 0.0])
    assert_close(learner.learn(Script(), dream).actor_loss, -(weights * returns).mean())


def test_reinforce_compares_each_return_with_the_value_of_the_state_where_the_action_was_taken():
    learner, dream = scripted(REWARD, ONES, VALUE, objective=Reinforce())
    log_prob = learner.distribution.log_prob(dream.policy, dream.action)[0]
    better = RETURNS - torch.tensor([10.0, 20.0, 30.0])
    assert_close(learner.learn(Script(), dream).actor_loss, -(WEIGHTS * log_prob * better).mean())


def test_shifted_terms_compare_the_return_of_the_next_state_and_are_one_fewer():
    learner, dream = scripted(REWARD, ONES, VALUE, objective=Reinforce(), shifted=True)
    log_prob = learner.distribution.log_prob(dream.policy, dream.action)[0, :2]
    better = RETURNS[1:] - torch.tensor([10.0, 20.0])
    behaved = learner.learn(Script(), dream)
    assert_close(behaved.actor_loss, -(WEIGHTS[:2] * log_prob * better).mean())
    assert_close(behaved.critic_loss, scripted(REWARD, ONES, VALUE)[0].learn(Script(), dream).critic_loss)


@pytest.mark.parametrize("shifted", [False, True])
def test_only_the_shifted_baseline_is_the_target_critics(shifted):
    learner, dream = scripted(REWARD, ONES, VALUE, objective=Reinforce(), shifted=shifted)
    before = learner.learn(Script(), dream).actor_loss
    learner.target.copy = Third()
    with torch.no_grad():
        learner.critic.weight.fill_(7.0)
    assert torch.equal(learner.learn(Script(), dream).actor_loss, before) is shifted


def test_values_in_returns_are_the_targets():
    learner, dream = scripted(REWARD, ONES, VALUE)
    learner.target.copy = Third()
    with torch.no_grad():
        learner.critic.weight.fill_(7.0)
    assert_close(learner.learn(Script(), dream).metrics["dream/return"], (WEIGHTS * RETURNS).sum() / WEIGHTS.sum())


def test_entropy_has_a_plus_sign_in_what_is_maximised():
    (plain, dream), (curious, _) = scripted(REWARD, ONES, VALUE), scripted(REWARD, ONES, VALUE, entropy=0.5)
    entropy = plain.distribution.entropy(dream.policy)[0]
    less = curious.learn(Script(), dream).actor_loss - plain.learn(Script(), dream).actor_loss
    assert_close(less, -0.5 * (WEIGHTS * entropy).mean())


def test_without_a_critic_a_return_is_the_sum_of_rewards_to_the_horizon():
    learner, dream = scripted(REWARD, ONES, VALUE, has_critic=False)
    behaved = learner.learn(Script(), dream)
    assert_close(behaved.actor_loss, -torch.tensor([10.0, 9.0, 7.0]).mean())
    assert behaved.critic_loss == 0
    assert not [name for name in behaved.metrics if name.startswith("critic")]


@pytest.mark.parametrize("later", [5.0, -5.0])
def test_from_the_end_of_an_episode_only_its_own_reward_is_worth_anything(later):
    """V2: the true flag replaces the prediction; there is no value after the end, and no weight for what is dreamt."""
    learner, dream = scripted([1.0, later, later, later], ONES, VALUE, true_cont=0.0)
    behaved = learner.learn(Script(), dream)
    assert_close(behaved.critic_loss, 0.5 * torch.tensor((10.0 - 1.0) ** 2 / 3))
    assert_close(behaved.actor_loss, torch.tensor(-1.0 / 3))


def test_the_recorded_flag_of_the_start_replaces_the_prediction():
    doubting, sure = (scripted(REWARD, [cont, 1.0, 1.0, 1.0], VALUE) for cont in (0.1, 1.0))
    assert_close(doubting[0].learn(Script(), doubting[1]).actor_loss, sure[0].learn(Script(), sure[1]).actor_loss)


def test_without_their_start_dreams_from_the_end_of_an_episode_count_nothing():
    learner, dream = scripted([0.0, *REWARD], [1.0, *ONES], [0.0, *VALUE], true_cont=0.0)
    learner.include_start = False
    behaved = learner.learn(Script(), dream)
    assert behaved.actor_loss == behaved.critic_loss == 0


def test_where_the_label_holds_the_discount_the_start_holds_it_too():
    learner, dream = scripted(REWARD, [0.5, 0.9, 0.9, 0.9], VALUE, true_cont=0.9, discount=1.0)
    assert_close(learner.learn(Script(), dream).actor_loss, -(WEIGHTS * RETURNS).mean())


# ------------------------------------------------------------------------------------------------------------- dreams


def dreamt(kind="v1", rows=5, model=None, **options):
    """An actor-critic of this kind, its world, starts, its dream from there, and the noise of that."""
    learner = actor_critic(kind, **options)
    size = 3 if learner.distribution.discrete else 2
    model = model or world(kind, size)
    learner.build(size, model.dynamics.feature_size)
    start = model.dynamics.initial(rows).map(torch.randn_like)
    noise = (
        torch.randn(rows, 4, learner.distribution.noise_size(size)),
        torch.randn(rows, 4, model.dynamics.latent.noise_size),
    )
    with frozen(model):
        dream = learner.imagine(model, start, torch.ones(rows), noise)
    return learner, model, start, dream, noise


@pytest.mark.parametrize("kind", KINDS)
def test_an_action_is_taken_at_the_state_of_its_index_and_leads_to_the_next(kind):
    learner, model, start, dream, noise = dreamt(kind)
    assert dream.states.deter.shape[:2] == (5, 5)
    assert dream.action.shape == (5, 4, 3 if learner.distribution.discrete else 2)
    assert_close(dream.states.features[:, 0], start.features)
    for t in range(4):
        features = dream.states.features[:, t]
        assert_close(dream.policy[:, t], learner.actor(features))
        assert_close(dream.action[:, t], learner.distribution.sample(dream.policy[:, t], noise[0][:, t]))
        there = model.dynamics.imagine_step(dream.states[:, t], dream.action[:, t], noise=noise[1][:, t])
        assert_close(dream.states.features[:, t + 1], there.features)


@pytest.mark.parametrize("dynamics", [RNN, SSM])
def test_one_dreams_in_every_design_of_a_world(dynamics):
    learner, model, _, dream, _ = dreamt("v1", model=world("v1", dynamics=dynamics))
    with frozen(model):
        behaved = learner.learn(model, dream)
    assert moved(behaved.actor_loss, learner.actor) is True


def test_a_dream_keeps_its_graph_only_where_the_objective_needs_it():
    for kind in KINDS:
        learner, _, _, dream, _ = dreamt(kind)
        assert dream.states.features.requires_grad is dream.action.requires_grad is learner.objective.through_dynamics
        assert dream.policy.requires_grad


@pytest.mark.parametrize("kind", ["v1", "v2 atari"])
def test_a_dream_can_be_longer_and_follow_the_mode_of_the_policy(kind):
    learner, model, start, _, _ = dreamt(kind)
    with torch.no_grad():
        dream = learner.imagine(model, start, torch.ones(5), horizon=7, sample=False)
    assert dream.action.shape[:2] == (5, 7)
    assert dream.states.deter.shape[:2] == (5, 8)
    for t in range(7):
        assert_close(dream.action[:, t], learner.distribution.mode(learner.actor(dream.states.features[:, t])))


@pytest.mark.parametrize("kind", KINDS)
def test_learning_evaluates_every_head_once_and_the_critic_on_no_state_twice(kind):
    """`returns` is shared with pictures, but costs learning no forward pass that it would not make itself."""
    learner, model, _, dream, _ = dreamt(kind)
    calls = []

    def count(owner, name, label):
        method = getattr(owner, name)
        setattr(owner, name, lambda features, *args: calls.append((label, features.shape[1])) or method(features))

    count(model, "reward", "reward")
    count(model, "cont", "cont")
    count(learner.actor, "forward", "actor")
    terms = 4 if learner.include_start else 3
    wanted = [("reward", terms), ("cont", terms)]
    if learner.critic is None:
        wanted += [("reward", 1)]
    else:
        count(learner.critic, "forward", "critic")
        if learner.target.copy is not None:
            count(learner.target.copy, "forward", "target")
        name = "critic" if learner.target.copy is None else "target"
        wanted += [(name, terms), (name, 1), ("critic", terms)]
    with frozen(model):
        learner.learn(model, dream)
    assert sorted(calls) == sorted(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_returns_with_the_start_are_those_without_it_and_one_more(kind):
    learner, model, _, dream, _ = dreamt(kind)
    with torch.no_grad():
        with_start, without = (learner.returns(model, dream, include_start=flag) for flag in (True, False))
        learned = learner.returns(model, dream)
    assert with_start.returns.shape == (5, 4)
    for name in ("reward", "discount", "returns", "target_value"):
        assert_close(getattr(with_start, name)[:, 1:], getattr(without, name))
    assert torch.equal(learned.returns, (with_start if learner.include_start else without).returns)


def test_a_dream_without_gradients_makes_no_graph():
    with torch.no_grad():
        assert not dreamt("v1")[3].policy.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_trains_its_own_part_alone(kind):
    """The actor by its own loss alone, the critic by its own, the world model and the target by none."""
    learner, model, _, dream, _ = dreamt(kind)
    with frozen(model):
        behaved = learner.learn(model, dream)
    assert moved(behaved.actor_loss, learner.actor) is True
    both = behaved.actor_loss + behaved.critic_loss
    assert moved(both, model) is False
    if learner.critic is not None:
        assert moved(behaved.actor_loss, learner.critic) is False
        assert moved(behaved.critic_loss, learner.critic) is True
        assert behaved.critic_loss.requires_grad
        assert moved(behaved.critic_loss, learner.actor) is False
        if learner.target.copy is not None:
            assert not any(parameter.requires_grad for parameter in learner.target.parameters())


def test_the_gradient_of_the_dynamics_is_the_one_that_is_left_when_actions_are_free():
    """d(-G)/d(actor) goes through states and actions, and not through what the actor reads: that is detached."""
    learner, model, start, dream, noise = dreamt("v1 without a value")
    with frozen(model):
        loss = learner.learn(model, dream).actor_loss
    found = torch.autograd.grad(loss, list(learner.actor.parameters()), retain_graph=True)
    # The same actions from the same, now constant, policy: their gradient, pushed into the actor at each state alone.
    policy = dream.policy.detach().requires_grad_()
    states, actions = [start], []
    for t in range(4):
        actions.append(learner.distribution.sample(policy[:, t], noise[0][:, t]))
        states.append(model.dynamics.imagine_step(states[-1], actions[-1], noise=noise[1][:, t]))
    rewards = torch.stack([model.reward(state.features).mean for state in states], 1)
    own = -torch.stack([rewards[:, t:].sum(1) for t in range(4)], 1).mean()
    assert_close(loss, own)
    pushed = torch.autograd.grad(own, policy)[0]
    again = learner.actor(dream.states.features[:, :-1].detach())
    wanted = torch.autograd.grad(again, list(learner.actor.parameters()), pushed)
    assert_close(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["v1", "v2 atari", "v2 mixed"])
def test_mixed_precision_trains_the_same_parts_by_nearly_the_same_gradients(kind):
    """Autocast keeps half-precision weights: those of a dream without a graph must not be what the actor learns."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        learner, model, start, _, noise = dreamt(kind)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), frozen(model):
            behaved = learner.learn(model, learner.imagine(model, start, torch.ones(5), noise))
        assert moved(behaved.actor_loss + behaved.critic_loss, model) is False
        assert moved(behaved.critic_loss, learner.critic) is moved(behaved.actor_loss, learner.actor) is True
        found.append(torch.autograd.grad(behaved.actor_loss + behaved.critic_loss, list(learner.critic.parameters())))
    assert_close(found[0], found[1], rtol=0.1, atol=0.05)


# ----------------------------------------------------------------------------------------------------------- learning


class Line:
    """A point on a line, moved by its actions; the reward is how near it is to 1. Its own dynamics."""

    class latent:
        noise_size = 1

    def imagine_step(self, state, action, noise=None):
        step = action[:, :1] if action.shape[1] == 1 else action[:, :1] - action[:, 1:]
        return State(state.deter, state.stoch + 0.3 * step, state.params)

    def reward(self, features):
        return Certain(-(features[..., 0] - 1).square())

    def cont(self, features):
        return Certain(torch.ones_like(features[..., 0]))

    dynamics = property(lambda self: self)


@pytest.mark.parametrize(
    "kind", ["v1", "v1 without a value", "v1 discrete", "v2 atari", "v2 atari's code", "v2 dmc", "v2 mixed"]
)
def test_dreams_become_better_by_every_objective(kind):
    learner, size = (
        actor_critic(kind, horizon=6, actor_units=16, discount=0.9, lambda_=0.9),
        1 + kinds()[kind]["actor"].discrete,
    )
    learner.build(size, 1)
    groups = [group | {"lr": 0.03} for group in learner.groups().values()]
    optimizer, returns = torch.optim.AdamW(groups, weight_decay=0.0), []
    for update in range(60):
        if learner.critic is not None:
            learner.target.renew(learner.critic, update)
        start = State(torch.zeros(32, 0), 2 * torch.rand(32, 1) - 1, torch.zeros(32, 0))
        behaved = learner.learn(Line(), dream := learner.imagine(Line(), start, torch.ones(32)))
        optimizer.zero_grad()
        (behaved.actor_loss + behaved.critic_loss).backward()
        optimizer.step()
        returns.append(Line().reward(dream.states.features[:, 1:]).mean.sum(1).mean().item())
    first, last = (sum(part) / 10 for part in (returns[:10], returns[-10:]))
    assert last > 0.6 * first, (first, last)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_parameter_counts_at_the_papers_sizes():
    """Dreamer V1 with six actions; V2 on Atari with eighteen."""
    v1 = ActorCritic(TanhNormal(), DynamicsBackprop(), critic_layers=3, action_size=6, feature_size=230)
    v2 = ActorCritic(OneHot(), Reinforce(), action_size=18, feature_size=1624, target=TargetNetwork())
    counts = [[sum(p.numel() for p in part.parameters()) for part in (one.actor, one.critic)] for one in (v1, v2)]
    assert counts == [[578_412, 413_601], [1_138_418, 1_131_601]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"horizon": 0}, "horizon is 0, which leaves no step"),
        ({"horizon": 1, "include_start": False}, "horizon is 1"),
        ({"lambda_": 1.1}, "lambda_ is 1.1"),
        ({"discount": 0.0}, "discount is 0.0"),
        ({"entropy": -1.0}, "entropy is -1.0"),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate is 0.0"),
        ({"objective": Reinforce(), "has_critic": False}, "Reinforce compares with a critic"),
    ],
)
def test_numbers_and_parts_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as error:
        actor_critic("v1", **options)
    assert "\n" not in str(error.value)


def test_networks_of_other_sizes_are_refused():
    learner = actor_critic("v1", action_size=2, feature_size=230)
    with pytest.raises(ValueError, match=r"made for .*\(2, 230\) but the world model has \(2, 11\)"):
        learner.build(2, 11)


def test_alone_it_refuses_to_train_and_names_the_dreamer(episodes):
    with pytest.raises(ValueError, match="fit a Dreamer, with learn_model=false"):
        trainer(max_steps=1).fit(actor_critic("v1", action_size=2, feature_size=11), data(episodes.path))


def test_every_replayed_state_starts_a_dream():
    agent, seen = dreamer("v2 atari"), []
    imagine = agent.actor_critic.imagine
    agent.actor_critic.imagine = lambda *arguments: seen.append(arguments[1:]) or imagine(*arguments)
    agent.log_dict, batch = lambda *args, **options: None, windows_for(agent, terminal=[(0, 3)])
    agent.training_step(batch, 0)
    start, cont = seen[0]
    assert start.features.shape[0] == 12
    assert not start.features.requires_grad
    assert_close(cont, 0.99 * batch.cont.flatten())


def test_all_reinforce_is_reinforce_though_the_graph_runs_through_the_dynamics():
    """With a share of 1 nothing but ln pi moves the actor: its action must not be a way back (trap 42)."""
    gradients = []
    for objective in (Mixed(1.0), Reinforce()):
        agent = dreamer("v2 mixed", behaviour={"objective": objective, "entropy": 0.0})
        learned = agent.learn_dynamics(windows_for(agent))
        start = learned.posterior.flatten().detach()
        behaviour, latent = agent.actor_critic, agent.world_model.dynamics.latent
        torch.manual_seed(1)
        noise = tuple(
            torch.randn(len(start.stoch), 4, n) for n in (behaviour.distribution.noise_size(2), latent.noise_size)
        )
        with frozen(agent.world_model):
            dream = behaviour.imagine(agent.world_model, start, torch.ones(len(start.stoch)), noise)
            loss = behaviour.learn(agent.world_model, dream).actor_loss
        gradients.append(torch.autograd.grad(loss, list(behaviour.actor.parameters())))
    assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_norm": -1.0},
        {"max_norm": 0.0},
        {"entropy": float("inf")},
        {"actor_learning_rate": float("nan")},
        {"epsilon": -1.0},
        {"decay": 1.0},
        {"actor_units": 0},
        {"actor_layers": -1},
    ],
    ids=str,
)
def test_numbers_that_would_unlearn_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .* but must be"):
        actor_critic("v1", **wrong)


def test_the_shortest_dream_depends_on_what_is_left_out():
    for options, least in (({}, 1), ({"include_start": False}, 2), ({"shifted": True, "include_start": False}, 3)):
        actor_critic("v2 dmc", horizon=least, **options)
        with pytest.raises(ValueError, match=f"give at least {least}"):
            actor_critic("v2 dmc", horizon=least - 1, **options)
